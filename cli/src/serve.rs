//! `farfeed serve`: a directory, far away.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Server, Site};
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
    directory: PathBuf,
    /// Round-trip time in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    rtt: f64,
    /// Rate that all connections share, as in 2Gbit/s or 250MB/s; default: no limit
    #[arg(long)]
    rate: Option<Rate>,
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
    /// Address to listen on. There is no encryption, and nobody is asked who they are
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port to listen on; 0 for a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    #[command(flatten)]
    faults: FaultArgs,
    /// Announce the URL as one line of JSON
    #[arg(long)]
    json: bool,
    /// End when standard input closes, so that a server does not outlive who started it
    #[arg(long)]
    until_stdin_closes: bool,
}

/// What goes wrong, each with the probability that it strikes a request, 0 to 1.
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
    /// Seed of all chance
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What a server says when it is ready.
#[derive(Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(crate) url: String,
    /// Always: nothing that is measured across it is a measurement of a network.
    pub(crate) emulated: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (link, faults) = (args.link()?, args.faults.script()?);
    let address = SocketAddr::new(args.address, args.port);
    let server = Server::bind(address, Site::directory(&args.directory), link, faults)?;
    if !args.address.is_loopback() {
        eprintln!("farfeed: {address} can be reached by others: they can read all of {}", args.directory.display());
    }
    args.announce(&server)?;
    wait_for_the_end(args.until_stdin_closes)?;
    let stats = server.stats();
    if !args.json {
        let sent = stats.bytes as f64 / 1e6;
        eprintln!(
            "{} requests on {} connections, {sent:.1} MB sent, {} faults, {} packets lost",
            stats.requests, stats.connections, stats.faults, stats.losses
        );
    }
    Ok(())
}

impl Args {
    fn link(&self) -> Result<Link> {
        Ok(Link {
            rtt: milliseconds("--rtt", self.rtt)?,
            rate_bytes_s: self.rate.map(Rate::bytes_s),
            window_bytes: usize::try_from(self.window.as_bytes()).unwrap_or(usize::MAX),
            loss: self.loss,
            jitter: milliseconds("--jitter", self.jitter)?,
            server_time: milliseconds("--server-time", self.server_time)?,
            seed: self.faults.seed,
            ..Link::default()
        })
    }

    fn announce(&self, server: &Server) -> Result<()> {
        let announcement = Announcement { url: server.url().to_owned(), emulated: true };
        let line = if self.json {
            serde_json::to_string(&announcement)
                .map_err(|e| Error::new(Kind::Io, "writing the announcement").source(e))?
        } else {
            let rate = self.rate.map_or_else(|| "no limit of rate".to_owned(), |rate| rate.to_string());
            format!(
                "{} serves {} across an emulated link: {} ms, {rate}; Ctrl-C ends it",
                announcement.url,
                self.directory.display(),
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
        let mut faults = Faults::none().seed(self.seed);
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

/// Blocks until Ctrl-C or a polite request to end, or until standard input closes if that counts.
fn wait_for_the_end(until_stdin_closes: bool) -> Result<()> {
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
    // A server has no deadline of its own: it serves until it is told to end.
    let _ = end.recv();
    Ok(())
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
