"""Compiles kernels to PTX with NVRTC, and compares: compile.py [--write] SOURCE.cu

The PTX lies beside its source and is part of the library, so that neither a toolkit nor a compiler is needed to build or to use it. Without
--write nothing is changed: the exit status is 1 when the committed text is not what the source gives. Needs no GPU; NVRTC 12.0.76 comes from
the package named in requirements.txt, since PTX of a newer one is refused by older drivers.
"""

import argparse
import ctypes
import importlib.util
import pathlib
import sys
import zlib

OPTIONS = [b"--gpu-architecture=compute_75", b"--std=c++17", b"--fmad=false"]
VERSION = (12, 0)


def nvrtc() -> ctypes.CDLL:
    """The library out of its package, with the version that the committed text was made by."""
    found = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if found is None or not found.submodule_search_locations:
        sys.exit("NVRTC is missing: sh tests/kernels/setup.sh target/tmp/kernels, and use its venv/bin/python")
    library = ctypes.CDLL(str(pathlib.Path(found.submodule_search_locations[0], "lib", "libnvrtc.so.12")))
    major, minor = ctypes.c_int(), ctypes.c_int()
    check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    if (major.value, minor.value) != VERSION:
        sys.exit(f"NVRTC is {major.value}.{minor.value}, not {VERSION[0]}.{VERSION[1]}")
    return library


def check(library: ctypes.CDLL, code: int) -> None:
    if code != 0:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}")


def compiled(library: ctypes.CDLL, source: bytes, name: str) -> str:
    program = ctypes.c_void_p()
    check(library, library.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None))
    code = library.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    size = ctypes.c_size_t()
    check(library, library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    check(library, library.nvrtcGetProgramLog(program, log))
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    check(library, code)
    check(library, library.nvrtcGetPTXSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(library, library.nvrtcGetPTX(program, text))
    check(library, library.nvrtcDestroyProgram(ctypes.byref(program)))
    return text.value.decode()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("source", type=pathlib.Path)
    arguments.add_argument("--write", action="store_true", help="write the PTX instead of comparing")
    options = arguments.parse_args()
    source = options.source.read_bytes()
    # The sum lets a test tell without a compiler that the source was changed and the text was not.
    text = f"// Made by tests/kernels/compile.py from {options.source.name}, crc32 {zlib.crc32(source):08x}\n"
    text += compiled(nvrtc(), source, options.source.name)
    place = options.source.with_suffix(".ptx")
    if options.write:
        place.write_text(text)
        print(f"{place}: {len(text)} bytes")
    elif not place.exists() or place.read_text() != text:
        sys.exit(f"{place} is not what {options.source.name} gives: run compile.py --write, and commit it")
    else:
        print(f"{place} is what {options.source.name} gives")


if __name__ == "__main__":
    main()
