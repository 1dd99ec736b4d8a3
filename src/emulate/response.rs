//! What is answered to a request, faults included. Pure.

use std::fmt::Write as _;
use std::ops::Range;

use super::fault::{Cut, Effect};
use super::request::{Method, Request};
use super::site::{Content, Object};

/// An answer, ready to be sent.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) head: Vec<u8>,
    /// The object, where its bytes are sent.
    pub(super) content: Option<Content>,
    /// Which of its bytes are sent: fewer than the head says where the body is to be cut.
    pub(super) body: Range<u64>,
    /// How the connection ends afterwards, if it does.
    pub(super) end: Option<Cut>,
    /// Position in the object of the byte that is sent wrong.
    pub(super) corrupt: Option<u64>,
}

impl Response {
    /// An answer without a body.
    pub(super) fn bare(status: u16, more: &str) -> Self {
        let mut response = Response { head: Vec::new(), content: None, body: 0..0, end: None, corrupt: None };
        response.head = format!(
            "HTTP/1.1 {status} {}\r\nServer: farfeed-emulate\r\nContent-Length: 0\r\n{more}\r\n",
            reason(status)
        )
        .into_bytes();
        response
    }

    /// An answer to what is no request, or none for us: the connection ends.
    pub(super) fn refusal(status: u16) -> Self {
        Response { end: Some(Cut::Close), ..Response::bare(status, "Connection: close\r\n") }
    }

    /// Bytes on the link.
    pub(super) fn bytes(&self) -> u64 {
        self.head.len() as u64 + (self.body.end - self.body.start)
    }
}

/// Answers a request whose client is known.
pub(super) fn respond(request: &Request, object: Option<Object>, effect: Option<&Effect>) -> Response {
    match effect {
        Some(Effect::Status { status, retry_after }) => {
            let retry = retry_after.map_or(String::new(), |time| format!("Retry-After: {}\r\n", time.as_secs()));
            return Response::bare(*status, &retry);
        }
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
    let mut body = range.unwrap_or(0..object.size);
    let _ = write!(head, "Content-Length: {}\r\n", body.end - body.start);
    if request.close {
        head.push_str("Connection: close\r\n");
    }
    head.push_str("\r\n");
    if request.method == Method::Head {
        body = 0..0;
    }

    let mut end = request.close.then_some(Cut::Close);
    let mut corrupt = None;
    match effect {
        Some(Effect::Cut { after, how }) => {
            body.end = body.end.min(body.start.saturating_add(*after));
            end = Some(*how);
        }
        Some(Effect::Corrupt { at }) => corrupt = body.start.checked_add(*at),
        _ => {}
    }
    Response { head: head.into_bytes(), content: Some(object.content), body, end, corrupt }
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
        let object = Object { size: 10, etag: "\"v1\"".into(), content: Content::Memory(Arc::from([0_u8; 10])) };
        let response = respond(&request, Some(object), effect.as_ref());
        let head = String::from_utf8(response.head.clone()).unwrap();
        (response, head)
    }

    fn ranged() -> Request {
        Request { key: "a b".into(), range: Some(RangeWanted::From(2, Some(5))), ..Request::default() }
    }

    #[test]
    fn answers_ranges() {
        let (response, head) = answer(ranged(), None);
        assert_eq!((status(&response), response.body.clone(), response.end), (206, 2..6, None));
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
        assert_eq!(answer(other, None).0.body, 0..10);
        assert_eq!(status(&respond(&ranged(), None, None)), 404);
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
        assert!(cut.body == (2..5) && cut.end == Some(Cut::Reset) && head.contains("Content-Length: 4\r\n"));
        assert_eq!(answer(ranged(), Some(Effect::Corrupt { at: 1 })).0.corrupt, Some(3));
    }
}
