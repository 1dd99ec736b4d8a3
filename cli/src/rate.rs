//! A link's rate, as people write it.

use std::fmt;
use std::str::FromStr;

use farfeed::{ByteSize, Error, Kind, Result};

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate(u64);

impl Rate {
    pub(crate) fn bytes_s(self) -> u64 {
        self.0
    }
}

/// In bits, as links are sold: `2 Gbit/s`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0 as f64 * 8.0;
        let (number, unit) = if bits >= 1e9 { (bits / 1e9, "Gbit/s") } else { (bits / 1e6, "Mbit/s") };
        // At most two places, and none that says nothing.
        write!(f, "{} {unit}", (number * 100.0).round() / 100.0)
    }
}

impl FromStr for Rate {
    type Err = Error;

    /// `2Gbit/s`, `500Mbit`, or a size per second: `250MB/s`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(Kind::Config, format!("'{text}' is no rate"))
                .advice("write 2Gbit/s, 500Mbit/s, 250MB/s, or bytes per second")
        };
        let per_second = text.trim().strip_suffix("/s").unwrap_or(text.trim());
        let bits = [("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3)];
        let bytes = match bits.iter().find_map(|(unit, factor)| Some((per_second.strip_suffix(unit)?, factor))) {
            Some((number, factor)) => number.trim().parse::<f64>().map_err(|_| wrong())? * factor / 8.0,
            None => per_second.parse::<ByteSize>().map_err(|_| wrong())?.as_bytes() as f64,
        };
        // Up to 8 Tbit/s: beyond, a link is no limit.
        if (1.0..=1e12).contains(&bytes) { Ok(Rate(bytes as u64)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        let parse = |text: &str| text.parse::<Rate>().map(Rate::bytes_s).ok();
        assert_eq!(parse("2Gbit/s"), Some(250_000_000));
        assert_eq!(parse("500 Mbit"), Some(62_500_000));
        assert_eq!(parse("250MB/s"), Some(250_000_000));
        assert_eq!(parse("1000000"), Some(1_000_000));
        for wrong in ["", "fast", "-1Gbit/s", "0", "NaNGbit", "1e30Gbit/s"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse("2.5Gbit/s").map(|rate| Rate(rate).to_string()).as_deref(), Some("2.5 Gbit/s"));
    }
}
