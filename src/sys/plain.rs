//! Bytes as the numbers that they are.

/// Numbers of which every pattern of bits is one, without padding.
///
/// # Safety
/// Any `size_of::<Self>()` initialised bytes are a valid value, and every value is made of initialised bytes only.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($number:ty)*) => {
        $(
            // SAFETY: a number, of which every pattern of bits is one.
            unsafe impl Plain for $number {}
        )*
    };
}

plain!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);
#[cfg(feature = "half")]
plain!(half::f16 half::bf16);

/// `bytes` as numbers, where they lie; `None` where they do not begin at a multiple of the number's alignment, or do not end with a whole one.
pub(crate) fn elements<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: any initialised bytes are valid `T`s.
    let (before, elements, after) = unsafe { bytes.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(elements)
}

/// `bytes` as numbers, wherever they lie; what is left behind the last whole one is left out.
pub(crate) fn copied<T: Plain>(bytes: &[u8]) -> Vec<T> {
    let pieces = bytes.chunks_exact(size_of::<T>());
    // SAFETY: each piece has the bytes of one `T`, any of which are valid.
    pieces.map(|piece| unsafe { piece.as_ptr().cast::<T>().read_unaligned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_where_they_can_be() {
        let numbers = [0x0102_0304u32, 5, u32::MAX];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        assert_eq!(copied::<u32>(&bytes), numbers);
        assert_eq!(copied::<u32>(&bytes[..11]), numbers[..2]);
        let at = bytes.as_ptr().align_offset(4);
        assert_eq!(elements::<u32>(&bytes[at..]).is_some(), at.is_multiple_of(4));
        assert_eq!(elements::<u8>(&bytes), Some(&bytes[..]));
        assert_eq!(elements::<u32>(&[]), Some(&[][..]));

        // One of any four neighbouring beginnings is good, and an end that cuts a number never is.
        let wide = [0u8; 32];
        let good: Vec<usize> = (0..4).filter(|at| elements::<u32>(&wide[*at..*at + 8]).is_some()).collect();
        assert_eq!(good.len(), 1);
        assert!(elements::<u32>(&wide[good[0]..good[0] + 7]).is_none());
    }
}
