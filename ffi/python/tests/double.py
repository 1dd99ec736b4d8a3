"""The double of the CUDA driver (tests/driver-double), loaded into this process in the driver's place: see its `control.rs`.

It must be loaded before anything asks for a driver, and never leaves the process again: tests use it in processes of their own.
"""

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path


class Live(Structure):
    """What exists on a device."""

    _fields_ = [
        ("contexts", c_int64),
        ("allocations", c_size_t),
        ("registrations", c_size_t),
        ("streams", c_size_t),
        ("events", c_size_t),
    ]


class Control(Structure):
    """What the double lets tests do."""

    _fields_ = [
        ("set_rate", CFUNCTYPE(None, c_uint32, c_uint64)),
        ("fail_copy", CFUNCTYPE(None, c_uint32, c_int64)),
        ("refuse_registration", CFUNCTYPE(None, c_uint32)),
        ("consume", CFUNCTYPE(c_uint32, c_uint32, c_size_t, c_uint64, c_char_p, c_size_t, c_uint64)),
        ("drain", CFUNCTYPE(None, c_uint32)),
        ("live", CFUNCTYPE(Live, c_uint32)),
        ("violations", CFUNCTYPE(c_size_t, c_uint32, c_char_p, c_size_t)),
        ("contexts_on_this_thread", CFUNCTYPE(c_size_t)),
    ]


def library() -> Path:
    """Where cargo put the double: beside the extension that is tested."""
    root = Path(__file__).parents[3]
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return root / target / "debug" / "libfarfeed_driver_double.so"


class Double:
    """A device of the double."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.driver = ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)
        self.control = Control.in_dll(self.driver, "FARFEED_DRIVER_DOUBLE")
        # As whoever makes streams in this process has done before.
        self._check(self.driver.cuInit(0))

    def stream(self) -> int:
        """A new non-blocking stream."""
        context, stream = c_size_t(), c_size_t()
        self._check(self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), c_int(self.ordinal)))
        self._check(self.driver.cuCtxPushCurrent_v2(context))
        self._check(self.driver.cuStreamCreate(ctypes.byref(stream), 1))
        self._check(self.driver.cuCtxPopCurrent_v2(ctypes.byref(context)))
        return stream.value

    def consume(self, stream: int, pointer: int, expected: bytes, after_ms: int) -> None:
        """Enqueues a kernel that reads memory after a while and wants to find `expected`."""
        self._check(self.control.consume(self.ordinal, stream, pointer, expected, len(expected), after_ms))

    def set_rate(self, bytes_per_second: int) -> None:
        self.control.set_rate(self.ordinal, bytes_per_second)

    def fail_copy(self, after: int) -> None:
        self.control.fail_copy(self.ordinal, after)

    def drain(self) -> None:
        """Waits until all streams have nothing left to do."""
        self.control.drain(self.ordinal)

    def live(self) -> Live:
        return self.control.live(self.ordinal)

    def violations(self) -> str:
        """What has happened that must not happen, a line each."""
        text = ctypes.create_string_buffer(4096)
        return text.raw[: self.control.violations(self.ordinal, text, len(text))].decode()

    def _check(self, code: int) -> None:
        assert code == 0, f"the double refuses: {code}"


class DlDevice(Structure):
    _fields_ = [("kind", c_int), ("id", c_int)]


class DlDataType(Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DlTensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", DlDevice),
        ("ndim", c_int),
        ("dtype", DlDataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class Unversioned(Structure):
    """DLManagedTensor."""

    NAME = b"dltensor"
    _fields_ = [("tensor", DlTensor), ("context", c_void_p), ("deleter", CFUNCTYPE(None, c_void_p))]


class Versioned(Structure):
    """DLManagedTensorVersioned."""

    NAME = b"dltensor_versioned"
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", CFUNCTYPE(None, c_void_p)),
        ("flags", c_uint64),
        ("tensor", DlTensor),
    ]


class Consumer:
    """What a framework does with a capsule: it takes the tensor, renames the capsule, and calls the deleter when it is done."""

    def __init__(self, capsule: object, layout: type[Structure] = Versioned) -> None:
        api = ctypes.pythonapi
        api.PyCapsule_GetPointer.restype = c_void_p
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, c_char_p]
        api.PyCapsule_SetName.argtypes = [ctypes.py_object, c_char_p]
        self.address = api.PyCapsule_GetPointer(capsule, layout.NAME)
        self.managed = layout.from_address(self.address)
        self.taken = b"used_" + layout.NAME
        api.PyCapsule_SetName(capsule, self.taken)
        # The name must outlive the capsule.
        self.capsule = capsule

    @property
    def tensor(self) -> DlTensor:
        return self.managed.tensor

    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[i] for i in range(self.tensor.ndim))

    def strides(self) -> tuple[int, ...]:
        return tuple(self.tensor.strides[i] for i in range(self.tensor.ndim))

    def done(self) -> None:
        """Lets go. ctypes detaches from the interpreter for the call, as a framework's own thread would be."""
        self.managed.deleter(self.address)
