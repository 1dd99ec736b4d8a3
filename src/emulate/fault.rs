//! What goes wrong at the far end, when told to: by number, by chance with a seed, or always.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::line::Chance;
use crate::error::{Error, Kind, Result};

/// The longest pause or delay.
const TIME_MAX: Duration = Duration::from_secs(3600);

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// Another status than was due, without a body.
    Status {
        /// 503, 429, 500, 403, …: 400 to 599.
        status: u16,
        /// Value of `Retry-After`, in whole seconds, if it is sent.
        retry_after: Option<Duration>,
    },
    /// Another status than was due, and `Retry-After` as a date.
    RetryAt {
        /// 400 to 599.
        status: u16,
        /// How far away the date is; whole seconds, rounded up.
        after: Duration,
    },
    /// Another status than was due, with S3's XML about it.
    S3Error {
        /// 400 to 599.
        status: u16,
        /// `SlowDown`, `ExpiredToken`, `InternalError`, …
        code: String,
    },
    /// The body comes in chunks (`Transfer-Encoding: chunked`), without its length. See also `Site::chunked`.
    Chunked,
    /// The connection ends after the head and so many bytes of the body.
    Cut {
        /// Bytes of the body that are sent.
        after: u64,
        /// How it ends.
        how: Cut,
    },
    /// The body pauses once.
    Stall {
        /// Bytes of the body before the pause.
        after: u64,
        /// Its length.
        pause: Duration,
    },
    /// The body comes at no more than this many bytes per second.
    Drip {
        /// Bytes per second.
        bytes_s: u64,
    },
    /// An ETag that is not the object's.
    WrongETag,
    /// A `Content-Range` that is shifted by one byte.
    WrongContentRange,
    /// `Range` is ignored: 200 and the whole object.
    IgnoreRange,
    /// A redirection to the same place.
    RedirectLoop,
    /// One bit of the body is flipped.
    Corrupt {
        /// Which byte of the body.
        at: u64,
    },
    /// The answer starts later.
    Delay(Duration),
    /// Everything arrives after so many times the time that it would have taken, counted from the request: a straggler.
    Slow {
        /// 1 or more.
        factor: f64,
    },
}

/// How a connection ends in mid-body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// In order (FIN), as if the body were complete.
    Close,
    /// With a reset (RST).
    Reset,
}

impl Effect {
    /// 503 without `Retry-After`.
    pub fn unavailable() -> Self {
        Effect::Status { status: 503, retry_after: None }
    }

    /// S3's answer to temporary credentials that are too old: 400 `ExpiredToken`.
    pub fn expired_token() -> Self {
        Effect::S3Error { status: 400, code: "ExpiredToken".into() }
    }

    /// S3's answer to too many requests: 503 `SlowDown`.
    pub fn slow_down() -> Self {
        Effect::S3Error { status: 503, code: "SlowDown".into() }
    }

    /// What is wrong with it, if anything.
    fn wrong(&self) -> Option<&'static str> {
        match self {
            Effect::Status { status, .. } | Effect::RetryAt { status, .. } | Effect::S3Error { status, .. }
                if !(400..600).contains(status) =>
            {
                Some("status lies between 400 and 599")
            }
            Effect::S3Error { code, .. } if !code.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Some("code is made of letters and digits")
            }
            Effect::Slow { factor } if !(1.0..=1e4).contains(factor) => Some("factor lies between 1 and 10,000"),
            Effect::Drip { bytes_s: 0 } => Some("bytes_s is at least 1"),
            Effect::Stall { pause: time, .. } | Effect::Delay(time) | Effect::RetryAt { after: time, .. }
                if *time > TIME_MAX =>
            {
                Some("pauses and delays are at most an hour")
            }
            _ => None,
        }
    }

    /// Whether it is an answer of its own, without the object.
    fn refuses(&self) -> bool {
        matches!(self, Effect::Status { .. } | Effect::RetryAt { .. } | Effect::S3Error { .. })
    }

    /// Whether a relay, which knows of no requests, can do it.
    fn needs_http(&self) -> bool {
        !matches!(
            self,
            Effect::Cut { .. } | Effect::Stall { .. } | Effect::Drip { .. } | Effect::Corrupt { .. } | Effect::Delay(_)
        )
    }

    /// Whether it shows in a body only, so that requests without one do not count.
    fn needs_body(&self) -> bool {
        matches!(
            self,
            Effect::Cut { .. } | Effect::Stall { .. } | Effect::Drip { .. } | Effect::Corrupt { .. } | Effect::Chunked
        )
    }
}

/// An effect, and which requests it strikes. On its own: every request.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    effect: Effect,
    key: Option<String>,
    skip: u64,
    every: u64,
    times: u64,
    during: Range<Duration>,
    probability: f64,
}

impl Fault {
    /// Strikes every request.
    pub fn new(effect: Effect) -> Self {
        Fault {
            effect,
            key: None,
            skip: 0,
            every: 1,
            times: u64::MAX,
            during: Duration::ZERO..Duration::MAX,
            probability: 1.0,
        }
    }

    /// Only requests whose key contains `part`; the others are not counted.
    #[must_use]
    pub fn on(mut self, part: impl Into<String>) -> Self {
        self.key = Some(part.into());
        self
    }

    /// Only the `n`-th request that it could strike, 1 being the first.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        self.skip(n.saturating_sub(1)).times(1)
    }

    /// Spares the first `requests`.
    #[must_use]
    pub fn skip(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Strikes one in `requests`: the first of them, regularly.
    #[must_use]
    pub fn every(mut self, requests: u64) -> Self {
        self.every = requests.max(1);
        self
    }

    /// Strikes at most so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Strikes only between these two times after the faults were set: a storm. Other requests are not counted.
    #[must_use]
    pub fn during(mut self, from: Duration, until: Duration) -> Self {
        self.during = from..until;
        self
    }

    /// Strikes with this probability, 0 to 1, drawn from the seed of [`Faults`].
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }
}

/// A token that the server asks for.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What `Authorization: Bearer …` must say, or S3's `X-Amz-Security-Token`, be it a header or in a signed URL.
    pub value: String,
    /// How long it is good, from when the faults were set; for ever if `None`.
    pub valid_for: Option<Duration>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("valid_for", &self.valid_for).finish_non_exhaustive()
    }
}

/// Everything that goes wrong. Of several faults that strike the same request the first one counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// In order of precedence.
    pub list: Vec<Fault>,
    /// Requests without this token, or after its time, are answered with 401, or as `token_refusal` says.
    pub token: Option<Token>,
    /// What strikes a request without the token: [`Effect::expired_token`], say.
    pub token_refusal: Option<Effect>,
    /// Beyond so many requests at a time, each is answered as by [`Effect::slow_down`]; no limit if `None`.
    pub max_concurrent: Option<usize>,
    /// Seed of the probabilities.
    pub seed: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Faults::default()
    }

    /// This one more.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> Self {
        self.list.push(fault);
        self
    }

    /// Asks for this token.
    #[must_use]
    pub fn token(mut self, value: impl Into<String>, valid_for: Option<Duration>) -> Self {
        self.token = Some(Token { value: value.into(), valid_for });
        self
    }

    /// Answers so to requests without the token, or after its time, instead of with 401.
    #[must_use]
    pub fn token_refusal(mut self, effect: Effect) -> Self {
        self.token_refusal = Some(effect);
        self
    }

    /// Answers at most so many requests at a time, from a request's arrival to the last byte of its answer; further
    /// ones get 503 `SlowDown`.
    #[must_use]
    pub fn max_concurrent(mut self, requests: usize) -> Self {
        self.max_concurrent = Some(requests);
        self
    }

    /// Refuses what cannot go wrong.
    pub(super) fn check(&self) -> Result<()> {
        let chance =
            |fault: &Fault| (!(0.0..=1.0).contains(&fault.probability)).then_some("probability lies between 0 and 1");
        let wrong = self.list.iter().find_map(|fault| fault.effect.wrong().or_else(|| chance(fault)));
        let wrong = wrong.or_else(|| {
            let effect = self.token_refusal.as_ref()?;
            effect.wrong().or_else(|| (!effect.refuses()).then_some("token_refusal is a status: it may not let in"))
        });
        wrong.map_or(Ok(()), |advice| Err(Error::new(Kind::Config, "no such fault can be emulated").advice(advice)))
    }

    /// Refuses what cannot go wrong at a relay.
    pub(super) fn check_for_relay(&self) -> Result<()> {
        self.check()?;
        let needs_http = |fault: &Fault| fault.effect.needs_http() || fault.key.is_some();
        if self.token.is_none() && self.max_concurrent.is_none() && !self.list.iter().any(needs_http) {
            return Ok(());
        }
        Err(Error::new(Kind::Config, "a relay cannot do this fault")
            .advice("a relay knows Cut, Stall, Drip, Corrupt and Delay of whole connections; Server knows all"))
    }

    /// The same faults with another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Faults::none().with(fault)
    }
}

/// The faults at work: which request strikes which.
#[derive(Debug)]
pub(super) struct Script {
    faults: Vec<Struck>,
    token: Option<Token>,
    token_refusal: Option<Effect>,
    max_concurrent: Option<usize>,
    set_at: Instant,
    chance: Chance,
}

#[derive(Debug)]
struct Struck {
    fault: Fault,
    seen: u64,
    times: u64,
}

impl Script {
    pub(super) fn new(faults: Faults, now: Instant) -> Self {
        Script {
            faults: faults.list.into_iter().map(|fault| Struck { fault, seen: 0, times: 0 }).collect(),
            token: faults.token,
            token_refusal: faults.token_refusal,
            max_concurrent: faults.max_concurrent,
            set_at: now,
            chance: Chance(faults.seed),
        }
    }

    /// Whether a request with this token may pass.
    pub(super) fn admits(&self, token_given: Option<&str>, now: Instant) -> bool {
        self.token.as_ref().is_none_or(|token| {
            token_given == Some(token.value.as_str()) && token.valid_for.is_none_or(|time| now - self.set_at < time)
        })
    }

    /// What strikes a request that may not pass, if it is not the usual 401.
    pub(super) fn token_refusal(&self) -> Option<Effect> {
        self.token_refusal.clone()
    }

    /// Whether so many requests are too many at a time.
    pub(super) fn too_many(&self, requests: usize) -> bool {
        self.max_concurrent.is_some_and(|most| requests > most)
    }

    /// What strikes the next request.
    pub(super) fn strike(&mut self, key: &str, has_body: bool, now: Instant) -> Option<Effect> {
        let time = now.saturating_duration_since(self.set_at);
        let mut effect = None;
        for Struck { fault, seen, times } in &mut self.faults {
            if fault.key.as_ref().is_some_and(|part| !key.contains(part.as_str()))
                || (fault.effect.needs_body() && !has_body)
                || !fault.during.contains(&time)
            {
                continue;
            }
            *seen += 1;
            let due = *seen > fault.skip && (*seen - fault.skip - 1).is_multiple_of(fault.every);
            let drawn = due && (fault.probability >= 1.0 || self.chance.unit() < fault.probability);
            if effect.is_none() && drawn && *times < fault.times {
                *times += 1;
                effect = Some(fault.effect.clone());
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struck(faults: Faults, requests: usize) -> Vec<bool> {
        let mut script = Script::new(faults, Instant::now());
        (0..requests).map(|_| script.strike("a.tar", true, Instant::now()).is_some()).collect()
    }

    #[test]
    fn strikes_by_number() {
        let fault = || Fault::new(Effect::unavailable());
        assert_eq!(struck(fault().nth(2).into(), 4), [false, true, false, false]);
        assert_eq!(struck(fault().skip(1).every(2).into(), 5), [false, true, false, true, false]);
        assert_eq!(struck(fault().times(2).into(), 3), [true, true, false]);
        assert_eq!(struck(fault().on("b.").into(), 1), [false]);
        assert_eq!(struck(fault().on("a.").into(), 1), [true]);
    }

    #[test]
    fn strikes_by_chance_alike_for_one_seed() {
        let faults = |seed| Faults::from(Fault::new(Effect::unavailable()).probability(0.1)).seed(seed);
        let struck_once = struck(faults(1), 10_000);
        assert_eq!(struck_once, struck(faults(1), 10_000));
        assert_ne!(struck_once, struck(faults(2), 10_000));
        let times = struck_once.iter().filter(|struck| **struck).count();
        assert!((900..1100).contains(&times), "{times} of 10,000 at 10 %");
    }

    #[test]
    fn the_first_fault_counts_and_bodies_are_needed_for_some() {
        let cut = Effect::Cut { after: 1, how: Cut::Reset };
        let faults = Faults::from(Fault::new(cut.clone())).with(Fault::new(Effect::WrongETag));
        let mut script = Script::new(faults, Instant::now());
        assert_eq!(script.strike("a", false, Instant::now()), Some(Effect::WrongETag));
        assert_eq!(script.strike("a", true, Instant::now()), Some(cut));
    }

    #[test]
    fn refuses_impossible_faults() {
        let check = |fault: Fault| Faults::from(fault).check();
        assert!(check(Fault::new(Effect::unavailable()).probability(f64::NAN)).is_err());
        assert!(check(Fault::new(Effect::Slow { factor: 0.5 })).is_err());
        assert!(check(Fault::new(Effect::Status { status: 200, retry_after: None })).is_err());
        assert!(check(Fault::new(Effect::S3Error { status: 503, code: "<".into() })).is_err());
        assert!(Faults::none().token_refusal(Effect::S3Error { status: 3, code: "A".into() }).check().is_err());
        assert!(Faults::none().token_refusal(Effect::WrongETag).check().is_err());
        assert!(Faults::none().token_refusal(Effect::expired_token()).check().is_ok());
        assert!(check(Fault::new(Effect::RetryAt { status: 503, after: TIME_MAX * 2 })).is_err());
        let error = check(Fault::new(Effect::Drip { bytes_s: 0 })).unwrap_err();
        assert!(error.kind() == Kind::Config && error.next_step() == Some("bytes_s is at least 1"), "{error}");
        assert!(check(Fault::new(Effect::Slow { factor: 1.0 }).probability(0.0)).is_ok());
    }

    #[test]
    fn storms_pass() {
        let now = Instant::now();
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        let storm = Fault::new(Effect::slow_down()).during(Duration::from_secs(2), Duration::from_secs(4)).every(2);
        let mut script = Script::new(storm.into(), now);
        let struck = [0, 1, 2, 2, 3, 4, 9].map(|seconds| script.strike("a", true, at(seconds)).is_some());
        assert_eq!(struck, [false, false, true, false, true, false, false]);
    }

    #[test]
    fn too_many_are_more_than_may_be() {
        let script = |faults| Script::new(faults, Instant::now());
        assert!(!script(Faults::none()).too_many(10_000));
        let three = script(Faults::none().max_concurrent(3));
        assert!(!three.too_many(3) && three.too_many(4));
    }

    #[test]
    fn tokens_expire() {
        let now = Instant::now();
        let script = Script::new(Faults::none().token("t", Some(Duration::from_secs(5))), now);
        assert!(script.admits(Some("t"), now + Duration::from_secs(4)));
        assert!(!script.admits(Some("t"), now + Duration::from_secs(5)));
        assert!(!script.admits(Some("u"), now) && !script.admits(None, now));
    }
}
