//! Archives for tests, written header by header.

use super::header::BLOCK_BYTES;

/// How a path that does not fit its header is written.
#[derive(Clone, Copy, Debug)]
pub(in crate::dataset) enum Dialect {
    Ustar,
    Gnu,
    Pax,
}

#[derive(Default)]
pub(in crate::dataset) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub(in crate::dataset) fn file(self, path: &str, payload: &[u8]) -> Self {
        self.member(b'0', path, payload)
    }

    pub(in crate::dataset) fn member(mut self, typeflag: u8, path: &str, payload: &[u8]) -> Self {
        self.bytes.extend(header(typeflag, path.as_bytes(), b"", &octal(payload.len() as u64)));
        self.payload(payload)
    }

    pub(in crate::dataset) fn named(self, dialect: Dialect, path: &str, payload: &[u8]) -> Self {
        match dialect {
            Dialect::Ustar => self.prefixed(path, payload),
            Dialect::Gnu => self.member(b'L', "././@LongLink", &[path.as_bytes(), b"\0"].concat()).file("cut", payload),
            Dialect::Pax => self.member(b'x', "PaxHeaders/x", &pax(&[("path", path)])).file("cut", payload),
        }
    }

    /// The path cut in two at a slash, as ustar does.
    fn prefixed(mut self, path: &str, payload: &[u8]) -> Self {
        let (prefix, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.bytes.extend(header(b'0', name.as_bytes(), prefix.as_bytes(), &octal(payload.len() as u64)));
        self.payload(payload)
    }

    /// A header as it is, with a valid checksum.
    pub(in crate::dataset) fn raw(mut self, typeflag: u8, path: &[u8], size: &[u8; 12], payload: &[u8]) -> Self {
        self.bytes.extend(header(typeflag, path, b"", size));
        self.payload(payload)
    }

    pub(in crate::dataset) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn payload(mut self, payload: &[u8]) -> Self {
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self
    }

    /// With the end-of-archive mark.
    pub(in crate::dataset) fn end(self) -> Vec<u8> {
        self.bytes(&[0; 2 * BLOCK_BYTES]).bytes
    }

    pub(in crate::dataset) fn without_end(self) -> Vec<u8> {
        self.bytes
    }
}

pub(in crate::dataset) fn octal(size: u64) -> [u8; 12] {
    let mut field = [0; 12];
    field[..11].copy_from_slice(format!("{size:011o}").as_bytes());
    field
}

pub(in crate::dataset) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        // The length counts its own digits.
        let len = (1..).map(|digits| rest.len() + digits).find(|len| len.to_string().len() + rest.len() == *len);
        bytes.extend(format!("{}{rest}", len.unwrap()).into_bytes());
    }
    bytes
}

fn header(typeflag: u8, name: &[u8], prefix: &[u8], size: &[u8; 12]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(size);
    block[148..156].copy_from_slice(b"        ");
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[345..345 + prefix.len().min(155)].copy_from_slice(&prefix[..prefix.len().min(155)]);
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
