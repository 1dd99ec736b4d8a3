//! Small values, parsed from the pieces they landed in.

use crate::dataset::{Dtype, NpyHeader};
use crate::error::{Error, Kind, Result};

/// NumPy writes no longer header for an array of plain numbers.
const NPY_HEAD_BYTES: usize = 64 << 10;
/// A number in ASCII is never longer; what is longer is not a number.
const NUMBER_BYTES_MAX: usize = 64;

/// CRC-32C of slices that follow each other.
pub(super) fn crc32c<'a>(slices: impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    slices.for_each(|slice| digest.update(slice));
    digest.finalize() as u32
}

/// A decimal integer in ASCII, white space around it allowed.
pub(super) fn int<'a>(slices: impl Iterator<Item = &'a [u8]>) -> Result<i64> {
    number(slices, "an integer")
}

/// A decimal number in ASCII, white space around it allowed.
pub(super) fn float<'a>(slices: impl Iterator<Item = &'a [u8]>) -> Result<f64> {
    number(slices, "a number")
}

fn number<'a, T: std::str::FromStr>(slices: impl Iterator<Item = &'a [u8]>, what: &str) -> Result<T> {
    let mut text = [0; NUMBER_BYTES_MAX];
    let mut len = 0;
    for slice in slices {
        let Some(room) = text.get_mut(len..len + slice.len()) else {
            return Err(Error::new(Kind::Corrupt, format!("longer than {NUMBER_BYTES_MAX} bytes, so not {what}"))
                .advice("ask for the field as bytes"));
        };
        room.copy_from_slice(slice);
        len += slice.len();
    }
    let text = text[..len].trim_ascii();
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        let shown = String::from_utf8_lossy(text).escape_debug().to_string();
        Error::new(Kind::Corrupt, format!("'{shown}' is not {what}")).advice("ask for the field as bytes")
    })
}

/// Whether the slices together are one JSON document.
pub(super) fn check_json<'a>(slices: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    let reader = Slices { slices, rest: &[] };
    serde_json::from_reader::<_, serde::de::IgnoredAny>(reader)
        .map(drop)
        .map_err(|e| Error::new(Kind::Corrupt, "not JSON").source(e).advice("ask for the field as bytes"))
}

/// Bytes to skip before the elements of an array: 0 for bare elements, the header's length for `.npy`.
pub(super) fn array_header<'a>(
    slices: impl Iterator<Item = &'a [u8]>,
    len: u64,
    wanted: u64,
    dtype: Dtype,
    shape: &[usize],
) -> Result<u64> {
    if len == wanted {
        return Ok(0);
    }
    let mut head = Vec::new();
    for slice in slices {
        let room = NPY_HEAD_BYTES.saturating_sub(head.len()).min(slice.len());
        head.extend_from_slice(&slice[..room]);
        if room < slice.len() {
            break;
        }
    }
    let described = format!("{} {shape:?} ({wanted} bytes)", dtype.name());
    let header = NpyHeader::parse(&head).map_err(|e| {
        Error::new(Kind::Corrupt, format!("{len} bytes are neither {described} nor a .npy file of that"))
            .source(e)
            .advice("ask for the type and shape that the field has, or for bytes")
    })?;
    if header.dtype != dtype || header.shape != shape || header.start + wanted != len {
        let found = format!("{} {:?}", header.dtype.name(), header.shape);
        return Err(Error::new(Kind::Corrupt, format!("a .npy file of {found}, {described} was asked for"))
            .advice("every sample of a dense column has the same type and shape"));
    }
    Ok(header.start)
}

/// Slices as one stream.
struct Slices<'a, I> {
    slices: I,
    rest: &'a [u8],
}

impl<'a, I: Iterator<Item = &'a [u8]>> std::io::Read for Slices<'a, I> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.slices.next() {
                Some(slice) => self.rest = slice,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest = &self.rest[count..];
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bytes: &[u8], at: usize) -> impl Iterator<Item = &[u8]> {
        [&bytes[..at], &bytes[at..]].into_iter()
    }

    #[test]
    fn numbers_may_straddle_pages() {
        assert_eq!(int(cut(b" -123\n", 3)).unwrap(), -123);
        assert_eq!(float(cut(b"2.5e3", 2)).unwrap(), 2500.0);
        assert_eq!(int(cut(b"12 34", 2)).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(int(cut(&[b'1'; 65], 60)).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(int(cut(b"", 0)).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn digests_do_not_depend_on_the_cut() {
        assert_eq!(crc32c(cut(b"123456789", 4)), 0xe306_9283);
    }

    #[test]
    fn json_is_checked_across_pages() {
        check_json(cut(br#"{"a": [1, 2]}"#, 7)).unwrap();
        assert_eq!(check_json(cut(br#"{"a": [1, 2}"#, 7)).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn bare_elements_have_no_header() {
        assert_eq!(array_header(cut(&[0; 12], 5), 12, 12, Dtype::F32, &[3]).unwrap(), 0);
        assert_eq!(array_header(cut(&[0; 13], 5), 13, 12, Dtype::F32, &[3]).unwrap_err().kind(), Kind::Corrupt);
    }
}
