use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::dataset::Version;
use crate::fetch::{Completion, Fetch, FetchRead, VersionPin};
use crate::store::{Appetite, ObjectMeta, Store, StoreFuture};

const MS: Duration = Duration::from_millis(1);
const LEN: usize = 200_000;
const SOME: usize = 50_000;

/// Serves in 2 ms, but for one request: silent at first, then a part of its bytes, then nothing any more. Each request's bytes are its
/// number.
#[derive(Debug)]
struct Halting {
    asked: AtomicUsize,
    halts: usize,
}

impl Halting {
    async fn serve(&self, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        route.sent(SocketAddr::from(([127, 0, 0, 1], 80)));
        // What follows the one that halts comes when that has brought its part.
        let wait = match number.checked_sub(self.halts) {
            None => MS * 2,
            Some(0) => MS * 700,
            Some(_) => MS * 1500,
        };
        tokio::time::sleep(wait).await;
        route.answered();
        let bytes = vec![number as u8; landing.remaining()];
        if number == self.halts {
            landing.push(&bytes[..SOME]);
            std::future::pending::<()>().await;
        }
        landing.push(&bytes);
        Ok(Arrival { version: Some(Version("v".into())), first_byte: wait, ..Arrival::default() })
    }
}

impl Store for Halting {
    fn root(&self) -> &str {
        "halting:"
    }

    fn appetite(&self) -> Appetite {
        Appetite { request_bytes: LEN, requests: 1, gap_bytes: 0, alignment: 1 }
    }

    fn head<'a>(&'a self, _: &'a str) -> StoreFuture<'a, ObjectMeta> {
        Box::pin(std::future::ready(Err(Error::new(Kind::Unsupported, "no heads here"))))
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        let _ = request;
        Box::pin(async move { self.serve(landing, &Route::default()).await })
    }

    fn read_by<'a>(
        &'a self,
        _: &'a ReadRequest,
        landing: &'a mut Landing,
        route: &'a Route,
    ) -> StoreFuture<'a, Arrival> {
        Box::pin(self.serve(landing, route))
    }

    fn hedges(&self) -> bool {
        true
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}

/// Reads some of one object, then one more of that or another; gives its bytes, what was counted, and the slab.
fn overtaken(of_another: bool) -> (Vec<u8>, Arc<Telemetry>, Slab) {
    const BEFORE: u64 = 20;
    let store: Arc<dyn Store> = Arc::new(Halting { asked: AtomicUsize::new(0), halts: BEFORE as usize });
    let source =
        |key: &str| Source { store: Arc::clone(&store), key: key.into(), size: None, version: VersionPin::default() };
    let telemetry = Arc::new(Telemetry::new(0));
    let slab = Slab::new(4 * 65_536, 65_536).unwrap();
    let (done, completions) = crossbeam_channel::bounded(1);
    let sources = vec![source("a"), source("b")];
    let fetch = Fetch::start(sources, RetryPolicy::default(), 1, 1, 0, Arc::clone(&telemetry), done).unwrap();
    let mut bytes = Vec::new();
    for id in 0..=BEFORE {
        let landing = Landing::new(slab.take(4).unwrap(), LEN);
        fetch.submit(FetchRead { id, shard: u32::from(of_another && id == BEFORE), start: 0, landing }).unwrap();
        let Completion { result, .. } = completions.recv_timeout(Duration::from_secs(30)).unwrap();
        bytes = result.unwrap().slices(0, LEN).collect::<Vec<_>>().concat();
    }
    (bytes, telemetry, slab)
}

#[test]
fn what_the_first_one_brought_is_kept_when_the_version_is_known() {
    let (bytes, telemetry, slab) = overtaken(false);
    assert!(bytes[..SOME].iter().all(|byte| *byte == 20) && bytes[SOME..].iter().all(|byte| *byte == 21));
    let stats = telemetry.stats();
    assert_eq!((stats.hedges, stats.hedges_won, stats.bytes_wasted, stats.retries), (1, 1, SOME as u64, 0));
    assert!(stats.to_string().ends_with(", 1 hedged (1 won, 0.1 MB twice)"), "{stats}");
    assert_eq!(slab.usage().free, 4);
}

#[test]
fn bytes_of_two_answers_are_not_mixed_before_a_version_is_known() {
    let (bytes, telemetry, slab) = overtaken(true);
    assert!(bytes.iter().all(|byte| *byte == 21), "{} bytes of the first", bytes.iter().filter(|b| **b == 20).count());
    assert_eq!(telemetry.stats().hedges_won, 1);
    assert_eq!(slab.usage().free, 4);
}
