"""Integer linear layer on Cortex-M with DSP, one row of inputs: four output channels at a time.

Constants of four channels, as in `gemm_dsp`: four biases, for every step a word of each, multipliers, shifts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Function, Work, template
from ..low_bits import BYTE, weights_text
from .epilogue import HEADERS, Epilogue, parameters
from .expand import Expansion, plan_expansion
from .gemm import Int32Array, IntArray, pack_rows

_TOGETHER = 4
_UNROLL = 4
_MAX_LOOPS = 255
_STEPS = {8: "FXP_STEP_1X4", 4: "FXP_STEP_1X4_INT4", 2: "FXP_STEP_1X4_INT2", 16: "FXP_STEP_1X4_INT16"}
_MASKS = {8: "", 16: "", 4: "0xf0f0f0f0", 2: "0xc0c0c0c0"}
# Instructions and bytes of code of a step.
_STEP_COSTS = {16: (11.5, 52), 8: (18.5, 72), 4: (22.5, 88), 2: (22.5, 88)}


@dataclass(frozen=True)
class LinearShape:
    """One row of `inputs` to `outputs` channels."""

    inputs: int
    outputs: int
    epilogue: Epilogue
    weight_bits: int = BYTE

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.inputs * self.outputs


def supports(shape: LinearShape) -> bool:
    """True if the loop's counter can count the steps."""
    return _expansion(shape).steps // _UNROLL <= _MAX_LOOPS


def scratch_bytes(shape: LinearShape) -> int:
    """Bytes of working memory, aligned to 4."""
    return 8 * _expansion(shape).steps


def constant_words(shape: LinearShape) -> tuple[int, int]:
    """Words of the weights, and of biases and scales."""
    groups, context = -(-shape.outputs // _TOGETHER), _context(shape)
    return groups * context.weight_words, groups * (_TOGETHER + context.scale_words)


def pack(
    shape: LinearShape, weights: IntArray, bias: IntArray, multiplier: IntArray, shift: IntArray
) -> tuple[Int32Array, ...]:
    """The constants of the layer, in words.

    `weights` are in the order [outputs, inputs], or [outputs, c, kh, kw] for a convolution with one window, whose
    image is channels last; the rest per channel. `bias` has -zx * sum(w) folded in.
    """
    weights = (
        weights.reshape(shape.outputs, weights.shape[1], -1).transpose(0, 2, 1).reshape(shape.outputs, -1)
    )
    order = np.array(_expansion(shape).order)
    taps = np.where(order >= 0, weights[:, np.maximum(order, 0)], 0).astype(weights.dtype)
    return pack_rows(
        shape.epilogue, taps, bias, multiplier, shift, together=_TOGETHER, bits=shape.weight_bits
    )


def estimate(shape: LinearShape) -> Work:
    """The work of the layer, fitted to exact counts; code as `benchmarks/code_size.py` measures it."""
    expansion = _expansion(shape)
    groups = -(-shape.outputs // _TOGETHER)
    step_instructions, step_bytes = _STEP_COSTS[shape.weight_bits]
    extra = _TOGETHER * (shape.epilogue.instructions + (shape.weight_bits < BYTE))
    products = groups * step_instructions * expansion.steps
    code_bytes = 270 + expansion.code_bytes + step_bytes * min(expansion.steps, 7)
    return Work(products, 30 + expansion.instructions, groups * (25 + extra), code_bytes)


def function(shape: LinearShape) -> Function:
    """The C function `name(x, [r,] y, constants..., scratch)`."""
    return template("dsp/linear.c.j2", _context(shape), parameters(shape.epilogue), headers=HEADERS)


@dataclass(frozen=True)
class _Output:
    """One of four channels; `ends` if the last group of four does not have it."""

    index: int
    sum: str
    ends: bool


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    epilogue: Epilogue
    expansion: Expansion
    inputs: int
    outputs: int
    single_steps: range
    loops: int
    looped_steps: range
    step: str
    mask: str
    bits: int
    unscale: int
    words: int
    weight_words: int
    quad: tuple[_Output, ...]
    scale_words: int


def _context(shape: LinearShape) -> _Context:
    expansion = _expansion(shape)
    loops, singles = divmod(expansion.steps, _UNROLL)
    if loops <= 1:
        loops, singles = 0, expansion.steps
    last = shape.outputs % _TOGETHER
    return _Context(
        title=f"Linear layer, {shape.inputs} to {shape.outputs}{weights_text(shape.weight_bits)}",
        epilogue=shape.epilogue,
        expansion=expansion,
        inputs=shape.inputs,
        outputs=shape.outputs,
        single_steps=range(singles),
        loops=loops,
        looped_steps=range(_UNROLL if loops else 0),
        step=_STEPS[shape.weight_bits],
        mask=_MASKS[shape.weight_bits],
        bits=shape.weight_bits,
        unscale=max(BYTE - shape.weight_bits, 0),
        words=_TOGETHER * expansion.steps,
        weight_words=_TOGETHER * expansion.steps * shape.weight_bits // BYTE,
        quad=tuple(_Output(i, name, 0 < i == last) for i, name in enumerate("abcd")),
        scale_words=(2 if shape.epilogue.shifted else 1) * _TOGETHER,
    )


def _expansion(shape: LinearShape) -> Expansion:
    wide = shape.epilogue.elements.wide
    return plan_expansion(1, 1, shape.inputs, shape.inputs, interleaved=1, wide=wide)
