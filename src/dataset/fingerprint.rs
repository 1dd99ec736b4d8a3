//! One number for what a dataset holds and how it is cut.

use crc_fast::{CrcAlgorithm, Digest};

/// Digest over numbers and strings, each with its length, so that no two sequences read alike.
pub(super) struct Fingerprint {
    digest: Digest,
    buffer: Vec<u8>,
}

/// A call of the digest costs more than eight bytes of it: hash in pieces of this many bytes.
const BUFFER_BYTES: usize = 16 * 1024;

impl Fingerprint {
    pub(super) fn new(what: &str) -> Self {
        let mut fingerprint =
            Fingerprint { digest: Digest::new(CrcAlgorithm::Crc64Nvme), buffer: Vec::with_capacity(BUFFER_BYTES + 8) };
        fingerprint.text(what);
        fingerprint
    }

    pub(super) fn number(&mut self, number: u64) {
        self.buffer.extend_from_slice(&number.to_le_bytes());
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.flush();
        self.digest.update(text.as_bytes());
    }

    pub(super) fn finish(mut self) -> u64 {
        self.flush();
        self.digest.finalize()
    }

    fn flush(&mut self) {
        self.digest.update(&self.buffer);
        self.buffer.clear();
    }
}
