"""Convolutions on generated kernels in training on a GPU.

torch has the memory and the stream; kernels are started through the driver, in torch's context.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from eqcalc.contract import network_tensors
from eqcalc.engine.arrays import require_shape
from eqcalc.engine.cuda import platform
from eqcalc.engine.cuda.training_kernels import TrainingKernels, training_source
from eqcalc.engine.dense import Passes
from eqcalc.engine.training import SCALARS, Fused, FusedConvolution, places_of
from eqcalc.errors import InputError
from eqcalc.graph import Graph
from eqcalc.nn.convolution import Convolution


class Task(ctypes.Structure):
    """csrc/training_task.h."""

    ARRAYS = (
        *("first_edge", "sources", "dst", "rows", "row_first", "row_edge"),
        *("x", "y", "weights", "messages", "dx", "dy", "dweights"),
    )
    _fields_ = (*((name, ctypes.c_void_p) for name in ARRAYS), ("begin", ctypes.c_int))


class DeviceProgram:
    """Kernels on whatever GPU tensors are; copies and pickles compile and load them again.

    Raises:
        InputError: when they are started: there is no GPU or no compiler, or it fails.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._modules: dict[int, tuple[Any, Any]] = {}  # by GPU: its context and module
        self._functions: dict[tuple[int, str], Any] = {}

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self._source,)

    def compile(self, number: int = 0) -> bytes:
        """For a GPU, from the cache if they were compiled before."""
        gpus = platform.PLATFORM
        return gpus.image(self._source, gpus.architecture(number)).read_bytes()

    def start(self, name: str, blocks: int, threads: int, task: Task, device: torch.device) -> None:
        """On the stream that torch uses there. Tensors of the CPU are those of an emulated GPU."""
        if not blocks:
            return
        number, stream = device.index or 0, None
        if device.type == "cuda":
            stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        driver = platform.PLATFORM.library()
        if number not in self._modules:
            self._modules[number] = self._load(driver, number)
        context, module = self._modules[number]
        _check(driver, driver.cuCtxPushCurrent_v2(context), "be used")
        try:
            function = self._functions.get((number, name))
            if function is None:
                function = ctypes.c_void_p()
                got = driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
                _check(driver, got, f"find the kernel {name}")
                self._functions[number, name] = function
            argument = ctypes.cast(ctypes.pointer(task), ctypes.c_void_p)
            arguments = (ctypes.c_void_p * 1)(argument)
            shape = (ctypes.c_uint(n) for n in (blocks, 1, 1, threads, 1, 1, 0))
            got = driver.cuLaunchKernel(function, *shape, stream, arguments, None)
            _check(driver, got, "start a kernel")
            if device.type != "cuda":
                _check(driver, driver.cuStreamSynchronize(stream), "finish its work")
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _load(self, driver: ctypes.CDLL, number: int) -> tuple[Any, Any]:
        device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        _check(driver, driver.cuDeviceGet(ctypes.byref(device), number), "be opened")
        _check(driver, driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "be opened")
        image = ctypes.create_string_buffer(self.compile(number))
        _check(driver, driver.cuCtxPushCurrent_v2(context), "be used")
        try:
            _check(driver, driver.cuModuleLoadData(ctypes.byref(module), image), "load its kernels")
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return context, module


def _check(driver: ctypes.CDLL, result: int, what: str) -> None:
    if result:
        raise InputError(
            f"The GPU could not {what} ({platform.error_name(driver, result)}): train with "
            'training.fused = false, or training.device = "cpu".'
        )


class EdgeLists:
    """Edges by centre and by neighbour, of the graph that a model is being run on."""

    def __init__(self) -> None:
        self.clear()

    def set(self, graph: Graph) -> None:  # noqa: ARG002
        self._keeps = True

    def clear(self) -> None:
        self._keeps = False
        self._known: dict[str, Tensor] | None = None

    def of(self, src: Tensor, dst: Tensor, num_local: int, nodes: int) -> dict[str, Tensor]:
        """By name, int32; edges are sorted by centre."""
        if self._known is not None:
            return self._known
        by_neighbour = torch.argsort(src, stable=True)
        rows = torch.arange(nodes + 1, device=src.device)
        lists = {
            "first_edge": torch.searchsorted(dst, rows[: num_local + 1]),
            "sources": src,
            "dst": dst,
            "rows": rows[:-1],
            "row_first": torch.searchsorted(src[by_neighbour], rows),
            "row_edge": by_neighbour,
        }
        lists = {name: values.to(torch.int32).contiguous() for name, values in lists.items()}
        if self._keeps:
            self._known = lists
        return lists


class DeviceKernels:
    """Forward, backward and second derivative of one convolution, out of its three kernels."""

    def __init__(self, program: DeviceProgram, kernels: TrainingKernels) -> None:
        self._program = program
        self._kernels = {
            name: (getattr(kernels, name), kernels.threads[getattr(kernels, name)])
            for name in ("forward", "edges", "gather")
        }

    def run_edges(self, name: str, lists: dict[str, Tensor], *arrays: Tensor) -> None:
        getattr(self, f"_{name}")(lists, *arrays)

    def _start(self, name: str, blocks: int, lists: dict[str, Tensor], **arrays: Tensor) -> None:
        task = Task()
        for where, tensor in (*lists.items(), *arrays.items()):
            assert tensor.is_contiguous()
            setattr(task, where, tensor.data_ptr())
        kernel, threads = self._kernels[name]
        self._program.start(kernel, blocks, threads, task, lists["dst"].device)

    def _give(self, lists, x, y, weights, messages) -> None:
        arrays = {"x": x, "y": y, "weights": weights, "messages": messages}
        self._start("forward", len(messages), lists, **arrays)

    def _gather(self, lists, g, y, weights, dx) -> None:
        arrays = {"y": y, "weights": weights, "messages": g, "dx": dx}
        self._start("gather", len(dx), lists, **arrays)

    def _owe(self, lists, x, g, y, weights, **wanted: Tensor) -> None:
        arrays = {"x": x, "y": y, "weights": weights, "messages": g, **wanted}
        self._start("edges", len(g), lists, **arrays)

    def _forward(self, lists, x, out, r, y) -> None:
        require_shape(r, len(lists["dst"]), None)  # a row of weights for each edge
        self._give(lists, x, y, r, out)

    def _backward(self, lists, x, g, dx, r, dr, y, dy) -> None:
        self._gather(lists, g, y, r, dx)
        self._owe(lists, x, g, y, r, dy=dy, dweights=dr)

    def _second(self, lists, x, ux, g, dg, dx, r, ur, dr, y, uy, dy) -> None:
        """Of <ux, dS/dx> + <uy, dS/dY> + <ur, dS/dR>, each of which is linear in g, x, Y and R."""
        for of_x, of_y, of_r in ((ux, y, r), (x, uy, r), (x, y, ur)):
            self._give(lists, of_x, of_y, of_r, dg)
        self._gather(lists, g, uy, r, dx)
        self._gather(lists, g, y, ur, dx)
        self._owe(lists, ux, g, y, r, dy=dy, dweights=dr)
        self._owe(lists, x, g, uy, r, dweights=dr)
        self._owe(lists, x, g, y, ur, dy=dy)


def fuse_convolutions(model: nn.Module) -> nn.Module:
    """Puts generated kernels into an eager model's convolutions, in place, for training on a GPU.

    Raises:
        InputError: there is no GPU or no compiler, or it fails, or a convolution is too large.
    """
    scalar = SCALARS[network_tensors(model)[0].dtype]
    places, lists = places_of(model, Convolution), EdgeLists()
    made = [TrainingKernels(getattr(*place), k, scalar) for k, place in enumerate(places)]
    program = DeviceProgram(training_source(made, scalar))
    if places:
        program.compile()
    for place, kernels in zip(places, made, strict=True):
        convolution = FusedConvolution(getattr(*place), DeviceKernels(program, kernels), lists)
        setattr(*place, convolution)
    model.fused = Fused(None, lists, Passes())
    return model
