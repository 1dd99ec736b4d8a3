//! The least of HTTP/1.1 that the bare loops need: a request, and where the body begins.

/// Room for a response's head, and what of the body comes along with it.
pub(crate) const HEAD_MAX: usize = 4096;

pub(crate) fn request(key: &str, start: u64, bytes: usize) -> String {
    let last = start + bytes as u64 - 1;
    format!("GET /{key} HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes={start}-{last}\r\n\r\n")
}

/// Where the body begins, once the head is there; one that does not announce a part fails.
pub(crate) fn body_at(received: &[u8]) -> Option<usize> {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    assert!(received.starts_with(b"HTTP/1.1 206 "), "{}", String::from_utf8_lossy(&received[..end]));
    Some(end)
}
