"""A GPU that is not there: tensors that say `cuda:0` and keep their values on the CPU.

Most mistakes that only a GPU shows are tensors of two devices in one operation, and host
work inside a recorded graph. Here every operation goes through `_run`, which refuses what
CUDA refuses and computes the rest on the CPU, so the tests of the CUDA paths run anywhere.
What this cannot show: the kernels themselves, streams that run ahead of the host, memory
and speed.
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch._dynamo  # a dispatch mode loads it, and it must not meet replaced functions
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
_aten = torch.ops.aten
#: What takes tensors of two devices: copies between them, and indices on the CPU.
_MIXED = {_aten.copy_.default, _aten._to_copy.default, Tensor.copy_, operator.getitem}


class GpuTensor(Tensor):
    """The face of a tensor on the pretended GPU; `values` is the tensor on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> GpuTensor:
        result = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=CUDA,
        )  # fmt: skip
        result.values = values
        return result

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"GpuTensor({self.values})"

    # Torch without CUDA lacks these for a tensor that says it is on a GPU.

    def item(self) -> Any:
        return _read(self).item()

    def tolist(self) -> Any:
        return _read(self).tolist()

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def copy_(self, source: Tensor, non_blocking: bool = False) -> GpuTensor:
        _run(Tensor.copy_, (self, source), {})
        return self

    def __getitem__(self, index: Any) -> Any:
        return _run(operator.getitem, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, Tensor) and not any(isinstance(x, Tensor) for x in tree_leaves(index)):
            self[index].copy_(value)
        else:
            _run(operator.setitem, (self, index, value), {})


class _Dispatch(TorchDispatchMode):
    """Catches what makes tensors on the GPU out of none: factories and copies to it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = any(isinstance(x, GpuTensor) for x in tensors)
    if on_gpu and func not in _MIXED:
        _refuse_two_devices(func, args, tensors)
    elif len({isinstance(x, GpuTensor) for x in tensors}) == 2:
        _Graph.refuse("a copy between the devices")
    if func is _aten.copy_.default:
        on_gpu = isinstance(args[0], GpuTensor)
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        if tensors and on_gpu != (device.type == "cuda"):
            _Graph.refuse("a copy between the devices")
        on_gpu = device.type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu") if on_gpu else device}
    if func is _aten._fused_sdp_choice.default and on_gpu:
        return 0  # attention by its definition: the other choices name CUDA kernels
    result = func(*_values(args), **_values(kwargs))
    if not on_gpu:
        return result
    if _Graph.recording is not None:
        _Graph.recording.operations.append((func, _values(args), _values(kwargs), result))
    return tree_map(lambda x: GpuTensor(x) if isinstance(x, Tensor) else x, result)


def _values(tree: Any) -> Any:
    """Nested tensors as their values on the CPU."""
    return tree_map(lambda x: x.values if isinstance(x, GpuTensor) else x, tree)


def _read(tensor: GpuTensor) -> Tensor:
    """What the host reads of a tensor."""
    _Graph.refuse("the host reading a tensor")
    return tensor.values


def _refuse_two_devices(func: Any, args: Sequence[Any], tensors: list[Tensor]) -> None:
    """What CUDA refuses: a CPU tensor beside GPU tensors, but for a number elementwise."""
    elementwise = func is operator.setitem or torch.Tag.pointwise in func.tags
    if func is operator.setitem:  # of the index only the device does not matter
        tensors = [x for x in (args[0], args[2]) if isinstance(x, Tensor)]
    strangers = [x for x in tensors if not isinstance(x, GpuTensor)]
    if elementwise:
        strangers = [x for x in strangers if x.dim() > 0]
    if strangers:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu "
            f"{[tuple(x.shape) for x in strangers]}"
        )


class _Graph:
    """A CUDA graph: the operations of its recording, done again on the same memory."""

    recording: _Graph | None = None

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    @classmethod
    def refuse(cls, what: str) -> None:
        if cls.recording is not None:
            raise RuntimeError(f"{what} is not permitted when a stream is capturing")

    @classmethod
    @contextlib.contextmanager
    def record(cls, graph: _Graph) -> Iterator[None]:
        cls.recording = graph
        try:
            yield
        finally:
            cls.recording = None

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # not a view
                    old.copy_(new)


class _Stream:
    """A stream: the pretended GPU has finished before the host goes on."""

    def wait_stream(self, other: object) -> None:
        pass


class _Event:
    """A CUDA event by the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timing = enable_timing
        self.at: float | None = None

    def record(self, stream: object = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        if not (self.timing and end.timing) or self.at is None or end.at is None:
            raise RuntimeError("both events must be recorded, with timing")
        return (end.at - self.at) * 1e3


@contextlib.contextmanager
def pretend_gpu(monkeypatch: Any) -> Iterator[torch.device]:
    """Within, `cuda` is a device that torch has, and the tensors put on it are pretended."""
    stream = _Stream()
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "pretended",
        "_lazy_init": lambda: None,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: stream,
        "device": lambda device: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": _Graph,
        "graph": _Graph.record,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # Else `Module.to` would put a pretended tensor's data into a real parameter.
    same_kind = torch._has_compatible_shallow_copy_type
    monkeypatch.setattr(
        torch,
        "_has_compatible_shallow_copy_type",
        lambda old, new: not isinstance(new, GpuTensor) and same_kind(old, new),
    )
    # As torch's own fake tensors do where there is no GPU.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    torch._C._ensureCUDADeviceGuardSet()
    try:
        with _Dispatch():
            yield CUDA
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
