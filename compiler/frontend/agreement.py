"""Comparison of a graph with its module: both are run; a module with state is run twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ...ir import DType
from .captured import Captured, as_callable

_LIMITS = {DType.F16: 1e-2, DType.BF16: 5e-2, DType.F64: 1e-10, DType.C128: 1e-10}
_SINGLE_LIMIT = 1e-5


def deviation(
    model: nn.Module,
    args: Sequence[Any],  # Any: the arguments of the module
    kwargs: Mapping[str, Any],
    captured: Captured,
) -> tuple[float, float]:
    """Largest difference between module and graph, and the same in units of the tolerance.

    Differences are relative to the largest element of their result. Not all are faults: outside of tracing a module
    may use other kernels, which sum in another order.
    """
    before = _attributes(model)
    own = [_leaves(model(*_copied(args), **_copied(kwargs)))]
    if not _are_same(before, _attributes(model)):  # the module has state: does it affect the next call?
        own.append(_leaves(model(*_copied(args), **_copied(kwargs))))
    traced = _leaves(as_callable(captured)(*args, **kwargs))
    found = [_difference(a, b) for result in own for a, b in zip(result, traced, strict=True)]
    return max((d for d, _ in found), default=0.0), max((d / limit for d, limit in found), default=0.0)


def first_difference(first: fx.Graph, second: fx.Graph, lifted: Mapping[str, Tensor]) -> fx.Node | None:
    """The first node at which two traces of one module differ, if any.

    `lifted` has the tensors, by placeholder, that differ between the traces.
    """
    for ours, other in zip(first.nodes, second.nodes, strict=False):
        node: fx.Node = ours
        if _shown(node) != _shown(other):
            return node
        if node.name in lifted:
            return next(iter(node.users), None)
    return None


def _shown(node: fx.Node) -> tuple[str, ...]:
    return node.op, node.name, str(node.target), str(node.args), str(node.kwargs)


def _attributes(model: nn.Module) -> list[object]:
    return [value for module in model.modules() for value in vars(module).values()]


def _are_same(before: list[object], after: list[object]) -> bool:
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


def _leaves(result: Any) -> list[Any]:  # Any: the result of the module
    return pytree.tree_leaves(result)


def _copied(arguments: Any) -> Any:  # Any: the arguments of the module
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, arguments)


def _difference(a: object, b: object) -> tuple[float, float]:
    """Largest difference relative to the largest finite element of `a`, and the tolerance."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return (0.0 if type(a) is type(b) else float("inf")), 1.0
    if a.shape != b.shape or a.dtype is not b.dtype:
        return float("inf"), 1.0
    if torch.equal(a, b) or not a.numel():
        return 0.0, 1.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf"), 1.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    a_wide, b_wide = a.to(wide), b.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a_wide.abs().where(a_wide.isfinite(), 0.0).max().clamp(min=torch.finfo(torch.float64).tiny)
    difference = ((a_wide - b_wide).abs() / scale).where(~same, 0.0).max()
    limit = _LIMITS.get(DType.of(a.dtype), _SINGLE_LIMIT)
    return float(difference.nan_to_num(nan=float("inf"))), limit
