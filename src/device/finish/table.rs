//! What each of the 256 bytes becomes, channel by channel. Made once; every device looks it up.

use crate::error::{Error, Kind, Result};

/// Real numbers, as frameworks take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Real {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
}

impl Real {
    /// Bytes of one.
    pub(super) fn bytes(self) -> usize {
        match self {
            Real::F32 => 4,
            Real::F16 | Real::BF16 => 2,
        }
    }
}

/// 256 entries for each channel, little-endian.
pub(super) fn normalizing(means: &[f32], deviations: &[f32], real: Real) -> Result<Vec<u8>> {
    let mut table = Vec::with_capacity(means.len() * 256 * real.bytes());
    for (mean, deviation) in means.iter().zip(deviations) {
        if !mean.is_finite() || !deviation.is_finite() || *deviation == 0.0 {
            return Err(Error::new(Kind::Config, format!("a mean of {mean} and a deviation of {deviation}"))
                .advice("both are for values from 0 to 1; a deviation is not 0"));
        }
        for byte in 0..=255u8 {
            // Divided and not multiplied by 1/255, then subtracted, then divided: each rounded, as torchvision does it.
            let value = (f32::from(byte) / 255.0 - mean) / deviation;
            match real {
                Real::F32 => table.extend(value.to_le_bytes()),
                Real::F16 => table.extend(half(value).to_le_bytes()),
                Real::BF16 => table.extend(brain(value).to_le_bytes()),
            }
        }
    }
    Ok(table)
}

/// The nearest bfloat16, of two equally near ones the even one.
fn brain(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    // Carries into the upper half from above its middle, or from the middle where the upper half is odd.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The nearest half, of two equally near ones the even one; infinity from 65,520 on.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let rounded = match magnitude {
        0x7f80_0001.. => 0x7e00,
        // From the middle between the largest half and the one that would follow.
        0x477f_f000.. => 0x7c00,
        // A normal half: 13 bits fewer, and an exponent that is counted from 15 instead of 127.
        0x3880_0000.. => nearest(magnitude - (112 << 23), 13),
        // Below it all halves are multiples of 2^-24: the significand, with its hidden bit, moved there.
        0x3300_0000.. => nearest(magnitude & 0x007f_ffff | 0x0080_0000, 126 - (magnitude >> 23)),
        _ => 0,
    };
    sign | rounded as u16
}

/// `bits` without its last `drop` ones, rounded to nearest even.
fn nearest(bits: u32, drop: u32) -> u32 {
    let below_middle = (1 << (drop - 1)) - 1;
    (bits + below_middle + (bits >> drop & 1)) >> drop
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a half stands for, by its definition.
    fn of_half(bits: u16) -> f64 {
        let (exponent, significand) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        match exponent {
            0 => significand * (-24f64).exp2(),
            31 => f64::INFINITY,
            _ => (1024.0 + significand) * f64::from(exponent - 25).exp2(),
        }
    }

    #[test]
    fn halves_are_the_nearest_ones() {
        // All halves, the middles between them, and what lies just beside those middles.
        for bits in 0..0x7c00u16 {
            let (low, high) = (of_half(bits), of_half(bits + 1));
            let low_bits = (low as f32).to_bits();
            assert_eq!(half(low as f32), bits);
            assert_eq!(half(-low as f32), bits | 0x8000);
            let high = if high.is_finite() { high } else { 65_536.0 };
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(f64::from(middle), (low + high) / 2.0, "a single holds it");
            assert_eq!(half(middle), bits + (bits & 1), "the even one");
            assert_eq!(half(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(half(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(half(f32::from_bits(low_bits + 1)), bits);
        }
        assert_eq!((half(f32::INFINITY), half(1e9), half(f32::NAN) & 0x7e00), (0x7c00, 0x7c00, 0x7e00));
        assert_eq!((half(f32::MIN_POSITIVE), half(-0.0)), (0, 0x8000));
    }

    #[test]
    fn brains_are_the_nearest_ones() {
        for upper in 0..0x7f80u32 {
            let (low, middle) = (upper << 16, upper << 16 | 0x8000);
            assert_eq!(u32::from(brain(f32::from_bits(low))), upper);
            assert_eq!(u32::from(brain(f32::from_bits(low | 0x8000_0000))), upper | 0x8000);
            assert_eq!(u32::from(brain(f32::from_bits(middle))), upper + (upper & 1), "the even one");
            assert_eq!(u32::from(brain(f32::from_bits(middle - 1))), upper);
            assert_eq!(u32::from(brain(f32::from_bits(middle + 1))), upper + 1);
        }
        assert_eq!(brain(f32::INFINITY), 0x7f80);
        assert!(brain(f32::from_bits(0x7f80_0001)) > 0x7f80, "a number that is none stays none");
    }

    #[test]
    fn a_table_has_what_torchvision_computes() {
        let table = normalizing(&[0.485, 0.0], &[0.229, 1.0], Real::F32).unwrap();
        assert_eq!(table.len(), 2 * 256 * 4);
        let entry = |channel: usize, byte: usize| {
            let at = (channel * 256 + byte) * 4;
            f32::from_le_bytes(table[at..at + 4].try_into().unwrap())
        };
        // By torch 2: ((torch.tensor([0, 1, 127, 255]) / 255) - 0.485) / 0.229, in float32.
        let torch = [0xc007_8bbdu32, 0xc006_732b, 0x3d69_39a6, 0x400f_ee1d];
        let ours = [0, 1, 127, 255].map(|byte| entry(0, byte).to_bits());
        assert_eq!(ours, torch, "{ours:x?}");
        assert_eq!((entry(1, 0), entry(1, 51), entry(1, 255)), (0.0, 0.2, 1.0), "only scaled");
    }

    #[test]
    fn refuses_what_is_no_deviation() {
        for (mean, deviation) in [(0.5, 0.0), (f32::NAN, 1.0), (0.5, f32::INFINITY)] {
            let error = normalizing(&[mean], &[deviation], Real::BF16).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(&deviation.to_string()), "{error}");
        }
    }
}
