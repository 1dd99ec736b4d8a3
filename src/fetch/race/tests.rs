use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::dataset::Version;
use crate::fetch::{Completion, Fetch, FetchRead, VersionPin};
use crate::store::{Appetite, ObjectMeta, Store, StoreFuture};

const MS: Duration = Duration::from_millis(1);
const LEN: usize = 200_000;
const SOME: usize = 50_000;

/// What a store does with a request.
#[derive(Clone, Copy, Debug)]
enum Reply {
    /// All of it after so long.
    After(Duration),
    /// After so long a part, then nothing any more.
    Halts(Duration),
    Refused,
}

/// Answers its requests as the script says, by number. Each request's bytes are its number.
#[derive(Debug)]
struct Scripted {
    asked: AtomicUsize,
    script: fn(usize) -> Reply,
}

impl Scripted {
    async fn serve(&self, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        route.sent(SocketAddr::from(([127, 0, 0, 1], 80)));
        let bytes = vec![number as u8; landing.remaining()];
        let wait = match (self.script)(number) {
            Reply::Refused => return Err(Error::new(Kind::Throttled, "busy").transient()),
            Reply::Halts(wait) => {
                tokio::time::sleep(wait).await;
                route.answered();
                landing.push(&bytes[..SOME]);
                std::future::pending().await
            }
            Reply::After(wait) => wait,
        };
        tokio::time::sleep(wait).await;
        route.answered();
        landing.push(&bytes);
        Ok(Arrival { version: Some(Version("v".into())), first_byte: wait, ..Arrival::default() })
    }
}

impl Store for Scripted {
    fn root(&self) -> &str {
        "scripted:"
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

/// Requests that are served in time, in 2 ms, before one that is not.
const BEFORE: usize = 20;

/// Reads some of one object, then one more of that or another; gives its bytes, what was counted, and the slab.
fn overtaken(of_another: bool, script: fn(usize) -> Reply) -> (Vec<u8>, Arc<Telemetry>, Slab) {
    let store: Arc<dyn Store> = Arc::new(Scripted { asked: AtomicUsize::new(0), script });
    let source =
        |key: &str| Source { store: Arc::clone(&store), key: key.into(), size: None, version: VersionPin::default() };
    let telemetry = Arc::new(Telemetry::new(0));
    let slab = Slab::new(4 * 65_536, 65_536).unwrap();
    let (done, completions) = crossbeam_channel::bounded(1);
    let sources = vec![source("a"), source("b")];
    let fetch = Fetch::start(sources, RetryPolicy::default(), 1, 1, 0, Arc::clone(&telemetry), done).unwrap();
    let mut bytes = Vec::new();
    for id in 0..=BEFORE as u64 {
        let landing = Landing::new(slab.take(4).unwrap(), LEN);
        fetch.submit(FetchRead { id, shard: u32::from(of_another && id == BEFORE as u64), start: 0, landing }).unwrap();
        let Completion { result, .. } = completions.recv_timeout(Duration::from_secs(30)).unwrap();
        bytes = result.unwrap().slices(0, LEN).collect::<Vec<_>>().concat();
    }
    (bytes, telemetry, slab)
}

/// One is silent at first, then brings a part; what follows it comes when that has come.
fn halts(number: usize) -> Reply {
    match number {
        BEFORE => Reply::Halts(MS * 700),
        ..BEFORE => Reply::After(MS * 2),
        _ => Reply::After(MS * 1500),
    }
}

#[test]
fn what_the_first_one_brought_is_kept_when_the_version_is_known() {
    let (bytes, telemetry, slab) = overtaken(false, halts);
    let (first, second) = bytes.split_at(SOME);
    assert!(first.iter().all(|byte| *byte == 20));
    // Two parts of two pages at the most.
    assert!(second[..2 * 65_536 - SOME].iter().all(|byte| *byte == 21));
    assert!(second[2 * 65_536 - SOME..].iter().all(|byte| *byte == 22));
    let stats = telemetry.stats();
    assert_eq!((stats.hedges, stats.hedges_won, stats.bytes_wasted, stats.retries), (1, 1, SOME as u64, 0));
    assert!(stats.to_string().ends_with(", 1 hedged (1 won, 0.1 MB twice)"), "{stats}");
    assert_eq!(slab.usage().free, 4);
}

#[test]
fn bytes_of_two_answers_are_not_mixed_before_a_version_is_known() {
    let (bytes, telemetry, slab) = overtaken(true, halts);
    assert!(bytes.iter().all(|byte| *byte == 21), "{} bytes of the first", bytes.iter().filter(|b| **b == 20).count());
    assert_eq!(telemetry.stats().hedges_won, 1);
    assert_eq!(slab.usage().free, 4);
}

/// One in a hundred is late, and so may a part of what overtakes it be.
#[test]
fn a_part_that_is_late_in_its_turn_is_asked_for_again() {
    let (bytes, telemetry, slab) = overtaken(false, |number| match number {
        20 | 22 => Reply::After(Duration::from_secs(3600)),
        _ => Reply::After(MS * 2),
    });
    assert!(bytes[..2 * 65_536].iter().all(|byte| *byte == 21));
    assert!(bytes[2 * 65_536..].iter().all(|byte| *byte == 23));
    let stats = telemetry.stats();
    assert_eq!((stats.hedges, stats.hedges_won, stats.retries, stats.timed_out), (1, 1, 0, 0));
    assert_eq!(slab.usage().free, 4);
}

#[test]
fn a_refusal_of_a_second_request_counts() {
    let (bytes, telemetry, slab) = overtaken(false, |number| match number {
        20 => Reply::After(MS * 1500),
        21.. => Reply::Refused,
        _ => Reply::After(MS * 2),
    });
    assert!(bytes.iter().all(|byte| *byte == 20));
    let stats = telemetry.stats();
    assert_eq!((stats.hedges, stats.hedges_won, stats.throttled, stats.retries), (1, 0, 1, 0));
    assert_eq!(slab.usage().free, 4);
}
