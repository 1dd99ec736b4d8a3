//! Columns as typed elements: a slice where the host can read them, a kernel's argument where they lie on a GPU.

use std::fmt;
use std::marker::PhantomData;
#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaStream;

use super::batch::Batch;
use super::column::Column;
use crate::dataset::Dtype;
use crate::device::DeviceSlot;
#[cfg(feature = "cuda")]
use crate::device::StreamView;
use crate::error::{Error, Kind, Result};
use crate::sys::plain::{self, Plain};

/// Rust's types for the elements of a column. `half::f16` and `half::bf16` are among them with the feature `half`; bool columns are viewed as `u8`.
pub trait Element: Plain {
    /// What a column of them holds.
    const DTYPE: Dtype;

    /// Whether elements of that type can be viewed as these.
    fn views(dtype: Dtype) -> bool {
        dtype == Self::DTYPE
    }
}

impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;

    fn views(dtype: Dtype) -> bool {
        matches!(dtype, Dtype::U8 | Dtype::Bool)
    }
}

macro_rules! element {
    ($($number:ty = $dtype:ident),*) => {
        $(impl Element for $number {
            const DTYPE: Dtype = Dtype::$dtype;
        })*
    };
}

element!(i8 = I8, u16 = U16, i16 = I16, u32 = U32, i32 = I32, u64 = U64, i64 = I64, f32 = F32, f64 = F64);
#[cfg(feature = "half")]
element!(half::f16 = F16, half::bf16 = BF16);

/// Typed elements of a column, or of a tensor of [`Weights`](super::Weights). Borrows what it shows, so it cannot outlive the batch's hold on its slot.
///
/// ```
/// # use farfeed::{Field, Loader, Tokens, dataset::Dtype, store::MemoryStore};
/// # let store = MemoryStore::new();
/// # store.put("train.bin", (0..600u16).flat_map(u16::to_le_bytes).collect::<Vec<_>>());
/// # let loader = Loader::builder("memory:train.bin").store(store).tokens(Tokens::new(Dtype::U16, 100)).batch_size(2).build()?;
/// for batch in loader.epoch(0) {
///     let batch = batch?;
///     let tokens = batch.view::<u16>("tokens")?;
///     assert_eq!(tokens.shape(), [2, 100]);
///     match tokens.as_slice() {
///         Some(tokens) => assert_eq!(tokens.len(), 200), // the batch's own memory
///         None => println!("on the GPU at {:#x}: see View::on", tokens.pointer()),
///     }
/// }
/// # Ok::<(), farfeed::Error>(())
/// ```
pub struct View<'a, T> {
    slot: &'a DeviceSlot,
    /// First byte in the slot.
    at: usize,
    len: usize,
    /// `None`: one dimension.
    shape: Option<&'a [usize]>,
    elements: PhantomData<&'a [T]>,
}

/// A ragged column's two parts. Row *i* is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Copy, Debug)]
pub struct RaggedView<'a> {
    /// The bytes of all rows, one after the other.
    pub values: View<'a, u8>,
    /// B + 1 numbers, from 0 to the length of `values`, where the values are. [`Ragged::offsets`](super::Ragged::offsets) has them on the host whatever the device.
    pub offsets: View<'a, i64>,
}

impl Batch {
    /// A dense column as elements of type `T`.
    ///
    /// # Errors
    /// `NotFound` for a name that was not asked for; `Config` when the column is ragged, or holds something else than `T`.
    pub fn view<T: Element>(&self, name: &str) -> Result<View<'_, T>> {
        match self.column(name)? {
            Column::Dense { dtype, shape, at, .. } => {
                View::new(&self.slot, *at, shape, *dtype).map_err(|error| error.within(format!("column '{name}'")))
            }
            Column::Ragged { .. } => Err(Error::new(Kind::Config, format!("column '{name}' is ragged"))
                .advice("use batch.ragged_view, or ask for the field as an array, int or float")),
        }
    }

    /// A ragged column's values and offsets.
    ///
    /// # Errors
    /// `NotFound` for a name that was not asked for; `Config` when the column is dense.
    pub fn ragged_view(&self, name: &str) -> Result<RaggedView<'_>> {
        match self.column(name)? {
            Column::Ragged { values_at, values_len, offsets_at, bounds } => Ok(RaggedView {
                values: View::flat(&self.slot, *values_at, *values_len),
                offsets: View::flat(&self.slot, *offsets_at, bounds.len()),
            }),
            Column::Dense { .. } => {
                Err(Error::new(Kind::Config, format!("column '{name}' is dense")).advice("use batch.view"))
            }
        }
    }
}

impl<'a, T: Element> View<'a, T> {
    /// Elements of `shape` at `at` in a slot, which holds `dtype` there.
    pub(super) fn new(slot: &'a DeviceSlot, at: usize, shape: &'a [usize], dtype: Dtype) -> Result<View<'a, T>> {
        if !T::views(dtype) {
            let held = format!("it holds {}, not {}", dtype.name(), T::DTYPE.name());
            return Err(Error::new(Kind::Config, held).advice(format!("view it as {}", rust_name(dtype))));
        }
        Ok(View { slot, at, len: shape.iter().product(), shape: Some(shape), elements: PhantomData })
    }

    fn flat(slot: &'a DeviceSlot, at: usize, len: usize) -> View<'a, T> {
        View { slot, at, len, shape: None, elements: PhantomData }
    }

    /// The elements in C order, where the host can read them: the batch's own memory, without a copy. `None` on a GPU.
    ///
    /// Columns begin at multiples of 256 bytes, so that the alignment is never in the way.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        let bytes = self.slot.bytes()?.get(self.at..self.at + self.bytes())?;
        // Elements are little-endian, whatever the machine is.
        if cfg!(target_endian = "little") || size_of::<T>() == 1 { plain::elements(bytes) } else { None }
    }

    /// The elements, read back to the host where need be: for checks, not for the training loop.
    ///
    /// # Errors
    /// `Device` when they cannot be read back; `Stalled` when the batch does not land; `Unsupported` on a big-endian machine.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        if let Some(elements) = self.as_slice() {
            return Ok(elements.to_vec());
        }
        if cfg!(target_endian = "big") {
            return Err(Error::new(Kind::Unsupported, "numbers of a big-endian machine"));
        }
        self.slot.read_back(self.at, self.bytes()).map(|bytes| plain::copied(&bytes))
    }

    /// The elements for cudarc's kernels in `stream`, which waits until the batch has landed; the host does not wait.
    ///
    /// This is [`Batch::wait_on`] and the pointer in one, so that neither is had without the other. Views of one batch may be on several streams.
    ///
    /// # Errors
    /// `Unsupported` where the batch lies in host memory; `Config` for more than eight different streams, or one of another device; `Device` when the
    /// driver refuses.
    #[cfg(feature = "cuda")]
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<StreamView<'a, T>> {
        self.slot.view_in(self.at, self.len, stream)
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> View<'_, T> {
    /// `[B, …]`; one number for the parts of a ragged column.
    pub fn shape(&self) -> &[usize] {
        self.shape.unwrap_or(std::slice::from_ref(&self.len))
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address on the device, for kernels that are launched by other means than cudarc's; on the host device an ordinary address. The stream that
    /// uses it has to be told to [`Batch::wait_on`].
    pub fn pointer(&self) -> u64 {
        self.slot.device_pointer() + self.at as u64
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> fmt::Debug for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = std::any::type_name::<T>();
        let pointer = format_args!("{:#x}", self.pointer()).to_string();
        f.debug_struct("View")
            .field("element", &element)
            .field("shape", &self.shape())
            .field("pointer", &pointer)
            .finish()
    }
}

/// The type that views elements of `dtype`.
fn rust_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::U8 | Dtype::Bool => "u8",
        Dtype::I8 => "i8",
        Dtype::U16 => "u16",
        Dtype::I16 => "i16",
        Dtype::F16 => "half::f16, with the feature half",
        Dtype::BF16 => "half::bf16, with the feature half",
        Dtype::U32 => "u32",
        Dtype::I32 => "i32",
        Dtype::F32 => "f32",
        Dtype::U64 => "u64",
        Dtype::I64 => "i64",
        Dtype::F64 => "f64",
    }
}
