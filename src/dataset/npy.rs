//! The header of a NumPy array file: what its rows are and where they begin.

use super::catalog::{Dtype, Shard};
use super::records::{RecordShard, RecordSpec};
use crate::error::{Error, Kind, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// NumPy itself refuses headers of more than 10,000 bytes unless told otherwise.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// NumPy's own limit.
const DIMENSIONS_MAX: usize = 64;

/// What a `.npy` file says of its array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Shape of the array; its first dimension counts the samples.
    pub shape: Vec<usize>,
    /// First byte of the array, from the start of the file.
    pub start: u64,
}

impl NpyHeader {
    /// Bytes of the file's header, told from its first 12 bytes: what [`NpyHeader::parse`] needs.
    ///
    /// # Errors
    /// `Corrupt` where these are not the first bytes of an array file; `Unsupported` for a format other than 1 to 3.
    pub fn bytes_needed(prefix: &[u8]) -> Result<usize> {
        let corrupt =
            |what: &str| Error::new(Kind::Corrupt, format!("no .npy file: {what}")).advice("write it with numpy.save");
        let [magic @ .., major, minor] = prefix.first_chunk::<8>().ok_or_else(|| corrupt("fewer than 12 bytes"))?;
        if magic != MAGIC {
            return Err(corrupt("its first bytes are others"));
        }
        let lengths = prefix.get(8..12).ok_or_else(|| corrupt("fewer than 12 bytes"))?;
        let (fixed, len) = match (major, lengths) {
            (1, [low, high, ..]) => (10, usize::from(u16::from_le_bytes([*low, *high]))),
            (2 | 3, &[a, b, c, d]) => (12, u32::from_le_bytes([a, b, c, d]) as usize),
            _ => {
                return Err(Error::new(Kind::Unsupported, format!(".npy file of format {major}.{minor}"))
                    .advice("farfeed reads formats 1 to 3: write it with numpy.save"));
            }
        };
        if len > HEADER_BYTES_MAX {
            return Err(corrupt(&format!("header of {len} bytes, where {HEADER_BYTES_MAX} are allowed")));
        }
        Ok(fixed + len)
    }

    /// Reads the header in the file's first bytes; what follows it is not looked at.
    ///
    /// # Errors
    /// `Corrupt` where there is no header; `Unsupported` for big-endian, structured and Fortran-ordered arrays, and for
    /// types that farfeed does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let end = Self::bytes_needed(bytes)?;
        let fixed = if bytes[6] == 1 { 10 } else { 12 };
        let text = bytes.get(fixed..end).ok_or_else(|| {
            Error::new(Kind::Corrupt, format!(".npy header of {end} bytes in a file of {}", bytes.len()))
                .advice("the file was cut short: upload it again")
        })?;
        let Literal { descr, fortran, shape } = Parser { bytes: text, at: 0 }.header()?;
        if fortran {
            return Err(Error::new(Kind::Unsupported, ".npy array in Fortran order")
                .advice("rows lie apart in it: write it with numpy.ascontiguousarray"));
        }
        let dtype = dtype(&descr)?;
        let bytes_of_all =
            shape.iter().try_fold(dtype.bytes() as u64, |bytes, &dimension| bytes.checked_mul(dimension as u64));
        if bytes_of_all.is_none() {
            return Err(Error::new(Kind::Corrupt, format!(".npy array of shape {shape:?} holds more than 2^64 bytes")));
        }
        Ok(NpyHeader { dtype, shape, start: end as u64 })
    }

    /// What one row of the array is.
    ///
    /// # Errors
    /// `Unsupported` for an array without dimensions; `Config` for rows of no bytes, and of 4 GiB and more.
    pub fn spec(&self) -> Result<RecordSpec> {
        let Some((_, row)) = self.shape.split_first() else {
            return Err(Error::new(Kind::Unsupported, ".npy array without dimensions has no rows"));
        };
        RecordSpec::rows(self.dtype, row.to_vec())
    }

    /// The array as a shard of records. Whether its bytes are all there is checked by [`Dataset::records`](super::Dataset::records).
    pub fn records(&self, shard: Shard) -> RecordShard {
        // That the product fits was checked when the header was read.
        let bytes = self.shape.iter().fold(self.dtype.bytes() as u64, |bytes, &dimension| bytes * dimension as u64);
        RecordShard { shard, start: self.start, bytes }
    }
}

fn dtype(descr: &str) -> Result<Dtype> {
    let (order, kind) = match descr.chars().next() {
        Some(order @ ('<' | '>' | '|' | '=')) => (order, &descr[1..]),
        _ => ('|', descr),
    };
    let dtype = match kind {
        "u1" => Dtype::U8,
        "i1" => Dtype::I8,
        "b1" => Dtype::Bool,
        "u2" => Dtype::U16,
        "i2" => Dtype::I16,
        "f2" => Dtype::F16,
        "u4" => Dtype::U32,
        "i4" => Dtype::I32,
        "f4" => Dtype::F32,
        "u8" => Dtype::U64,
        "i8" => Dtype::I64,
        "f8" => Dtype::F64,
        _ => {
            return Err(Error::new(Kind::Unsupported, format!(".npy array of '{}'", descr.escape_default()))
                .advice("store integers, floats or bools; view other types as integers of their size"));
        }
    };
    if order != '<' && dtype.bytes() > 1 {
        return Err(Error::new(Kind::Unsupported, format!(".npy array of '{descr}' is not little-endian"))
            .advice("write it with array.astype(array.dtype.newbyteorder('<'))"));
    }
    Ok(dtype)
}

/// The header's dictionary.
struct Literal {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// Reads the one Python literal that NumPy writes: a dictionary of a string, a bool and a tuple of integers.
struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn header(&mut self) -> Result<Literal> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.taken(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            match key.as_str() {
                "descr" if self.peek() == Some(b'[') => {
                    return Err(Error::new(Kind::Unsupported, ".npy array of structures")
                        .advice("write one array per field of the structure"));
                }
                "descr" if descr.is_none() => descr = Some(self.string()?),
                "fortran_order" if fortran.is_none() => fortran = Some(self.bool()?),
                "shape" if shape.is_none() => shape = Some(self.tuple()?),
                _ => return Err(self.wrong("a key twice or of no meaning")),
            }
            if !self.taken(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        if self.peek().is_some() {
            return Err(self.wrong("more than a dictionary"));
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Literal { descr, fortran, shape }),
            _ => Err(self.wrong("no descr, no fortran_order or no shape")),
        }
    }

    fn string(&mut self) -> Result<String> {
        let quote = self.peek().filter(|quote| matches!(quote, b'\'' | b'"')).ok_or_else(|| self.wrong("no string"))?;
        let rest = &self.bytes[self.at + 1..];
        let len = rest.iter().position(|&byte| byte == quote).ok_or_else(|| self.wrong("a string without its end"))?;
        self.at += len + 2;
        Ok(String::from_utf8_lossy(&rest[..len]).into_owned())
    }

    fn bool(&mut self) -> Result<bool> {
        self.peek();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if self.bytes[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.wrong("neither True nor False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>> {
        let mut shape = Vec::new();
        self.expect(b'(')?;
        while !self.taken(b')') {
            if shape.len() == DIMENSIONS_MAX {
                return Err(self.wrong("too many dimensions"));
            }
            shape.push(self.integer()?);
            if !self.taken(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(shape)
    }

    fn integer(&mut self) -> Result<usize> {
        self.peek();
        let rest = &self.bytes[self.at..];
        let digits = &rest[..rest.iter().take_while(|byte| byte.is_ascii_digit()).count()];
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let number = number.ok_or_else(|| self.wrong("a dimension that is no number"))?;
        self.at += digits.len();
        // Python 2 marked long integers.
        self.taken(b'L');
        Ok(number)
    }

    /// The next byte that is no blank.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn taken(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.taken(byte) { Ok(()) } else { Err(self.wrong(&format!("no '{}'", char::from(byte)))) }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(Kind::Corrupt, format!(".npy header has {what} at its byte {}", self.at))
            .advice("write it with numpy.save")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file's first bytes as NumPy lays them out, the array itself apart.
    fn file(major: u8, literal: &str) -> Vec<u8> {
        let fixed = if major == 1 { 10 } else { 12 };
        let total = (fixed + literal.len() + 1).next_multiple_of(64);
        let mut bytes = MAGIC.to_vec();
        bytes.extend([major, 0]);
        let len = (total - fixed) as u32;
        bytes.extend(&len.to_le_bytes()[..fixed - 8]);
        bytes.extend(literal.as_bytes());
        bytes.resize(total - 1, b' ');
        bytes.push(b'\n');
        bytes
    }

    #[test]
    fn reads_what_numpy_writes() {
        for major in 1..=3 {
            let bytes = file(major, "{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 28, 28), }");
            let header = NpyHeader::parse(&bytes).unwrap();
            assert_eq!(header.dtype, Dtype::F32);
            assert_eq!(header.shape, [60_000, 28, 28]);
            assert_eq!(header.start, bytes.len() as u64);
            assert_eq!(header.spec().unwrap(), RecordSpec::rows(Dtype::F32, vec![28, 28]).unwrap());
            let shard = Shard { url: "x.npy".into(), size: 1 << 30, version: None };
            assert_eq!(header.records(shard).bytes, 60_000 * 28 * 28 * 4);
        }
        let header = NpyHeader::parse(&file(1, "{\"shape\":(3L,),\"fortran_order\":False,\"descr\":\"|u1\"}")).unwrap();
        assert_eq!((header.dtype, header.shape), (Dtype::U8, vec![3]));
    }

    #[test]
    fn says_what_it_does_not_read() {
        let with = |descr: &str, order: &str, shape: &str| {
            NpyHeader::parse(&file(1, &format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}")))
        };
        for (header, kind) in [
            (with("'>f4'", "False", "(3,)"), Kind::Unsupported),
            (with("'<f4'", "True", "(3, 2)"), Kind::Unsupported),
            (with("'<c8'", "False", "(3,)"), Kind::Unsupported),
            (with("'|O'", "False", "(3,)"), Kind::Unsupported),
            (with("[('a', '<f4')]", "False", "(3,)"), Kind::Unsupported),
            (with("'<f4'", "False", "()").and_then(|header| header.spec().map(|_| header)), Kind::Unsupported),
            (with("'<f4'", "False", "(-3,)"), Kind::Corrupt),
            (with("'<f4'", "0", "(3,)"), Kind::Corrupt),
            (with("'<f8'", "False", "(4294967296, 4294967296)"), Kind::Corrupt),
            (with("'<f4'", "False", "(3,), 'shape': (3,)"), Kind::Corrupt),
            (NpyHeader::parse(&file(1, "{'descr': '<f4'}")), Kind::Corrupt),
            (NpyHeader::parse(&file(4, "{}")), Kind::Unsupported),
            (NpyHeader::parse(b"PK\x03\x04 an archive of arrays"), Kind::Corrupt),
            (NpyHeader::parse(b"\x93NUMPY\x01"), Kind::Corrupt),
            (NpyHeader::parse(b"\x93NUMPY\x02\0\xff\xff\xff\xff"), Kind::Corrupt),
        ] {
            assert_eq!(header.unwrap_err().kind(), kind);
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            major in 1u8..=3,
            (name, dtype) in prop::sample::select(vec![("<i8", Dtype::I64), ("|b1", Dtype::Bool), ("<u2", Dtype::U16)]),
            shape in prop::collection::vec(0usize..1000, 0..5),
        ) {
            let tuple: String = shape.iter().map(|dimension| format!("{dimension}, ")).collect();
            let bytes = file(major, &format!("{{'descr': '{name}', 'fortran_order': False, 'shape': ({tuple})}}"));
            prop_assert_eq!(NpyHeader::bytes_needed(&bytes[..12]).unwrap(), bytes.len());
            let header = NpyHeader::parse(&bytes).unwrap();
            prop_assert_eq!(header, NpyHeader { dtype, shape, start: bytes.len() as u64 });
        }

        #[test]
        fn mutated_bytes_are_read_or_refused(
            major in 1u8..=3,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = file(major, "{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 28, 28), }");
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(header) = NpyHeader::parse(&bytes) {
                prop_assert!(header.start <= bytes.len() as u64);
                let _ = header.records(Shard { url: String::new(), size: 0, version: None });
            }
        }
    }
}
