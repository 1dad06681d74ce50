"""What a computation costs by counting: operations, bytes, reads by the host."""

import contextlib
import itertools
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
def _grouped_linear(
    rows: Any, weight: Any, bias: Any, ends: Any, sizes: Any = None, *_: Any, **__: Any
) -> int:
    """Every row of a group meets one matrix; where only the device knows the groups, every row."""
    number = rows[0] if sizes is None else sum(sizes)
    return 2 * number * weight[1] * weight[2]


@register_flop_formula(torch.ops.diffmoe.grouped_outer)
def _grouped_outer(rows: Any, grads: Any, ends: Any, sizes: Any = None, *_: Any, **__: Any) -> int:
    number = rows[0] if sizes is None else sum(sizes)
    return 2 * number * rows[1] * grads[1]


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
    """Notes when a storage is made and when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []  # number of a storage, bytes more or less
        self.alive: dict[int, int] = {}  # address of a storage -> its number
        self._made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is(leaf)}
        for leaf in tree_leaves(result):
            if _is(leaf) and _address(leaf) not in given and _address(leaf) not in self.alive:
                self._take(leaf.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        number, size = self._made, storage.nbytes()
        self._made += 1
        self.alive[storage._cdata] = number
        self.events.append((number, size))
        weakref.finalize(storage, self._give, storage._cdata, number, size)

    def _give(self, address: int, number: int, size: int) -> None:
        if self.alive.get(address) == number:
            del self.alive[address]
        self.events.append((number, -size))

    def peak(self, but: set[int]) -> int:
        """The most bytes alive at a time, storages at the addresses `but` left out."""
        left_out = {number for address, number in self.alive.items() if address in but}
        counted = [size for number, size in self.events if number not in left_out]
        return max(itertools.accumulate(counted), default=0)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def peak_bytes(run: Callable[[], object], module: torch.nn.Module, device: torch.device) -> int:
    """The most bytes `run` holds at a time beside what was there: temporary, or for backward.

    The gradients of the module's parameters do not count. On a CPU what an operator allocates
    and frees within itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        own = sum(p.numel() * p.element_size() for p in module.parameters() if p.grad is not None)
        return torch.cuda.max_memory_allocated(device) - before - own
    with _Live() as live:
        run()
    return live.peak({_address(p.grad) for p in module.parameters() if p.grad is not None})


class _Reads(TorchDispatchMode):
    """Counts operators that make the host wait: their shapes depend on values, or they copy."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masked = packet in _INDEXING and any(
            _is(leaf) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        )
        self.count += masked or packet in _SHAPED_BY_VALUES or func in _SHAPED_OVERLOADS
        return func(*args, **(kwargs or {}))


_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_)
_SHAPED_BY_VALUES = (
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN.equal,
    _ATEN.bincount,
    _ATEN._unique2,
    _ATEN.unique_consecutive,
)
_SHAPED_OVERLOADS = (_ATEN.repeat_interleave.Tensor,)
_READING = (
    "tolist",
    "item",
    "cpu",
    "numpy",
    *(f"__{n}__" for n in ("int", "float", "bool", "index")),
)
_COPYING = ("tensor", "as_tensor")  # to the device, from what the host holds


def host_reads(run: Callable[[], object]) -> int:
    """How often host and device wait for each other's values in `run`.

    Counted from calls and operators, so it holds for any device: on a CPU nothing waits, but the
    same calls would on an accelerator.
    """
    with contextlib.ExitStack() as stack:
        reads = stack.enter_context(_Reads())

        def count(owner: Any, name: str) -> None:
            original = getattr(owner, name)

            def counted(*args: Any, **kwargs: Any) -> Any:
                reads.count += 1
                return original(*args, **kwargs)

            stack.enter_context(mock.patch.object(owner, name, counted))

        for name in _READING:
            count(Tensor, name)
        for name in _COPYING:
            count(torch, name)
        run()
    return reads.count
