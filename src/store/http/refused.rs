//! What a server says beside the status when it refuses, and what this client leaves to another one.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::client::Client;
use super::connection::Connection;
use super::response::Head;
use crate::error::Error;

/// Bytes of an error page that are read; the codes are at its beginning.
const PAGE_BYTES_MAX: usize = 4 << 10;
/// An error page is a courtesy: it is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longer words are no codes.
const WORD_BYTES_MAX: usize = 64;

/// The name that an object store has for its refusal; the source of the error.
///
/// Nothing else of the page is kept: stores repeat tokens and signed headers in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Refused {
    pub(in crate::store) status: u16,
    /// As in `<Code>ExpiredToken</Code>`, or an `x-ms-error-code`.
    pub(in crate::store) code: Option<Box<str>>,
    /// Where the bucket is, if it is not where it was asked for.
    pub(in crate::store) region: Option<Box<str>>,
}

impl Refused {
    pub(in crate::store) fn of(error: &Error) -> Option<&Self> {
        StdError::source(error)?.downcast_ref()
    }

    /// What the header of an answer tells.
    pub(super) fn in_head(head: &Head<'_>) -> Self {
        let owned = |text: Option<&str>| text.filter(|text| is_word(text)).map(Box::from);
        Refused { status: head.status, code: owned(head.error_code), region: owned(head.bucket_region) }
    }

    /// Adds what an error page tells, whatever it is framed in.
    pub(in crate::store) fn read_page(&mut self, page: &[u8]) {
        let page = String::from_utf8_lossy(page);
        self.code = self.code.take().or_else(|| element(&page, "Code"));
        self.region = self.region.take().or_else(|| element(&page, "Region"));
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.code, &self.region) {
            (Some(code), None) => write!(f, "it says {code}"),
            (Some(code), Some(region)) => write!(f, "it says {code}, and names the region {region}"),
            (None, Some(region)) => write!(f, "it names the region {region}"),
            (None, None) => write!(f, "it gives no reason"),
        }
    }
}

impl StdError for Refused {}

/// Something that another client may be able to do; the source of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Beyond {
    /// A body in chunks.
    Chunked,
    /// A body in a content coding.
    Coded,
}

impl Beyond {
    pub(in crate::store) fn of(error: &Error) -> Option<Self> {
        StdError::source(error)?.downcast_ref().copied()
    }

    /// In two words, as in the stats.
    pub(in crate::store) fn name(self) -> &'static str {
        match self {
            Beyond::Chunked => "chunked bodies",
            Beyond::Coded => "content codings",
        }
    }
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Beyond::Chunked => "its bytes cannot be received in place",
            Beyond::Coded => "its bytes are not the object's",
        })
    }
}

impl StdError for Beyond {}

impl Client {
    /// `error` with what the answer that led to it says of the reason.
    pub(super) async fn explained(&self, mut connection: Connection, error: Error) -> Error {
        let Ok(head) = connection.head() else { return error };
        if head.status < 300 || StdError::source(&error).is_some() {
            self.keep(connection);
            return error;
        }
        let mut refused = Refused::in_head(&head);
        let due = head.content_length.map_or(PAGE_BYTES_MAX, |length| length.min(PAGE_BYTES_MAX as u64) as usize);
        // Without its length, a page's end is where its outermost element ends.
        let ended = |page: &[u8]| page.len() >= due || page.windows(8).any(|window| window == b"</Error>");
        let _ = tokio::time::timeout(PATIENCE, connection.receive_page(ended)).await;
        refused.read_page(connection.page());
        self.keep(connection);
        if refused.code.is_some() || refused.region.is_some() { error.source(refused) } else { error }
    }
}

/// The word in the first element of that name.
fn element(page: &str, name: &str) -> Option<Box<str>> {
    let (_, rest) = page.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    is_word(text).then(|| text.into())
}

/// Whether it can be shown: a code or a region, and nothing that could hold a secret or break a line.
fn is_word(text: &str) -> bool {
    (1..=WORD_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn codes_are_found_and_nothing_else_is_kept() {
        for (page, code, region) in [
            ("<?xml?><Error><Code>ExpiredToken</Code><Message>m</Message></Error>", Some("ExpiredToken"), None),
            (
                "5a\r\n<Error><Code>PermanentRedirect</Code><Region>eu-west-1</Region>",
                Some("PermanentRedirect"),
                Some("eu-west-1"),
            ),
            ("<Error><Code>a secret with spaces</Code></Error>", None, None),
            ("<Error><Code>Cut", None, None),
            ("<html>no</html>", None, None),
        ] {
            let mut refused = Refused::default();
            refused.read_page(page.as_bytes());
            assert_eq!((refused.code.as_deref(), refused.region.as_deref()), (code, region), "{page}");
        }
        let long = format!("<Code>{}</Code>", "a".repeat(65));
        assert_eq!(element(&long, "Code"), None);
    }

    #[test]
    fn sources_are_found_in_errors() {
        let refused = Refused { status: 403, code: Some("AccessDenied".into()), region: None };
        let error = Error::new(Kind::Auth, "k: the server refused access").source(refused).advice("ask");
        assert_eq!(Refused::of(&error).unwrap().status, 403);
        assert!(error.to_string().contains("refused access: it says AccessDenied (ask)"), "{error}");
        assert_eq!(Beyond::of(&error), None);
        assert_eq!(Beyond::of(&Error::new(Kind::Unsupported, "k").source(Beyond::Chunked)), Some(Beyond::Chunked));
    }
}
