//! Batches used and let go of in every way that is allowed, for some seconds: whatever the streams do, the bytes must be right.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use farfeed::dataset::Dtype;
use farfeed::device::measure::{Apparatus, Effort, Finding, Mark, Product, Tally, digest};
use farfeed::device::{Device, RawStream};
use farfeed::order::Shuffle;
use farfeed::store::MemoryStore;
use farfeed::{Batch, ByteSize, Loader, Result, Tokens};

use super::epoch::{assembled, words, wrong};

const PART: &str = "lifetimes";

const TOKENS: usize = 10_001;
const SAMPLE_BYTES: usize = 2 * TOKENS;
const SAMPLES: usize = 1_000;
const BATCH: u32 = 24;

const STREAMS: usize = 3;

/// Uses batches until the time is over, and compares what the device saw with what it should have seen: at the end, and whenever so many digests as
/// there is room for have come together.
pub(crate) fn lifetimes(device: &Device, effort: &Effort, (time, room): (Duration, usize)) -> Result<Vec<Finding>> {
    let bytes = words(SAMPLES * SAMPLE_BYTES);
    let store = MemoryStore::new();
    store.put("train.bin", bytes.clone());
    let loader = Loader::builder("memory:train.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, TOKENS))
        .batch_size(BATCH)
        .shuffle(Shuffle::window(200).seed(11))
        .host_memory(ByteSize::mib(32))
        .epochs(u64::MAX)
        .device(device.clone())
        .build()?;
    let mut user = User::new(device, effort, room)?;
    let deadline = Instant::now() + time;
    let mut batches = 0;
    'epochs: for epoch in 0.. {
        for batch in loader.epoch(epoch) {
            user.take(batch?)?;
            batches += 1;
            // Each way at least twice, however short the time is.
            if Instant::now() > deadline && batches >= 2 * WAYS {
                break 'epochs;
            }
            if user.wanted.len() + 2 > room {
                user.check(&bytes)?;
            }
        }
    }
    user.held.clear();
    user.check(&bytes)?;
    user.products.iter().try_for_each(Product::check)?;
    let name = "batches used in several streams, released on others";
    let detail = "waited for by one or two streams or the host, held back by others, kept, dropped elsewhere; every digest right";
    Ok(vec![
        Finding::new(PART, name, batches as f64, "batches").detail(detail),
        Finding::new(PART, "digests compared", user.compared as f64, ""),
    ])
}

/// Ways to use a batch.
const WAYS: usize = 6;

/// Kernels in three streams, and what they should find.
struct User {
    apparatus: Apparatus,
    streams: Vec<RawStream>,
    /// One for each stream: something to be late with.
    products: Vec<Product>,
    tally: Tally,
    /// The samples that each digest is of.
    wanted: Vec<Vec<u64>>,
    /// Digests that were right.
    compared: usize,
    taken: usize,
    held: VecDeque<Batch>,
}

impl User {
    fn new(device: &Device, effort: &Effort, room: usize) -> Result<User> {
        let apparatus = Apparatus::open(device)?;
        let streams = (0..STREAMS).map(|_| apparatus.stream()).collect::<Result<Vec<_>>>()?;
        // Small: they are to be late by a fraction of a millisecond.
        let products = streams.iter().map(|_| Product::new(&apparatus, effort.matrix.min(1024)));
        let products = products.collect::<Result<Vec<_>>>()?;
        let tally = Tally::new(&apparatus, room)?;
        let (wanted, held) = (Vec::new(), VecDeque::new());
        Ok(User { apparatus, streams, products, tally, wanted, compared: 0, taken: 0, held })
    }

    /// Uses the batch in one of the ways, in turn.
    fn take(&mut self, batch: Batch) -> Result<()> {
        let stream = |number: usize| self.streams[number].clone();
        let (first, second, third) = (stream(0), stream(1), stream(2));
        let way = self.taken % WAYS;
        self.taken += 1;
        // One that was kept lets go here, a batch later.
        if way != 5 {
            self.held.pop_front();
        }
        match way {
            // As most do: one stream, then dropped.
            0 => {
                batch.wait_on(first.clone())?;
                self.digest(&batch, &first)
            }
            // Two streams at once; dropping it knows of both.
            1 => {
                batch.wait_on(first.clone())?;
                batch.wait_on(second.clone())?;
                self.late(1)?;
                self.digest(&batch, &first)?;
                self.digest(&batch, &second)
            }
            // A slow consumer, which says where it is done.
            2 => {
                batch.wait_on(first.clone())?;
                self.late(0)?;
                self.digest(&batch, &first)?;
                batch.release(first)
            }
            // One stream waits, another goes on behind it and lets go.
            3 => {
                batch.wait_on(first.clone())?;
                self.digest(&batch, &first)?;
                Mark::at(&self.apparatus, &first)?.hold_back(&second)?;
                self.late(1)?;
                self.digest(&batch, &second)?;
                batch.release(second)
            }
            // The host waits, and a stream that was never told of the batch uses it.
            4 => {
                batch.synchronize()?;
                self.late(2)?;
                self.digest(&batch, &third)?;
                batch.release(third)
            }
            // Kept while the next one is taken, then dropped on another thread.
            _ => {
                batch.wait_on(third.clone())?;
                self.late(2)?;
                self.digest(&batch, &third)?;
                self.held.push_back(batch);
                if self.taken.is_multiple_of(2 * WAYS)
                    && let Some(batch) = self.held.pop_front()
                {
                    let thread = std::thread::spawn(move || drop(batch));
                    thread.join().map_err(|_| wrong("a batch could not be dropped on another thread".into()))?;
                }
                Ok(())
            }
        }
    }

    fn digest(&mut self, batch: &Batch, stream: &RawStream) -> Result<()> {
        batch.tally("tokens", &self.apparatus, stream, &mut self.tally, self.wanted.len())?;
        self.wanted.push(batch.ids().to_vec());
        Ok(())
    }

    /// Has stream `number` do something else first.
    fn late(&mut self, number: usize) -> Result<()> {
        self.products[number].launch(&self.apparatus, &self.streams[number], 1)
    }

    /// Compares, and has room again.
    fn check(&mut self, bytes: &[u8]) -> Result<()> {
        let found = self.tally.read()?;
        for (number, (ids, found)) in self.wanted.iter().zip(found).enumerate() {
            let wanted = digest(&assembled(bytes, SAMPLE_BYTES, ids));
            if wanted != found {
                return Err(wrong(format!("digest {number} is {found:#x} on the device, not {wanted:#x}")));
            }
        }
        self.tally = Tally::new(&self.apparatus, self.tally.places())?;
        self.compared += self.wanted.len();
        self.wanted.clear();
        Ok(())
    }
}
