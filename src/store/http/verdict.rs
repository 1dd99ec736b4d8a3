//! Whether a response is the answer to what was asked: pure.

use std::fmt;
use std::ops::Range;

use super::refused::Beyond;
use super::response::{ContentRange, Head};
use crate::dataset::Version;
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;
use crate::store::{ReadRequest, changed, past_end};

/// What was asked for, as far as the answer must fit it.
pub(in crate::store) struct Asked<'a> {
    pub(in crate::store) root: &'a str,
    pub(in crate::store) key: &'a str,
    /// The bytes of the object still wanted.
    pub(in crate::store) range: Range<u64>,
    pub(in crate::store) size: Option<u64>,
    pub(in crate::store) version: Option<&'a Version>,
}

impl<'a> Asked<'a> {
    /// What `request` still lacks in `landing`; `None` if that is nothing.
    ///
    /// # Errors
    /// `Config` and `Corrupt` for what no object of the expected size has.
    pub(in crate::store) fn of(root: &'a str, request: &'a ReadRequest, landing: &Landing) -> Result<Option<Self>> {
        let key = &*request.key;
        let Some(end) = request.start.checked_add(landing.len() as u64) else {
            let context =
                format!("{root}{key}: {} bytes from byte {} on pass any object's end", landing.len(), request.start);
            return Err(Error::new(Kind::Config, context));
        };
        let range = request.start + landing.filled() as u64..end;
        if let Some(size) = request.size.filter(|size| end > *size) {
            return Err(past_end(root, key, &range, size));
        }
        let asked = Asked { root, key, range, size: request.size, version: request.version.as_ref() };
        Ok(Some(asked).filter(|asked| !asked.range.is_empty()))
    }

    /// For asking what there is, not for its bytes.
    pub(in crate::store) fn meta(root: &'a str, key: &'a str) -> Self {
        Asked { root, key, range: 0..1, size: None, version: None }
    }

    /// The version as If-Match may carry it.
    pub(in crate::store) fn if_match(&self) -> Option<&'a str> {
        self.version.and_then(strong)
    }

    /// Checks the answer to a range request; gives the version that its bytes are of.
    ///
    /// # Errors
    /// `Corrupt` when it is of another object, version or range; `Unsupported` when the bytes are not sent as they are; those of
    /// [`Asked::refusal`].
    pub(super) fn check_range(&self, head: &Head<'_>) -> Result<Option<Version>> {
        if head.status != 206 {
            return Err(self.refusal(head));
        }
        self.check_plain(head)?;
        if let Some(ContentRange::Unsatisfied { size }) = head.content_range {
            return Err(past_end(self.root, self.key, &self.range, size));
        }
        let Some(ContentRange::Satisfied { first, last, size }) = head.content_range else {
            return Err(self
                .error(Kind::Unsupported, "206 without a single Content-Range")
                .advice("the server or a proxy before it does not serve byte ranges properly"));
        };
        if let Some(size) = size {
            self.check_size(size)?;
        }
        if (first, last) != (self.range.start, self.range.end - 1) {
            let wanted = &self.range;
            return Err(self
                .error(
                    Kind::Corrupt,
                    format!("bytes {}-{} wanted, the server sent {first}-{last}", wanted.start, wanted.end - 1),
                )
                .advice("the server or a proxy before it does not serve byte ranges properly"));
        }
        let len = self.range.end - self.range.start;
        if let Some(said) = head.content_length.filter(|said| *said != len) {
            return Err(self
                .error(Kind::Corrupt, format!("Content-Length {said} for a range of {len} bytes"))
                .advice("the server or a proxy before it does not serve byte ranges properly"));
        }
        self.check_version(Tag::of(head, size.or(self.size)))
    }

    /// The body must be the object's bytes, counted: no coding of any kind.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(super) fn check_plain(&self, head: &Head<'_>) -> Result<()> {
        if head.transfer_coded {
            return Err(self
                .error(Kind::Unsupported, "the server sends the range with Transfer-Encoding: chunked")
                .source(Beyond::Chunked)
                .advice("serve the files without compression or rewriting"));
        }
        if let Some(coding) = head.content_coding {
            return Err(self
                .error(Kind::Unsupported, format!("the server sends the object with Content-Encoding: {coding}"))
                .source(Beyond::Coded)
                .advice("store and serve the object without it"));
        }
        Ok(())
    }

    /// What went wrong, for every status that is not the one hoped for.
    pub(super) fn refusal(&self, head: &Head<'_>) -> Error {
        let status = head.status;
        match status {
            200 => match head.content_length {
                // nginx answers so where it has no byte of what is asked for: an empty object.
                Some(size) if self.range.end > size => past_end(self.root, self.key, &self.range, size),
                _ => self
                    .error(Kind::Unsupported, "the server ignores Range: it answered 200 with the whole object")
                    .advice("use a server that serves byte ranges"),
            },
            404 | 410 => self
                .error(Kind::NotFound, format!("no such object (HTTP {status})"))
                .advice("check its name, and that it is still there"),
            401 | 403 | 407 => self
                .error(Kind::Auth, format!("the server refused access (HTTP {status})"))
                .advice("check the credentials, and that they have not expired"),
            412 => match self.version {
                Some(version) => changed(self.root, self.key, version, &head.etag.unwrap_or("another version")),
                None => self.error(Kind::Io, "the server refused a condition that was not made (HTTP 412)"),
            },
            416 => match head.content_range {
                Some(ContentRange::Unsatisfied { size }) => past_end(self.root, self.key, &self.range, size),
                _ => self
                    .error(
                        Kind::Corrupt,
                        format!("bytes {}..{} are past the object's end", self.range.start, self.range.end),
                    )
                    .advice("the index belongs to another version of it: run `farfeed index`")
                    .in_object(),
            },
            429 | 503 => match head.retry_after {
                Some(delay) => self
                    .error(Kind::Throttled, format!("the server asks to wait {} s (HTTP {status})", delay.as_secs()))
                    .retry_in(delay),
                None => {
                    self.error(Kind::Throttled, format!("the server asks to slow down (HTTP {status})")).transient()
                }
            },
            501 | 505 => self.error(Kind::Unsupported, format!("the server cannot serve this request (HTTP {status})")),
            408 | 425 | 500..=599 => self.error(Kind::Io, format!("the server failed (HTTP {status})")).transient(),
            _ => self.error(Kind::Io, format!("the server answered HTTP {status}")),
        }
    }

    /// The object must have the size that is expected, and reach as far as what is wanted.
    pub(in crate::store) fn check_size(&self, size: u64) -> Result<()> {
        if self.range.end > size {
            return Err(past_end(self.root, self.key, &self.range, size));
        }
        match self.size {
            Some(expected) if expected != size => {
                let context = format!("the object has {size} bytes, {expected} expected");
                Err(self
                    .error(Kind::Corrupt, context)
                    .advice("the index belongs to another version of it: run `farfeed index`")
                    .in_object())
            }
            _ => Ok(()),
        }
    }

    pub(in crate::store) fn check_version(&self, found: Option<Tag<'_>>) -> Result<Option<Version>> {
        match (self.version, found) {
            (None, found) => Ok(found.map(Tag::version)),
            (Some(expected), Some(found)) if found.is(&expected.0) => Ok(Some(expected.clone())),
            (Some(expected), Some(found)) => Err(changed(self.root, self.key, expected, &found)),
            (Some(expected), None) => Err(changed(self.root, self.key, expected, &"neither ETag nor Last-Modified")),
        }
    }

    /// An error that names the object.
    pub(in crate::store) fn error(&self, kind: Kind, what: impl fmt::Display) -> Error {
        Error::new(kind, format!("{}{}: {what}", self.root, self.key))
    }
}

/// What a response tells of the object's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Tag<'a> {
    /// An ETag as it was sent, weak ones included.
    Etag(&'a str),
    /// For servers without ETags.
    Dated { modified: &'a str, size: u64 },
}

impl<'a> Tag<'a> {
    pub(super) fn of(head: &Head<'a>, size: Option<u64>) -> Option<Self> {
        head.etag
            .map(Tag::Etag)
            .or_else(|| head.last_modified.zip(size).map(|(modified, size)| Tag::Dated { modified, size }))
    }

    pub(in crate::store) fn version(self) -> Version {
        match self {
            Tag::Etag(etag) => Version(etag.into()),
            Tag::Dated { .. } => Version(self.to_string().into()),
        }
    }

    fn is(self, text: &str) -> bool {
        match self {
            Tag::Etag(etag) => etag == text,
            Tag::Dated { .. } => self.to_string() == text,
        }
    }
}

impl fmt::Display for Tag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tag::Etag(etag) => f.write_str(etag),
            Tag::Dated { modified, size } => write!(f, "{modified}, {size} bytes"),
        }
    }
}

/// The version as If-Match may carry it: a strong ETag and nothing that could end the header line. Versions come from index files,
/// which anybody may have written.
fn strong(version: &Version) -> Option<&str> {
    let opaque = version.0.strip_prefix('"')?.strip_suffix('"')?;
    opaque.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"').then_some(&version.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::response::parse;
    use super::*;

    fn asked(version: Option<&Version>) -> Asked<'_> {
        Asked { root: "http://h/", key: "k", range: 5..15, size: Some(20), version }
    }

    fn judge(status: &str, lines: &str, version: Option<&str>) -> Result<Option<Version>> {
        let version = version.map(|text| Version(text.into()));
        let header = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
        asked(version.as_ref()).check_range(&parse(header.as_bytes()).unwrap())
    }

    const RANGE: &str = "Content-Range: bytes 5-14/20\r\n";

    #[test]
    fn the_right_answer_gives_its_version() {
        let version =
            |lines: &str| judge("206", &format!("{RANGE}{lines}"), None).unwrap().map(|version| version.0.to_string());
        assert_eq!(version("ETag: \"a\"\r\nLast-Modified: x\r\n").as_deref(), Some("\"a\""));
        assert_eq!(version("ETag: W/\"a\"\r\n").as_deref(), Some("W/\"a\""));
        let dated = version("Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\nContent-Length: 10\r\n").unwrap();
        assert_eq!(dated, "Tue, 15 Nov 1994 12:45:26 GMT, 20 bytes");
        assert_eq!(version(""), None);
        for (line, expected) in [("ETag: \"a\"", "\"a\""), ("Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT", &dated)] {
            assert!(judge("206", &format!("{RANGE}{line}\r\n"), Some(expected)).is_ok());
        }
        assert!(judge("206", "Content-Range: bytes 5-14/*\r\n", None).is_ok());
    }

    #[test]
    fn the_wrong_answer_is_named() {
        for (status, lines, version, kind, word) in [
            ("206", "Content-Range: bytes 5-14/21\r\n", None, Kind::Corrupt, "another version"),
            ("206", "Content-Range: bytes 5-11/12\r\n", None, Kind::Corrupt, "the object has 12"),
            ("206", "Content-Range: bytes 0-9/20\r\n", None, Kind::Corrupt, "the server sent 0-9"),
            ("206", "Content-Range: bytes 5-13/20\r\n", None, Kind::Corrupt, "the server sent 5-13"),
            ("206", "Content-Range: bytes 5-14/20\r\nContent-Length: 9\r\n", None, Kind::Corrupt, "Content-Length 9"),
            ("206", "", None, Kind::Unsupported, "Content-Range"),
            ("206", "Content-Range: bytes 0--1/0\r\n", None, Kind::Corrupt, "the object has 0"),
            ("206", "Content-Range: bytes 5-14/20\r\nETag: \"b\"\r\n", Some("\"a\""), Kind::Corrupt, "changed"),
            ("206", "Content-Range: bytes 5-14/20\r\nETag: \"a\"\r\n", Some("W/\"a\""), Kind::Corrupt, "changed"),
            ("206", "Content-Range: bytes 5-14/20\r\n", Some("\"a\""), Kind::Corrupt, "neither ETag"),
            (
                "206",
                "Content-Range: bytes 5-14/20\r\nTransfer-Encoding: chunked\r\n",
                None,
                Kind::Unsupported,
                "chunked",
            ),
            ("206", "Content-Range: bytes 5-14/20\r\nContent-Encoding: gzip\r\n", None, Kind::Unsupported, "gzip"),
            ("200", "Content-Length: 20\r\n", None, Kind::Unsupported, "ignores Range"),
            ("200", "Content-Length: 0\r\n", None, Kind::Corrupt, "the object has 0"),
            ("412", "", Some("\"a\""), Kind::Corrupt, "changed"),
            ("416", "Content-Range: bytes */12\r\n", None, Kind::Corrupt, "the object has 12"),
            ("416", "", None, Kind::Corrupt, "past the object's end"),
            ("404", "", None, Kind::NotFound, "404"),
            ("410", "", None, Kind::NotFound, "410"),
            ("401", "", None, Kind::Auth, "401"),
            ("403", "", None, Kind::Auth, "403"),
            ("400", "", None, Kind::Io, "400"),
            ("501", "", None, Kind::Unsupported, "501"),
        ] {
            let error = judge(status, lines, version).unwrap_err();
            assert_eq!(error.kind(), kind, "{status} {lines}: {error}");
            assert!(error.to_string().contains(word) && error.to_string().contains("http://h/k"), "{error}");
            assert!(!error.is_transient(), "{error}");
        }
    }

    #[test]
    fn what_may_pass_is_transient() {
        for (status, kind) in [
            ("429", Kind::Throttled),
            ("503", Kind::Throttled),
            ("500", Kind::Io),
            ("504", Kind::Io),
            ("408", Kind::Io),
        ] {
            let error = judge(status, "", None).unwrap_err();
            assert_eq!((error.kind(), error.is_transient(), error.retry_after()), (kind, true, None));
        }
        let error = judge("503", "Retry-After: 7\r\n", None).unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert!(error.is_transient() && error.to_string().contains("wait 7 s"), "{error}");
    }

    #[test]
    fn only_strong_clean_tags_are_conditions() {
        let sent = |text: &str| strong(&Version(text.into())).is_some();
        assert!(sent("\"a:b\"") && sent("\"\""));
        for text in ["W/\"a\"", "a", "\"", "\"a\"b\"", "\"a\r\nHost: x\"", "\"a b\"", "1994, 20 bytes"] {
            assert!(!sent(text), "{text}");
        }
    }
}
