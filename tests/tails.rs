//! Stragglers, dead addresses, drips: what is late is asked for twice, elsewhere, within its budget, and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/leftovers.rs"]
mod leftovers;
#[path = "fixture/shards.rs"]
mod shards;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use farfeed::emulate::{Effect, Fault, Faults, Link, Server, Site};
use farfeed::fetch::{Hedge, RetryPolicy};
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::store::{HttpOptions, HttpStore};
use farfeed::telemetry::Stats;
use farfeed::{ByteSize, Field, Kind, Loader};
use leftovers::Before;
use shards::WebDataset;

/// 40 MB in 1,600 samples.
static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(8, 200, 25_000));

/// When threads and sockets have ended.
const SOON: Duration = Duration::from_secs(2);
const EVER: Duration = Duration::from_secs(3600);
/// What a busy machine may add to whatever is waited for.
const LATE: Duration = Duration::from_secs(3);

/// The share of bytes that may arrive twice.
const EXTRA_MAX: f64 = 0.02;

fn options(root: &str) -> LoaderBuilder {
    Loader::builder(DATASET.pattern(&format!("{root}/")))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .block_size(ByteSize::bytes(500_000))
        .shuffle(Shuffle::window(100).seed(4))
        .host_memory(ByteSize::mib(64))
        .patience(Duration::from_secs(60))
}

fn server(link: Link) -> Server {
    Server::start(Site::objects(DATASET.site()), link, Faults::none()).unwrap()
}

fn on_shards(effect: Effect) -> Fault {
    Fault::new(effect).on("train-")
}

/// What the consumer of a run saw, and what the server sent for it.
struct Pass {
    /// For each batch, from asking to having it.
    waits: Vec<Duration>,
    took: Duration,
    stats: Stats,
    sent: u64,
}

impl Pass {
    /// Reads `epochs` epochs from a server, checking every byte, and that nothing is left.
    fn run(
        link: Link,
        faults: impl Into<Faults>,
        epochs: u64,
        adjust: impl FnOnce(LoaderBuilder) -> LoaderBuilder,
    ) -> Self {
        let before = Before::look();
        let server = server(link);
        let loader = adjust(options(server.url())).epochs(epochs).build().unwrap();
        server.set_faults(faults).unwrap();
        let sent = server.stats().bytes;
        let (waits, took) = read(&loader, epochs, |_| {});
        let (stats, sent) = (loader.stats(), server.stats().bytes - sent);
        let slab = loader.slab().clone();
        drop((loader, server));
        before.check_after(&slab, SOON);
        Pass { waits, took, stats, sent }
    }

    fn wait(&self, quantile: f64) -> Duration {
        let mut sorted = self.waits.clone();
        sorted.sort();
        sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
    }

    /// The share of what the server sent that the loader had no use for.
    fn extra(&self) -> f64 {
        self.sent as f64 / self.stats.fetch.bytes as f64 - 1.0
    }

    fn print(&self, name: &str) {
        println!(
            "{name:>8}: p50 {:.1?}, p99 {:.1?}, longest {:.1?}, all {:.2?}; extra {:.2} %; {}",
            self.wait(0.5),
            self.wait(0.99),
            self.wait(1.0),
            self.took,
            100.0 * self.extra(),
            self.stats
        );
    }
}

/// Reads so many epochs, every byte of them; `each` is told how many batches there were. Gives how long each was waited for, and all.
fn read(loader: &Loader, epochs: u64, mut each: impl FnMut(usize)) -> (Vec<Duration>, Duration) {
    let (began, mut waits) = (Instant::now(), Vec::new());
    for epoch in 0..epochs {
        let mut seen = vec![false; DATASET.samples.len()];
        let mut asked = Instant::now();
        for batch in loader.epoch(epoch) {
            let batch = batch.unwrap();
            waits.push(asked.elapsed());
            DATASET.check(&batch);
            batch.ids().iter().for_each(|id| assert!(!std::mem::replace(&mut seen[*id as usize], true)));
            each(waits.len());
            asked = Instant::now();
        }
        assert!(seen.iter().all(|seen| *seen));
    }
    (waits, began.elapsed())
}

/// Compared with what the same stragglers cost without second requests, so that a slow machine slows both.
#[test]
fn one_straggler_in_a_hundred_costs_little() {
    let link = || Link::rtt(Duration::from_millis(15)).rate(60_000_000);
    let slow = || on_shards(Effect::Slow { factor: 10.0 }).skip(40).every(100);
    let clean = Pass::run(link(), Faults::none(), 2, |options| options);
    let hedged = Pass::run(link(), slow(), 2, |options| options);
    let bare = Pass::run(link(), slow(), 2, |options| options.hedge(false));
    [("clean", &clean), ("hedged", &hedged), ("bare", &bare)].iter().for_each(|(name, pass)| pass.print(name));
    assert!(hedged.stats.hedges_won >= 2 && hedged.stats.retries == 0, "{}", hedged.stats);
    assert!(bare.stats.hedges == 0 && bare.stats.bytes_wasted == 0, "{}", bare.stats);
    for pass in [&clean, &hedged, &bare] {
        assert!(pass.extra() <= EXTRA_MAX, "{:.2} % extra: {}", 100.0 * pass.extra(), pass.stats);
    }
    let (lost, lost_bare) = (hedged.took.saturating_sub(clean.took), bare.took - clean.took);
    assert!(lost * 2 < lost_bare, "{lost:?} with second requests, {lost_bare:?} without");
    assert!(hedged.wait(1.0) < bare.wait(1.0), "{:?} {:?}", hedged.wait(1.0), bare.wait(1.0));
}

/// The dearest of all: nothing is known yet of how long requests take, and nothing else can be delivered.
#[test]
fn a_straggler_in_the_first_batch_is_overtaken() {
    for nth in [1, 12] {
        let before = Before::look();
        let server = server(Link::rtt(Duration::from_millis(15)));
        let loader = options(server.url()).build().unwrap();
        server.set_faults(on_shards(Effect::Delay(Duration::from_secs(20))).nth(nth)).unwrap();
        let began = Instant::now();
        DATASET.check(&loader.epoch(0).next().unwrap().unwrap());
        let (took, stats) = (began.elapsed(), loader.stats());
        println!("request {nth} is late: first batch after {took:.1?}; {stats}");
        assert_eq!(server.stats().faults, 1);
        assert!(took < LATE, "{took:?}: {stats}");
        assert!(stats.hedges_won >= 1, "{stats}");
        let slab = loader.slab().clone();
        drop((loader, server));
        before.check_after(&slab, SOON);
    }
}

#[test]
fn when_everything_is_slow_nothing_is_asked_twice() {
    let before = Before::look();
    let server = server(Link::rtt(Duration::from_millis(5)));
    // What is read ahead leaves something of the 86 MB for later, however slow the consumer is.
    let builder = options(server.url()).host_memory(ByteSize::mib(32)).in_flight(ByteSize::mib(8));
    let loader = builder.epochs(2).build().unwrap();
    let sent = server.stats().bytes;
    let mut hedges = 0;
    read(&loader, 2, |batch| {
        if batch == 100 {
            hedges = loader.stats().hedges;
            server.set_faults(on_shards(Effect::Delay(Duration::from_millis(400)))).unwrap();
        }
    });
    let (stats, sent) = (loader.stats(), server.stats().bytes - sent);
    println!("{stats}");
    assert!(server.stats().faults > 20);
    // Those that are alone in flight when it begins cannot know.
    assert!(stats.hedges - hedges <= 2, "{stats}");
    assert!(sent as f64 <= stats.fetch.bytes as f64 * (1.0 + EXTRA_MAX), "{sent} bytes sent: {stats}");
    let slab = loader.slab().clone();
    drop((loader, server));
    before.check_after(&slab, SOON);
}

#[test]
fn a_request_that_drips_is_asked_elsewhere() {
    let link = Link::rtt(Duration::from_millis(2));
    let drip = || on_shards(Effect::Drip { bytes_s: 2000 }).skip(30).every(40).times(4);
    let policy = RetryPolicy { idle: Duration::from_millis(600), ..RetryPolicy::default() };
    let bare = Pass::run(link.clone(), drip(), 1, |options| options.retry(policy).hedge(false));
    bare.print("dropped");
    assert!(bare.stats.retries >= 2 && bare.took < Duration::from_secs(10), "{:?}: {}", bare.took, bare.stats);
    let hedged = Pass::run(link, drip(), 1, |options| options.retry(policy));
    hedged.print("hedged");
    assert!(hedged.stats.hedges_won + hedged.stats.retries >= 2, "{}", hedged.stats);
    assert!(hedged.took < Duration::from_secs(10), "{:?}", hedged.took);
}

/// Several servers of the same data, each on an address of its own.
struct Farm {
    servers: Vec<Server>,
    addresses: Vec<SocketAddr>,
    /// Hold what keeps an address from answering.
    _holds: Vec<(TcpListener, Vec<TcpStream>)>,
}

/// What is at an address.
#[derive(Clone, Copy)]
enum At {
    Server,
    /// Nobody listens.
    Nobody,
    /// Somebody listens and takes no connection: whoever knocks hears nothing.
    Silence,
}

impl Farm {
    fn start(places: &[At]) -> Self {
        let mut farm = Farm { servers: Vec::new(), addresses: Vec::new(), _holds: Vec::new() };
        for (number, at) in places.iter().enumerate() {
            let address = SocketAddr::from(([127, 0, 0, 20 + number as u8], 0));
            farm.addresses.push(match at {
                At::Server => {
                    let link = Link::rtt(Duration::from_millis(5));
                    let server = Server::bind(address, Site::objects(DATASET.site()), link, Faults::none()).unwrap();
                    farm.servers.push(server);
                    farm.servers[farm.servers.len() - 1].address()
                }
                At::Nobody => TcpListener::bind(address).unwrap().local_addr().unwrap(),
                At::Silence => {
                    let listener = TcpListener::bind(address).unwrap();
                    rustix::net::listen(&listener, 0).unwrap();
                    let address = listener.local_addr().unwrap();
                    let knock = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
                    let knocks: Vec<_> = std::iter::from_fn(knock).take(16).collect();
                    assert!(knocks.len() < 16, "{address} takes all connections");
                    farm._holds.push((listener, knocks));
                    address
                }
            });
        }
        farm
    }

    /// A loader that knows the farm by its name.
    fn loader(&self) -> LoaderBuilder {
        let resolve = vec![("farm.test".to_owned(), self.addresses.clone())];
        let store = HttpStore::open("http://farm.test/", HttpOptions { resolve, ..HttpOptions::default() }).unwrap();
        options("http://farm.test").store(store).requests(32)
    }
}

#[test]
fn connections_are_spread_over_all_addresses() {
    let before = Before::look();
    let farm = Farm::start(&[At::Server; 4]);
    let loader = farm.loader().epochs(1).build().unwrap();
    read(&loader, 1, |_| {});
    let counts: Vec<_> = farm.servers.iter().map(|server| server.stats().connections).collect();
    println!("connections {counts:?}; {}", loader.stats());
    assert!(counts.iter().all(|count| *count >= 8), "{counts:?}");
    let slab = loader.slab().clone();
    drop((loader, farm));
    before.check_after(&slab, SOON);
}

#[test]
fn half_of_the_addresses_dead_is_hardly_noticed() {
    let whole = Farm::start(&[At::Server; 4]);
    let loader = whole.loader().epochs(1).build().unwrap();
    let (_, usual) = read(&loader, 1, |_| {});
    drop((loader, whole));
    for (name, dead) in [("refuse", At::Nobody), ("say nothing", At::Silence)] {
        let before = Before::look();
        let farm = Farm::start(&[dead, At::Server, dead, At::Server]);
        let loader = farm.loader().epochs(1).build().unwrap();
        let (_, took) = read(&loader, 1, |_| {});
        let stats = loader.stats();
        println!("two of four {name}: {took:.2?}, {usual:.2?} with all; {stats}");
        assert!(took < 3 * usual + LATE, "{name}: {took:?}, {usual:?} with all");
        assert!(farm.servers.iter().all(|server| server.stats().requests > 10));
        let slab = loader.slab().clone();
        drop((loader, farm));
        before.check_after(&slab, SOON);
    }
}

/// What happens to a server.
type Trouble = &'static dyn Fn(&Server);

/// Requests under way there are given up long before their time, since others are served; and nobody goes there again. Where too few others
/// are served meanwhile, as may be once in many runs on a busy machine, nothing tells their silence from slowness, and they have all of
/// their time: `RetryPolicy::idle`.
#[test]
fn servers_that_fall_silent_or_go_away_in_mid_epoch_are_left() {
    let kinds: [(&str, Trouble); 2] =
        [("silent", &|server| server.silence_for(EVER)), ("away", &|server| server.refuse_for(EVER).unwrap())];
    for (name, kill) in kinds {
        let longest = (0..3).map(|_| longest_wait_without_two(name, kill));
        let soon = longest.take_while(|longest| *longest >= Duration::from_secs(4) + LATE).count() < 3;
        assert!(soon, "{name}: three times a wait of more than 4 s");
    }
}

/// Two of four servers have that trouble in mid-epoch.
fn longest_wait_without_two(name: &str, kill: Trouble) -> Duration {
    let before = Before::look();
    let farm = Farm::start(&[At::Server; 4]);
    let loader = farm.loader().in_flight(ByteSize::mib(4)).epochs(2).build().unwrap();
    let (waits, took) = read(&loader, 2, |batch| {
        if batch == 60 {
            farm.servers[..2].iter().for_each(kill);
        }
    });
    let (longest, stats) = (*waits.iter().max().unwrap(), loader.stats());
    println!("{name}: {took:.2?}, longest wait {longest:.2?}; {stats}");
    assert!(longest < RetryPolicy::default().idle + LATE, "{name}: {longest:?}: {stats}");
    let slab = loader.slab().clone();
    drop((loader, farm));
    before.check_after(&slab, SOON);
    longest
}

#[test]
fn a_name_that_is_nowhere_is_an_error_in_time() {
    let policy = RetryPolicy { patience: Duration::from_millis(500), ..RetryPolicy::default() };
    let began = Instant::now();
    let error = options("http://farm.invalid").retry(policy).build().unwrap_err();
    assert!(error.kind() == Kind::Io && error.is_transient(), "{error}");
    assert!(error.to_string().contains("farm.invalid"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10) + LATE, "{:?}", began.elapsed());
}

/// Someone looks at the plan for longer than servers keep idle connections: the first batch finds open ones all the same.
#[test]
fn connections_are_open_when_the_first_batch_is_asked_for() {
    let before = Before::look();
    let server = server(Link::rtt(Duration::from_millis(2)));
    let loader = options(server.url()).requests(16).epochs(1).hedge(Hedge::off()).build().unwrap();
    // The server closes all of them.
    server.refuse_for(Duration::from_millis(100)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    while server.stats().connections_open < 16 {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", server.stats());
        std::thread::sleep(Duration::from_millis(20));
    }
    let opened = server.stats().connections;
    DATASET.check(&loader.epoch(0).next().unwrap().unwrap());
    assert_eq!(server.stats().connections, opened, "{}", loader.stats());
    let slab = loader.slab().clone();
    drop((loader, server));
    before.check_after(&slab, SOON);
}
