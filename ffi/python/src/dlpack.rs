//! Columns in other packages' hands: DLPack, the buffer protocol, the CUDA array interface. The binding's only file with `unsafe`.
//!
//! All three hand out an address in a slot and a way to keep it valid: an `Arc` of the [`Memory`] that it lies in, whose last clone gives the
//! slot back. An address is only ever made from a column of that batch or a tensor of those weights, or from a part of one that was checked
//! to lie inside.
//!
//! What is handed out may be written to: a slot belongs to one consumer until it goes back, and is filled anew then. No Rust reference to
//! its bytes outlives a call into the library.
#![allow(unsafe_code, reason = "the protocols are C structures; every block carries its argument")]

use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use farfeed::dataset::Dtype;
use farfeed::device::RawStream;
use farfeed::loader::Dense;
use pyo3::exceptions::{PyAttributeError, PyBufferError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyTuple};

use crate::batch::Held;
use crate::errors::or_raise;

/// A dense array in a batch's slot, on the batch's device: C-contiguous, little-endian, writable.
///
/// It holds the slot, as does everything made from it: let go of all of it to give the slot back. Import it without a copy with
/// torch.from_dlpack, jax.dlpack.from_dlpack or numpy.from_dlpack; on the CPU also through the buffer protocol (numpy.asarray, memoryview).
#[pyclass(module = "farfeed", frozen)]
pub(crate) struct Column {
    held: Arc<dyn Memory>,
    dtype: Dtype,
    layout: Layout,
    /// In the slot of `held`, `bytes` long.
    address: u64,
    bytes: usize,
}

/// What columns lie in, and what keeps it: a batch, or weights.
pub(crate) trait Memory: Send + Sync {
    /// An error in a child of the process that it belongs to.
    fn check(&self) -> farfeed::Result<()>;

    /// Has `stream` wait until the bytes are there, and the memory remember the stream: nobody else gets it before what the stream has been
    /// given to do by the time it is let go of.
    fn wait_on(&self, stream: RawStream) -> farfeed::Result<()>;

    /// Number of the CUDA device; `None` for host memory.
    fn ordinal(&self) -> Option<u32>;

    /// "cpu" or "cuda:0".
    fn device(&self) -> String {
        self.ordinal().map_or_else(|| "cpu".to_owned(), |ordinal| format!("cuda:{ordinal}"))
    }
}

impl Column {
    /// The dense column `name`.
    pub(crate) fn dense(held: &Arc<Held>, name: &str) -> farfeed::Result<Self> {
        let column = held.batch()?.dense(name)?;
        Ok(Column::whole(held.clone(), &column))
    }

    /// All values of the ragged column `name`, as bytes.
    pub(crate) fn values(held: &Arc<Held>, name: &str) -> farfeed::Result<Self> {
        let column = held.batch()?.ragged(name)?;
        Ok(Column::new(held.clone(), Dtype::U8, &[column.values_len], column.values_pointer, column.values_len))
    }

    /// Where the values of the ragged column `name` begin, and behind those where the last one ends.
    pub(crate) fn offsets(held: &Arc<Held>, name: &str) -> farfeed::Result<Self> {
        let column = held.batch()?.ragged(name)?;
        let count = column.rows + 1;
        Ok(Column::new(held.clone(), Dtype::I64, &[count], column.offsets_pointer, count * Dtype::I64.bytes()))
    }

    /// The bytes `from..to` of a column of bytes; `None` where it has no such.
    pub(crate) fn part(&self, from: usize, to: usize) -> Option<Self> {
        if self.dtype != Dtype::U8 || from > to || to > self.bytes {
            return None;
        }
        Some(Column::new(self.held.clone(), Dtype::U8, &[to - from], self.address + from as u64, to - from))
    }

    /// All of `dense`, which lies in `held`.
    pub(crate) fn whole(held: Arc<dyn Memory>, dense: &Dense<'_>) -> Self {
        Column::new(held, dense.dtype, dense.shape, dense.pointer, dense.len)
    }

    fn new(held: Arc<dyn Memory>, dtype: Dtype, shape: &[usize], address: u64, bytes: usize) -> Self {
        Column { held, dtype, layout: Layout::new(shape, dtype.bytes()), address, bytes }
    }

    fn on_cpu(&self) -> bool {
        self.held.ordinal().is_none()
    }

    /// What DLPack and the array interface mean by a device.
    fn dl_device(&self) -> DlDevice {
        match self.held.ordinal() {
            None => DlDevice { kind: DL_CPU, id: 0 },
            Some(ordinal) => DlDevice { kind: DL_CUDA, id: ordinal as i32 },
        }
    }

    /// Has the consumer's stream wait for the batch, and the slot remember the stream: it is filled again only after what the stream has
    /// been given to do by the time the last holder lets go. That is all a deleter, which knows no stream, needs.
    fn meet(&self, py: Python<'_>, stream: Option<i64>) -> PyResult<()> {
        let stream = match (self.on_cpu(), stream) {
            (true, None | Some(-1)) | (false, Some(-1)) => return Ok(()),
            (true, Some(_)) => return Err(PyBufferError::new_err("a stream for a column in host memory")),
            (false, None | Some(1)) => RawStream::LEGACY_DEFAULT,
            (false, Some(2)) => RawStream::PER_THREAD_DEFAULT,
            (false, Some(handle)) if handle > 2 => stream_from(handle as usize),
            (false, Some(other)) => {
                let what =
                    format!("stream {other} is ambiguous: 1 is the legacy default stream, 2 the thread's own, -1 none");
                return Err(PyBufferError::new_err(what));
            }
        };
        or_raise(py, self.held.wait_on(stream))
    }
}

#[pymethods]
impl Column {
    /// Extents, the batch's rows first.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.layout.shape())
    }

    /// Name of the elements' type, as numpy has it: "uint8", "int64", "bfloat16".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    /// Where it lies: "cpu" or "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.held.device()
    }

    /// Bytes of all elements.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes
    }

    /// A numpy array of the same memory, which holds the slot for as long as it or a view of it lives.
    ///
    /// Raises BufferError where the memory is not the host's; and what numpy raises where it lacks the type: bfloat16.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let column = slf.get();
        if !column.on_cpu() {
            let what = format!(
                "the column lies on {}: copy it to the host, as torch.from_dlpack(column).cpu() does",
                column.device()
            );
            return Err(PyBufferError::new_err(what));
        }
        slf.py().import("numpy")?.call_method1("from_dlpack", (slf,))
    }

    /// DLPack: a capsule for `from_dlpack`, "dltensor_versioned" if `max_version` says that the consumer knows it, else "dltensor".
    ///
    /// On a GPU `stream` is made to wait until the batch has landed, and the slot is not filled again before what `stream` has been given to
    /// do when the consumer lets go. None and 1 are the legacy default stream, 2 the thread's own; -1 asks for neither, and
    /// leaves both to Batch.wait_on. Raises BufferError for another device and for a copy.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<i64>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let here = self.dl_device();
        if dl_device.is_some_and(|wanted| wanted != (here.kind, here.id)) {
            return Err(PyBufferError::new_err(format!(
                "the column lies on {}, and is not copied elsewhere",
                self.device()
            )));
        }
        if copy == Some(true) {
            return Err(PyBufferError::new_err("a column is handed over as it is; copy what you import"));
        }
        self.meet(py, stream)?;
        match max_version {
            Some((major, _)) if major >= 1 => Exported::<Versioned>::capsule(py, self),
            _ => Exported::<Unversioned>::capsule(py, self),
        }
    }

    /// DLPack: type and number of the device; (1, 0) is the CPU, (2, n) the CUDA device n.
    fn __dlpack_device__(&self) -> (i32, i32) {
        let DlDevice { kind, id } = self.dl_device();
        (kind, id)
    }

    /// The CUDA array interface, version 3; on the CPU there is no such attribute. The legacy default stream is made to wait for the batch,
    /// and is the one to synchronise with; name others to Batch.wait_on.
    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let typestr = match typestr(self.dtype) {
            Some(typestr) if !self.on_cpu() => typestr,
            _ => {
                let what = format!("no CUDA array interface for {} on {}", self.dtype.name(), self.device());
                return Err(PyAttributeError::new_err(what));
            }
        };
        self.meet(py, None)?;
        let interface = PyDict::new(py);
        interface.set_item("shape", self.shape(py)?)?;
        interface.set_item("typestr", typestr)?;
        interface.set_item("data", (self.address, false))?;
        interface.set_item("strides", py.None())?;
        interface.set_item("stream", 1)?;
        interface.set_item("version", 3)?;
        Ok(interface)
    }

    fn __len__(&self) -> usize {
        self.layout.shape().first().map_or(0, |extent| *extent as usize)
    }

    fn __repr__(&self) -> String {
        let shape = crate::options::tuple(self.layout.shape());
        format!("Column('{}', {shape}, '{}')", self.dtype.name(), self.device())
    }

    /// # Safety
    /// Called by the interpreter alone, with a view to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let column = slf.get();
        let wants = |flag: c_int| flags & flag == flag;
        let problem = match buffer_format(column.dtype) {
            _ if view.is_null() => Err("no view to fill"),
            _ if !column.on_cpu() => Err("the column is not in host memory: import it by DLPack"),
            _ if wants(ffi::PyBUF_F_CONTIGUOUS) && column.layout.shape().len() > 1 => Err("the column is in C order"),
            None => Err("the buffer protocol has no bfloat16: import the column by DLPack"),
            Some(format) => Ok(format),
        };
        let format = problem.map_err(PyBufferError::new_err)?;
        // Fails in a child of the process that made the batch.
        or_raise(slf.py(), column.held.check())?;
        let or_null =
            |flag: c_int, pointer: *const isize| if wants(flag) { pointer.cast_mut() } else { ptr::null_mut() };
        // SAFETY: `view` is not null, and the interpreter's to fill. The reference that goes into `obj` keeps the column, and it the slot, the
        // shape and the strides, which never move or change in a frozen class; the format is static. Whoever asks without
        // PyBUF_ND or PyBUF_STRIDES takes the memory as plain bytes or C-contiguous, which it is.
        unsafe {
            *view = ffi::Py_buffer::new();
            (*view).buf = column.address as *mut c_void;
            (*view).len = column.bytes as isize;
            (*view).itemsize = column.dtype.bytes() as isize;
            (*view).readonly = 0;
            (*view).ndim = if wants(ffi::PyBUF_ND) { column.layout.shape().len() as c_int } else { 1 };
            (*view).format = if wants(ffi::PyBUF_FORMAT) { format.as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).shape = or_null(ffi::PyBUF_ND, column.layout.shape().as_ptr());
            (*view).strides = or_null(ffi::PyBUF_STRIDES, column.layout.strides().as_ptr());
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }
}

/// A stream by the handle that a framework gave.
pub(crate) fn stream_from(handle: usize) -> RawStream {
    // SAFETY: that the stream belongs to the batch's device and outlives its use is what the caller of DLPack, `wait_on` and `release`
    // vouches for, as it would to the driver: the handle is passed on and never looked into.
    unsafe { RawStream::from_raw(handle) }
}

/// Extents and strides in bytes; up to four dimensions without an allocation.
enum Layout {
    /// Dimensions, extents, strides.
    Few(usize, [isize; 4], [isize; 4]),
    Many(Box<[isize]>, Box<[isize]>),
}

impl Layout {
    fn new(shape: &[usize], item: usize) -> Self {
        let mut stride = item as isize;
        let mut strides_from_last = shape.iter().rev().map(|extent| {
            let this = stride;
            stride = stride.saturating_mul((*extent).max(1) as isize);
            this
        });
        if shape.len() > 4 {
            let mut strides: Vec<isize> = strides_from_last.collect();
            strides.reverse();
            return Layout::Many(shape.iter().map(|extent| *extent as isize).collect(), strides.into());
        }
        let (mut extents, mut strides) = ([0; 4], [0; 4]);
        for at in (0..shape.len()).rev() {
            extents[at] = shape[at] as isize;
            strides[at] = strides_from_last.next().unwrap_or(0);
        }
        Layout::Few(shape.len(), extents, strides)
    }

    fn shape(&self) -> &[isize] {
        match self {
            Layout::Few(dimensions, extents, _) => &extents[..*dimensions],
            Layout::Many(extents, _) => extents,
        }
    }

    fn strides(&self) -> &[isize] {
        match self {
            Layout::Few(dimensions, _, strides) => &strides[..*dimensions],
            Layout::Many(_, strides) => strides,
        }
    }
}

/// The buffer protocol's letter for a type.
fn buffer_format(dtype: Dtype) -> Option<&'static CStr> {
    Some(match dtype {
        Dtype::U8 => c"B",
        Dtype::I8 => c"b",
        Dtype::U16 => c"H",
        Dtype::I16 => c"h",
        Dtype::F16 => c"e",
        Dtype::BF16 => return None,
        Dtype::U32 => c"I",
        Dtype::I32 => c"i",
        Dtype::F32 => c"f",
        Dtype::U64 => c"Q",
        Dtype::I64 => c"q",
        Dtype::F64 => c"d",
        Dtype::Bool => c"?",
    })
}

/// numpy's array interface's name for a type.
fn typestr(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::U16 => "<u2",
        Dtype::I16 => "<i2",
        Dtype::F16 => "<f2",
        Dtype::BF16 => return None,
        Dtype::U32 => "<u4",
        Dtype::I32 => "<i4",
        Dtype::F32 => "<f4",
        Dtype::U64 => "<u8",
        Dtype::I64 => "<i8",
        Dtype::F64 => "<f8",
        Dtype::Bool => "|b1",
    })
}

// DLPack 1.0, as its header lays it out.

const DL_CPU: i32 = 1;
const DL_CUDA: i32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct DlDevice {
    kind: i32,
    id: i32,
}

#[repr(C)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

impl DlDataType {
    fn of(dtype: Dtype) -> Self {
        let code = match dtype {
            Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => 0,
            Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => 1,
            Dtype::F16 | Dtype::F32 | Dtype::F64 => 2,
            Dtype::BF16 => 4,
            Dtype::Bool => 6,
        };
        DlDataType { code, bits: (dtype.bytes() * 8) as u8, lanes: 1 }
    }
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    dimensions: i32,
    dtype: DlDataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Unversioned {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Unversioned)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    /// Neither read-only nor a copy.
    flags: u64,
    tensor: DlTensor,
}

/// One of the two structures.
trait Managed: Sized + 'static {
    /// The capsule's name until a consumer has taken what is in it.
    const NAME: &'static CStr;

    fn new(tensor: DlTensor, context: *mut c_void) -> Self;
    fn context(&self) -> *mut c_void;
}

impl Managed for Unversioned {
    const NAME: &'static CStr = c"dltensor";

    fn new(tensor: DlTensor, context: *mut c_void) -> Self {
        Unversioned { tensor, context, deleter: Some(delete::<Self>) }
    }

    fn context(&self) -> *mut c_void {
        self.context
    }
}

impl Managed for Versioned {
    const NAME: &'static CStr = c"dltensor_versioned";

    fn new(tensor: DlTensor, context: *mut c_void) -> Self {
        Versioned { version: [1, 0], context, deleter: Some(delete::<Self>), flags: 0, tensor }
    }

    fn context(&self) -> *mut c_void {
        self.context
    }
}

/// What a consumer holds: the structure it sees, what that points to, and the slot.
struct Exported<M> {
    /// `None` only until its address is known.
    managed: Option<M>,
    /// Extents, then strides in elements.
    numbers: Box<[i64]>,
    _held: Arc<dyn Memory>,
}

impl<M: Managed> Exported<M> {
    fn capsule<'py>(py: Python<'py>, column: &Column) -> PyResult<Bound<'py, PyCapsule>> {
        or_raise(py, column.held.check())?;
        let item = column.dtype.bytes() as isize;
        let strides = column.layout.strides().iter().map(|stride| stride / item);
        let numbers = column.layout.shape().iter().copied().chain(strides).map(|number| number as i64).collect();
        let exported = Box::new(Exported { managed: None, numbers, _held: Arc::clone(&column.held) });
        let exported: *mut Exported<M> = Box::into_raw(exported);
        let dimensions = column.layout.shape().len();
        // SAFETY: `exported` was made from a box above, is nobody else's yet, and stays where it is until `delete`; so do the numbers,
        // a box of their own, of which the strides are the second half. The capsule takes the structure; if it cannot be
        // made, the box is taken back.
        unsafe {
            let numbers = (*exported).numbers.as_mut_ptr();
            let tensor = DlTensor {
                data: column.address as *mut c_void,
                device: column.dl_device(),
                dimensions: dimensions as i32,
                dtype: DlDataType::of(column.dtype),
                shape: numbers,
                strides: numbers.add(dimensions),
                byte_offset: 0,
            };
            let managed: *mut M = (*exported).managed.insert(M::new(tensor, exported.cast()));
            let capsule = ffi::PyCapsule_New(managed.cast(), M::NAME.as_ptr(), Some(drop_capsule::<M>));
            if capsule.is_null() {
                drop(Box::from_raw(exported));
                return Err(PyErr::fetch(py));
            }
            Ok(Bound::from_owned_ptr(py, capsule).cast_into_unchecked())
        }
    }
}

/// The consumer is done with it. Called on any thread, attached to the interpreter or not: nothing of Python is touched.
///
/// # Safety
/// `managed` is what [`Exported::capsule`] gave, and nobody uses it, or its memory, any more.
unsafe extern "C" fn delete<M: Managed>(managed: *mut M) {
    // SAFETY: `managed` is inside the box that its context points to, which was given away as a pointer and is taken back once, here.
    let exported = unsafe { Box::from_raw((*managed).context().cast::<Exported<M>>()) };
    // Giving back a slot does not panic; if it did, unwinding into a caller in C would be worse than losing the message.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(exported)));
}

/// Deletes what nobody has taken: a consumer renames the capsule when it takes it, and then calls the deleter itself.
///
/// # Safety
/// Called by the interpreter alone, with a capsule of [`Exported::capsule`].
unsafe extern "C" fn drop_capsule<M: Managed>(capsule: *mut ffi::PyObject) {
    // SAFETY: the capsule is alive during its destructor. Its name says whether the pointer is still ours; it is then what was put in.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, M::NAME.as_ptr()) == 1 {
            delete::<M>(ffi::PyCapsule_GetPointer(capsule, M::NAME.as_ptr()).cast());
        }
    }
}
