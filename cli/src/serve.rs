//! `farfeed serve`: a directory, or another server, far away.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use farfeed::emulate::{Congestion, Cut, Effect, Fault, Faults, Link, Relay, Server, Site, Stats};
use farfeed::{ByteSize, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::rate::Rate;

/// How long a body pauses under `--stall`: long enough to be hedged, short enough to be waited for.
const STALL: Duration = Duration::from_secs(3);
/// How many times as long a response takes under `--slow`.
const SLOW_FACTOR: f64 = 5.0;
/// Bytes of a body that are sent before `--cut`, `--reset` and `--stall` strike.
const BEFORE_FAULT: u64 = 50_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory to serve
    #[arg(required_unless_present = "upstream")]
    directory: Option<PathBuf>,
    /// Put the link before this server instead, as in https://localhost:8443 or
    /// 127.0.0.1:9000: connections are passed on byte for byte. Ask the link's
    /// address under the server's name, or its certificate won't fit
    #[arg(long, value_name = "URL", conflicts_with = "directory")]
    upstream: Option<String>,
    /// Round-trip time in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    rtt: f64,
    /// Rate that all connections share, as in 2Gbit/s or 250MB/s; default: no limit
    #[arg(long)]
    rate: Option<Rate>,
    /// Rate that one connection gets; default: no limit
    #[arg(long, value_name = "RATE")]
    connection_rate: Option<Rate>,
    /// How the far end answers loss: as Linux does, or as the textbook says
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Control::Cubic)]
    congestion: Control,
    /// The most that one connection has in flight
    #[arg(long, value_name = "SIZE", default_value = "4MiB")]
    window: ByteSize,
    /// Probability that a packet is lost, 0 to 0.5
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    loss: f64,
    /// Up to this much is added to the way of each piece, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    jitter: f64,
    /// Time that the server takes over each request, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    server_time: f64,
    /// Addresses to listen on. There is no encryption of our own, and nobody is asked who they are
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1")]
    address: Vec<IpAddr>,
    /// Port to listen on, the same at all addresses; 0 for a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Send all bodies in chunks, without their lengths
    #[arg(long, conflicts_with = "upstream")]
    chunked: bool,
    /// Announce the URL as one line of JSON
    #[arg(long)]
    json: bool,
    /// End when standard input closes, so that a server does not outlive who started it
    #[arg(long)]
    until_stdin_closes: bool,
    #[command(flatten)]
    faults: FaultArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Control {
    Cubic,
    Reno,
}

impl From<Control> for Congestion {
    fn from(control: Control) -> Self {
        match control {
            Control::Cubic => Congestion::Cubic,
            Control::Reno => Congestion::Reno,
        }
    }
}

/// Another server, and how its URLs begin.
#[derive(Clone, Copy)]
struct Upstream {
    scheme: &'static str,
    address: SocketAddr,
}

impl FromStr for Upstream {
    type Err = Error;

    /// `https://localhost:8443`, or an address and a port.
    fn from_str(text: &str) -> Result<Self> {
        // What was written may hold a password, so it is not said again.
        let wrong = |what: &str| {
            Error::new(Kind::Config, format!("--upstream {what}"))
                .advice("write http://HOST:PORT, https://HOST:PORT or ADDRESS:PORT, without a path")
        };
        let (scheme, port, rest) = match text.split_once("://") {
            None => ("http", None, text),
            Some(("http", rest)) => ("http", Some(80), rest),
            Some(("https", rest)) => ("https", Some(443), rest),
            Some(_) => return Err(wrong("is neither http nor https")),
        };
        let host = rest.strip_suffix('/').unwrap_or(rest);
        if host.is_empty() || host.contains(['/', '@', '?', '#']) {
            return Err(wrong("is more or less than a host and a port"));
        }
        let with_port = host.to_socket_addrs().or_else(|error| match port {
            Some(port) => (host, port).to_socket_addrs(),
            None => Err(error),
        });
        let address = with_port.map_err(|error| wrong("has no address").source(error))?.next();
        Ok(Upstream { scheme, address: address.ok_or_else(|| wrong("has no address"))? })
    }
}

/// What goes wrong, each with the probability that it strikes a request (before another server: a connection).
#[derive(clap::Args)]
#[command(next_help_heading = "Faults, by their probability for each request (0 to 1)")]
struct FaultArgs {
    /// The server is unavailable: status 503
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    fail_503: f64,
    /// The body ends early, as if it were complete
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    cut: f64,
    /// The connection is reset within the body
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    reset: f64,
    /// The body pauses for 3 s
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    stall: f64,
    /// The response takes 5 times as long: a straggler
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    slow: f64,
    /// One bit of the body is flipped
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    corrupt: f64,
    /// So many requests at the start are answered with 503
    #[arg(long, value_name = "REQUESTS", default_value_t = 0)]
    fail_first: u64,
    /// Requests beyond so many at a time are answered with 503
    #[arg(long, value_name = "REQUESTS")]
    max_concurrent: Option<usize>,
    /// Seed of all chance
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What a server says when it is ready.
#[derive(Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(crate) url: String,
    /// Everywhere that it listens, that of the URL first.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Always: nothing that is measured across it is a measurement of a network.
    pub(crate) emulated: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (link, faults) = (args.link()?, args.faults.script()?);
    let addresses: Vec<_> = args.address.iter().map(|address| SocketAddr::new(*address, args.port)).collect();
    let upstream = args.upstream.as_deref().map(Upstream::from_str).transpose()?;
    let served = Served::start(args, upstream, &addresses, link, faults)?;
    for address in args.address.iter().filter(|address| !address.is_loopback()) {
        eprintln!("farfeed: {address} can be reached by others: they can read all of {}", served.source(args));
    }
    // Before the announcement: whoever has read it may end the server.
    let end = the_end(args.until_stdin_closes)?;
    args.announce(&served)?;
    // A server has no deadline of its own: it serves until it is told to end.
    let _ = end.recv();
    let stats = served.stats();
    if !args.json {
        let sent = stats.bytes as f64 / 1e6;
        eprintln!(
            "{} requests on {} connections, {sent:.1} MB sent, {} faults, {} packets lost",
            stats.requests, stats.connections, stats.faults, stats.losses
        );
    }
    Ok(())
}

/// What lies behind the link, until dropped.
enum Served {
    Directory(Server),
    Upstream(Relay, &'static str),
}

impl Served {
    fn start(
        args: &Args,
        upstream: Option<Upstream>,
        addresses: &[SocketAddr],
        link: Link,
        faults: Faults,
    ) -> Result<Self> {
        match (upstream, &args.directory) {
            (Some(upstream), _) => {
                let relay = Relay::bind_all(addresses, upstream.address, link, faults)?;
                Ok(Served::Upstream(relay, upstream.scheme))
            }
            (None, directory) => {
                let site = Site::directory(directory.as_deref().unwrap_or(Path::new(".")));
                let site = if args.chunked { site.chunked() } else { site };
                Ok(Served::Directory(Server::bind_all(addresses, site, link, faults)?))
            }
        }
    }

    fn announcement(&self) -> Announcement {
        let (url, addresses) = match self {
            Served::Directory(server) => (server.url().to_owned(), server.addresses()),
            Served::Upstream(relay, scheme) => (format!("{scheme}://{}", relay.address()), relay.addresses()),
        };
        Announcement { url, addresses, emulated: true }
    }

    /// What lies behind the link, in words.
    fn source(&self, args: &Args) -> String {
        match (self, &args.directory) {
            (Served::Upstream(relay, _), _) => relay.upstream().to_string(),
            (Served::Directory(_), directory) => directory.as_deref().unwrap_or(Path::new(".")).display().to_string(),
        }
    }

    fn stats(&self) -> Stats {
        match self {
            Served::Directory(server) => server.stats(),
            Served::Upstream(relay, _) => relay.stats(),
        }
    }
}

impl Args {
    fn link(&self) -> Result<Link> {
        Ok(Link {
            rtt: milliseconds("--rtt", self.rtt)?,
            rate_bytes_s: self.rate.map(Rate::bytes_s),
            connection_rate: self.connection_rate.map(Rate::bytes_s),
            congestion: self.congestion.into(),
            window_bytes: usize::try_from(self.window.as_bytes()).unwrap_or(usize::MAX),
            loss: self.loss,
            jitter: milliseconds("--jitter", self.jitter)?,
            server_time: milliseconds("--server-time", self.server_time)?,
            seed: self.faults.seed,
            ..Link::default()
        })
    }

    fn announce(&self, served: &Served) -> Result<()> {
        let announcement = served.announcement();
        let line = if self.json {
            serde_json::to_string(&announcement)
                .map_err(|e| Error::new(Kind::Io, "writing the announcement").source(e))?
        } else {
            let rate = self.rate.map_or_else(|| "no limit of rate".to_owned(), |rate| rate.to_string());
            format!(
                "{} serves {} across an emulated link: {} ms, {rate}; Ctrl-C ends it",
                announcement.url,
                served.source(self),
                self.rtt
            )
        };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .map_err(|e| Error::new(Kind::Io, "writing to standard output").source(e))
    }
}

impl FaultArgs {
    fn script(&self) -> Result<Faults> {
        let after = BEFORE_FAULT;
        let by_chance = [
            ("--fail-503", self.fail_503, Effect::unavailable()),
            ("--cut", self.cut, Effect::Cut { after, how: Cut::Close }),
            ("--reset", self.reset, Effect::Cut { after, how: Cut::Reset }),
            ("--stall", self.stall, Effect::Stall { after, pause: STALL }),
            ("--slow", self.slow, Effect::Slow { factor: SLOW_FACTOR }),
            ("--corrupt", self.corrupt, Effect::Corrupt { at: 0 }),
        ];
        let mut faults = Faults { max_concurrent: self.max_concurrent, ..Faults::none().seed(self.seed) };
        if self.fail_first > 0 {
            faults = faults.with(Fault::new(Effect::unavailable()).times(self.fail_first));
        }
        for (name, probability, effect) in by_chance {
            if !(0.0..=1.0).contains(&probability) {
                let what = format!("{name} {probability} is no probability");
                return Err(Error::new(Kind::Config, what).advice("write a number from 0 to 1"));
            }
            if probability > 0.0 {
                faults = faults.with(Fault::new(effect).probability(probability));
            }
        }
        Ok(faults)
    }
}

/// Gets something at Ctrl-C or a polite request to end, or when standard input closes if that counts.
fn the_end(until_stdin_closes: bool) -> Result<Receiver<()>> {
    let failed = |e: io::Error| Error::new(Kind::Io, "waiting for a signal").source(e);
    let (ended, end) = sync_channel::<()>(2);
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let on_signal = ended.clone();
    spawn("farfeed-signals", move || {
        signals.forever().next();
        let _ = on_signal.try_send(());
    })?;
    if until_stdin_closes {
        let on_close = ended.clone();
        spawn("farfeed-stdin", move || {
            let mut ignored = [0; 256];
            while matches!(io::stdin().read(&mut ignored), Ok(read) if read > 0) {}
            let _ = on_close.try_send(());
        })?;
    }
    Ok(end)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(|e| Error::new(Kind::Io, format!("starting thread {name}")).source(e))
}

/// A length of time that was given in milliseconds.
pub(crate) fn milliseconds(name: &str, number: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(number / 1e3).map_err(|_| {
        Error::new(Kind::Config, format!("{name} {number} is no time")).advice("write milliseconds, 0 or more")
    })
}
