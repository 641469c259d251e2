"""The self-test that is emitted with the network: golden vectors, and a program that checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....ir import Graph, run_integer
from ..plan.stored_weights import PackedLinear
from .literal import comment
from .ports import Port, start_value, to_memory
from .render import render
from .source import Array

_TOLERANCE = "1e-4f * (1.0f + magnitude)"
# The last bits of a float can change an activation that is rounded to int8.
_TOLERANCE_OF_ROUNDED = "0.05f * (1.0f + magnitude)"

LARGEST_VECTOR = 1 << 18
"""Limit of the numbers of inputs, states and outputs for a self-test of a network with states in place."""


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
    """One run: copies of its inputs in RAM, its arguments, and an expression per output that is 1 if it differs."""

    copies: tuple[str, ...]
    arguments: str
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelfTestContext:
    """Template context."""

    name: str
    prefix: str
    entry: str
    regions: tuple[str, ...]
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
    regions: Sequence[str],
    is_in_file: bool = False,
) -> str:
    """The self-test on inputs `vectors`; expected outputs are computed by the integer interpreter.

    With `is_in_file` it gets the contents of the weights file as a parameter.
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
    in_arena = any(port.region is not None for port in ports)
    has_states = any(port.is_state for port in ports)
    results = [
        b.symbol if port.offset is None else _pointer(port) for port, b in zip(outputs, buffers, strict=True)
    ]
    arrays: list[Array] = []
    runs: list[Vector] = []
    taken = [[_as_taken(port, x) for port, x in zip(inputs, vector, strict=True)] for vector in vectors]
    wanted = [run_integer(graph, stored) for stored in taken]
    follows = [has_states and _continues(ports, wanted[i - 1] if i else None, x) for i, x in enumerate(taken)]
    for number, (stored, computed) in enumerate(zip(taken, wanted, strict=True)):
        given = _arrays(f"input_{number}", inputs, stored)
        expected = _arrays(f"expected_{number}", outputs, computed)
        copied = [
            port.offset is not None and not (port.is_state and follows[number]) for port in inputs
        ]  # a state from the previous call, or the start, is there already
        is_checked = [not port.is_state or not any(follows[number + 1 : number + 2]) for port in outputs]
        arrays += [a for port, a, c in zip(inputs, given, copied, strict=True) if c or port.offset is None]
        arrays += [array for array, checked in zip(expected, is_checked, strict=True) if checked]
        copies = [f"failures += {name}_reset(state) != 0;"] if follows[number] and not number else []
        copies += [
            f"memcpy({_pointer(port)}, {array.symbol}, sizeof {array.symbol});"
            for port, array, copy in zip(inputs, given, copied, strict=True)
            if copy
        ]
        checks = [
            f"check_{buffer.symbol}({result}, {array.symbol})"
            for buffer, result, array, checked in zip(buffers, results, expected, is_checked, strict=True)
            if checked
        ]
        passed = [a.symbol for port, a in zip(inputs, given, strict=True) if port.offset is None]
        passed += ["state"] if has_states else []
        passed += [symbol for port, symbol in zip(outputs, results, strict=True) if port.offset is None]
        passed += ["weights"] if is_in_file else []
        arguments = ", ".join([*passed, *(f"test_{region}.bytes" for region in regions)])
        runs.append(Vector(tuple(copies), arguments, tuple(checks)))
    count = sum(len(vector.checks) for vector in runs)
    context = SelfTestContext(
        name,
        name.upper(),
        f"{name}_step" if has_states else f"{name}_run",
        tuple(regions),
        in_arena,
        has_states,
        is_in_file,
        tuple(arrays),
        buffers,
        tuple(runs),
        count,
    )
    return render("test.c.j2", context)


def _continues(ports: Sequence[Port], before: Sequence[Tensor] | None, taken: Sequence[Tensor]) -> bool:
    """True if each state of a call is the result of the previous call, or at the first call the start."""
    places = [port for port in ports if not port.is_input]
    given = {port.offset: x for port, x in zip(places, before or (), strict=False) if port.is_state}
    return all(
        bool((x == start_value(port)).all()) if before is None else torch.equal(x, given[port.offset])
        for port, x in zip(ports, taken, strict=False)
        if port.is_state
    )


def _pointer(port: Port) -> str:
    block = port.block if port.is_state else f"test_{port.block}.bytes"
    return f"(({port.c_type} *)(void *)({block} + {port.offset}))"


def _as_taken(port: Port, tensor: Tensor) -> Tensor:
    """The tensor in the form of the emitted function's input: numbers of the model become integers if it takes
    integers.
    """
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
