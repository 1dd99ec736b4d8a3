//! One error type: what kind, what happened where, what to do, and what caused it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// No object, shard, field or device of that name.
    NotFound,
    /// The store refused the credentials, or there were none; or the certificate of an `https` server does not prove that it is the one meant.
    Auth,
    /// The store asked to slow down for longer than we were told to wait.
    Throttled,
    /// No progress within the deadline.
    Stalled,
    /// Bytes are not what they claim to be: a broken shard, an index of another shard, an object that changed.
    Corrupt,
    /// The options contradict each other or the dataset.
    Config,
    /// Rank, world size and state do not fit each other.
    Topology,
    /// The accelerator or its driver failed, or has too little memory.
    Device,
    /// Well-formed, but not something this build, kernel or server can do.
    Unsupported,
    /// The operating system or the network failed in a way that has no better name.
    Io,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::NotFound => "not found",
            Kind::Auth => "not authorised",
            Kind::Throttled => "throttled",
            Kind::Stalled => "stalled",
            Kind::Corrupt => "corrupt",
            Kind::Config => "configuration",
            Kind::Topology => "topology",
            Kind::Device => "device",
            Kind::Unsupported => "unsupported",
            Kind::Io => "input/output",
        })
    }
}

/// What failed, where, why, and what to do about it.
///
/// `Display` gives one line: context, cause, and advice. Secrets never enter a context: stores strip
/// user info and query strings from the URLs that they name.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    context: Cow<'static, str>,
    advice: Option<Cow<'static, str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// Whether asking again later may succeed. Stores set it; fetch reads it.
    transient: bool,
    /// Whether the object is at fault, not the way to it.
    in_object: bool,
    /// The least time to wait before asking again, where the store named one.
    retry_after: Option<Duration>,
}

impl Error {
    /// An error of `kind`; `context` names what and where.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        let context = context.into();
        Error(Box::new(Inner {
            kind,
            context,
            advice: None,
            source: None,
            transient: false,
            in_object: false,
            retry_after: None,
        }))
    }

    /// Says what the user can do.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Marks the error as one that may pass: fetch asks again.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.0.transient = true;
        self
    }

    /// Marks the error as one that may pass, but not before `delay`: the store said so.
    #[must_use]
    pub fn retry_in(mut self, delay: Duration) -> Self {
        self.0.transient = true;
        self.0.retry_after = Some(delay);
        self
    }

    /// Marks the error as one of the object itself: it was truncated, replaced or damaged where it is kept. Whoever asks again, and
    /// whichever way, will be told the same.
    #[must_use]
    pub fn in_object(mut self) -> Self {
        self.0.in_object = true;
        self
    }

    /// Puts `outer` in front of the context: `outer: inner`.
    #[must_use]
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        self.0.context = format!("{outer}: {}", self.0.context).into();
        self
    }

    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened and where, without kind, cause and advice.
    pub fn context(&self) -> &str {
        &self.0.context
    }

    /// Whether asking again later may succeed.
    pub fn is_transient(&self) -> bool {
        self.0.transient
    }

    /// The least time to wait before asking again, where the store named one.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether it is the object that is at fault, not the way to it: it is not there, or it is not what it should be.
    pub fn is_in_object(&self) -> bool {
        self.0.in_object || self.0.kind == Kind::NotFound
    }

    /// Kind, context and cause, without the advice.
    pub fn summary(&self) -> String {
        match &self.0.source {
            Some(source) => format!("{}: {}: {source}", self.0.kind, self.0.context),
            None => format!("{}: {}", self.0.kind, self.0.context),
        }
    }

    /// What the user can do about it, if anything is known.
    pub fn next_step(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        if let Some(advice) = &self.0.advice {
            write!(f, " ({advice})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error[{self}]")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_where_why_and_what_to_do() {
        let error = Error::new(Kind::Corrupt, "bad header at byte 512")
            .source(std::io::Error::other("checksum"))
            .advice("upload the shard again")
            .within("a.tar");
        assert_eq!(error.to_string(), "corrupt: a.tar: bad header at byte 512: checksum (upload the shard again)");
        assert_eq!(error.summary(), "corrupt: a.tar: bad header at byte 512: checksum");
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(!error.is_transient() && error.transient().is_transient());
    }

    #[test]
    fn tells_the_object_from_the_way_to_it() {
        let corrupt = || Error::new(Kind::Corrupt, "a.tar");
        assert!(!corrupt().is_in_object() && corrupt().in_object().within("b").is_in_object());
        assert!(Error::new(Kind::NotFound, "a.tar").is_in_object());
    }
}
