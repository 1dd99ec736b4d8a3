//! Response headers, parsed: pure, bounded, never trusting.

use std::time::Duration;

/// The most bytes that response headers may have, interim responses included.
pub(super) const HEADER_BYTES_MAX: usize = 16 << 10;

/// The most header lines.
const HEADERS_MAX: usize = 128;

/// The longest wait that a Retry-After is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What a response says before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) status: u16,
    /// Whether the connection may be used again once the body is read.
    pub(super) keep_alive: bool,
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<ContentRange>,
    /// Any transfer coding: the body is not the object's bytes as they are.
    pub(super) transfer_coded: bool,
    /// Any content coding but `identity`.
    pub(super) content_coding: Option<&'a str>,
    /// With its quotes, and `W/` where it is weak.
    pub(super) etag: Option<&'a str>,
    pub(super) last_modified: Option<&'a str>,
    pub(super) location: Option<&'a str>,
    /// In seconds only: a date would need the server's clock to be ours.
    pub(super) retry_after: Option<Duration>,
    /// What Azure calls a refusal.
    pub(super) error_code: Option<&'a str>,
    /// Where S3 has the bucket.
    pub(super) bucket_region: Option<&'a str>,
}

/// A Content-Range header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentRange {
    /// `bytes first-last/size`, the size `None` where it is `*`. `first` ≤ `last` < `size`.
    Satisfied { first: u64, last: u64, size: Option<u64> },
    /// `bytes */size`.
    Unsatisfied { size: u64 },
}

/// Why bytes are no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// One past the empty line that ends the header which `bytes` start with, if it is there. `seen` bytes have been searched before.
///
/// Apart from [`parse`], so that a header which trickles in is parsed once and not once per byte.
pub(super) fn header_end(bytes: &[u8], seen: usize) -> Option<usize> {
    // The line's end may have begun up to two bytes before what is new: LF CR LF.
    let from = seen.saturating_sub(2);
    let recent = bytes.get(from..)?;
    recent.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| match &recent[at + 1..] {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

/// Whether the header that `bytes` start with is an interim one (1xx): the response proper follows it.
pub(super) fn is_interim(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.1 1")
}

/// Parses a whole header, up to and including its empty line.
pub(super) fn parse(header: &[u8]) -> Result<Head<'_>, Malformed> {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut lines);
    match response.parse(header) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Malformed("header without an end")),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed("too many header lines")),
        Err(_) => return Err(Malformed("no HTTP/1 header")),
    }
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(Malformed("no status line"));
    };
    let mut head = Head {
        status,
        keep_alive: version == 1,
        content_length: None,
        content_range: None,
        transfer_coded: false,
        content_coding: None,
        etag: None,
        last_modified: None,
        location: None,
        retry_after: None,
        error_code: None,
        bucket_region: None,
    };
    for line in response.headers.iter() {
        head.note(line.name, line.value.trim_ascii())?;
    }
    Ok(head)
}

impl<'a> Head<'a> {
    /// Takes in one header line. What is said twice must be said alike where bytes are counted by it.
    fn note(&mut self, name: &str, value: &'a [u8]) -> Result<(), Malformed> {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        let text = std::str::from_utf8(value).ok();
        if is("content-length") {
            let length = text.and_then(decimal).ok_or(Malformed("Content-Length is no number"))?;
            if self.content_length.replace(length).is_some_and(|before| before != length) {
                return Err(Malformed("two values of Content-Length"));
            }
        } else if is("content-range") {
            let range = text.and_then(content_range).ok_or(Malformed("Content-Range cannot be read"))?;
            if self.content_range.replace(range).is_some_and(|before| before != range) {
                return Err(Malformed("two values of Content-Range"));
            }
        } else if is("transfer-encoding") {
            self.transfer_coded |= !value.eq_ignore_ascii_case(b"identity");
        } else if is("content-encoding") {
            if !value.is_empty() && !value.eq_ignore_ascii_case(b"identity") {
                self.content_coding = Some(text.unwrap_or("unknown"));
            }
        } else if is("connection") {
            for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"close") {
                    self.keep_alive = false;
                } else if token.eq_ignore_ascii_case(b"keep-alive") {
                    self.keep_alive = true;
                }
            }
        } else if is("etag") {
            self.etag = text.filter(|text| !text.is_empty());
        } else if is("last-modified") {
            self.last_modified = text.filter(|text| !text.is_empty());
        } else if is("location") {
            self.location = text;
        } else if is("retry-after") {
            self.retry_after = text.and_then(decimal).map(Duration::from_secs).map(|delay| delay.min(RETRY_AFTER_MAX));
        } else if is("x-ms-error-code") {
            self.error_code = text;
        } else if is("x-amz-bucket-region") {
            self.bucket_region = text;
        }
        Ok(())
    }
}

/// Digits and nothing else: `+5` is a number to Rust but not to HTTP.
fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn content_range(text: &str) -> Option<ContentRange> {
    let (unit, range) = text.split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, size) = range.trim().split_once('/')?;
    if range == "*" {
        return Some(ContentRange::Unsatisfied { size: decimal(size)? });
    }
    let (first, last) = range.split_once('-')?;
    let first = decimal(first)?;
    let size = if size == "*" { None } else { Some(decimal(size)?) };
    // What begins past the end is no range, whatever it is said to end with: Azurite has `bytes 20-19/20` there, and `bytes 0--1/0`.
    if let Some(size) = size.filter(|size| first >= *size) {
        return Some(ContentRange::Unsatisfied { size });
    }
    let last = decimal(last)?;
    (first <= last && size.is_none_or(|size| last < size)).then_some(ContentRange::Satisfied { first, last, size })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 5-14/20\r\n\
        ETag: \"a:b\"\r\nLast-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\nServer: x\r\n\r\n";

    #[test]
    fn reads_what_matters() {
        let head = parse(PLAIN.as_bytes()).unwrap();
        let expected = Head {
            status: 206,
            keep_alive: true,
            content_length: Some(10),
            content_range: Some(ContentRange::Satisfied { first: 5, last: 14, size: Some(20) }),
            transfer_coded: false,
            content_coding: None,
            etag: Some("\"a:b\""),
            last_modified: Some("Tue, 15 Nov 1994 12:45:26 GMT"),
            location: None,
            retry_after: None,
            error_code: None,
            bucket_region: None,
        };
        assert_eq!(head, expected);
        let head = parse(
            b"HTTP/1.0 503 \nretry-AFTER:  7 \nTransfer-Encoding: gzip, chunked\nContent-Encoding: br\nConnection: x, Close\nLocation: /y\n\n",
        )
        .unwrap();
        assert_eq!((head.status, head.keep_alive, head.transfer_coded), (503, false, true));
        assert_eq!(
            (head.retry_after, head.content_coding, head.location),
            (Some(Duration::from_secs(7)), Some("br"), Some("/y"))
        );
        assert!(!parse(b"HTTP/1.0 200 OK\r\n\r\n").unwrap().keep_alive);
        assert!(parse(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n").unwrap().keep_alive);
    }

    #[test]
    fn contradictions_and_nonsense_are_malformed() {
        for lines in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Range: bytes 5-4/20\r\n",
            "Content-Range: bytes 5-20/20\r\n",
            "Content-Range: bytes 0-1\r\n",
            "Content-Range: items 0-1/2\r\n",
            "Content-Range: bytes */*\r\n",
            "Content-Range: bytes 0-1/9\r\nContent-Range: bytes 0-1/8\r\n",
        ] {
            let header = format!("HTTP/1.1 206 x\r\n{lines}\r\n");
            assert!(parse(header.as_bytes()).is_err(), "{lines}");
        }
        let bomb = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(bomb.as_bytes()), Err(Malformed("too many header lines")));
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(parse(&PLAIN.as_bytes()[..PLAIN.len() - 1]).is_err());
    }

    #[test]
    fn the_end_is_found_wherever_the_bytes_were_cut() {
        for header in [PLAIN, "HTTP/1.1 200 OK\n\n", "HTTP/1.1 200 OK\r\na: b\n\r\n"] {
            let bytes = [header.as_bytes(), b"\n\nbody"].concat();
            for cut in 0..bytes.len() {
                let first = header_end(&bytes[..cut], 0);
                let end = first.or_else(|| header_end(&bytes, cut));
                assert_eq!(end, Some(header.len()), "cut at {cut}");
            }
        }
    }

    fn header_line() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "Content-Length",
            "content-range",
            "ETag",
            "Last-Modified",
            "Connection",
            "Retry-After",
            "Location",
            "Transfer-Encoding",
            "Content-Encoding",
            "X-Other",
        ]);
        let value = prop_oneof![
            "[ -~]{0,30}",
            "[0-9]{1,20}",
            (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(a, b, c)| format!("bytes {a}-{b}/{c}")),
        ];
        (name, value).prop_map(|(name, value)| format!("{name}: {value}\r\n"))
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), seen in 0usize..700) {
            let _ = parse(&bytes);
            let _ = header_end(&bytes, seen);
            let _ = is_interim(&bytes);
        }

        #[test]
        fn nearly_responses_never_panic(
            lines in prop::collection::vec(header_line(), 0..12),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = format!("HTTP/1.1 206 x\r\n{}\r\n", lines.concat()).into_bytes();
            let _ = parse(&bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes);
            let _ = parse(&bytes[..at]);
        }

        #[test]
        fn split_anywhere_it_parses_the_same(
            first in 0u64..1 << 40, len in 1u64..1 << 30, beyond in 0u64..1 << 30,
            tag in "[!#-~]{1,40}", filler in prop::collection::vec("[a-z]{1,9}", 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
        ) {
            let (last, size) = (first + len - 1, first + len + beyond);
            let filler: String = filler.iter().map(|word| format!("X-{word}: {word}\r\n")).collect();
            let header = format!(
                "HTTP/1.1 206 Partial Content\r\n{filler}ETag: \"{tag}\"\r\nContent-Range: bytes {first}-{last}/{size}\r\n\
                 Content-Length: {len}\r\n\r\n"
            );
            let bytes = [header.as_bytes(), b"body\r\n\r\n"].concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut seen, mut end) = (0, None);
            for cut in cuts {
                end = end.or(header_end(&bytes[..cut], seen));
                seen = cut;
            }
            prop_assert_eq!(end, Some(header.len()));
            let head = parse(&bytes[..header.len()]).unwrap();
            let tag = format!("\"{tag}\"");
            prop_assert_eq!(head.etag, Some(tag.as_str()));
            prop_assert_eq!(head.content_length, Some(len));
            prop_assert_eq!(head.content_range, Some(ContentRange::Satisfied { first, last, size: Some(size) }));
        }
    }
}
