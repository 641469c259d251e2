"""Recurrent layers in portable C: one function for all time steps of a node, on reals also for all layers and
directions.

On reals, the constants of a cell are its weights for the input, its weights for the state, both biases (zeros without)
and the weight of its projection if it has one.
Sequences between layers are in scratch memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .....ir.ops.recurrent import Recurrent, Rnn
from ...plan.layout import contiguous
from .. import recurrent_numbers as numbers
from ..base import AnyArray, Offers, Site, Work, is_float, kernel, offer

_FUNCTIONS = {"rnn": 1, "rnn_relu": 0, "gru": 3, "lstm": 5}  # calls of the C library per element of the state


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer in one direction: locations of its input, its result, and the start of its constants."""

    number: int
    source: str
    width: int
    source_time: int
    source_batch: int
    target: str
    first: int
    step: int
    constants: int


@dataclass(frozen=True)
class RecurrentContext:
    """Template context; `width` is the size of a state that is read, `hidden` the size of the cell's state before a
    projection.
    """

    title: str
    kind: str
    steps: int
    batch: int
    hidden: int
    width: int
    gates: int
    target_time: int
    target_batch: int
    cells: tuple[Cell, ...]
    has_state: bool
    has_cell: bool

    @property
    def update(self) -> str:
        """The template of the state update."""
        return f"portable/{self.kind}.c.j2"

    @property
    def rows(self) -> int:
        """Rows of a weight."""
        return self.gates * self.hidden

    @property
    def state_size(self) -> int:
        """Elements of the state of one cell."""
        return self.batch * self.width

    @property
    def cell_size(self) -> int:
        """Elements of the memory of one cell."""
        return self.batch * self.hidden

    @property
    def projects(self) -> bool:
        """True if the state is a projection of the cell's result."""
        return self.width != self.hidden


_STATES = ("initial", "initial_cell")


@kernel("rnn", "gru", "lstm")
def portable(site: Site) -> Offers:
    """One time step after the other."""
    op = site.node.op
    assert isinstance(op, Recurrent)
    if not all(map(site.graph.is_constant, op.weights_of(site.node.inputs))):
        return "weights must be constants"
    if not is_float(site.type("x")):
        return (
            _on_integers(site)
            if site.is_integer
            else "the recurrent kernels compute on float32 or on integers"
        )
    states = {name: index for index, name in enumerate(_STATES[: op.states], start=1) if site.has(index)}
    context, scratch, floats = _context(site, op, states)
    operands = {"x": site.index("x"), **states}
    updates = context.steps * context.batch * len(context.cells)
    sums, functions = 2 * context.rows * updates, _FUNCTIONS[context.kind] * context.hidden * updates
    return offer(
        site,
        "portable/recurrent.c.j2",
        context,
        Work(6.0 * site.node.macs, 20.0 * sums, 80.0 * functions, 700),
        reads={name: contiguous(site.type(i).shape) for name, i in operands.items()},
        writes=tuple(contiguous(v.type.shape) for v in site.node.outputs),
        operands=operands,
        results=("y", "state", "cell")[: 1 + op.states],
        constants={"weights": 4 * floats},
        pack=lambda: (_packed(site, op),),
        scratch="float",
        scratch_bytes=4 * scratch,
        uses_math=True,
    )


def _on_integers(site: Site) -> Offers:
    """The form of `ir/ops/recurrent_form.py`, four rows at a time."""
    if site.machine.dsp:
        return "the DSP kernel supports all layers that this one supports"
    if refusal := numbers.refusal(site):
        return refusal
    form = numbers.form_of(site)
    own = numbers.sizes(site)
    each = own.inputs + own.width
    context = numbers.steps_context(
        site,
        form,
        gates="scratch",
        gate_arguments="weights, numbers, gates",
        projection_arguments=f"weights + {own.inner * each}, numbers + {4 * own.inner}, gates",
    )
    projected = numbers.fours(own.width) * own.projects
    macs = own.inner * each + projected * own.hidden

    def pack() -> tuple[AnyArray, AnyArray]:
        read = list(zip(numbers.matrices(site), numbers.row_numbers(site, form), strict=True))
        parts = [(read[:2], slice(low, high)) for low, high in own.ranges]
        parts += [([projection], slice(None)) for projection in read[2:]]
        turns = [numbers.in_turns([matrix[rows] for matrix, _ in found]) for found, rows in parts]
        stored = [[array[rows] for _, arrays in found for array in arrays] for found, rows in parts]
        return np.concatenate(turns).astype(f"int{own.weight_bits}"), np.concatenate(
            [numbers.in_turns(arrays) for arrays in stored]
        )

    updates = own.steps * own.batch
    named = numbers.layouts(site)
    return offer(
        site,
        "portable/recurrent_integer.c.j2",
        context,
        Work(3.0 * macs * updates, 12.0 * own.inner * updates, 20.0 * own.functions * updates, 700),
        reads=named,
        writes=tuple(contiguous(v.type.shape) for v in site.node.outputs),
        operands={"x": site.index("x"), **numbers.states(site)},
        results=("y", "state", "cell")[: 1 + numbers.operator_of(site).states],
        constants={
            "weights": macs * own.weight_bits // 8,
            "numbers": 4 * (4 * own.inner + 2 * projected),
        },
        pack=pack,
        tables=numbers.tables(own),
        scratch="int16_t",
        scratch_bytes=2 * own.stored,
        headers=numbers.HEADERS,
    )


def _context(site: Site, op: Recurrent, states: Mapping[str, int]) -> tuple[RecurrentContext, int, int]:
    """The context, the floats of scratch memory (gates, then the sequences between layers), and those of constants."""
    x, y = site.type("x").shape, site.node.outputs[0].type.shape
    batch, steps = (x[0], x[1]) if op.batch_first else (x[1], x[0])
    width = y[2] // op.directions
    hidden = site.node.outputs[-1].type.shape[2]
    sequence = batch * steps * y[2]
    gates = 2 * op.gates * hidden + hidden * op.projects
    cells: list[Cell] = []
    begin = 0
    for layer in range(op.layers):
        read = x[2] if layer == 0 else y[2]
        source = "x" if layer == 0 else f"scratch + {gates + (layer - 1) % 2 * sequence}"
        target = "y" if layer == op.layers - 1 else f"scratch + {gates + layer % 2 * sequence}"
        of_source = _strides(op, batch, steps, read)
        for direction in range(op.directions):
            first, step = (steps - 1, -1) if direction else (0, 1)
            place = f"{target} + {direction * width}"
            cells.append(Cell(len(cells), source, read, *of_source, place, first, step, begin))
            begin += op.gates * hidden * (read + width + 2) + width * hidden * op.projects
    title = f"{op.name} of {op.layers} layers, {steps} steps, {x[2]} inputs, {hidden} units"
    of_target = _strides(op, batch, steps, y[2])
    context = RecurrentContext(
        title,
        "rnn_relu" if isinstance(op, Rnn) and op.nonlinearity == "relu" else op.name,
        steps,
        batch,
        hidden,
        width,
        op.gates,
        *of_target,
        tuple(cells),
        has_state="initial" in states,
        has_cell="initial_cell" in states,
    )
    return context, gates + min(op.layers - 1, 2) * sequence, begin


def _strides(op: Recurrent, batch: int, steps: int, width: int) -> tuple[int, int]:
    """Distance between time steps and between samples of a sequence."""
    return (width, steps * width) if op.batch_first else (batch * width, width)


def _packed(site: Site, op: Recurrent) -> AnyArray:
    each, arrays = op.weights_per_cell, [site.array(i) for i in range(1 + op.states, len(site.node.inputs))]
    parts: list[AnyArray] = []
    for cell in range(op.layers * op.directions):
        weights = arrays[cell * each : (cell + 1) * each]
        biases = weights[2:4] if op.bias else [np.zeros(len(weights[0]), np.float32)] * 2
        parts += [array.reshape(-1) for array in (*weights[:2], *biases, *weights[each - op.projects :])]
    return np.concatenate(parts)
