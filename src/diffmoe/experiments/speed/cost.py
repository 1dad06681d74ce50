"""What a computation costs by counting: operations, bytes, reads by the host."""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import diffmoe.model  # noqa: F401 - registers the operators counted below

__all__ = ["host_reads", "operations", "peak_bytes"]


@register_flop_formula(torch.ops.diffmoe.grouped_linear)
def _grouped_linear(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Every row meets one matrix; padding is counted, as it is computed by some kernels."""
    return 2 * rows[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.diffmoe.grouped_outer)
def _grouped_outer(rows: Any, grads: Any, *_: Any, **__: Any) -> int:
    return 2 * rows[0] * rows[1] * grads[1]


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    images, heads, tokens, width = query
    return 4 * images * heads * tokens * key[2] * width


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    return 5 * _attention(query, key) // 2


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of `run`; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class _Live(TorchDispatchMode):
    """Bytes of the storages made and still alive, and the most there were at a time."""

    def __init__(self, but: set[tuple[int, ...]]) -> None:
        super().__init__()
        self._but = but  # shapes that do not count
        self._alive: set[int] = set()
        self.now = 0
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is(leaf)}
        for leaf in tree_leaves(result):
            if _is(leaf) and _address(leaf) not in given | self._alive:
                self._take(leaf)
        return result

    def _take(self, tensor: Tensor) -> None:
        if tuple(tensor.shape) in self._but:
            return
        storage, address = tensor.untyped_storage(), _address(tensor)
        self._alive.add(address)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._give, address, storage.nbytes())

    def _give(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.now -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def peak_bytes(run: Callable[[], object], module: torch.nn.Module, device: torch.device) -> int:
    """The most bytes `run` holds at a time beside what was there: temporary, or for backward.

    Tensors of the shapes of the module's parameters count as their gradients, and not here.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        own = sum(p.numel() * p.element_size() for p in module.parameters() if p.grad is not None)
        return torch.cuda.max_memory_allocated(device) - before - own
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    with _Live(shapes) as live:
        run()
    return live.most


class _Reads(TorchDispatchMode):
    """Counts operators whose shapes the host must read before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in _SHAPED_BY_VALUES
        return func(*args, **(kwargs or {}))


_SHAPED_BY_VALUES = (torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal)
_READING = ("tolist", "item", "__int__", "__float__", "__bool__", "__index__")


def host_reads(run: Callable[[], object]) -> int:
    """How often the host reads from the device in `run`, and so waits for it.

    Counted from the calls, so it holds for any device: on a CPU nothing waits, but the same reads
    would on an accelerator.
    """
    with contextlib.ExitStack() as stack:
        reads = stack.enter_context(_Reads())
        for name in _READING:
            original = getattr(Tensor, name)

            def counted(tensor: Tensor, original: Any = original) -> Any:
                reads.count += 1
                return original(tensor)

            stack.enter_context(mock.patch.object(Tensor, name, counted))
        run()
    return reads.count
