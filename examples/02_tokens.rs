//! Tokens for a language model: batches of `[B, T + 1]`, inputs and targets in one.
//!
//! Run it with `cargo run --example 02_tokens`.

use farfeed::dataset::Dtype;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Loader, Tokens};

const BATCH: usize = 8;
const TOKENS: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A file of uint16 without a header, as nanoGPT and others write it. Here token n is n modulo 50,000.
    let directory = tempfile::tempdir()?;
    let tokens: Vec<u16> = (0..1_000_000u32).map(|n| (n % 50_000) as u16).collect();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let path = directory.path().join("train.bin");
    std::fs::write(&path, bytes)?;

    let loader = Loader::builder(path.to_string_lossy())
        .tokens(Tokens::new(Dtype::U16, TOKENS).with_next())
        .batch_size(BATCH as u32)
        .shuffle(Shuffle::window(1_000).seed(1))
        .block_size(ByteSize::mib(1))
        .host_memory(ByteSize::mib(64))
        .drop_last(true)
        .epochs(1)
        .build()?;
    println!("{}\n", loader.plan());

    let mut batches = 0;
    for batch in loader.epoch(0) {
        let batch = batch?;
        let column = batch.dense("tokens")?;
        assert_eq!((column.dtype, column.shape), (Dtype::U16, &[BATCH, TOKENS + 1][..]));
        let elements: Vec<u16> = column
            .bytes
            .unwrap_or_default() // On a GPU: column.pointer.
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .collect();
        for (row, id) in elements.chunks_exact(TOKENS + 1).zip(batch.ids()) {
            let (inputs, targets) = (&row[..TOKENS], &row[1..]);
            let first = *id as usize * TOKENS;
            assert_eq!((inputs, targets), (&tokens[first..first + TOKENS], &tokens[first + 1..first + TOKENS + 1]));
        }
        if batch.index() < 5 {
            println!("batch {}: {:?}, samples {:?}", batch.index(), column.shape, batch.ids());
        }
        batches += 1;
    }
    assert_eq!(batches, loader.batches_per_epoch());
    println!("… {batches} batches in all\n\n{}", loader.stats());
    Ok(())
}
