"""Integer linear layer on Cortex-M with DSP, row by row of inputs: four output channels at a time.

Inputs are expanded to 16 bits in working memory, or unpacked anew for every four channels, without any. Constants of
four channels, as in `gemm`: four biases, for every step a word of each, multipliers, shifts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..base import Function, Work, template
from ..low_bits import BYTE, weights_text
from .epilogue import HEADERS, Epilogue, parameters
from .expand import Expansion, plan_expansion
from .gemm import Int32Array, IntArray, pack_rows

_TOGETHER = 4
_STEP = 4  # inputs
_UNROLL = 4
_MAX_LOOPS = 255
_CHANNELS = {
    8: "FXP_CHANNELS_1X4",
    4: "FXP_CHANNELS_1X4_INT4",
    2: "FXP_CHANNELS_1X4_INT2",
    16: "FXP_CHANNELS_1X4_INT16",
}
_MASKS = {8: "", 16: "", 4: "0xf0f0f0f0", 2: "0xc0c0c0c0"}
# Instructions and bytes of code of a step on expanded inputs, and those more where it unpacks int8 or reads int16.
_STEP_COSTS = {16: (11.5, 52), 8: (18.5, 72), 4: (22.5, 88), 2: (22.5, 88)}
_UNPACKED_COSTS = {False: (2.0, 8), True: (1.0, 4)}
_UNEXPANDED = "unexpanded"


@dataclass(frozen=True)
class LinearShape:
    """Some rows of `inputs` to `outputs` channels; if not `expanded`, inputs are read from where they are."""

    inputs: int
    outputs: int
    epilogue: Epilogue
    weight_bits: int = BYTE
    rows: int = 1
    expanded: bool = True

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.inputs * self.outputs

    @property
    def steps(self) -> int:
        """Fours of inputs; where the last ones are fewer, they are read with those before them."""
        return -(-self.inputs // _STEP)


def of_no_memory(shape: LinearShape) -> tuple[LinearShape, ...]:
    """The shape without working memory, if there are enough inputs to read four at a time."""
    return (replace(shape, expanded=False),) if shape.inputs >= _STEP else ()


def supports(shape: LinearShape) -> bool:
    """True if the loop's counter can count the steps."""
    return shape.steps // _UNROLL <= _MAX_LOOPS


def scratch_bytes(shape: LinearShape) -> int:
    """Bytes of working memory, aligned to 4."""
    return 8 * shape.steps if shape.expanded else 0


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
    expansion, wide = _expansion(shape), shape.epilogue.elements.wide
    groups = shape.rows * -(-shape.outputs // _TOGETHER)
    step_instructions, step_bytes = _STEP_COSTS[shape.weight_bits]
    extra = _TOGETHER * (shape.epilogue.instructions + (shape.weight_bits < BYTE))
    expanding, expanding_bytes = 30 + expansion.instructions, expansion.code_bytes
    if not shape.expanded:
        more_instructions, more_bytes = _UNPACKED_COSTS[wide]
        step_instructions, step_bytes = step_instructions + more_instructions, step_bytes + more_bytes
        expanding, expanding_bytes = 10.0, 0
    code_bytes = 270 + expanding_bytes + step_bytes * min(shape.steps, 7)
    return Work(
        groups * step_instructions * shape.steps, shape.rows * expanding, groups * (25 + extra), code_bytes
    )


def function(shape: LinearShape) -> Function:
    """The C function `name(x, [r,] y, constants..., [scratch])`."""
    return template(
        "dsp/linear.c.j2",
        _context(shape),
        parameters(shape.epilogue, scratch=shape.expanded),
        headers=HEADERS,
        variant="" if shape.expanded else _UNEXPANDED,
    )


@dataclass(frozen=True)
class _Output:
    """One of four channels; `ends` if the last group of four does not have it."""

    index: int
    sum: str
    ends: bool


@dataclass(frozen=True)
class _Context:
    """Template context; `back` is by how many bytes the last step begins before the end of those before it."""

    title: str
    epilogue: Epilogue
    expansion: Expansion
    expanded: bool
    rows: int
    inputs: int
    outputs: int
    steps: int
    single_steps: range
    loops: int
    looped_steps: range
    back: int
    reading: str
    channels: str
    mask: str
    bits: int
    unscale: int
    weight_words: int
    quad: tuple[_Output, ...]
    scale_words: int

    @property
    def operand(self) -> str:
        """C type of what is multiplied."""
        return "uint32_t" if self.expanded else self.epilogue.elements.x

    @property
    def four(self) -> str:
        """Place of the inputs of a step, if they are not expanded."""
        return f"step < {self.steps - 1} ? 4 * step : {self.inputs - _STEP}" if self.back else "4 * step"


def _context(shape: LinearShape) -> _Context:
    elements = shape.epilogue.elements
    missing = 0 if shape.expanded else -shape.inputs % _STEP
    alike = shape.steps - (missing > 0)
    loops, singles = divmod(alike, _UNROLL)
    if loops <= 1:
        loops, singles = 0, alike
    last = shape.outputs % _TOGETHER
    rows = f"{shape.rows} rows of " if shape.rows > 1 else ""
    return _Context(
        title=f"Linear layer, {rows}{shape.inputs} to {shape.outputs}{weights_text(shape.weight_bits)}",
        epilogue=shape.epilogue,
        expansion=_expansion(shape),
        expanded=shape.expanded,
        rows=shape.rows,
        inputs=shape.inputs,
        outputs=shape.outputs,
        steps=shape.steps,
        single_steps=range(singles),
        loops=loops,
        looped_steps=range(_UNROLL if loops else 0),
        back=missing * elements.bytes,
        reading="FXP_INPUTS" if shape.expanded else f"FXP_INPUTS_INT{8 * elements.bytes}",
        channels=_CHANNELS[shape.weight_bits],
        mask=_MASKS[shape.weight_bits],
        bits=shape.weight_bits,
        unscale=max(BYTE - shape.weight_bits, 0),
        weight_words=_TOGETHER * shape.steps * shape.weight_bits // BYTE,
        quad=tuple(_Output(i, name, 0 < i == last) for i, name in enumerate("abcd")),
        scale_words=(2 if shape.epilogue.shifted else 1) * _TOGETHER,
    )


def _expansion(shape: LinearShape) -> Expansion:
    wide = shape.epilogue.elements.wide
    return plan_expansion(1, 1, shape.inputs, shape.inputs, interleaved=1, wide=wide)
