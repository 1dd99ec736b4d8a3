use std::sync::atomic::AtomicUsize;

use super::*;
use crate::store::{Appetite, Arrival, ReadRequest, Store};

const MS: Duration = Duration::from_millis(1);

/// Keys are numbers: the higher, the sooner its answer; what it is, the key's letter says.
#[derive(Debug, Default)]
struct Backwards {
    asked: AtomicUsize,
}

impl Backwards {
    async fn answer(&self, key: &str) -> Result<ObjectMeta> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (kind, number) = key.split_at(1);
        let number: u32 = number.parse().unwrap();
        tokio::time::sleep(MS * (40 - 2 * number.min(20))).await;
        match kind {
            "m" => Err(Error::new(Kind::NotFound, format!("{key}: missing"))),
            "d" => Err(Error::new(Kind::Auth, format!("{key}: denied"))),
            "h" => std::future::pending().await,
            _ => Ok(ObjectMeta { size: number.into(), version: None }),
        }
    }
}

impl Store for Backwards {
    fn root(&self) -> &str {
        "backwards:"
    }

    fn appetite(&self) -> Appetite {
        Appetite { request_bytes: 1 << 20, requests: 1, gap_bytes: 0, alignment: 1 }
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        Box::pin(self.answer(key))
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        Box::pin(async move {
            self.answer(&request.key).await?;
            landing.push(&vec![7; landing.remaining()]);
            Ok(Arrival::default())
        })
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}

fn sources(store: &Arc<Backwards>, kinds: impl IntoIterator<Item = char>) -> Vec<Source> {
    let source = |(number, kind)| Source {
        store: Arc::clone(store) as Arc<dyn Store>,
        key: format!("{kind}{number}").into(),
        size: None,
        version: Default::default(),
    };
    kinds.into_iter().enumerate().map(source).collect()
}

#[test]
fn of_several_that_fail_the_first_in_order_is_told() {
    let policy = RetryPolicy::default();
    for (kinds, kind, first) in [
        ("....m..d.m", Kind::NotFound, "m4"),
        ("d........m", Kind::Auth, "d0"),
        (".........m", Kind::NotFound, "m9"),
        ("mmmmmmmmmm", Kind::NotFound, "m0"),
    ] {
        let sources = sources(&Arc::default(), kinds.chars());
        let error = heads(&sources, policy).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(first), "{kinds}: {error}");
        let error = stream(sources, &[10; 10], policy, &Arc::new(Telemetry::new(0)), |_, _, _| Ok(())).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(first), "{kinds}: {error}");
    }
}

#[test]
fn answers_are_in_order_and_not_one_after_the_other() {
    let store = Arc::<Backwards>::default();
    let began = Instant::now();
    let metas = heads(&sources(&store, ".".repeat(LOOKUPS_IN_FLIGHT).chars()), RetryPolicy::default()).unwrap();
    assert_eq!(
        metas.iter().map(|meta| meta.size).collect::<Vec<_>>(),
        (0..LOOKUPS_IN_FLIGHT as u64).collect::<Vec<_>>()
    );
    let one_by_one: Duration = (0..LOOKUPS_IN_FLIGHT as u32).map(|number| MS * (40 - 2 * number.min(20))).sum();
    assert!(began.elapsed() < one_by_one, "{:?}", began.elapsed());
}

#[test]
fn one_that_hangs_before_a_failure_is_not_waited_for_without_end() {
    let store = Arc::<Backwards>::default();
    let began = Instant::now();
    let kinds = "h.m".chars().chain(std::iter::repeat_n('.', 1000));
    let error = heads(&sources(&store, kinds), RetryPolicy::default()).unwrap_err();
    assert!(error.to_string().contains("m2"), "{error}");
    let took = began.elapsed();
    assert!(took >= BEFORE_A_FAILURE && took < RetryPolicy::default().idle, "{took:?}");
    let asked = store.asked.load(Ordering::Relaxed);
    assert!(asked < 1000, "{asked} were asked, though the third was not there");
}
