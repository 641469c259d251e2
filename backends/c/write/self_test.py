"""The self-test that is emitted beside the network: golden vectors, and a program that checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ....ir import Graph, run_integer
from ..plan.stored_weights import PackedLinear
from .literal import comment
from .ports import Port, to_memory
from .render import render
from .source import Array

_TOLERANCE = "1e-4f * (1.0f + magnitude)"
# The last bits of a float can turn over an activation that is rounded to int8.
_TOLERANCE_OF_ROUNDED = "0.05f * (1.0f + magnitude)"

LARGEST_VECTOR = 1 << 18
"""Numbers of inputs, states and outputs up to which a network with states in place has a self-test."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output and the buffer that receives it; `tolerance` of reals, a C expression, empty for integers."""

    c_type: str
    symbol: str
    size: int
    tolerance: str
    has_buffer: bool


@dataclass(frozen=True, slots=True)
class Vector:
    """One run: copies of its inputs into the arena, its arguments, and an expression per output, 1 where it differs."""

    copies: tuple[str, ...]
    arguments: str
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelfTestContext:
    """Template context."""

    name: str
    prefix: str
    entry: str
    ports_in_arena: bool
    has_states: bool
    is_in_file: bool
    arrays: tuple[Array, ...]
    outputs: tuple[Output, ...]
    vectors: tuple[Vector, ...]
    checks: int


def write_self_test(
    name: str,
    graph: Graph,
    ports: tuple[Port, ...],
    vectors: Sequence[Sequence[Tensor]],
    *,
    is_in_file: bool = False,
) -> str:
    """The self-test on inputs `vectors`; what is expected is computed by the integer interpreter.

    With `is_in_file` it is given the contents of the weights file.
    """
    inputs = [port for port in ports if port.is_input]
    outputs = [port for port in ports if not port.is_input]
    rounds = any(isinstance(node.op, PackedLinear) and node.op.is_rounded for node in graph.nodes)
    tolerance = _TOLERANCE_OF_ROUNDED if rounds else _TOLERANCE
    buffers = tuple(
        Output(
            port.c_type,
            f"result_{i}",
            port.type.numel,
            tolerance if port.c_type == "float" else "",
            has_buffer=port.offset is None,
        )
        for i, port in enumerate(outputs)
    )
    in_arena = any(port.offset is not None and not port.is_state for port in ports)
    has_states = any(port.is_state for port in ports)
    results = [
        b.symbol if port.offset is None else _pointer(port) for port, b in zip(outputs, buffers, strict=True)
    ]
    arrays: list[Array] = []
    runs: list[Vector] = []
    for number, vector in enumerate(vectors):
        stored = [_as_taken(port, tensor) for port, tensor in zip(inputs, vector, strict=True)]
        given = _arrays(f"input_{number}", inputs, stored)
        expected = _arrays(f"expected_{number}", outputs, run_integer(graph, stored))
        arrays += [*given, *expected]
        copies = [
            f"memcpy({_pointer(port)}, {array.symbol}, sizeof {array.symbol});"
            for port, array in zip(inputs, given, strict=True)
            if port.offset is not None
        ]
        checks = [
            f"check_{buffer.symbol}({result}, {array.symbol})"
            for buffer, result, array in zip(buffers, results, expected, strict=True)
        ]
        passed = [a.symbol for port, a in zip(inputs, given, strict=True) if port.offset is None]
        passed += ["state"] if has_states else []
        passed += [symbol for port, symbol in zip(outputs, results, strict=True) if port.offset is None]
        passed += ["weights"] if is_in_file else []
        arguments = ", ".join([*passed, "arena.bytes"])
        runs.append(Vector(tuple(copies), arguments, tuple(checks)))
    count = len(runs) * len(outputs)
    context = SelfTestContext(
        name,
        name.upper(),
        f"{name}_step" if has_states else f"{name}_run",
        in_arena,
        has_states,
        is_in_file,
        tuple(arrays),
        buffers,
        tuple(runs),
        count,
    )
    return render("test.c.j2", context)


def _pointer(port: Port) -> str:
    block = "state" if port.is_state else "arena.bytes"
    return f"(({port.c_type} *)(void *)({block} + {port.offset}))"


def _as_taken(port: Port, tensor: Tensor) -> Tensor:
    """The tensor as the emitted function takes it: numbers of the model become integers where it takes those."""
    dtype = port.type.dtype.torch
    if port.encoding is None or tensor.dtype == dtype:
        return tensor
    return port.encoding.integers(tensor).to(dtype)


def _arrays(symbol: str, ports: Sequence[Port], tensors: Sequence[Tensor]) -> list[Array]:
    found = []
    for index, (port, tensor) in enumerate(zip(ports, tensors, strict=True)):
        data = to_memory(tensor, port.stored)
        found.append(Array(f"{symbol}_{index}", data, comment(port.name)))
    return found
