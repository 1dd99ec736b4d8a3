//! What is answered to a request, faults included. Pure.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::SystemTime;

use super::fault::{Cut, Effect};
use super::request::{Method, Request};
use super::site::{Content, Object};

/// Bytes of an object in one chunk, where it is sent in chunks.
const CHUNK: u64 = 64 << 10;

/// An answer, ready to be sent.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) head: Vec<u8>,
    /// The object, where its bytes are sent.
    pub(super) content: Option<Content>,
    /// What follows the head: less than it says where the body is to be cut.
    pub(super) body: Vec<Part>,
    /// How the connection ends afterwards, if it does.
    pub(super) end: Option<Cut>,
    /// Position in the object of the byte that is sent wrong.
    pub(super) corrupt: Option<u64>,
}

/// A part of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Bytes of the object.
    Object(Range<u64>),
    /// Bytes made for this answer.
    Made(Vec<u8>),
}

impl Part {
    fn bytes(&self) -> u64 {
        match self {
            Part::Object(range) => range.end - range.start,
            Part::Made(bytes) => bytes.len() as u64,
        }
    }
}

/// What is left of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest<'a> {
    Object(Range<u64>),
    Made(&'a [u8]),
}

impl Response {
    /// An answer without a body.
    pub(super) fn bare(status: u16, more: &str) -> Self {
        Response::made(status, more, Vec::new())
    }

    /// An answer with a body that is no object.
    fn made(status: u16, more: &str, body: Vec<u8>) -> Self {
        let head = format!(
            "HTTP/1.1 {status} {}\r\nServer: farfeed-emulate\r\nContent-Length: {}\r\n{more}\r\n",
            reason(status),
            body.len()
        );
        let body = vec![Part::Made(body)];
        Response { head: head.into_bytes(), content: None, body, end: None, corrupt: None }
    }

    /// An answer to what is no request, or none for us: the connection ends.
    pub(super) fn refusal(status: u16) -> Self {
        Response { end: Some(Cut::Close), ..Response::bare(status, "Connection: close\r\n") }
    }

    /// An error as S3 tells it.
    fn s3_error(request: &Request, status: u16, code: &str) -> Self {
        let message = match code {
            "ExpiredToken" => "The provided token has expired.",
            "SlowDown" => "Please reduce your request rate.",
            _ => "The emulated store was told to say so.",
        };
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Error><Code>{code}</Code><Message>{message}</Message><RequestId>EMULATED</RequestId></Error>"
        );
        let mut response = Response::made(status, "Content-Type: application/xml\r\n", body.into_bytes());
        if request.method == Method::Head {
            response.body.clear();
        }
        response
    }

    /// Bytes on the link.
    pub(super) fn bytes(&self) -> u64 {
        self.head.len() as u64 + self.body.iter().map(Part::bytes).sum::<u64>()
    }

    /// What is left of the part at this position of the body.
    pub(super) fn rest(&self, position: u64) -> Option<Rest<'_>> {
        let mut within = position;
        for part in &self.body {
            if within < part.bytes() {
                return Some(match part {
                    Part::Object(range) => Rest::Object(range.start + within..range.end),
                    Part::Made(bytes) => Rest::Made(&bytes[within as usize..]),
                });
            }
            within -= part.bytes();
        }
        None
    }

    /// Sends no more of the body than this.
    fn cut(&mut self, after: u64) {
        let mut left = after;
        for part in &mut self.body {
            match part {
                Part::Object(range) => range.end = range.end.min(range.start.saturating_add(left)),
                Part::Made(bytes) => bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX)),
            }
            left -= part.bytes();
        }
    }
}

/// Answers a request whose client is known. `now` is for dates.
pub(super) fn respond(request: &Request, object: Option<Object>, effect: Option<&Effect>, now: SystemTime) -> Response {
    match effect {
        Some(Effect::Status { status, retry_after }) => {
            let retry = retry_after.map_or(String::new(), |time| format!("Retry-After: {}\r\n", time.as_secs()));
            return Response::bare(*status, &retry);
        }
        Some(Effect::RetryAt { status, after }) => {
            return Response::bare(*status, &format!("Retry-After: {}\r\n", date(now + *after)));
        }
        Some(Effect::S3Error { status, code }) => return Response::s3_error(request, *status, code),
        Some(Effect::RedirectLoop) => {
            return Response::bare(302, &format!("Location: /{}\r\n", escaped(&request.key)));
        }
        _ => {}
    }
    let Some(object) = object else { return Response::bare(404, "") };
    if request.if_match.as_ref().is_some_and(|wanted| !matches_one(wanted, &object.etag)) {
        return Response::bare(412, "");
    }
    let ignored = effect == Some(&Effect::IgnoreRange)
        || request.if_range.as_ref().is_some_and(|wanted| wanted != &object.etag)
        || request.method == Method::Head;
    let range = match request.range.filter(|_| !ignored) {
        None => None,
        Some(range) => match range.within(object.size) {
            None => return Response::bare(416, &format!("Content-Range: bytes */{}\r\n", object.size)),
            range => range,
        },
    };
    content(request, object, range, effect)
}

/// The head for these bytes of the object, and the bytes.
fn content(request: &Request, object: Object, range: Option<Range<u64>>, effect: Option<&Effect>) -> Response {
    let status = if range.is_some() { 206 } else { 200 };
    let mut head =
        format!("HTTP/1.1 {status} {}\r\nServer: farfeed-emulate\r\nAccept-Ranges: bytes\r\n", reason(status));
    let etag = if effect == Some(&Effect::WrongETag) { "\"another-version\"" } else { &object.etag };
    let _ = write!(head, "Content-Type: application/octet-stream\r\nETag: {etag}\r\n");
    if let Some(range) = &range {
        let shift = u64::from(effect == Some(&Effect::WrongContentRange));
        let (first, last) = (range.start + shift, range.end - 1 + shift);
        let _ = write!(head, "Content-Range: bytes {first}-{last}/{}\r\n", object.size + shift);
    }
    let range = range.unwrap_or(0..object.size);
    let corrupt = if let Some(Effect::Corrupt { at }) = effect { range.start.checked_add(*at) } else { None };
    let has_body = request.method != Method::Head;
    let body = if has_body && (object.chunked || effect == Some(&Effect::Chunked)) {
        head.push_str("Transfer-Encoding: chunked\r\n");
        chunks(range)
    } else {
        let _ = write!(head, "Content-Length: {}\r\n", range.end - range.start);
        if has_body { vec![Part::Object(range)] } else { Vec::new() }
    };
    let mut end = None;
    if request.close {
        head.push_str("Connection: close\r\n");
        end = Some(Cut::Close);
    }
    head.push_str("\r\n");
    let mut response = Response { head: head.into_bytes(), content: Some(object.content), body, end, corrupt };
    if let Some(Effect::Cut { after, how }) = effect {
        response.cut(*after);
        response.end = Some(*how);
    }
    response
}

/// The body that sends these bytes in chunks.
fn chunks(range: Range<u64>) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut at, mut line_end) = (range.start, "");
    while at < range.end {
        let end = range.end.min(at + CHUNK);
        parts.push(Part::Made(format!("{line_end}{:x}\r\n", end - at).into_bytes()));
        parts.push(Part::Object(at..end));
        (at, line_end) = (end, "\r\n");
    }
    parts.push(Part::Made(format!("{line_end}0\r\n\r\n").into_bytes()));
    parts
}

/// A date as HTTP writes it (RFC 9110's IMF-fixdate), rounded up to a second.
fn date(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", day + 1)
}

/// Strong comparison with each ETag of an `If-Match`.
fn matches_one(wanted: &str, etag: &str) -> bool {
    wanted.split(',').map(str::trim).any(|wanted| wanted == "*" || wanted == etag)
}

fn escaped(key: &str) -> String {
    let mut path = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => path.push(char::from(byte)),
            byte => {
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Emulated",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::request::RangeWanted;
    use super::*;

    fn status(response: &Response) -> u16 {
        std::str::from_utf8(&response.head[9..12]).unwrap().parse().unwrap()
    }

    fn answer(request: Request, effect: Option<Effect>) -> (Response, String) {
        let content = Content::Memory(Arc::from([0_u8; 10]));
        let object = Object { size: 10, etag: "\"v1\"".into(), content, chunked: false };
        let response = respond(&request, Some(object), effect.as_ref(), SystemTime::UNIX_EPOCH);
        let head = String::from_utf8(response.head.clone()).unwrap();
        (response, head)
    }

    fn ranged() -> Request {
        Request { key: "a b".into(), range: Some(RangeWanted::From(2, Some(5))), ..Request::default() }
    }

    #[test]
    fn answers_ranges() {
        let (response, head) = answer(ranged(), None);
        assert_eq!((status(&response), response.body.clone(), response.end), (206, vec![Part::Object(2..6)], None));
        assert!(head.contains("Content-Range: bytes 2-5/10\r\nContent-Length: 4\r\n\r\n"), "{head}");
        assert_eq!(response.bytes(), head.len() as u64 + 4);

        let past = Request { range: Some(RangeWanted::From(10, None)), ..ranged() };
        let (response, head) = answer(past, None);
        assert!(status(&response) == 416 && head.contains("Content-Range: bytes */10\r\n"), "{head}");
    }

    #[test]
    fn keeps_conditions() {
        let with = |if_match: &str| status(&answer(Request { if_match: Some(if_match.into()), ..ranged() }, None).0);
        assert_eq!([with("\"v1\""), with("\"v0\", \"v1\""), with("*"), with("\"v0\"")], [206, 206, 206, 412]);
        let other = Request { if_range: Some("\"v0\"".into()), ..ranged() };
        assert_eq!(answer(other, None).0.body, [Part::Object(0..10)]);
        assert_eq!(status(&respond(&ranged(), None, None, SystemTime::UNIX_EPOCH)), 404);
    }

    #[test]
    fn a_head_has_no_body() {
        let (response, head) = answer(Request { method: Method::Head, ..ranged() }, None);
        assert!(
            status(&response) == 200 && response.body.is_empty() && head.contains("Content-Length: 10\r\n"),
            "{head}"
        );
    }

    #[test]
    fn faults_show_in_the_head() {
        let head = |effect| answer(ranged(), Some(effect)).1;
        let retry_after = Some(Duration::from_secs(3));
        assert!(head(Effect::Status { status: 503, retry_after }).contains("503 Service Unavailable"));
        assert!(head(Effect::Status { status: 503, retry_after }).contains("Retry-After: 3\r\n"));
        assert!(head(Effect::WrongETag).contains("another-version"));
        assert!(head(Effect::WrongContentRange).contains("bytes 3-6/11"));
        assert!(head(Effect::IgnoreRange).starts_with("HTTP/1.1 200 "));
        assert!(head(Effect::RedirectLoop).contains("Location: /a%20b\r\n"));
        let (cut, head) = answer(ranged(), Some(Effect::Cut { after: 3, how: Cut::Reset }));
        assert!(
            cut.body == [Part::Object(2..5)] && cut.end == Some(Cut::Reset) && head.contains("Content-Length: 4\r\n")
        );
        assert_eq!(answer(ranged(), Some(Effect::Corrupt { at: 1 })).0.corrupt, Some(3));
        let retry_at = Effect::RetryAt { status: 429, after: Duration::from_millis(1_000_500) };
        assert!(answer(ranged(), Some(retry_at)).1.contains("Retry-After: Thu, 01 Jan 1970 00:16:41 GMT\r\n"));
    }

    #[test]
    fn s3_errors_are_told_in_xml() {
        let (response, head) = answer(ranged(), Some(Effect::expired_token()));
        let [Part::Made(body)] = &response.body[..] else { panic!("{response:?}") };
        let body = std::str::from_utf8(body).unwrap();
        assert!(head.starts_with("HTTP/1.1 400 ") && body.contains("<Code>ExpiredToken</Code>"), "{head}{body}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(answer(ranged(), Some(Effect::slow_down())).1.starts_with("HTTP/1.1 503 "));
        let head = Request { method: Method::Head, ..ranged() };
        assert!(answer(head, Some(Effect::slow_down())).0.body.is_empty());
    }

    #[test]
    fn bodies_come_in_chunks() {
        let (response, head) = answer(ranged(), Some(Effect::Chunked));
        let made = |text: &str| Part::Made(text.into());
        assert_eq!(response.body, [made("4\r\n"), Part::Object(2..6), made("\r\n0\r\n\r\n")]);
        assert!(head.contains("Transfer-Encoding: chunked\r\n") && !head.contains("Content-Length"), "{head}");
        assert_eq!((response.rest(0), response.rest(4)), (Some(Rest::Made(b"4\r\n")), Some(Rest::Object(3..6))));
        assert_eq!((response.rest(13), response.rest(14)), (Some(Rest::Made(b"\n")), None));
        assert_eq!(response.bytes(), head.len() as u64 + 14);

        let sum = |parts: &[Part]| parts.iter().map(Part::bytes).sum::<u64>();
        let parts = chunks(5..5 + 2 * CHUNK + 1);
        assert_eq!(
            parts[1..5],
            [Part::Object(5..5 + CHUNK), made("\r\n10000\r\n"), parts[3].clone(), made("\r\n1\r\n")]
        );
        assert_eq!(sum(&parts), 2 * CHUNK + 1 + 7 + 9 + 5 + 7);
        assert_eq!(chunks(3..3), [made("0\r\n\r\n")]);

        let mut cut = answer(ranged(), Some(Effect::Chunked)).0;
        cut.cut(5);
        assert!(sum(&cut.body) == 5 && cut.rest(4) == Some(Rest::Object(3..4)), "{cut:?}");
    }

    #[test]
    fn dates_are_written_as_http_does() {
        let at = |seconds: u64| date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(at(1_767_225_599), "Wed, 31 Dec 2025 23:59:59 GMT");
    }
}
