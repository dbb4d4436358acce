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


class Compiler:
    """A library of NVRTC.

    Attributes:
        version: major and minor.
        architectures: that it compiles for, as 90 for "sm_90".
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._checked(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = major.value, minor.value
        self._checked(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        known = (ctypes.c_int * count.value)()
        self._checked(library.nvrtcGetSupportedArchs(known))
        self.architectures = sorted(known)

    @property
    def name(self) -> str:
        return "NVIDIA's run-time compiler {}.{}".format(*self.version)

    def _checked(self, result: int) -> None:
        if result:
            said = self._library.nvrtcGetErrorString(result).decode()
            raise EngineUnavailable(f"NVIDIA's run-time compiler failed: {said}.")

    def nearest(self, architecture: str) -> int:
        """The same or the newest one before, whose PTX newer GPUs take; 0: there is none."""
        number = int(architecture.removeprefix("sm_"))
        return max((known for known in self.architectures if known <= number), default=0)

    def compile(self, source: str, architecture: str) -> bytes:
        """A cubin; for an architecture that is not known yet, PTX, with a zero at its end.

        The driver compiles that.

        Raises:
            EngineUnavailable: an architecture before all that are known; it fails.
        """
        nearest = self.nearest(architecture)
        if not nearest:
            raise EngineUnavailable(
                f"{self.name} does not know GPUs as old as this one ({architecture}), but those "
                f"from sm_{self.architectures[0]} on: install one of an earlier CUDA "
                "(nvidia-cuda-nvrtc-cu12), or use engine='torch' or the CPU."
            )
        same = architecture == f"sm_{nearest}"
        library, program = self._library, ctypes.c_void_p()
        self._checked(
            library.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"eqcalc.cu", 0, None, None
            )
        )
        try:
            kind = "sm" if same else "compute"
            options = [*OPTIONS, f"--gpu-architecture={kind}_{nearest}"]
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = library.nvrtcCompileProgram(program, len(options), array)
            if failed:
                log = self._read(program, "ProgramLog").decode(errors="replace").rstrip("\0")
                raise EngineUnavailable(
                    f"{self.name} cannot compile eqcalc's kernels for {architecture}: {log[-600:]}"
                )
            return self._read(program, "CUBIN" if same else "PTX")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._checked(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        content = ctypes.create_string_buffer(size.value)
        self._checked(getattr(self._library, f"nvrtcGet{what}")(program, content))
        return content.raw


@functools.cache
def compilers() -> list[Compiler]:
    """All that there are.

    Raises:
        EngineUnavailable: there is none.
    """
    found = []
    for path in _candidates():
        try:
            found.append(Compiler(ctypes.CDLL(path)))
        except (OSError, AttributeError):  # not there; before CUDA 11.2
            continue
    if not found:
        raise EngineUnavailable(
            f"There is no compiler for GPUs (libnvrtc): {install('cuda')}, or install torch's "
            "build for CUDA."
        )
    return found


def compiler(architecture: str, cuda: int) -> Compiler:
    """One whose kernels a driver takes; of these, the first that knows the architecture best.

    Args:
        architecture: such as "sm_90".
        cuda: major version that the driver is of: it takes kernels of that one and of those before.

    Raises:
        EngineUnavailable: there is none.
    """
    fit = [one for one in compilers() if one.version[0] <= cuda]
    if not fit:
        raise EngineUnavailable(
            f"{compilers()[0].name} is newer than the NVIDIA driver, which is of CUDA {cuda}: "
            "update the driver, or install the compiler of that CUDA "
            f"(nvidia-cuda-nvrtc-cu{cuda})."
        )
    return max(fit, key=lambda one: one.nearest(architecture))
