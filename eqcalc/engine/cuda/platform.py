"""What a machine's GPUs are reached by: the NVIDIA driver, and NVRTC, which compiles for them."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import NamedTuple

from eqcalc import cache
from eqcalc.engine.build import EngineUnavailable
from eqcalc.engine.cuda import nvrtc

#: of the driver's interface: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR,
#: _MULTIPROCESSOR_COUNT and _MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
MAJOR, MINOR, COUNT, SHARED = 75, 76, 16, 97

#: the compiled kernels in an entry of the cache
IMAGE = "kernels.image"


def error_name(driver: ctypes.CDLL, result: int) -> str:
    """As NVIDIA writes it, such as CUDA_ERROR_NO_DEVICE."""
    name = ctypes.c_char_p()
    driver.cuGetErrorName(result, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {result}"


class Multiprocessors(NamedTuple):
    """Of a GPU: how many, and bytes of shared memory that a block of threads may have."""

    count: int
    shared: int


class Platform:
    """NVIDIA's GPUs; tests put an emulation in its place.

    Attributes:
        driver: the library, as dlopen takes it.
    """

    driver = "libcuda.so.1"

    def library(self) -> ctypes.CDLL:
        """Of the driver's functions.

        Raises:
            EngineUnavailable: there is no driver, or it finds no GPU.
        """
        try:
            library = ctypes.CDLL(self.driver)
        except OSError:
            raise EngineUnavailable(
                "There is no NVIDIA driver here (libcuda.so.1): use device='cpu'."
            ) from None
        if failed := library.cuInit(0):
            raise EngineUnavailable(
                f"The NVIDIA driver finds no GPU here ({error_name(library, failed)}): look with "
                "nvidia-smi and CUDA_VISIBLE_DEVICES why, or use device='cpu'."
            )
        return library

    def cuda(self) -> int:
        """The major version of CUDA that the driver is of."""
        version = ctypes.c_int()
        self.library().cuDriverGetVersion(ctypes.byref(version))
        return version.value // 1000

    def count(self) -> int:
        """GPUs that there are.

        Raises:
            EngineUnavailable: there is no driver, or it finds none.
        """
        count = ctypes.c_int()
        self.library().cuDeviceGetCount(ctypes.byref(count))
        return count.value

    def architecture(self, number: int) -> str:
        """Of a GPU, as compilers name it, such as "sm_90"."""
        return "sm_{}{}".format(*self._attributes(number, MAJOR, MINOR))

    def multiprocessors(self, number: int) -> Multiprocessors:
        """Of a GPU."""
        return Multiprocessors(*self._attributes(number, COUNT, SHARED))

    def _attributes(self, number: int, *wanted: int) -> list[int]:
        library, device, values = self.library(), ctypes.c_int(), []
        library.cuDeviceGet(ctypes.byref(device), number)
        for attribute in wanted:
            value = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            values.append(value.value)
        return values

    def image(self, source: str, architecture: str) -> Path:
        """A file of compiled kernels, a cubin or PTX, from the cache if they were compiled before.

        Raises:
            EngineUnavailable: there is no compiler, or it fails.
        """
        compiler = nvrtc.compiler(architecture, self.cuda())
        words = [source, architecture, str(compiler.version), *nvrtc.OPTIONS]
        key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:24]

        def make(folder: Path) -> None:
            (folder / IMAGE).write_bytes(compiler.compile(source, architecture))

        return cache.entry("cubins", key, make, lambda f: (f / IMAGE).is_file()) / IMAGE


#: of this process
PLATFORM = Platform()
