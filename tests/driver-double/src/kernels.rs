//! Twins of the kernels that measure, `src/device/measure/kernels.cu`, written from their source: for tests that register them, perhaps
//! with a mistake, and for a process that has no test in it, by `twins=measure`.

use crate::twin::{Launch, RawTwin};

/// By name, as that setting registers them.
pub(crate) fn measuring() -> [(String, RawTwin); 2] {
    [
        ("farfeed_digest".to_owned(), RawTwin::new(|launch| digest(launch, |_, digest| digest))),
        ("farfeed_product".to_owned(), RawTwin::new(|launch| product(launch, |_, _| ()))),
    ]
}

/// `farfeed_digest(from, bytes, sum)`: adds what `told` makes of the sum's address and the digest.
pub fn digest(launch: &Launch<'_>, told: impl Fn(u64, u64) -> u64) {
    let (from, bytes, sum) = (launch.u64(0), launch.u64(1), launch.u64(2));
    assert_eq!(launch.block()[0] % 32, 0, "whole warps add up");
    let found = told(sum, digest_of(&launch.read(from, bytes as usize)));
    let before = u64::from_le_bytes(launch.read(sum, 8).try_into().expect("8 bytes"));
    launch.write(sum, &before.wrapping_add(found).to_le_bytes());
}

/// Thread by thread, as the kernel goes through the words.
pub fn digest_of(bytes: &[u8]) -> u64 {
    let words = bytes.len() / 8;
    let word =
        |range: std::ops::Range<usize>| bytes[range].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let placed = |at: usize, word: u64| {
        let word = word.wrapping_add((at as u64 + 1).wrapping_mul(0x9e3779b97f4a7c15));
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d049bb133111eb);
        word ^ (word >> 31)
    };
    let whole = (0..words).fold(0u64, |sum, at| sum.wrapping_add(placed(at, word(8 * at..8 * at + 8))));
    match bytes.len() % 8 {
        0 => whole,
        _ => whole.wrapping_add(placed(words, word(8 * words..bytes.len()))),
    }
}

/// `farfeed_product(a, b, c, n)`: writes what `told` makes of the product, and of n.
pub fn product(launch: &Launch<'_>, told: impl Fn(&mut [f32], usize)) {
    let n = launch.u32(3) as usize;
    let blocks = (n / 128) as u32;
    assert_eq!((launch.grid(), launch.block()), ([blocks, blocks, 1], [256, 1, 1]));
    let read = |index: usize| -> Vec<f32> {
        let bytes = launch.read(launch.u64(index), 4 * n * n);
        bytes.chunks_exact(4).map(|float| f32::from_le_bytes(float.try_into().expect("4 bytes"))).collect()
    };
    let (a, b) = (read(0), read(1));
    let mut c = vec![0f32; n * n];
    for (row, sums) in c.chunks_exact_mut(n).enumerate() {
        for (k, factor) in a[row * n..][..n].iter().enumerate() {
            sums.iter_mut().zip(&b[k * n..][..n]).for_each(|(sum, number)| *sum += factor * number);
        }
    }
    told(&mut c, n);
    let bytes: Vec<u8> = c.iter().flat_map(|float| float.to_le_bytes()).collect();
    launch.write(launch.u64(2), &bytes);
}
