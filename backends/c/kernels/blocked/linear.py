"""Float linear layer in registers: one row of inputs times eight output channels.

Constants of eight output channels: eight biases, then eight weights for every input; missing channels are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from .....ir.ops.accumulate import Clamp
from ..base import Function, Work, template
from ..rounding import clamped
from .gemm import HEADERS, FloatArray, Output, group_floats, outputs, pack_groups

_TOGETHER = 8


@dataclass(frozen=True)
class FloatLinearShape:
    """One row of `inputs` to `outputs` channels."""

    inputs: int
    outputs: int
    clamp: Clamp
    residual: bool


def floats(shape: FloatLinearShape) -> int:
    """Number of constants."""
    return group_floats(shape.outputs, shape.inputs, together=_TOGETHER)


def pack(_: FloatLinearShape, weights: FloatArray, bias: FloatArray | None) -> FloatArray:
    """The constants of the layer; `weights` is [outputs, inputs]."""
    return pack_groups(weights, bias, together=_TOGETHER)


def estimate(shape: FloatLinearShape) -> Work:
    """The work of the layer with a multiply-add in one instruction, fitted to exact counts."""
    groups = -(-shape.outputs // _TOGETHER)
    return Work(20.0 * groups * shape.inputs, 0.0, 20 + 45 * groups, 260)


def function(shape: FloatLinearShape) -> Function:
    """The C function `name(x, [r,] y, constants)`."""
    residual = "const float *r, " if shape.residual else ""
    parameters = f"const float *x, {residual}float *y, const float *constants"
    return template("blocked/linear.c.j2", _context(shape), parameters, headers=HEADERS)


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    value: str
    inputs: int
    outputs: int
    residual: bool
    group: tuple[Output, ...]


def _context(shape: FloatLinearShape) -> _Context:
    return _Context(
        title=f"Linear layer, {shape.inputs} to {shape.outputs}",
        value=clamped("value", shape.clamp),
        inputs=shape.inputs,
        outputs=shape.outputs,
        residual=shape.residual,
        group=outputs(shape.outputs, _TOGETHER),
    )
