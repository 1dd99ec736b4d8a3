//! The 512 bytes in front of a member, and the records of PAX headers.

pub(super) const BLOCK_BYTES: usize = 512;

/// A header block with a valid checksum.
#[derive(Clone, Copy)]
pub(super) struct Header<'a>(&'a [u8; BLOCK_BYTES]);

impl<'a> Header<'a> {
    /// `None` where the checksum does not hold.
    pub(super) fn parse(block: &'a [u8; BLOCK_BYTES]) -> Option<Self> {
        let claimed = number(&block[148..156])?;
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (place, &byte) in block.iter().enumerate() {
            // The checksum counts itself as blanks. Some old writers summed signed bytes.
            let byte = if (148..156).contains(&place) { b' ' } else { byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte as i8);
        }
        let holds = claimed == unsigned || i64::try_from(claimed) == Ok(signed);
        holds.then_some(Header(block))
    }

    pub(super) fn typeflag(self) -> u8 {
        self.0[156]
    }

    /// `None` where the field is no number, or negative.
    pub(super) fn size(self) -> Option<u64> {
        number(&self.0[124..136])
    }

    pub(super) fn path(self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // GNU's own magic ends in blanks, and keeps times where POSIX keeps the prefix.
        let prefix = if &self.0[257..263] == b"ustar\0" { until_nul(&self.0[345..500]) } else { b"" };
        let mut path = Vec::with_capacity(prefix.len() + 1 + name.len());
        if !prefix.is_empty() {
            path.extend_from_slice(prefix);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}

/// Bytes up to the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or(bytes)
}

/// A header's number: octal digits between blanks and NULs, or base 256 behind a set high bit.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // 0x80 for positive numbers; 0xff, which carries the sign, for negative ones.
        let carry = u64::from(first & 0x7f);
        return rest
            .iter()
            .try_fold(carry, |number, &byte| number.checked_mul(256).map(|shifted| shifted + u64::from(byte)));
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|byte| blank(byte));
    let mut number = 0u64;
    let mut ended = false;
    for byte in digits {
        match byte {
            b'0'..=b'7' if !ended => number = number.checked_mul(8)?.checked_add(u64::from(byte - b'0'))?,
            byte if blank(byte) => ended = true,
            _ => return None,
        }
    }
    Some(number)
}

/// What extension headers say of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// The member's payload is not its content but the map of a sparse file.
    pub(super) sparse: bool,
}

impl Overrides {
    /// Adds the records of a PAX header: `length key=value\n`, where the length counts itself and the line's end.
    ///
    /// # Errors
    /// What is wrong with the record, for the caller to place.
    pub(super) fn add_pax(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        // Some writers fill up with NULs.
        while records.first().is_some_and(|&byte| byte != 0) {
            let blank = records.iter().take(20).position(|&byte| byte == b' ').ok_or("record without a length")?;
            let length = decimal(&records[..blank]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|&length| length > blank + 1 && length <= records.len());
            let (record, rest) = records.split_at(length.ok_or("record of an impossible length")?);
            let line = record[blank + 1..].strip_suffix(b"\n").ok_or("record without an end")?;
            let equals = line.iter().position(|&byte| byte == b'=').ok_or("record without a value")?;
            self.add_record(&line[..equals], &line[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            // An empty value takes back what an earlier record said.
            b"path" => self.path = (!value.is_empty()).then(|| until_nul(value).to_vec()),
            b"size" if value.is_empty() => self.size = None,
            b"size" => self.size = Some(decimal(value).ok_or("size that is no number")?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {}
        }
        Ok(())
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    valid.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_octal_and_base_256() {
        assert_eq!(number(b"00000000644\0"), Some(0o644));
        assert_eq!(number(b"     644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"777777777777"), Some(0o777_777_777_777));
        assert_eq!(number(b"12 4\0"), None);
        assert_eq!(number(b"129\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some((2 << 32) + 1));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn pax_records() {
        let mut overrides = Overrides::default();
        overrides.add_pax(b"30 mtime=1350244992.023960108\n18 path=a/b=c.jpg\n12 size=123\n\0\0").unwrap();
        assert_eq!(overrides, Overrides { path: Some(b"a/b=c.jpg".to_vec()), size: Some(123), sparse: false });
        overrides.add_pax(b"8 path=\n8 size=\n22 GNU.sparse.major=1\n").unwrap();
        assert_eq!(overrides, Overrides { path: None, size: None, sparse: true });
        for bad in [
            &b"12 size=12x\n"[..],
            b"3 a",
            b"17 path=a/b=c.jpg\n",
            b"path=x\n",
            b"99999999999999999999999 a=b\n",
            b"7 path\n",
            b"6 a=bc",
        ] {
            assert!(overrides.add_pax(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
