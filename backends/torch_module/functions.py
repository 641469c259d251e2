"""Operators that no fixed sequence of torch calls computes: emitted modules have a copy of a function for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from ...ir import Node, Op
from ...ir.ops.matmul import GroupedMatMul, grouped_matmul

_FUNCTIONS: Mapping[type[Op], Callable[..., Tensor]] = MappingProxyType({GroupedMatMul: grouped_matmul})


def function_name(node: Node) -> str | None:
    """The name of the function that computes a node from its operands; None if there is none."""
    function = _FUNCTIONS.get(type(node.op))
    return None if function is None else function.__name__


def function_sources() -> dict[str, str]:
    """The source of each function by its name; it needs only `torch`."""
    return {function.__name__: inspect.getsource(function) for function in _FUNCTIONS.values()}
