//! Whether the link carries what is needed, in words. Pure.

use std::fmt;

use serde::Serialize;

use super::analysis::{refusals, suggestion};
use super::report::{Ended, InFlight, Limit, ProbeReport, Sign};
use super::words::{around, counted, figure, mb_s, ms, size};

/// What a job needs of the link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// Bytes per second.
    pub bytes_s: f64,
    /// Bytes of a sample, for those who count in samples.
    pub sample_bytes: Option<f64>,
}

/// Whether it is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// With something to spare.
    Yes,
    /// On average, with less to spare than goodput varies by, or less than 5 %.
    Barely,
    /// Less is there than is needed.
    No,
}

/// Whether the link carries what is needed, and what to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether it is enough.
    pub answer: Answer,
    /// What is needed, in bytes per second.
    pub need_bytes_s: f64,
    /// What is there by what is needed.
    pub times: f64,
    /// The most that the loader should be allowed to have in flight for it; `None` where its size of request did not bring it.
    pub in_flight: Option<InFlight>,
    /// All of it in plain words; what `Display` gives.
    pub text: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ProbeReport {
    /// Whether the link carries `need`.
    pub fn verdict(&self, need: Need) -> Verdict {
        let there = self.steady.goodput_bytes_s;
        let answer = if there < need.bytes_s {
            Answer::No
        } else if there - self.steady.spread_bytes_s < need.bytes_s || there < 1.05 * need.bytes_s {
            Answer::Barely
        } else {
            Answer::Yes
        };
        let times = there / need.bytes_s.max(1.0);
        let (held, needed) = (self.held(need.sample_bytes), amount(need.bytes_s, need.sample_bytes));
        let in_flight = suggestion(self, Some(need.bytes_s));
        let rest = match answer {
            Answer::Yes => format!("yes, with {} × to spare. {}", figure(times), self.settings(in_flight)),
            Answer::Barely => {
                let slow = amount(there - self.steady.spread_bytes_s, need.sample_bytes);
                format!("barely. In slower moments it carries {slow}. {}", self.settings(in_flight))
            }
            Answer::No => format!("no. {}", self.what_would_help(need.bytes_s)),
        };
        let text = format!("sustains {held}, you need {needed}: {rest}");
        Verdict { answer, need_bytes_s: need.bytes_s, times, in_flight, text }
    }

    /// What was held, and by how much it varied: `238 MB/s ± 6`.
    pub fn held(&self, sample_bytes: Option<f64>) -> String {
        let (mean, deviation) = (self.steady.goodput_bytes_s, self.steady.spread_bytes_s);
        let bytes = around(mean / 1e6, deviation / 1e6, "MB/s");
        match sample_bytes {
            Some(sample) => format!("{} ({bytes})", around(mean / sample, deviation / sample, "samples/s")),
            None => bytes,
        }
    }

    /// What holds goodput where it is.
    pub fn explanation(&self) -> String {
        let (knee, best) = (self.knee, self.best);
        match self.limit {
            Limit::Link if self.connect.is_none() => format!(
                "The limit is the store, not what is in flight: {} already bring 95 % of the best",
                self.at(knee.connections, knee.request_bytes)
            ),
            Limit::Link => {
                let verb = if knee.connections == 1 { "carries" } else { "carry" };
                let most = self.grid.iter().map(|point| point.connections).max().unwrap_or(1);
                format!(
                    "The limit is the link or the server behind it, not the connections: {} {verb} 95 % of the best of up to {most}",
                    self.at(knee.connections, knee.request_bytes),
                )
            }
            Limit::Connections => {
                let what = match self.ended {
                    Ended::Time => "when the probe's time was used up",
                    Ended::Bytes => "when the probe's bytes were used up",
                    Ended::Memory => "when the probe's memory was used up",
                    Ended::Flat | Ended::Connections => "as many as the probe was allowed",
                };
                let each = mb_s(best.goodput_bytes_s / best.connections as f64);
                let count = counted(best.connections, self.noun());
                format!("Goodput still rose at {count}, {what}, by about {each} MB/s for each")
            }
            Limit::Throttling => {
                let (throttled, requests) = refusals(&self.grid, &self.steady);
                let share = 100.0 * throttled as f64 / requests.max(1) as f64;
                format!("The limit is the store: it refused {} % of the requests (429 or 503)", figure(share))
            }
            Limit::Machine => {
                let busy = self.grid.iter().map(|point| point.busy).fold(self.steady.busy, f64::max);
                let busy = figure(100.0 * busy);
                format!("The limit is this machine: a network thread was busy for {busy} % of the time")
            }
        }
    }

    /// What would bring a goodput that is not there.
    fn what_would_help(&self, need: f64) -> String {
        let help = match self.limit {
            Limit::Link if self.connect.is_none() => "a faster disk or file system, or smaller samples".to_owned(),
            Limit::Link => "a faster link, a nearer store, or smaller samples; more in flight would not".to_owned(),
            Limit::Connections => {
                let each = self.best.goodput_bytes_s / self.best.connections as f64;
                let wanted = (1.1 * need / each.max(1.0)).ceil();
                format!("about {} {}s, if it goes on like this; a larger probe would tell", figure(wanted), self.noun())
            }
            Limit::Throttling => {
                "a higher limit from whoever runs the store, or objects spread over more prefixes or hosts".to_owned()
            }
            Limit::Machine => "a faster or less busy machine, or several of them".to_owned(),
        };
        format!("{}. What would help: {help}.", self.explanation())
    }

    /// What to tell the loader.
    pub fn settings(&self, wanted: Option<InFlight>) -> String {
        let InFlight { requests, bytes } = self.defaults;
        match wanted {
            Some(wanted) if wanted.requests <= requests && wanted.bytes <= bytes => {
                format!("farfeed's defaults ({}) suffice.", self.defaults)
            }
            Some(wanted) => {
                let bytes = wanted.bytes.max(bytes).div_ceil(1 << 20);
                format!("Set requests to {} and in_flight to {bytes}MiB.", wanted.requests.max(requests))
            }
            None => format!(
                "With farfeed's requests of {} it was not reached; {} of {} reached it.",
                size(self.loader_request_bytes as u64),
                self.knee.connections,
                size(self.knee.request_bytes as u64)
            ),
        }
    }

    /// What to have in flight for as much as there is.
    pub fn in_flight(&self) -> Option<InFlight> {
        suggestion(self, None)
    }
}

fn amount(bytes_s: f64, sample_bytes: Option<f64>) -> String {
    match sample_bytes {
        Some(sample) => format!("{} ({} MB/s)", figure(bytes_s / sample), mb_s(bytes_s)),
        None => mb_s(bytes_s),
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Refused { throttled, requests } => {
                let share = 100.0 * *throttled as f64 / (*requests).max(1) as f64;
                write!(f, "{throttled} of {requests} requests ({} %) were refused with 429 or 503: ", figure(share))?;
                f.write_str("the store throttles")
            }
            Sign::Failed { failed, requests } => {
                write!(f, "{failed} of {requests} requests failed and would be retried")
            }
            Sign::Falls { from, to } => write!(
                f,
                "goodput of {} requests falls from {} MB/s at {} to {} at {}: throttling, or a queue that overflows",
                size(from.request_bytes as u64),
                mb_s(from.goodput_bytes_s),
                counted(from.connections, "connection"),
                mb_s(to.goodput_bytes_s),
                figure(to.connections as f64)
            ),
            Sign::Queues { connections, first_byte_s, alone_s } => write!(
                f,
                "first bytes take {} at {} and {} alone: requests wait, at the server or on the way",
                ms(*first_byte_s),
                counted(*connections, "connection"),
                ms(*alone_s)
            ),
            Sign::Fades { from_bytes_s, to_bytes_s } => write!(
                f,
                "goodput faded from {} to {} MB/s while it was held: a credit that runs out, or others on the link",
                mb_s(*from_bytes_s),
                mb_s(*to_bytes_s)
            ),
            Sign::Uneven { share } => {
                write!(f, "goodput varies by {} %: others share the link, or it loses packets", figure(100.0 * share))
            }
            Sign::HeldLess { best_bytes_s, held_bytes_s } => write!(
                f,
                "{} MB/s were held, and {} for a moment: probe again, and at another time of day",
                mb_s(*held_bytes_s),
                mb_s(*best_bytes_s)
            ),
            Sign::Reread { times } => {
                write!(f, "each byte was read {} times: caches may flatter; name more objects", figure(*times))
            }
            Sign::Nearer { tcp_s, first_byte_s } => write!(
                f,
                "connections are accepted within {} and answers take {}: a proxy, an emulated link, or a slow server",
                ms(*tcp_s),
                ms(*first_byte_s)
            ),
        }
    }
}
