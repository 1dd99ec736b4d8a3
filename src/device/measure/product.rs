//! A matrix product of ours: something that keeps a device busy, and whose answer can be checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apparatus::Apparatus;
use super::bay::{Kept, wrong};
use super::digest::mixed;
use super::overlap::Work;
use crate::device::RawStream;
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::{self, Argument, DeviceMemory, Entered, bare};

/// Rows and columns of a block's part of the product, and its threads.
const TILE: usize = 128;
const THREADS: u32 = 256;

const FLOAT_BYTES: usize = 4;

/// Two square matrices of small whole numbers on the device, and room for their product: sums of fewer than 2²⁴, so exact in any order.
pub struct Product {
    n: usize,
    factors: [Vec<i8>; 2],
    memory: [Arc<DeviceMemory>; 3],
    kept: Kept,
}

impl Product {
    /// Of `n` × `n` matrices.
    ///
    /// # Errors
    /// `Config` when `n` is not a multiple of 128, or above 2¹⁶; `Device`.
    pub fn new(apparatus: &Apparatus, n: usize) -> Result<Product> {
        if n == 0 || !n.is_multiple_of(TILE) || n > 1 << 16 {
            return Err(Error::new(Kind::Config, format!("a product of {n} rows")).advice("take a multiple of 128"));
        }
        let factors = [1, 2].map(|salt| factor(n * n, salt));
        let zeros = vec![0; n * n];
        let stream = apparatus.stream()?;
        let place = |numbers: &Vec<i8>| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| f32::from(*number).to_le_bytes()).collect();
            let memory = DeviceMemory::new(apparatus.context(), bytes.len())?;
            apparatus
                .timed(std::slice::from_ref(&stream), |entered| bare::copy(entered, &stream, &memory, &bytes[..], 0))?;
            Ok::<_, Error>(Arc::new(memory))
        };
        let memory = [place(&factors[0])?, place(&factors[1])?, place(&zeros)?];
        let kept = Kept::new(apparatus, memory.iter().map(|memory| Arc::clone(memory) as _).collect());
        Ok(Product { n, factors, memory, kept })
    }

    /// Additions and multiplications of one product.
    pub fn operations(&self) -> f64 {
        2.0 * (self.n as f64).powi(3)
    }

    /// Enqueues `times` products in `stream`.
    ///
    /// # Errors
    /// `Device`.
    pub fn launch(&mut self, apparatus: &Apparatus, stream: &RawStream, times: usize) -> Result<()> {
        let entered = apparatus.enter()?;
        (0..times).try_for_each(|_| self.launch_in(apparatus, &entered, stream))
    }

    pub(super) fn launch_in(&mut self, apparatus: &Apparatus, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        self.kept.also(stream);
        let whole = |memory: &DeviceMemory| Argument::memory(memory, 0..memory.bytes());
        let [a, b, c] = &self.memory;
        let arguments = [whole(a)?, whole(b)?, whole(c)?, Argument::u32(self.n as u32)];
        let blocks = (self.n / TILE) as u32;
        cuda::launch(entered, stream, &apparatus.product, [blocks, blocks, 1], [THREADS, 1, 1], &arguments)
    }

    /// Seconds that one product takes when nothing else is done: the median of `rounds`, after one to warm up.
    ///
    /// # Errors
    /// `Device`, `Stalled`.
    pub fn seconds(&mut self, apparatus: &Apparatus, stream: &RawStream, rounds: usize) -> Result<f64> {
        let mut once =
            || apparatus.timed(std::slice::from_ref(stream), |entered| self.launch_in(apparatus, entered, stream));
        once()?;
        (0..rounds.max(1)).map(|_| once()).collect::<Result<_>>().map(super::finding::median)
    }

    /// Holds the product on the device against its factors, after all that was launched: for numbers x of 1 to 16, C·x must be A·(B·x),
    /// row by row. A single wrong number shows for certain; several of a row could hide each other, and a second x is taken for them.
    ///
    /// # Errors
    /// `Corrupt` when it is not; `Device`, `Stalled`.
    pub fn check(&self) -> Result<()> {
        self.kept.settle()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let bytes = self.memory[2].read_back(0, self.n * self.n * FLOAT_BYTES, deadline)?;
        let float = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let product: Vec<f32> = bytes.chunks_exact(FLOAT_BYTES).map(float).collect();
        for salt in [3, 4] {
            let x: Vec<i64> = (0..self.n as u64).map(|at| (mixed(at + (salt << 48)) % 16) as i64 + 1).collect();
            let wanted = times(&self.factors[0], &times(&self.factors[1], &x));
            // A number that is no whole one, or none at all, is wrong by itself.
            let whole = |number: f32| if number.fract() == 0.0 { Some(number as i64) } else { None };
            for (row, (numbers, wanted)) in product.chunks_exact(self.n).zip(wanted).enumerate() {
                let sum = numbers.iter().zip(&x).try_fold(0, |sum, (number, x)| Some(sum + whole(*number)? * x));
                if sum != Some(wanted) {
                    return Err(wrong(format!("row {row} of a product of {0} × {0} is wrong", self.n)));
                }
            }
        }
        Ok(())
    }
}

impl Work for Product {
    fn launch(&mut self, apparatus: &Apparatus, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        self.launch_in(apparatus, entered, stream)
    }

    fn check(&mut self) -> Result<()> {
        Product::check(self)
    }
}

/// Numbers of −4 to 3.
fn factor(count: usize, salt: u64) -> Vec<i8> {
    (0..count as u64).map(|at| (mixed(at + (salt << 48)) & 7) as i8 - 4).collect()
}

fn times(matrix: &[i8], vector: &[i64]) -> Vec<i64> {
    let row = |numbers: &[i8]| numbers.iter().zip(vector).map(|(number, x)| i64::from(*number) * x).sum();
    matrix.chunks_exact(vector.len()).map(row).collect()
}
