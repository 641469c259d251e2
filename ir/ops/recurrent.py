"""Recurrent layers, each with all its layers, directions and time steps as one node.

Operands: x [t, n, input] ([n, t, input] when `batch_first`), the initial state [layers * directions, n, hidden]
or none for zeros (an LSTM takes its initial cell after it), then the weights in torch's order, for each layer
and direction: input-to-hidden, hidden-to-hidden and, when `bias`, a bias for each. Results: y, final states.

On integers a node has one layer and one direction: see `recurrent_form`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor
from torch.nn import functional

from ..encoding import Encoding
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .accumulate import BIAS_BITS, bias_quantization
from .base import AtenCall, Given, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall, tie_all
from .quantize import per_tensor_types
from .recurrent_form import (
    FINEST_CELL,
    SIGMOID_STEP,
    STATE_BITS,
    TANH_STEP,
    UNIT,
    Product,
    RecurrentForm,
    cell_encoding,
)
from .shape import emit_squeeze, emit_unsqueeze


@dataclass(frozen=True)
class Recurrent(Op):
    """Base of the recurrent layers, which differ in the number of gates and states."""

    quantized = Quantized.COMPUTE

    layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    batch_first: bool = False

    @property
    def gates(self) -> int:
        """Rows of the weights for each hidden unit."""
        return 1

    @property
    def states(self) -> int:
        """State tensors: 2 for an LSTM, which also carries its cell."""
        return 1

    @property
    def projects(self) -> bool:
        """True if each cell multiplies its state by an additional last weight (projection)."""
        return False

    @property
    def weights_per_cell(self) -> int:
        """Weights of one layer in one direction."""
        return 2 + 2 * self.bias + self.projects

    @property
    def update(self) -> str:
        """Name of the state update for `RecurrentForm`."""
        return self.name

    @property
    @abstractmethod
    def gate_steps(self) -> tuple[float | None, ...]:
        """Step of each gate before its function on integers; None for the gate of the state."""

    @property
    def is_bounded(self) -> bool:
        """True if states are always between -1 and 1 if the initial ones are."""
        return True

    def states_of(self, given: Sequence[Given]) -> Sequence[Given]:
        """Items of `given`, one per operand of a node, for the initial states."""
        return given[1 : 1 + self.states]

    def weights_of(self, given: Sequence[Given]) -> Sequence[Given]:
        """Items of `given`, one per operand of a node, for the weights, cell by cell."""
        return given[1 + self.states :]

    def matrices_of(self, given: Sequence[Given]) -> Sequence[Given]:
        """Items of `given` for the matrices of a single layer: for input and state, and a projection."""
        weights = self.weights_of(given)
        return [*weights[:2], *weights[len(weights) - self.projects :]]

    def biases_of(self, given: Sequence[Given]) -> Sequence[Given | None]:
        """Items of `given` for the biases of a single layer, for input and state; None without biases."""
        return self.weights_of(given)[2:4] if self.bias else (None, None)

    def learned(self, given: Sequence[Given | None]) -> Sequence[Given | None]:
        return self.weights_of(given)

    @property
    def directions(self) -> int:
        """2 if the sequence is also read backwards, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def is_single(self) -> bool:
        """True if there is one layer in one direction."""
        return self.layers * self.directions == 1

    @abstractmethod
    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """The sequence of outputs and the final states."""

    def infer(self, x: TensorType, *operands: TensorType | None) -> tuple[TensorType, ...]:
        states, weights = operands[: self.states], operands[self.states :]
        check_floats(self, x, *operands)
        if x.rank != 3 or 0 in x.shape:
            raise ShapeError(f"a sequence has three dimensions, none of them 0, unlike {x.shape}")
        hidden, width = self._check_weights(x.shape[-1], weights)
        batch, real = x.shape[0 if self.batch_first else 1], x.real()
        kept = [real.with_shape((self.layers * self.directions, batch, n)) for n in (width, hidden)]
        for given, state in zip(states, kept, strict=False):
            if given is not None and given.real() != state:
                raise ShapeError(f"an initial state is not of shape {state.shape} and of the input's type")
        return (real.with_shape((*x.shape[:2], width * self.directions)), *kept[: self.states])

    def reference(self, x: Tensor, *operands: Tensor | None) -> tuple[Tensor, ...]:
        weights = [w for w in operands[self.states :] if w is not None]
        batch = x.shape[0 if self.batch_first else 1]
        sizes = (weights[1].shape[-1], weights[1].shape[0] // self.gates)
        zeros = (x.new_zeros(self.layers * self.directions, batch, n) for n in sizes)
        states = [z if s is None else s for z, s in zip(zeros, operands[: self.states], strict=False)]
        return self.scan(x, states, weights)

    def result_encoding(self, high: float, *, bits: int = 8) -> Encoding | None:
        return UNIT if self.is_bounded else None

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        if not self.is_single:
            raise ShapeError(f"{self.name} on integers supports one layer and one direction")
        x, *kept = per_tensor_types(operands[0], *outputs)
        y, final, *cell = kept
        if x.bits not in (8, 16) or any(q.bits != STATE_BITS or not q.is_symmetric for q in kept):
            raise ShapeError(f"{self.name} needs 8 or 16 bits, and results of 16 bits with zero point 0")
        if final != y or any(
            given is not None and given.quantization != own
            for given, own in zip(self.states_of(operands), [y, *cell], strict=True)
        ):
            raise ShapeError(f"initial and final states of {self.name} need the same encoding")
        if self.is_bounded and y != UNIT:
            raise ShapeError(f"{self.name} on integers needs states from -1 to 1, initial ones, too")
        if cell and cell[0] != cell_encoding(cell[0].scale[0] * UNIT.qmax):
            raise ShapeError(f"the step of a cell is a power of two from 2^-{FINEST_CELL} to 1")
        self._check_integer_weights(x, y, operands)
        self.form(operands, outputs)

    def _check_integer_weights(
        self, x: Encoding, state: Encoding, operands: Sequence[TensorType | None]
    ) -> None:
        encodings = [None if type is None else type.quantization for type in operands]
        matrices = self.matrices_of(encodings)
        for q in matrices:
            if q is None or q.bits > 16 or not q.is_symmetric or q.axis not in (None, 0) or q.group_size:
                raise ShapeError(
                    "weights have at most 16 bits, symmetric, a scale for each row or one for all"
                )
        if not self.bias:
            return
        for bias, read, q in zip(self.biases_of(encodings), (x, state), matrices, strict=False):
            assert q is not None
            expected = bias_quantization(read, q)
            if bias is None or bias.bits != BIAS_BITS or tuple(bias.scale) != tuple(expected.scale):
                raise ShapeError("a bias is int32 with scale operand scale x weight scale")

    def form(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> RecurrentForm:
        """The integer form for these quantized types; OverflowBoundError if none exists."""
        x, y, *rest = per_tensor_types(operands[0], *outputs)
        matrices = [type for type in self.matrices_of(operands) if type is not None]
        hidden = matrices[0].shape[0] // self.gates
        steps = [y.scale[0] if step is None else step for step in self.gate_steps for _ in range(hidden)]
        steps_of_all = (steps, steps, [y.scale[0]] * outputs[0].shape[2])
        products = tuple(
            Product.of(read, weight.quantization, steps)
            for read, weight, steps in zip((x, y, UNIT), matrices, steps_of_all, strict=False)
            if weight.quantization is not None
        )
        return RecurrentForm(self.update, products, *(round(-log2(cell.scale[0])) for cell in rest[1:]))

    def prove(
        self,
        operands: Sequence[TensorType | None],
        outputs: Sequence[TensorType],
        constants: Sequence[Tensor | None],
    ) -> int:
        """Largest accumulator for any input; `constants` has the constant operands. OverflowBoundError if it can
        exceed int32.
        """
        x, state, *_ = per_tensor_types(operands[0], *outputs)
        matrices = [weight for weight in self.matrices_of(constants) if weight is not None]
        return self.form(operands, outputs).prove(x, state, matrices, self.biases_of(constants))

    def integer(self, call: IntegerCall) -> tuple[Tensor, ...]:
        x, time = call.operand("x"), 1 if self.batch_first else 0
        zeros = (x.new_zeros(type.shape) for type in call.outputs[1:])
        given = zip(self.states_of(call.operands), zeros, strict=True)
        states = [(zero if state is None else state)[0] for state, zero in given]
        matrices = [w for w in self.matrices_of(call.operands) if w is not None]
        form = self.form(call.types, call.outputs)
        y, *final = form.apply(x.movedim(time, 0), states, matrices, self.biases_of(call.operands))
        return (y.movedim(0, time), *(state[None] for state in final))

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        steps = outputs[0].shape[0] * outputs[0].shape[1]
        matrices = [t for t in self.weights_of(operands) if t is not None and t.rank == 2]
        return steps * sum(w.numel for w in matrices)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        """A hidden unit is the same in all layers and directions, because torch gives all of them one size."""
        if self.projects:
            return call.refuse()
        x, each = call.operand("x"), 4 if self.bias else 2
        weights_of_all = [axes for axes in self.weights_of(call.operands) if axes is not None]
        hidden = weights_of_all[1][1]
        width = call.size(hidden)
        for cell in range(self.layers * self.directions):
            weights = weights_of_all[cell * each : (cell + 1) * each]
            for rows in (w[0] for w in weights):
                call.tie_indices(
                    rows, torch.arange(self.gates * width), hidden, self._unit(self.gates, width)
                )
            call.tie(weights[1][1], hidden)
            if cell < self.directions:
                call.tie(weights[0][1], x[2])
            else:
                inputs = self._unit(self.directions, width)
                call.tie_indices(weights[0][1], torch.arange(len(inputs)), hidden, inputs)
        joined = hidden if self.directions == 1 else call.free(self.directions * width)
        if joined != hidden:
            both = self._unit(self.directions, width)
            call.tie_indices(joined, torch.arange(len(both)), hidden, both)
        call.sum_over(x[2], hidden)
        time = 1 if self.batch_first else 0
        call.fix(x[time], why="time steps run one after the other")
        state = (*call.fixed(self.layers * self.directions), x[1 - time], hidden)
        for initial in self.states_of(call.operands):
            tie_all(call, state, initial)
        return ((*x[:2], joined), *(state,) * self.states)

    @staticmethod
    def _unit(copies: int, width: int) -> Tensor:
        return torch.arange(width).repeat(copies)

    def _check_weights(self, features: int, weights: Sequence[TensorType | None]) -> tuple[int, int]:
        """Size of the cell, and size of the state read from it."""
        each = self.weights_per_cell
        shapes = [None if w is None else w.shape for w in weights]
        if len(shapes) != self.layers * self.directions * each or any(len(s or ()) != 2 for s in shapes[:2]):
            raise ShapeError(f"{len(shapes)} weights for {self.layers} layers, {self.directions} directions")
        assert shapes[0] is not None and shapes[1] is not None
        rows, width = shapes[0][0], shapes[1][1]
        hidden = rows // self.gates if self.projects else width
        for index in range(self.layers * self.directions):
            read = features if index < self.directions else width * self.directions
            rows = self.gates * hidden
            expected = [(rows, read), (rows, width), *[(rows,)] * (2 * self.bias)]
            expected += [(width, hidden)] * self.projects
            if shapes[index * each : (index + 1) * each] != expected:
                raise ShapeError(f"the weights of layer {index // self.directions} are not {expected}")
        return hidden, width


@operator("rnn")
@dataclass(frozen=True)
class Rnn(Recurrent):
    """Elman network with tanh or relu, as `torch.nn.RNN`."""

    nonlinearity: str = "tanh"

    @property
    def update(self) -> str:
        return f"rnn_{self.nonlinearity}"

    @property
    def gate_steps(self) -> tuple[float | None, ...]:
        return (TANH_STEP if self.is_bounded else None,)

    @property
    def is_bounded(self) -> bool:
        return self.nonlinearity == "tanh"

    def infer(self, x: TensorType, *operands: TensorType | None) -> tuple[TensorType, ...]:
        if self.nonlinearity not in ("tanh", "relu"):
            raise ShapeError(f"nonlinearity {self.nonlinearity!r}; the choices are tanh and relu")
        return super().infer(x, *operands)

    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        (state,) = states
        run = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        return run(
            x, state, weights, self.bias, self.layers, 0.0, False, self.bidirectional, self.batch_first
        )


@operator("gru")
@dataclass(frozen=True)
class Gru(Recurrent):
    """Gated recurrent unit, as `torch.nn.GRU`."""

    @property
    def gates(self) -> int:
        return 3

    @property
    def gate_steps(self) -> tuple[float | None, ...]:
        return SIGMOID_STEP, SIGMOID_STEP, TANH_STEP

    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        (state,) = states
        return torch.gru(
            x, state, weights, self.bias, self.layers, 0.0, False, self.bidirectional, self.batch_first
        )


@operator("lstm")
@dataclass(frozen=True)
class Lstm(Recurrent):
    """Long short-term memory, as `torch.nn.LSTM`; `projection` multiplies the state of each cell by a last weight.

    Results: y, final state, final cell.
    """

    projection: bool = False

    @property
    def projects(self) -> bool:
        return self.projection

    @property
    def gates(self) -> int:
        return 4

    @property
    def gate_steps(self) -> tuple[float | None, ...]:
        return SIGMOID_STEP, SIGMOID_STEP, TANH_STEP, SIGMOID_STEP

    @property
    def is_bounded(self) -> bool:
        return not self.projection

    def cells(self, operands: Sequence[Tensor | None], y: Tensor) -> Tensor:
        """The cell before and after each step [t + 1, n, hidden] of one layer in one direction, which gives `y`."""
        x = self.operand(operands, "x")
        x, y = (t.movedim(1, 0) if self.batch_first else t for t in (x, y))
        first = [None if state is None else state[0] for state in self.states_of(operands)]
        weights = [w for w in self.weights_of(operands) if w is not None]
        biases = weights[2:4] if self.bias else [None, None]
        before = torch.cat([torch.zeros_like(y[:1]) if first[0] is None else first[0][None], y[:-1]])
        gates = functional.linear(x, weights[0], biases[0]) + functional.linear(before, weights[1], biases[1])
        enter, keep, fresh, _ = gates.chunk(4, -1)
        added, kept = torch.sigmoid(enter) * torch.tanh(fresh), torch.sigmoid(keep)
        cells = [torch.zeros_like(added[0]) if first[1] is None else first[1]]
        for step in range(len(added)):
            cells.append(kept[step] * cells[-1] + added[step])
        return torch.stack(cells)

    @property
    def states(self) -> int:
        return 2

    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.lstm(
            x, states, weights, self.bias, self.layers, 0.0, False, self.bidirectional, self.batch_first
        )


@lowers("rnn_tanh.input", "rnn_relu.input", "gru.input", "lstm.input")
def _lower_layers(call: AtenCall) -> tuple[Value, ...] | None:
    """All layers of a recurrent module; a sequence without batch becomes a batch of one."""
    x, weights = call.value("input"), call.values("params")
    states = call.values("hx") if call.target == "lstm.input" else (call.value("hx"),)
    if call["train"] and call["dropout"]:
        return None
    cells = call["num_layers"] * (2 if call["bidirectional"] else 1)
    op = _operator(
        call.target.partition(".")[0],
        (call["num_layers"], call["has_biases"], call["bidirectional"], call["batch_first"]),
        projects=len(weights) == cells * (3 + 2 * call["has_biases"]),
    )
    return call.emit_many(op, x, *(_absent_when_zero(call, state) for state in states), *weights)


@lowers("rnn_tanh_cell.default", "rnn_relu_cell.default", "gru_cell.default", "lstm_cell.default")
def _lower_cell(call: AtenCall) -> tuple[Value, ...]:
    """One step of one layer: a sequence of length one."""
    x = call.value("input")
    states = call.values("hx") if call.target == "lstm_cell.default" else (call.value("hx"),)
    biases = [call.optional_value(name) for name in ("b_ih", "b_hh")]
    op = _operator(call.target.removesuffix("_cell.default"), (1, biases[0] is not None, False, False))
    initial = [
        None if zero is None else emit_unsqueeze(call, state, 0)
        for state, zero in ((state, _absent_when_zero(call, state)) for state in states)
    ]
    weights = (call.value("w_ih"), call.value("w_hh"), *(b for b in biases if b is not None))
    _, *final = call.emit_many(op, emit_unsqueeze(call, x, 0), *initial, *weights)
    return tuple(emit_squeeze(call, state, [0]) for state in final)


def _operator(name: str, common: tuple[int, bool, bool, bool], *, projects: bool = False) -> Rnn | Gru | Lstm:
    kind, _, nonlinearity = name.partition("_")
    if kind == "rnn":
        return Rnn(*common, nonlinearity)
    return Lstm(*common, projects) if kind == "lstm" else Gru(*common)


def _absent_when_zero(call: AtenCall, state: Value) -> Value | None:
    """None for a constant state of zeros, so that the graph accepts other batch sizes."""
    tensor = call.constant_tensor(state)
    return None if tensor is not None and not tensor.any() else state
