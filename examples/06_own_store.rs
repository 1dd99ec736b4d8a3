//! A store of one's own: whatever can bring a byte range can feed the loader. This one decorates another and keeps a log.
//!
//! Run it with `cargo run --example 06_own_store`.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use farfeed::dataset::Dtype;
use farfeed::memory::Landing;
use farfeed::store::{Appetite, Arrival, MemoryStore, ObjectMeta, ReadRequest, Store, StoreFuture};
use farfeed::{ByteSize, Loader, Result, Tokens};

/// Passes everything on, and remembers which bytes were asked for.
#[derive(Debug)]
struct Logged {
    inner: Arc<dyn Store>,
    log: Arc<Mutex<Vec<Range<u64>>>>,
}

impl Store for Logged {
    /// URLs that begin with it are served by this store.
    fn root(&self) -> &str {
        self.inner.root()
    }

    /// Shorter requests than the inner store's, to have something to see.
    fn appetite(&self) -> Appetite {
        Appetite { request_bytes: 256 << 10, ..self.inner.appetite() }
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        self.inner.head(key)
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        Box::pin(async move {
            // A retry goes on where the last attempt broke off: `filled` bytes are there already.
            let range = request.start + landing.filled() as u64..request.start + landing.len() as u64;
            let arrival = self.inner.read(request, landing).await?;
            self.log.lock().unwrap_or_else(PoisonError::into_inner).push(range);
            Ok(arrival)
        })
    }

    /// Each reactor thread has a store, with connections of its own; the log is shared.
    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        Arc::new(Logged { inner: Arc::clone(&self.inner).per_reactor(), log: Arc::clone(&self.log) })
    }
}

fn main() -> Result<()> {
    let memory = MemoryStore::new();
    memory.put("train.bin", vec![7u8; 4 << 20]);
    let log = Arc::new(Mutex::new(Vec::new()));
    let store = Arc::new(Logged { inner: memory, log: Arc::clone(&log) });

    let loader = Loader::builder("memory:train.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U8, 4096))
        .batch_size(128)
        .host_memory(ByteSize::mib(32))
        .epochs(1)
        .build()?;
    for batch in loader.epoch(0) {
        assert!(batch?.dense("tokens")?.bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 7)));
    }

    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.sort_unstable_by_key(|range| range.start);
    for range in log.iter().take(5) {
        println!("bytes {:>7}..{:>7}  {:>3} KiB", range.start, range.end, (range.end - range.start) >> 10);
    }
    // Each byte once, none twice, none left out.
    let end = log.iter().fold(0, |end, range| {
        assert_eq!(range.start, end);
        range.end
    });
    assert_eq!(end, 4 << 20);
    println!("… {} requests in all: each byte once\n{}", log.len(), loader.stats());
    Ok(())
}
