"""Layers whose weights are mostly zero in blocks of four along the inputs: the other blocks are read in order, with the
place of each in the row of inputs, and zeros are skipped. Windows of convolutions are gathered into rows.

A block is four input channels of one tap, the last of which can be fewer. In flash: four weights and a place of each
block, and the number of blocks of each output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .....ir import DType
from ...write.literal import array_type, c_type
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..low_bits import BYTE
from ..rounding import RowFinish, folded_bias, layer_fixed_point, row_finish, scale_tables
from ..wide_sums import sums_fit
from .gathered_rows import ROWS, Gather, LayerRows, Row, row_parameters, rows_of

BLOCK = 4
_BYTES = 256
_MOST_INPUTS = (1 << 16) - 1
# Share of weights that are not zero at which blocks and their places take the bytes of all weights.
_MOST_NONZERO = BLOCK / (BLOCK + 1)
# Instructions of a block, by rows, and of a result, on a Cortex-M4; bytes of code, by gathering.
_BLOCK, _RESULT = {2: 17.0, 1: 12.0}, 24.0
_CODE_BYTES = {False: 260, True: 420}


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of int8 weights [channels, taps, inputs] that are not zero, in the order of channels, taps and inputs."""

    weights: npt.NDArray[np.int8]

    @cached_property
    def values(self) -> npt.NDArray[np.int8]:
        """Four weights of each block."""
        shifted = self._starts - self._places
        padded = np.pad(self._padded[self._nonzero], ((0, 0), (BLOCK, 0)))
        columns = np.arange(BLOCK, 2 * BLOCK) - shifted[:, None]
        return np.ascontiguousarray(np.take_along_axis(padded, columns, axis=1))

    @cached_property
    def places(self) -> AnyArray:
        """First input of each block, in steps of `step`."""
        return _shortest(self._places // self.step)

    @cached_property
    def counts(self) -> AnyArray:
        """Number of blocks of each channel."""
        return _shortest(self._nonzero.sum(axis=(1, 2)))

    @property
    def step(self) -> int:
        """Inputs of a step of the places: 4 if all blocks begin at multiples of 4."""
        return 1 if self.weights.shape[2] % BLOCK else BLOCK

    @property
    def bytes(self) -> int:
        """Bytes in flash."""
        return self.values.nbytes + self.places.nbytes + self.counts.nbytes

    @cached_property
    def _padded(self) -> npt.NDArray[np.int8]:
        channels, taps, inputs = self.weights.shape
        padded = np.pad(self.weights, ((0, 0), (0, 0), (0, -inputs % BLOCK)))
        return padded.reshape(channels, taps, -1, BLOCK)

    @cached_property
    def _nonzero(self) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (self._padded != 0).any(axis=3)
        return found

    @cached_property
    def _starts(self) -> AnyArray:
        _, taps, blocks = np.nonzero(self._nonzero)
        starts: AnyArray = taps * self.weights.shape[2] + BLOCK * blocks
        return starts

    @cached_property
    def _places(self) -> AnyArray:
        """First inputs; the last block begins so that it ends with the row."""
        _, taps, inputs = self.weights.shape
        places: AnyArray = np.minimum(self._starts, taps * inputs - BLOCK)
        return places


@dataclass(frozen=True)
class BlockContext:
    """Template context."""

    title: str
    row_count: int
    depth: int
    channels: int
    element: str
    result: str
    rows: tuple[Row, ...]
    finish: RowFinish
    gather: Gather | None
    blocks: int
    step: int
    place: str  # C type
    count: str  # C type
    dsp: bool

    arrays = "weights, block_places, block_counts, bias"

    @property
    def template(self) -> str:
        """The template of rows times channels."""
        return "dsp/block_sparse_rows.c.j2" if self.dsp else "portable/block_sparse_rows.c.j2"

    @property
    def kind(self) -> str:
        """Blocks, for comments."""
        return f"{self.blocks} blocks of {BLOCK} weights that are not zero"

    @property
    def rows_text(self) -> str:
        """Number of rows, as text."""
        return "One row" if len(self.rows) == 1 else "Two rows"

    @property
    def row_parameters(self) -> str:
        """The C parameters for rows and results."""
        return row_parameters(self.rows, self.element, self.result)

    @property
    def start(self) -> str:
        """The C expression of the distance of a block from the start of its row."""
        return "*place" if self.step == 1 else f"{self.step} * *place"


@kernel("conv", "linear")
def block_sparse(site: Site) -> Offers:
    """A layer of one group where blocks that are not zero take less flash than all weights."""
    if not site.is_integer or site.weights_refusal:
        return site.weights_refusal or "blocks are of integers"
    if site.machine.is_host:
        return "computers multiply rows of all weights in vectors"
    if site.type("x").dtype is not DType.I8 or site.quantization("weight").bits != BYTE or not sums_fit(site):
        return "blocks are of weights and activations of 8 bits whose sums fit int32"
    rows = rows_of(site)
    if isinstance(rows, str):
        return rows
    if not BLOCK <= rows.depth <= _MOST_INPUTS:
        return f"blocks are of {BLOCK} to {_MOST_INPUTS} inputs"
    weights = _taps(site)
    nonzero = np.count_nonzero(weights)
    blocks = Blocks(weights)
    if nonzero == 0 or nonzero > _MOST_NONZERO * weights.size or blocks.bytes >= weights.size:
        return "blocks that are not zero are not smaller than all weights"
    return _offer(site, rows, blocks)


def _offer(site: Site, rows: LayerRows, blocks: Blocks) -> Offers:
    layouts, single = rows.layouts(site), rows.together == 1 or site.machine.few_registers
    computed = ROWS[:1] if single else ROWS
    fixed, count = layer_fixed_point(site), len(blocks.values)
    context = BlockContext(
        rows.title,
        rows.count,
        rows.depth,
        rows.channels,
        *(c_type(site.type("x").dtype), c_type(site.output.dtype)),
        computed,
        row_finish(fixed, residual=c_type(site.type("residual").dtype) if site.has("residual") else ""),
        rows.gather,
        count,
        blocks.step,
        array_type(blocks.places),
        array_type(blocks.counts),
        site.machine.dsp,
    )
    gathering = 0.0 if rows.gather is None else rows.gather.instructions * rows.count
    results, patches = rows.count * rows.channels, 0 if rows.gather is None else len(computed) * rows.depth
    pairs = -(-rows.count // len(computed))
    return offer(
        site,
        f"portable/block_sparse_{rows.template}.c.j2",
        context,
        Work(
            _BLOCK[len(computed)] * count * pairs,
            gathering,
            _RESULT * results,
            _CODE_BYTES[rows.gather is not None],
        ),
        kernel="block_sparse",
        reads=site.layer_operands(layouts),
        writes=layouts[1:],
        constants={
            "weights": blocks.values.nbytes,
            "block_places": blocks.places.nbytes,
            "block_counts": blocks.counts.nbytes,
            "bias": 4 * rows.channels,
        },
        pack=lambda: [blocks.values, blocks.places, blocks.counts, folded_bias(site, site.array("weight"))],
        tables=scale_tables(fixed),
        scratch=context.element if patches else "",
        scratch_bytes=patches,
        overwrites=site.overwritten_residual,
        follows=rows.follows(site, len(computed)),
        headers=("arithmetic.h", "dsp.h") if site.machine.dsp else (),
        variant="" if single else "two rows",
    )


def _taps(site: Site) -> npt.NDArray[np.int8]:
    """Weights as [channels, taps, inputs], in the order of an image that is channels last."""
    weights = site.array("weight")
    return weights.reshape(*weights.shape[:2], -1).transpose(0, 2, 1)


def _shortest(numbers: AnyArray) -> AnyArray:
    """The numbers as bytes, or as halfwords if one of them is larger."""
    return numbers.astype(np.uint8 if numbers.max(initial=0) < _BYTES else np.uint16)
