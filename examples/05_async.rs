//! `next_batch`: batches for a program that is asynchronous already.
//!
//! Run it with `cargo run --example 05_async`.

use std::time::Duration;

use farfeed::dataset::Dtype;
use farfeed::store::{MemoryStore, Throttle, ThrottleStore};
use farfeed::{ByteSize, Loader, Tokens};
use tokio::time::timeout;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = MemoryStore::new();
    memory.put("train.bin", vec![1u8; 200 * 1024 * 4]);
    // A store that takes 20 ms over each request, so that there is something to wait for.
    let slow = Throttle { latency: Duration::from_millis(20), bytes_per_second: 0, requests: 0 };
    let builder = Loader::builder("memory:train.bin")
        .store(ThrottleStore::new(memory, slow))
        .tokens(Tokens::new(Dtype::U32, 1024))
        .batch_size(20)
        .host_memory(ByteSize::mib(32))
        .epochs(2);
    // Building blocks: it reads indexes and headers. An asynchronous program leaves that to a thread for it.
    let loader = tokio::task::spawn_blocking(|| builder.build()).await??;

    // The thread is free while a batch is waited for. A future that is dropped, as by this time-out, loses no batch.
    let impatient = timeout(Duration::from_millis(1), loader.next_batch()).await;
    println!("after 1 ms: {}", if impatient.is_err() { "no batch yet" } else { "a batch already" });

    let mut batches = Vec::new();
    batches.extend(impatient.ok().transpose()?.flatten().map(|batch| (batch.epoch(), batch.index())));
    while let Some(batch) = timeout(Duration::from_secs(10), loader.next_batch()).await?? {
        // On a GPU: `.on(&stream)`, and a kernel may be enqueued here as anywhere. Nothing in it blocks.
        let tokens = batch.view::<u32>("tokens")?;
        assert_eq!(tokens.shape(), [20, 1024]);
        assert!(tokens.as_slice().is_none_or(|tokens| tokens.iter().all(|token| *token == 0x0101_0101)));
        batches.push((batch.epoch(), batch.index()));
    }
    let expected: Vec<(u64, u64)> = (0..2).flat_map(|epoch| (0..10).map(move |index| (epoch, index))).collect();
    assert_eq!(batches, expected, "both epochs in order, nothing lost");
    println!("{} batches of two epochs\n{}", batches.len(), loader.stats());
    Ok(())
}
