//! Twins of the kernels that measure, some of which do something else.

use std::sync::{Mutex, Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use farfeed_driver_double::{Double, Launch, kernels};

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

fn digest(launch: &Launch<'_>) {
    kernels::digest(launch, |sum, digest| match lie() {
        Some(Lie::Digest) => digest ^ 1 << 40,
        // Tallies are aligned as allocations are, so that single sums lie at such addresses.
        Some(Lie::LateDigest) if sum % 256 != 0 => digest ^ 1 << 40,
        _ => digest,
    });
}

fn product(launch: &Launch<'_>) {
    kernels::product(launch, |numbers, n| {
        if lie() == Some(Lie::Product) {
            numbers[n + 3] += 1.0;
        }
    });
}
