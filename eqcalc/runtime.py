"""The process around a calculation: torch's settings, devices, memory, threads and forks.

A calculation must give the same numbers whatever the program around it has set in torch, and leave
all of that as it was.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import ClassVar

import torch

from eqcalc.errors import InputError

_LOADED_BY = os.getpid()


class TurnLock:
    """A re-entrant lock for `with`; a forked process finds it free, copies and pickles are new."""

    _all: ClassVar[weakref.WeakSet[TurnLock]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.renew()
        TurnLock._all.add(self)

    def renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[TurnLock], tuple[()]]:
        return TurnLock, ()


class _ProcessSettings:
    """What torch keeps per process, set while any calculation runs, restored by the last to end.

    - TorchScript's fusion: off, as in LAMMPS. Fused kernels are compiled anew for every number of
      edges and round differently from one call to the next.
    - Matrix products in float32 are not rounded to TensorFloat-32 or bfloat16, which would make the
      energy surface rough.
    """

    PRODUCTS = (("cuda", "matmul"), ("mkldnn", "matmul"))

    def __init__(self) -> None:
        self._lock = TurnLock()
        self._inside = 0
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                fusion = torch._C._jit_set_fusion_strategy  # without torch.jit's warning each time
                before = fusion([("STATIC", 0)])
                self._undo = [lambda: fusion(before)]
                self._exact_products()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self.restore()

    def restore(self) -> None:
        """As it was before; also in a forked process, whose parent may have been inside."""
        self._inside = 0
        while self._undo:
            self._undo.pop()()

    def _exact_products(self) -> None:
        read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
        before = [read(*product) for product in self.PRODUCTS]
        # torch has an old and a new name for the same setting; the old one can be read only where
        # the new one does not contradict it
        changed = [p for p, b in zip(self.PRODUCTS, before, strict=True) if b in ("tf32", "bf16")]
        for product in changed:
            write(*product, "ieee")
        old = torch.get_float32_matmul_precision()
        if not changed and old == "highest":
            return
        torch.set_float32_matmul_precision("highest")

        def undo() -> None:
            torch.set_float32_matmul_precision(old)
            for product, value in zip(self.PRODUCTS, before, strict=True):
                write(*product, "none")  # what a more general setting says, if that is it
                if read(*product) != value:
                    write(*product, value)

        self._undo.append(undo)


_SETTINGS = _ProcessSettings()

#: held by calculations that change torch's number of threads: that, too, is the process's
_THREADS = TurnLock()


def _after_fork() -> None:
    for lock in list(TurnLock._all):
        lock.renew()
    _SETTINGS.restore()


os.register_at_fork(after_in_child=_after_fork)


def threads_here(threads: int | None) -> int | None:
    """What was asked for; one in a process forked from that which loaded this module.

    OpenMP's threads do not survive a fork: with more than one, the child would wait for ever.
    """
    return threads if os.getpid() == _LOADED_BY else 1


@contextmanager
def _without_autocast() -> Iterator[None]:
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    threads = threads_here(threads)
    with nullcontext() if threads is None else _THREADS:
        before = torch.get_num_threads()
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            if threads is not None:
                torch.set_num_threads(before)


@contextmanager
def own_torch(threads: int | None = None) -> Iterator[None]:
    """torch as a calculation needs it, for one block, whatever is set around it.

    Tensors made in the block are ordinary ones also inside `torch.inference_mode()`, on the CPU
    where no device is named, and in the precision that the code names.

    Args:
        threads: of torch; None leaves them alone, where that is safe.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_without_autocast())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_SETTINGS)
        stack.enter_context(_torch_threads(threads))
        yield


def _driver_is_too_old() -> str | None:
    """A sentence if that is why torch sees no GPU."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error)
        if "driver" not in reason or "too old" not in reason:
            return None
        found = re.search(r"found version (\d+)", reason)
        number = int(found[1]) if found else 0
        reaches = f", which reaches CUDA {number // 1000}.{number % 1000 // 10}," if found else ""
        return (
            f"The NVIDIA driver{reaches} is too old for torch {torch.__version__}, which was built "
            f"for CUDA {torch.version.cuda}: update the driver, or install a torch for an older "
            "CUDA (or use device='cpu')."
        )
    return None


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device that a user named, after making sure that it is there.

    Args:
        device: "cpu" (None means that, too), "cuda", "cuda:1", ..., or "auto": a GPU if torch can
            use one, else the CPU.

    Raises:
        InputError: an unknown name; no GPU of that number; why torch sees none.
    """
    name = "cpu" if device is None else str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name.split(":")[0] == "mps":
        raise InputError(
            f"Device '{name}': Apple's GPUs have no double precision, which energies are summed "
            "in; use device='cpu'."
        )
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(
            f"There is no device '{name}': write 'cpu', 'cuda' (an NVIDIA GPU), 'cuda:1' (the "
            "second of several) or 'auto'."
        )
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = _driver_is_too_old() if built else None
        raise InputError(
            why
            or f"Device '{name}' was asked for, but torch {torch.__version__} sees no CUDA GPU "
            "here: use device='cpu', or "
            + (
                "look with nvidia-smi and CUDA_VISIBLE_DEVICES why."
                if built
                else "install a CUDA build of torch on a machine with a GPU."
            )
        )
    count, index = torch.cuda.device_count(), torch.device(name).index
    if index is not None and index >= count:
        numbers = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"Device '{name}' was asked for, but there is only {numbers} here.")
    return torch.device(name)


#: how torch and CUDA word it; TorchScript passes on nothing but the text
_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE
)


def out_of_memory(error: Exception) -> bool:
    """Whether memory, of the machine or of a GPU, did not suffice."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


@contextmanager
def memory_errors(device: torch.device, what: str, advice: str) -> Iterator[None]:
    """Memory that does not suffice, of the GPU or of the machine, becomes one sentence.

    Args:
        device: that the block works on.
        what: for which it did not suffice, such as "1000 atoms at once".
        advice: what to do.
    """
    failed = False
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        failed = True
    if failed:  # outside of `except`, so that the error does not keep the tensors alive
        whose = "This machine" if device.type == "cpu" else f"The GPU ({device})"
        raise InputError(f"{whose} has too little memory for {what}: {advice}.")
