"""A backend that writes a float graph as a Python module of NumPy calls, with the constants in an npz file."""

import io
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy_backend_options import NumpyOptions
from torch import Tensor

from fxpress.backends import Problem
from fxpress.ir import Graph, Node, Op, node_text
from fxpress.ir.ops import Add, Linear, Relu, Reshape, Sigmoid
from fxpress.specs import Target, Transform

MODULE, CONSTANTS = "network.py", "constants.npz"


@dataclass(frozen=True)
class NumpyModule:
    """The written files."""

    files: Mapping[str, bytes]


def check(graph: Graph, options: NumpyOptions, target: Target) -> list[Problem]:
    """Problems of all nodes that have no expression in NumPy."""
    return [
        Problem("N001", str(node.source), f"{node.op.name} has no form in NumPy", node_text(node))
        for node in graph.nodes
        if type(node.op) not in _EXPRESSIONS or any(value.type.is_quantized for value in node.outputs)
    ]


def emit(
    graph: Graph,
    options: NumpyOptions,
    target: Target,
    *,
    vectors: Sequence[Sequence[Tensor]] = (),
    transforms: Mapping[str, Transform] = {},
    states: Mapping[str, str] = {},
) -> NumpyModule:
    """A function of the inputs that returns a list of the outputs."""
    names = {value.name: f"v{i}" for i, value in enumerate([*graph.inputs, *graph.results])}
    constants = {value.name: f"c{i}" for i, value in enumerate(graph.constants)}
    read = names | {name: f'C["{key}"]' for name, key in constants.items()}
    body = [f"{names[node.output.name]} = {_expression(node, read)}" for node in graph.nodes]
    lines = [
        "from pathlib import Path",
        "",
        "import numpy as np",
        "",
        f'C = np.load(Path(__file__).with_name("{CONSTANTS}"))',
        "",
        "",
        f"def {options.function}({', '.join(names[value.name] for value in graph.inputs)}):",
        *(f"    {line}" for line in body),
        f"    return [{', '.join(read[value.name] for value in graph.outputs)}]",
    ]
    arrays = io.BytesIO()
    values: dict[str, Any] = {key: graph.params[name].detach().numpy() for name, key in constants.items()}
    np.savez(arrays, **values)
    return NumpyModule({MODULE: "\n".join([*lines, ""]).encode(), CONSTANTS: arrays.getvalue()})


def run(folder: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of the written function, the last one that its module defines."""
    functions = [found for found in runpy.run_path(str(folder / MODULE)).values() if callable(found)]
    return [torch.from_numpy(np.asarray(y)) for y in functions[-1](*(x.numpy() for x in inputs))]


def _expression(node: Node, read: Mapping[str, str]) -> str:
    operands = [read[value.name] for value in node.operands]
    return _EXPRESSIONS[type(node.op)](node, operands)


def _linear(node: Node, operands: Sequence[str]) -> str:
    x, weight, *bias = operands
    return " + ".join([f"{x} @ {weight}.T", *bias])


_EXPRESSIONS: Mapping[type[Op], Callable[[Node, Sequence[str]], str]] = {
    Add: lambda _, operands: " + ".join(operands),
    Linear: _linear,
    Relu: lambda _, operands: f"np.maximum({operands[0]}, 0)",
    Reshape: lambda node, operands: f"{operands[0]}.reshape({node.output.type.shape})",
    Sigmoid: lambda _, operands: f"1 / (1 + np.exp(-{operands[0]}))",
}
