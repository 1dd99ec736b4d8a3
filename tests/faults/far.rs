//! The emulated server far away, and what stands in front of it.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Server, Site};
use farfeed::fetch::{Hedge, RetryPolicy};
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::store::{HttpOptions, HttpStore, ObjectOptions, ObjectStore, Store};
use farfeed::telemetry::Stats;
use farfeed::{ByteSize, Field, Loader};

use crate::leftovers::Before;
use crate::shards::{self, WebDataset};
use crate::terminator::Terminator;

/// 4 MB in 160 samples.
pub(crate) static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(4, 40, 25_000));
pub(crate) const AT_ONCE: Duration = Duration::from_secs(2);
pub(crate) const EVER: Duration = Duration::from_secs(3600);
/// What a busy machine may add to a deadline.
pub(crate) const LATE: Duration = Duration::from_secs(3);

pub(crate) const PATIENT: RetryPolicy = RetryPolicy {
    patience: Duration::from_secs(15),
    idle: Duration::from_millis(400),
    rate_min: 16 << 10,
    hedge: Hedge::per_mille(20),
    pause_min: Duration::from_millis(2),
    pause_max: Duration::from_millis(100),
};
pub(crate) const IMPATIENT: RetryPolicy = RetryPolicy { patience: Duration::from_millis(800), ..PATIENT };

/// How clients reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Http,
    Https,
    S3,
}

/// A server with the data set, two milliseconds away.
pub(crate) struct Far {
    pub(crate) server: Server,
    front: Front,
    terminator: Option<Terminator>,
}

impl Far {
    pub(crate) fn start(front: Front) -> Self {
        let site = DATASET.site();
        Far::serving(front, Site::objects(site), Faults::none())
    }

    pub(crate) fn serving(front: Front, site: Site, faults: Faults) -> Self {
        let link = Link { rtt: Duration::from_millis(2), ..Link::default() };
        let server = Server::start(site, link, faults).unwrap();
        let terminator = (front == Front::Https).then(|| Terminator::start(&[server.address()]));
        Far { server, front, terminator }
    }

    /// The same at four addresses, which clients know by one name.
    pub(crate) fn farm(front: Front) -> Self {
        let link = Link { rtt: Duration::from_millis(2), ..Link::default() };
        let addresses = [1, 2, 3, 4].map(|host| SocketAddr::from(([127, 0, 0, host], 0)));
        let server = Server::bind_all(&addresses, Site::objects(DATASET.site()), link, Faults::none()).unwrap();
        let terminator = (front == Front::Https).then(|| Terminator::start(&server.addresses()));
        Far { server, front, terminator }
    }

    pub(crate) fn farm_options(&self) -> LoaderBuilder {
        let addresses = self.terminator.as_ref().map_or_else(|| self.server.addresses(), Terminator::addresses);
        let mut http = HttpOptions { resolve: vec![("farm.test".to_owned(), addresses)], ..HttpOptions::default() };
        http.tls.ca_bundle = self.terminator.as_ref().map(Terminator::ca_bundle);
        let (pattern, store): (_, Arc<dyn Store>) = match self.front {
            Front::Http => ("http://farm.test/", HttpStore::open("http://farm.test/", http).unwrap()),
            Front::Https => ("https://farm.test/", HttpStore::open("https://farm.test/", http).unwrap()),
            Front::S3 => {
                let options = ObjectOptions::default().http(http).endpoint("http://farm.test").region("eu-far-1");
                let options = options.set("allow_http", "true").anonymous();
                ("s3://", ObjectStore::open("s3://data", options).unwrap())
            }
        };
        usual(Loader::builder(DATASET.pattern(pattern)).store(store))
    }

    pub(crate) fn options(&self) -> LoaderBuilder {
        let options = match (self.front, &self.terminator) {
            (Front::Https, Some(terminator)) => {
                Loader::builder(DATASET.pattern(&format!("{}/", terminator.url()))).ca_bundle(terminator.ca_bundle())
            }
            // The bucket is called as the directory that the shards lie in.
            (Front::S3, _) => Loader::builder(DATASET.pattern("s3://"))
                .store_option("endpoint", self.server.url())
                .store_option("allow_http", "true")
                .store_option("region", "eu-far-1")
                .store_option("access_key_id", "AKIAFAR")
                .store_option("secret_access_key", "a secret that nobody checks here"),
            _ => Loader::builder(DATASET.pattern(&format!("{}/", self.server.url()))),
        };
        usual(options)
    }
}

fn usual(options: LoaderBuilder) -> LoaderBuilder {
    options
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .block_size(ByteSize::bytes(200_000))
        .shuffle(Shuffle::window(60).seed(4))
        .host_memory(ByteSize::mib(16))
        .requests(8)
        .retry(PATIENT)
        .patience(Duration::from_secs(30))
        .epochs(1)
}

/// Builds a loader, lets the trouble begin, and reads the epoch, every byte of it; gives what the loader counted. Afterwards nothing is left.
pub(crate) fn survives(front: Front, begin: impl FnOnce(&Server)) -> Stats {
    let before = Before::look();
    let far = Far::start(front);
    let loader = far.options().build().unwrap();
    begin(&far.server);
    reads_all(before, far, loader)
}

/// The epoch is right to the byte, and nothing is left of loader and server.
pub(crate) fn reads_all(before: Before, far: Far, loader: Loader) -> Stats {
    let mut seen = vec![false; DATASET.samples.len()];
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        DATASET.check(&batch);
        batch.ids().iter().for_each(|id| assert!(!std::mem::replace(&mut seen[*id as usize], true)));
    }
    assert!(seen.iter().all(|seen| *seen));
    let stats = loader.stats();
    let slab = loader.slab().clone();
    drop(loader);
    drop(far);
    before.check_after(&slab, AT_ONCE);
    stats
}

/// Faults for whatever is asked of shards.
pub(crate) fn on_shards(effect: Effect) -> Fault {
    Fault::new(effect).on("train-")
}

pub(crate) fn cut(after: u64, how: Cut) -> Effect {
    Effect::Cut { after, how }
}
