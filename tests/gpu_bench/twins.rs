//! What the kernels of `src/device/measure/kernels.cu` do, on the host; and some that do something else.

use std::sync::{Mutex, Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use farfeed_driver_double::{Double, Launch};

/// A way for kernels to be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lie {
    /// One bit of each sum.
    Digest,
    /// One bit of each sum of the second and later places: single digests are right.
    LateDigest,
    /// One number of the product, by one.
    Product,
}

/// What kernels do now: they do not know whose they are, so that those who lie do so alone.
static LIE: Mutex<Option<Lie>> = Mutex::new(None);
static TRUTH: RwLock<()> = RwLock::new(());

/// Kernels are honest for as long.
pub(crate) fn honest() -> RwLockReadGuard<'static, ()> {
    TRUTH.read().unwrap_or_else(PoisonError::into_inner)
}

/// Kernels lie until this is dropped, when no honest one is left.
pub(crate) struct Lying(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>);

impl Lying {
    pub(crate) fn begin(lie: Lie) -> Lying {
        let alone = TRUTH.write().unwrap_or_else(PoisonError::into_inner);
        *LIE.lock().unwrap() = Some(lie);
        Lying(alone)
    }
}

impl Drop for Lying {
    fn drop(&mut self) {
        *LIE.lock().unwrap() = None;
    }
}

fn lie() -> Option<Lie> {
    *LIE.lock().unwrap()
}

/// Registers the twins, once.
pub(crate) fn install(double: Double) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        double.twin("farfeed_digest", digest);
        double.twin("farfeed_product", product);
    });
}

/// `farfeed_digest(from, bytes, sum)`.
fn digest(launch: &Launch<'_>) {
    let (from, bytes, sum) = (launch.u64(0), launch.u64(1), launch.u64(2));
    assert_eq!(launch.block()[0] % 32, 0, "whole warps add up");
    let mut found = digest_as_the_kernel_does(&launch.read(from, bytes as usize));
    match lie() {
        Some(Lie::Digest) => found ^= 1 << 40,
        // Tallies are aligned as allocations are, so that single sums lie at such addresses.
        Some(Lie::LateDigest) if sum % 256 != 0 => found ^= 1 << 40,
        _ => {}
    }
    let before = u64::from_le_bytes(launch.read(sum, 8).try_into().unwrap());
    launch.write(sum, &before.wrapping_add(found).to_le_bytes());
}

/// Thread by thread, as the kernel goes through the words.
pub(crate) fn digest_as_the_kernel_does(bytes: &[u8]) -> u64 {
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

/// `farfeed_product(a, b, c, n)`.
fn product(launch: &Launch<'_>) {
    let n = launch.u32(3) as usize;
    let blocks = (n / 128) as u32;
    assert_eq!((launch.grid(), launch.block()), ([blocks, blocks, 1], [256, 1, 1]));
    let read = |index: usize| -> Vec<f32> {
        let bytes = launch.read(launch.u64(index), 4 * n * n);
        bytes.chunks_exact(4).map(|float| f32::from_le_bytes(float.try_into().unwrap())).collect()
    };
    let (a, b) = (read(0), read(1));
    let mut c = vec![0f32; n * n];
    for (row, sums) in c.chunks_exact_mut(n).enumerate() {
        for (k, factor) in a[row * n..][..n].iter().enumerate() {
            sums.iter_mut().zip(&b[k * n..][..n]).for_each(|(sum, number)| *sum += factor * number);
        }
    }
    if lie() == Some(Lie::Product) {
        c[n + 3] += 1.0;
    }
    let bytes: Vec<u8> = c.iter().flat_map(|float| float.to_le_bytes()).collect();
    launch.write(launch.u64(2), &bytes);
}
