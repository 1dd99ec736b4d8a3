//! Reads a request's head. Pure.

use std::ops::Range;

/// Bytes of a request's head that are read at the most.
pub(super) const HEAD_MAX: usize = 16 << 10;

/// Header lines that are read at the most.
const LINES_MAX: usize = 64;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Path without its leading slash, percent-decoded, without the query.
    pub(super) key: String,
    pub(super) range: Option<RangeWanted>,
    pub(super) if_match: Option<String>,
    pub(super) if_range: Option<String>,
    /// A bearer's, or S3's session token, from a header or the query.
    pub(super) token: Option<String>,
    /// Whether the client wants the connection closed after the answer.
    pub(super) close: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Method {
    #[default]
    Get,
    Head,
    Other,
}

/// One range of bytes, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeWanted {
    /// `first-` or `first-last`.
    From(u64, Option<u64>),
    /// `-suffix`.
    Last(u64),
}

impl RangeWanted {
    /// One range; others, lists of ranges among them, are left alone as RFC 9110 allows, and the whole is sent.
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let (first, last) = (first.trim(), last.trim());
        if first.is_empty() {
            return number(last).map(RangeWanted::Last);
        }
        let first = number(first)?;
        if last.is_empty() {
            return Some(RangeWanted::From(first, None));
        }
        number(last).filter(|last| *last >= first).map(|last| RangeWanted::From(first, Some(last)))
    }

    /// The bytes of an object of `size` that are meant; `None` if there are none.
    pub(super) fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            RangeWanted::From(first, last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
            RangeWanted::Last(suffix) => size.saturating_sub(suffix)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Digits only: `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The head goes on.
    Partial,
    /// Not a request that can be answered: the status to answer with, before closing.
    Refused(u16),
    /// A request, and the bytes that its head has.
    Complete(Request, usize),
}

/// Reads the head at the start of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut head = httparse::Request::new(&mut lines);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Parsed::Refused(431),
        Err(_) => return Parsed::Refused(400),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else { return Parsed::Refused(400) };
    let Some(key) = key(target) else { return Parsed::Refused(400) };
    let mut request = Request { key, token: token(target), close: head.version == Some(0), ..Request::default() };
    request.method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        _ => Method::Other,
    };
    for line in head.headers.iter() {
        let Ok(value) = std::str::from_utf8(line.value) else { continue };
        let named = |name: &str| line.name.eq_ignore_ascii_case(name);
        if named("range") {
            request.range = RangeWanted::parse(value);
        } else if named("if-match") {
            request.if_match = Some(value.to_owned());
        } else if named("if-range") {
            request.if_range = Some(value.to_owned());
        } else if named("authorization") {
            let bearer = value.strip_prefix("Bearer ").map(str::to_owned);
            request.token = bearer.or(request.token);
        } else if named("x-amz-security-token") {
            request.token = Some(value.to_owned());
        } else if named("connection") {
            request.close |= value.eq_ignore_ascii_case("close");
        } else if named("transfer-encoding") || (named("content-length") && value != "0") {
            // A body would be taken for the next request.
            return Parsed::Refused(400);
        }
    }
    Parsed::Complete(request, length)
}

/// The key that a request target names: of `/key?query` or of `http://host/key?query`.
fn key(target: &str) -> Option<String> {
    let path = match target.strip_prefix("http://") {
        Some(absolute) => &absolute[absolute.find('/')?..],
        None => target,
    };
    decoded(path.split(['?', '#']).next()?.strip_prefix('/')?)
}

/// The session token in a signed URL's query.
fn token(target: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    decoded(pairs.find(|(name, _)| name.eq_ignore_ascii_case("x-amz-security-token"))?.1)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => (nibble(bytes.next()?)? << 4) | nibble(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(plain).ok()
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Parsed::Complete(request, length) => {
                assert_eq!(length, text.len());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_a_range_client_sends() {
        let got = request(
            "GET /a%20b/c.tar?X-Sig=1 HTTP/1.1\r\nHost: x\r\nrange: bytes=10-19\r\nIf-Match: \"e\"\r\nAuthorization: Bearer t\r\n\r\n",
        );
        let range = Some(RangeWanted::From(10, Some(19)));
        let (if_match, token) = (Some("\"e\"".to_owned()), Some("t".to_owned()));
        assert_eq!(got, Request { key: "a b/c.tar".into(), range, if_match, token, ..Request::default() });
        assert!(request("GET /a HTTP/1.0\r\n\r\n").close);
        assert_eq!(request("HEAD http://h:1/k HTTP/1.1\r\n\r\n").key, "k");
    }

    #[test]
    fn finds_session_tokens() {
        let token = |text: &str| request(text).token;
        assert_eq!(
            token("GET /a?X-Amz-Date=1&X-Amz-Security-Token=a%2Fb%3D HTTP/1.1\r\n\r\n").as_deref(),
            Some("a/b=")
        );
        assert_eq!(token("GET /a HTTP/1.1\r\nx-amz-security-token: t\r\n\r\n").as_deref(), Some("t"));
        let signed = "GET /a HTTP/1.1\r\nx-amz-security-token: t\r\nAuthorization: AWS4-HMAC-SHA256 x\r\n\r\n";
        assert_eq!(token(signed).as_deref(), Some("t"));
        assert_eq!(token("GET /a HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn reads_ranges_as_rfc_9110_does() {
        let within = |text: &str, size| RangeWanted::parse(text).map(|range| range.within(size));
        assert_eq!(within("bytes=0-0", 10), Some(Some(0..1)));
        assert_eq!(within("bytes=5-", 10), Some(Some(5..10)));
        assert_eq!(within("bytes=5-99", 10), Some(Some(5..10)));
        assert_eq!(within("bytes=-3", 10), Some(Some(7..10)));
        assert_eq!(within("bytes=-30", 10), Some(Some(0..10)));
        assert_eq!(within("bytes=10-", 10), Some(None));
        assert_eq!(within("bytes=-0", 10), Some(None));
        assert_eq!(within("bytes=0-18446744073709551615", 10), Some(Some(0..10)));
        for ignored in ["bytes=5-4", "bytes=1-2,4-5", "bytes=+1-2", "bytes=a-b", "lines=1-2", "bytes=-", "bytes"] {
            assert_eq!(within(ignored, 10), None, "{ignored}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_answer() {
        assert_eq!(parse(b"GET /a HT"), Parsed::Partial);
        assert_eq!(parse(&[b'a'; HEAD_MAX]), Parsed::Refused(431));
        assert_eq!(parse(b"\0\r\n\r\n"), Parsed::Refused(400));
        assert_eq!(parse(b"GET a HTTP/1.1\r\n\r\n"), Parsed::Refused(400));
        assert_eq!(parse(b"GET /%zz HTTP/1.1\r\n\r\n"), Parsed::Refused(400));
        assert_eq!(parse(b"GET /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), Parsed::Refused(400));
        let many = format!("GET /a HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(LINES_MAX + 1));
        assert_eq!(parse(many.as_bytes()), Parsed::Refused(431));
    }
}
