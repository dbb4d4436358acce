"""NVIDIA's run-time compiler, opened at run time: CUDA C++ to machine code, without a toolkit.

It comes with torch's builds for CUDA, or alone as the package nvidia-cuda-nvrtc (the extra `cuda`).
"""

from __future__ import annotations

import ctypes
import functools
import glob
import site
import sys
from pathlib import Path

from eqcalc.engine.build import EngineUnavailable
from eqcalc.extras import install

#: no host compiler's headers are read, and numbers are rounded as IEEE 754 says
OPTIONS = ("--std=c++17", "--fmad=true", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")


def _candidates() -> list[str]:
    """Where the library may be: in wheels, in toolkits, wherever the loader looks."""
    folders = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    found = []
    for folder in dict.fromkeys(folders):
        found += sorted(glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so.*"), reverse=True)  # noqa: PTH207
    toolkits = sorted(glob.glob("/usr/local/cuda*/lib64/libnvrtc.so.*"), reverse=True)  # noqa: PTH207
    wheels = [path for path in found if "builtins" not in Path(path).name]
    return [*dict.fromkeys(wheels), "libnvrtc.so.13", "libnvrtc.so.12", *toolkits]


@functools.cache
def _library() -> ctypes.CDLL:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise EngineUnavailable(
        f"There is no compiler for GPUs (libnvrtc): {install('cuda')}, or install torch's build "
        "for CUDA."
    )


def _checked(result: int) -> None:
    if result:
        said = _library().nvrtcGetErrorString(result).decode()
        raise EngineUnavailable(f"NVIDIA's run-time compiler failed: {said}.")


def version() -> str:
    """Of the compiler.

    Raises:
        EngineUnavailable: there is none.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _checked(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def compile_source(source: str, architecture: str) -> bytes:
    """A cubin for an architecture such as "sm_90".

    Raises:
        EngineUnavailable: there is no compiler, it does not know the architecture, or it fails.
    """
    library, program = _library(), ctypes.c_void_p()
    _checked(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"eqcalc.cu", 0, None, None
        )
    )
    try:
        options = [*OPTIONS, f"--gpu-architecture={architecture}"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), array)
        if failed:
            size = ctypes.c_size_t()
            _checked(library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _checked(library.nvrtcGetProgramLog(program, log))
            raise EngineUnavailable(
                f"NVIDIA's run-time compiler cannot compile eqcalc's kernels for {architecture}: "
                f"{log.value.decode(errors='replace')[-600:]}"
            )
        size = ctypes.c_size_t()
        _checked(library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        cubin = ctypes.create_string_buffer(size.value)
        _checked(library.nvrtcGetCUBIN(program, cubin))
        return cubin.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
