//! Errors of `object_store`, said our way.
//!
//! Its texts hold whole error pages, and URLs with their queries: stores repeat tokens and signed headers in the former, signatures
//! are in the latter. So nothing of them is passed on but statuses, codes, and the innermost cause where no server answered.

use std::error::Error as StdError;
use std::fmt;

use super::super::http::Refused;
use crate::error::{Error, Kind};

/// Bytes of a cause that are shown.
const CAUSE_BYTES_MAX: usize = 200;

/// `what` failed: kind and code as the server gave them.
pub(super) fn explained(what: impl fmt::Display, error: &object_store::Error) -> Error {
    let text = error.to_string();
    let status = status(&text);
    let mut refused = Refused { status: status.unwrap_or_default(), ..Refused::default() };
    refused.read_page(text.as_bytes());
    let Some(status) = status else { return unanswered(what, error) };
    let kind = match status {
        404 | 410 => Kind::NotFound,
        401 | 403 | 407 => Kind::Auth,
        429 | 503 => Kind::Throttled,
        412 => Kind::Corrupt,
        _ => Kind::Io,
    };
    let explained = Error::new(kind, format!("{what}: the server refused (HTTP {status})")).source(refused);
    if matches!(status, 408 | 425 | 429 | 500 | 502..=599) { explained.transient() } else { explained }
}

/// No answer, or one that cannot be used.
fn unanswered(what: impl fmt::Display, error: &object_store::Error) -> Error {
    use object_store::Error as Foreign;
    let cause = cause(error);
    match error {
        Foreign::NotFound { .. } => Error::new(Kind::NotFound, format!("{what}: no such object")),
        Foreign::InvalidPath { .. } | Foreign::NotSupported { .. } | Foreign::NotImplemented { .. } => {
            Error::new(Kind::Unsupported, format!("{what}: {cause}"))
        }
        _ if error.to_string().contains("redirect without LOCATION") => {
            // 301 without a region: who asks again with our own client is told which.
            let refused = Refused { status: 301, ..Refused::default() };
            Error::new(Kind::Unsupported, format!("{what}: redirected to nowhere")).source(refused)
        }
        // It will be the same next time.
        _ if cause.contains("invalid peer certificate") => Error::new(Kind::Auth, format!("{what}: {cause}"))
            .advice("trust the server's authority with `ca_bundle`, or check the endpoint's name"),
        _ => Error::new(Kind::Io, format!("{what}: {cause}")).transient(),
    }
}

/// What began it, as it may be shown.
pub(super) fn cause(error: &object_store::Error) -> String {
    let text = innermost(error).to_string();
    // A page, or a structure of any kind, repeats what was sent.
    if text.contains(['<', '{']) || text.contains("Server returned") {
        return "the answer cannot be used".to_owned();
    }
    harmless(&text)
}

/// The cause as it may be shown: one line, no longer than a line, without queries and user information.
fn harmless(text: &str) -> String {
    let words = text.split_whitespace().map(|word| match word.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
            format!("{scheme}://{rest}")
        }
        None => word.to_owned(),
    });
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().find(|(at, _)| *at >= CAUSE_BYTES_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Where the chain of causes ends.
fn innermost(error: &object_store::Error) -> &(dyn StdError + 'static) {
    let mut cause: &(dyn StdError + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// The status that a text of `object_store` names.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    let digits = rest.get(..3)?;
    digits.parse().ok().filter(|status| (300..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn codes_pass_and_secrets_do_not() {
        let page = "Error performing GET http://h/b?X-Amz-Signature=secret in 5ms - Server returned non-2xx status code: \
            403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><StringToSign>secret</StringToSign></Error>";
        let error = explained("listing s3://b/", &foreign(page));
        assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false));
        assert!(
            error.to_string().contains("SignatureDoesNotMatch") && !error.to_string().contains("secret"),
            "{error}"
        );
        assert_eq!(Refused::of(&error).unwrap().status, 403);
        let slow = explained("x", &foreign("status code: 503 Slow: <Error><Code>SlowDown</Code></Error>"));
        assert!(slow.kind() == Kind::Throttled && slow.is_transient());
        let odd = explained("x", &foreign("Server returned error response: <Error><Token>secret</Token></Error>"));
        assert!(!odd.to_string().contains("secret"), "{odd}");
        let refused = explained("x", &foreign("connecting to http://me:secret@h/a?secret: connection refused"));
        assert!(refused.is_transient() && !refused.to_string().contains("secret"), "{refused}");
        assert!(refused.to_string().contains("connection refused"), "{refused}");
    }

    #[test]
    fn long_causes_are_cut() {
        let line = harmless(&"é".repeat(1000));
        assert!(line.len() < CAUSE_BYTES_MAX + 8 && line.ends_with('…'));
    }
}
