//! What every store does, whatever it stands on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::dataset::Version;
use farfeed::memory::{Landing, Slab};
use farfeed::store::{Arrival, ReadRequest, Store};
use farfeed::{Kind, Result};

const PAGE_BYTES: usize = 64 << 10;
const PAGES: usize = 256;
/// No multiple of a page, a block or a turn.
const OBJECT_BYTES: usize = 3_000_017;
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench<'a> {
    store: Arc<dyn Store>,
    put: &'a dyn Fn(&str, &[u8]) -> String,
    slab: Slab,
}

/// Runs the suite. `put` makes or replaces the object of that name (it may have slashes) and gives the key to read it.
///
/// # Panics
/// On the first thing that the store does otherwise.
pub(crate) fn suite(store: Arc<dyn Store>, put: impl Fn(&str, &[u8]) -> String) {
    let slab = Slab::new(PAGES * PAGE_BYTES, PAGE_BYTES).unwrap();
    let bench = Bench { store, put: &put, slab };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let checks = async {
            bench.ranges().await;
            bench.empty_object().await;
            bench.errors().await;
            bench.changed().await;
            bench.resumed().await;
            bench.many_at_once().await;
            bench.dropped_in_flight().await;
            bench.listing().await;
        };
        tokio::time::timeout(PATIENCE, checks).await.expect("the suite ends in time");
    });
    assert_eq!(bench.slab.usage().free, PAGES, "all pages are back");
}

/// Bytes that tell their place: no two blocks of an object are alike, and other seeds give other objects.
fn content(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn request(key: &str, start: u64) -> ReadRequest {
    ReadRequest { key: key.into(), start, size: None, version: None }
}

impl Bench<'_> {
    /// Room as the schedule gives it: for the bytes, and to widen at both ends.
    fn landing(&self, len: usize) -> Landing {
        let room = len + 2 * self.store.appetite().alignment;
        Landing::new(self.slab.take(room.div_ceil(PAGE_BYTES)).expect("pages are free"), len)
    }

    async fn read(&self, request: &ReadRequest, len: usize) -> Result<(Vec<u8>, Arrival)> {
        let mut landing = self.landing(len);
        let arrival = self.store.read(request, &mut landing).await?;
        assert_eq!(landing.filled(), len, "a read that succeeds is complete");
        Ok((landing.landed().unwrap().slices(0, len).collect::<Vec<_>>().concat(), arrival))
    }

    async fn ranges(&self) {
        let bytes = content(1, OBJECT_BYTES);
        let key = (self.put)("ranges", &bytes);
        let meta = self.store.head(&key).await.unwrap();
        assert_eq!(meta.size, OBJECT_BYTES as u64);
        let ends = |from: usize, len: usize| (from, len);
        for (from, len) in [
            ends(0, 1),
            ends(OBJECT_BYTES / 2, 1),
            ends(OBJECT_BYTES - 1, 1),
            ends(0, 4096),
            ends(4096, 8192),
            ends(4095, 2),
            ends(511, 70_000),
            ends(OBJECT_BYTES - 70_001, 70_001),
            ends(PAGE_BYTES - 1, PAGE_BYTES + 2),
            ends(0, OBJECT_BYTES),
            ends(1, OBJECT_BYTES - 1),
        ] {
            let mut request = request(&key, from as u64);
            (request.size, request.version) = (Some(meta.size), meta.version.clone());
            let (got, arrival) = self.read(&request, len).await.unwrap();
            assert!(got == bytes[from..from + len], "bytes {from}..{} of {}", from + len, self.store.root());
            assert_eq!(arrival.version, meta.version, "head and read tell the same version");
        }
        self.without_room_to_widen(&key, &bytes).await;
    }

    /// Pages that hold the payload and no more: slower perhaps, wrong never.
    async fn without_room_to_widen(&self, key: &str, bytes: &[u8]) {
        for from in [0, 1, 4097] {
            let mut landing = Landing::new(self.slab.take(2).unwrap(), 2 * PAGE_BYTES);
            self.store.read(&request(key, from as u64), &mut landing).await.unwrap();
            let got = landing.landed().unwrap().slices(0, 2 * PAGE_BYTES).collect::<Vec<_>>().concat();
            assert!(got == bytes[from..from + 2 * PAGE_BYTES], "from {from} without room");
        }
    }

    async fn empty_object(&self) {
        let key = (self.put)("empty", b"");
        assert_eq!(self.store.head(&key).await.unwrap().size, 0);
        let error = self.read(&request(&key, 0), 1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }

    async fn errors(&self) {
        let bytes = content(2, 10_000);
        let key = (self.put)("errors", &bytes);
        for (start, len) in [(9_999, 2), (10_000, 1), (0, 10_001), (1 << 40, 5)] {
            let error = self.read(&request(&key, start), len).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{start}+{len}: {error}");
            assert!(error.to_string().contains("errors"), "it names the object: {error}");
        }
        // No object has such bytes: whether they are looked for or refused at once is the store's business.
        let absurd = self.read(&request(&key, u64::MAX - 1), 5).await.unwrap_err();
        assert!(matches!(absurd.kind(), Kind::Corrupt | Kind::Config), "{absurd}");
        let other_size = ReadRequest { size: Some(10_001), ..request(&key, 0) };
        assert_eq!(self.read(&other_size, 10).await.unwrap_err().kind(), Kind::Corrupt);
        let missing = format!("{key}-missing");
        assert_eq!(self.read(&request(&missing, 0), 10).await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(self.store.head(&missing).await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(self.slab.usage().free, PAGES, "a read that fails keeps no pages");
    }

    /// The object is replaced between two reads that belong together.
    async fn changed(&self) {
        let (old, new) = (content(3, 200_000), content(4, 200_000));
        let key = (self.put)("changed", &old);
        let (got, arrival) = self.read(&request(&key, 5), 1000).await.unwrap();
        assert!(got == old[5..1005]);
        let Some(version) = arrival.version else { return };
        // Coarse clocks of older file systems tick every 10 ms.
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!((self.put)("changed", &new), key);
        let expecting = ReadRequest { version: Some(version.clone()), ..request(&key, 5) };
        let error = self.read(&expecting, 1000).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        let (got, arrival) = self.read(&request(&key, 5), 1000).await.unwrap();
        assert!(got == new[5..1005], "whoever expects nothing gets what is there now");
        assert_ne!(arrival.version, Some(version));
        let never = ReadRequest { version: Some(Version("never".into())), ..request(&key, 5) };
        assert_eq!(self.read(&never, 1000).await.unwrap_err().kind(), Kind::Corrupt);
    }

    /// A landing that has some bytes already is gone on with, at any byte.
    async fn resumed(&self) {
        let bytes = content(5, 500_000);
        let key = (self.put)("resumed", &bytes);
        for (start, first, len) in
            [(0, 1, 300_000), (777, 4096, 300_000), (4096, 65_536, 200_000), (13, 131_059, 131_072)]
        {
            let mut landing = self.landing(len);
            let mut part = landing.shorten(first);
            self.store.read(&request(&key, start), &mut part).await.unwrap();
            landing.rejoin(part);
            assert_eq!(landing.filled(), first);
            self.store.read(&request(&key, start), &mut landing).await.unwrap();
            let got = landing.landed().unwrap().slices(0, len).collect::<Vec<_>>().concat();
            assert!(got == bytes[start as usize..start as usize + len], "{start}, {first} bytes before");
        }
    }

    async fn many_at_once(&self) {
        let bytes: Arc<[u8]> = content(6, OBJECT_BYTES).into();
        let key = (self.put)("many", &bytes);
        let mut seed = 12_345u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..4 {
            let mut reads = tokio::task::JoinSet::new();
            for _ in 0..64 {
                let len = 1 + next(2 * PAGE_BYTES as u64) as usize;
                let start = next((OBJECT_BYTES - len + 1) as u64);
                let (store, bytes, request) = (Arc::clone(&self.store), Arc::clone(&bytes), request(&key, start));
                let mut landing = self.landing(len);
                reads.spawn(async move {
                    store.read(&request, &mut landing).await.unwrap();
                    let got = landing.landed().unwrap().slices(0, len).collect::<Vec<_>>().concat();
                    assert!(got == bytes[start as usize..start as usize + len], "{len} bytes from {start}");
                });
            }
            while let Some(read) = reads.join_next().await {
                read.unwrap();
            }
        }
    }

    /// Dropped reads give all pages back, and write to none of them afterwards.
    async fn dropped_in_flight(&self) {
        let bytes = content(7, OBJECT_BYTES);
        let key = (self.put)("dropped", &bytes);
        for round in 0..8u32 {
            let requests: Vec<_> = (0..32).map(|i| request(&key, i * 70_001)).collect();
            let mut landings: Vec<_> = (0..32).map(|_| self.landing(6 * PAGE_BYTES)).collect();
            let mut reads: Vec<_> = std::iter::zip(&requests, &mut landings)
                .map(|(request, landing)| self.store.read(request, landing))
                .collect();
            for read in &mut reads {
                // Polls it, and leaves it after a time that differs from round to round.
                let _ = tokio::time::timeout(Duration::from_micros(u64::from(round) * 100), read).await;
            }
            drop(reads);
            drop(landings);
            let deadline = Instant::now() + Duration::from_secs(20);
            while self.slab.usage().free < PAGES {
                assert!(Instant::now() < deadline, "pages did not come back: {:?}", self.slab.usage());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut pages = self.slab.take(PAGES).unwrap();
            pages.iter_mut().for_each(|page| page.fill(round as u8));
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(pages.iter().all(|page| page.iter().all(|byte| *byte == round as u8)), "a page in use was written");
        }
        let (got, _) = self.read(&request(&key, 3), 100_000).await.unwrap();
        assert!(got == bytes[3..100_003], "the store still works");
    }

    async fn listing(&self) {
        let keys = ["list/b", "list/a", "list/a-1"].map(|name| (self.put)(name, &content(8, name.len())));
        let prefix = keys[0].strip_suffix('b').expect("a key ends with the name of its object");
        match self.store.list(prefix).await {
            Err(error) => assert_eq!(error.kind(), Kind::Unsupported, "{error}"),
            Ok(found) => {
                let found: Vec<_> = found.into_iter().map(|entry| (entry.key, entry.size)).collect();
                let wanted: Vec<_> =
                    [1, 2, 0].map(|i| (keys[i].clone(), ["list/b", "list/a", "list/a-1"][i].len() as u64)).into();
                assert_eq!(found, wanted);
                assert!(self.store.list(&format!("{prefix}none")).await.unwrap().is_empty());
            }
        }
    }
}
