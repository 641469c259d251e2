"""Common parts of integer kernels of recurrent layers: sizes, numbers of the rows, tables, the refusal.

The steps are in `portable/recurrent_steps.c.j2`, which both kernels include; each has its own functions for the
products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....ir.arithmetic import INT32_MAX
from ....ir.errors import OverflowBoundError
from ....ir.ops.recurrent import Recurrent
from ....ir.ops.recurrent_form import (
    FINEST_CELL,
    STATE_BITS,
    UNIT,
    RecurrentForm,
    sigmoid_table,
    tanh_table,
)
from ..plan.layout import Layout, contiguous
from .base import AnyArray, Site

_STATES = ("initial", "initial_cell")
_TABLES = {"rnn_tanh": ("tanh_table",), "rnn_relu": (), "gru": ("sigmoid_table", "tanh_table")}
_TABLES["lstm"] = _TABLES["gru"]
_BOTH = {"sigmoid_table": sigmoid_table, "tanh_table": tanh_table}
HEADERS = ("arithmetic.h", "dsp.h", "interpolation.h", "recurrent.h")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a layer; `width` is that of a state, `hidden` that of the cell's state before a projection.

    `joined` are the rows whose two products are added before they are stored; those of the other rows are stored
    separately.
    """

    update: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    width: int
    gates: int
    projects: bool
    x_type: str
    weight_bits: int

    @property
    def weight_type(self) -> str:
        """C type of a weight."""
        return f"int{self.weight_bits}_t"

    @property
    def rows(self) -> int:
        """Rows of the matrices for input and state."""
        return self.gates * self.hidden

    @property
    def joined(self) -> int:
        """Rows before those of a GRU's third gate; all rows of other layers."""
        return 2 * self.hidden if self.update == "gru" else self.rows

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and end of the rows whose products are joined, and of those whose products are not, if any."""
        return [(low, high) for low, high in ((0, self.joined), (self.joined, self.rows)) if low < high]

    @property
    def groups(self) -> int:
        """Groups of four rows."""
        return self.inner // 4

    @property
    def third(self) -> int:
        """Index of the products of a GRU's third gate with the input."""
        return fours(self.joined)

    @property
    def inner(self) -> int:
        """Index of the products of that gate with the state."""
        return self.third + fours(self.rows - self.joined)

    @property
    def apart(self) -> int:
        """Distance from the indices of the products with the input to those with the state."""
        return self.inner - self.third

    @property
    def given(self) -> int:
        """Index of the operand of a projection, after the products."""
        return self.inner + fours(self.rows - self.joined)

    @property
    def stored(self) -> int:
        """Numbers of 16 bits for the products of a step, and for the operand of a projection."""
        return self.given + fours(self.hidden) * self.projects

    @property
    def functions(self) -> int:
        """Interpolated functions of a step of one sample."""
        return self.hidden * {"rnn_tanh": 1, "rnn_relu": 0, "gru": 3, "lstm": 5}[self.update]


@dataclass(frozen=True)
class StepsContext:
    """Context of the template of the steps; `gates` is the C expression of the location of their numbers.

    `gate_arguments` and `projection_arguments` are the last arguments of the functions for the products, `shifts` the
    left shifts of their sums; `cell_shift` and `cell_factor` rescale products of gates to the cell's scale, and the
    cell to that of its tanh.
    """

    sizes: Sizes
    title: str
    x_time: int
    x_batch: int
    y_time: int
    y_batch: int
    gates: str
    gate_arguments: str
    projection_arguments: str
    shifts: tuple[int, ...]
    cell_shift: int
    cell_factor: int
    has_state: bool
    has_cell: bool

    @property
    def update(self) -> str:
        """The template of the state update."""
        return f"portable/{self.sizes.update}_integer.c.j2"

    def sum(self, product: int, name: str) -> str:
        """A sum of a product, shifted to the left if its requantization requires it."""
        shift = self.shifts[product]
        return f"fxp_shift_left({name}, {shift})" if shift else name

    @property
    def given(self) -> str:
        """Destination of an LSTM's result: the state, or the operand of the projection."""
        return "given" if self.sizes.projects else "h"


def operator_of(site: Site) -> Recurrent:
    """The recurrent layer of a site."""
    assert isinstance(site.node.op, Recurrent)
    return site.node.op


def sizes(site: Site) -> Sizes:
    """Sizes of the layer."""
    op, x, y = operator_of(site), site.type("x"), site.node.outputs[0].type.shape
    batch, steps = (x.shape[0], x.shape[1]) if op.batch_first else (x.shape[1], x.shape[0])
    hidden, bits = site.node.outputs[-1].type.shape[2], site.quantization("x").bits
    weights = max(site.quantization(index).bits for index in _positions(site)[0])
    return Sizes(
        op.update,
        steps,
        batch,
        x.shape[2],
        hidden,
        y[2],
        op.gates,
        op.projects,
        f"int{max(bits, 8)}_t",
        16 if weights > 8 else 8,
    )


def steps_context(
    site: Site, form: RecurrentForm, *, gates: str, gate_arguments: str, projection_arguments: str
) -> StepsContext:
    """The context of the steps."""
    own, first = sizes(site), operator_of(site).batch_first

    def strides(width: int) -> tuple[int, int]:
        return (width, own.steps * width) if first else (own.batch * width, width)

    kind = f"{site.node.op.name} of {own.steps} steps, {own.inputs} inputs, {own.hidden} units"
    return StepsContext(
        own,
        f"{kind}, int{STATE_BITS}",
        *strides(own.inputs),
        *strides(own.width),
        gates,
        gate_arguments,
        projection_arguments,
        tuple(product.shift for product in form.products),
        15 - form.cell_bits,
        1 << (FINEST_CELL - form.cell_bits),
        has_state=site.has(1),
        has_cell=operator_of(site).states > 1 and site.has(2),
    )


def form_of(site: Site) -> RecurrentForm:
    """The integer form of the layer."""
    return operator_of(site).form(site.node.operand_types, site.node.output_types)


def states(site: Site) -> dict[str, int]:
    """Positions of the given initial states, by their name in the C."""
    names = _STATES[: operator_of(site).states]
    return {name: index for index, name in enumerate(names, start=1) if site.has(index)}


def fours(count: int) -> int:
    """The next multiple of four: rows are computed four at a time."""
    return -(-count // 4) * 4


def tables(own: Sizes) -> Mapping[str, AnyArray]:
    """The tables in which the steps interpolate."""
    return {name: _BOTH[name]().numpy().astype(np.int16) for name in _TABLES[own.update]}


def layouts(site: Site) -> dict[str, Layout]:
    """Layouts of the operands at run time, by their names in the C."""
    named = {"x": site.index("x"), **states(site)}
    return {name: contiguous(site.type(index).shape) for name, index in named.items()}


def matrices(site: Site) -> list[AnyArray]:
    """Integers of the matrices."""
    return [site.array(index) for index in _positions(site)[0]]


def row_numbers(site: Site, form: RecurrentForm) -> list[tuple[AnyArray, AnyArray]]:
    """Bias, with the product of zero point and weights folded in, and multiplier of each row, for each matrix."""
    (at, biases), found = _positions(site), []
    for index, bias, product in zip(at, biases, form.products, strict=True):
        folded = -product.zero_point * site.array(index).astype(np.int64).sum(axis=1)
        folded = folded if bias is None else folded + site.array(bias)
        found.append((folded.astype(np.int32), np.array(product.multipliers, np.int64).astype(np.int32)))
    return found


def in_turns(arrays: Sequence[AnyArray]) -> AnyArray:
    """Columns of arrays with common rows, one group of four rows after the other, with the numbers of a group
    interleaved.
    """
    parts = []
    for array in arrays:
        filled = np.zeros((fours(len(array)), array[:1].size), array.dtype)
        filled[: len(array)] = array.reshape(len(array), -1)
        parts.append(filled.reshape(-1, 4, filled.shape[1]).transpose(0, 2, 1).reshape(len(filled) // 4, -1))
    return np.concatenate(parts, axis=1).reshape(-1)


def refusal(site: Site) -> str:
    """Reason why no kernel supports this layer, or empty."""
    op, positions = operator_of(site), _positions(site)
    if not all(map(site.is_constant, (*positions[0], *(i for i in positions[1] if i is not None)))):
        return "weights must be constants"
    if _largest_shifted(site) <= INT32_MAX:
        return ""
    constants = [
        None if v is None or not site.graph.is_constant(v) else torch.from_numpy(site.array(index))
        for index, v in enumerate(site.node.inputs)
    ]
    try:
        op.prove(site.node.operand_types, site.node.output_types, constants)
    except OverflowBoundError as err:
        return f"{op.name}: {err.message}"
    return ""


def _largest_shifted(site: Site) -> int:
    """Bound of |accumulator| with its left shift for any weights of these bits, with and without folded zero points."""
    state, (at, biases), bounds = site.node.output_types[0].quantization, _positions(site), []
    assert state is not None
    read = (site.quantization("x"), state, UNIT)
    for q, index, bias, product in zip(read, at, biases, form_of(site).products, strict=False):
        taps, bits = site.type(index).shape[1], site.quantization(index).bits
        added = 0 if bias is None else int(np.abs(site.array(bias).astype(np.int64)).max())
        largest = (taps << (bits - 1)) * (max(q.qmax, -q.qmin) + abs(q.zero_point[0])) + added
        bounds.append(largest << product.shift)
    return max(bounds)


def _positions(site: Site) -> tuple[Sequence[int], Sequence[int | None]]:
    """Positions of the matrices among the operands, and of the bias of each."""
    op, places = operator_of(site), range(len(site.node.inputs))
    at = op.matrices_of(places)
    return at, [*op.biases_of(places), *[None] * (len(at) - 2)]
