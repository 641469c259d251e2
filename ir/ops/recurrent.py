"""Recurrent layers, each with all its layers, directions and time steps as one node, on reals.

Operands: x [t, n, input] ([n, t, input] when `batch_first`), the initial state [layers * directions, n, hidden]
or none for zeros (an LSTM takes its initial cell after it), then the weights in torch's order, for each layer
and direction: input-to-hidden, hidden-to-hidden and, when `bias`, a bias for each. Results: y, final states.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, check_floats, lowers, operator
from .channels import Axes, CouplingCall, tie_all


@dataclass(frozen=True)
class Recurrent(Op):
    """Base of the recurrent layers, which differ in the number of gates and of states."""

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
    def directions(self) -> int:
        """2 when the sequence is also read backwards."""
        return 2 if self.bidirectional else 1

    @abstractmethod
    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """The sequence of outputs and the final states."""

    def infer(self, x: TensorType, *operands: TensorType | None) -> tuple[TensorType, ...]:
        states, weights = operands[: self.states], operands[self.states :]
        check_floats(self, x, *operands)
        if x.rank != 3 or 0 in x.shape:
            raise ShapeError(f"a sequence has three dimensions, none of them 0, unlike {x.shape}")
        hidden = self._check_weights(x.shape[-1], weights)
        batch = x.shape[0 if self.batch_first else 1]
        state = x.with_shape((self.layers * self.directions, batch, hidden))
        if any(given not in (None, state) for given in states):
            raise ShapeError(f"an initial state is not of shape {state.shape} and of the input's type")
        return (x.with_shape((*x.shape[:2], hidden * self.directions)), *(state,) * self.states)

    def reference(self, x: Tensor, *operands: Tensor | None) -> tuple[Tensor, ...]:
        weights = [w for w in operands[self.states :] if w is not None]
        batch, hidden = x.shape[0 if self.batch_first else 1], weights[1].shape[-1]
        zeros = x.new_zeros(self.layers * self.directions, batch, hidden)
        return self.scan(x, [zeros if s is None else s for s in operands[: self.states]], weights)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        steps = outputs[0].shape[0] * outputs[0].shape[1]
        matrices = [t for t in operands[1 + self.states :] if t is not None and t.rank == 2]
        return steps * sum(w.numel for w in matrices)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        """A hidden unit is the same in all layers and directions: torch gives all of them one size."""
        x, each = call.operand(0), 4 if self.bias else 2
        hidden = call.operand(1 + self.states + 1)[1]
        width = call.size(hidden)
        for cell in range(self.layers * self.directions):
            weights = [call.operand(1 + self.states + cell * each + i) for i in range(each)]
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
        time = 1 if self.batch_first else 0
        call.fix(x[time], why="time steps are taken one after the other")
        state = (*call.fixed(self.layers * self.directions), x[1 - time], hidden)
        for index in range(self.states):
            tie_all(call, state, call.optional(1 + index))
        return ((*x[:2], joined), *(state,) * self.states)

    @staticmethod
    def _unit(copies: int, width: int) -> Tensor:
        return torch.arange(width).repeat(copies)

    def _check_weights(self, features: int, weights: Sequence[TensorType | None]) -> int:
        each = 4 if self.bias else 2
        shapes = [None if w is None else w.shape for w in weights]
        if len(shapes) != self.layers * self.directions * each or len(shapes[1] or ()) != 2:
            raise ShapeError(f"{len(shapes)} weights for {self.layers} layers, {self.directions} directions")
        assert shapes[1] is not None
        hidden = shapes[1][1]
        rows = self.gates * hidden
        for index in range(self.layers * self.directions):
            width = features if index < self.directions else hidden * self.directions
            expected = [(rows, width), (rows, hidden), (rows,), (rows,)][:each]
            if shapes[index * each : (index + 1) * each] != expected:
                raise ShapeError(f"the weights of layer {index // self.directions} are not {expected}")
        return hidden


@operator("rnn")
@dataclass(frozen=True)
class Rnn(Recurrent):
    """Elman network with tanh, as `torch.nn.RNN`."""

    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        (state,) = states
        return torch.rnn_tanh(
            x, state, weights, self.bias, self.layers, 0.0, False, self.bidirectional, self.batch_first
        )


@operator("gru")
@dataclass(frozen=True)
class Gru(Recurrent):
    """Gated recurrent unit, as `torch.nn.GRU`."""

    @property
    def gates(self) -> int:
        return 3

    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        (state,) = states
        return torch.gru(
            x, state, weights, self.bias, self.layers, 0.0, False, self.bidirectional, self.batch_first
        )


@operator("lstm")
@dataclass(frozen=True)
class Lstm(Recurrent):
    """Long short-term memory, as `torch.nn.LSTM` without projection. Results: y, final state, final cell."""

    @property
    def gates(self) -> int:
        return 4

    @property
    def states(self) -> int:
        return 2

    def scan(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.lstm(
            x, states, weights, self.bias, self.layers, 0.0, False, self.bidirectional, self.batch_first
        )


@lowers("rnn_tanh.input")
def _lower_rnn(call: AtenCall) -> tuple[Value, ...] | None:
    return _emit(call, Rnn, (call.value("hx"),))


@lowers("gru.input")
def _lower_gru(call: AtenCall) -> tuple[Value, ...] | None:
    return _emit(call, Gru, (call.value("hx"),))


@lowers("lstm.input")
def _lower_lstm(call: AtenCall) -> tuple[Value, ...] | None:
    return _emit(call, Lstm, call.values("hx"))


def _emit(call: AtenCall, kind: type[Rnn | Gru | Lstm], states: Sequence[Value]) -> tuple[Value, ...] | None:
    x, weights = call.value("input"), call.values("params")
    op = kind(call["num_layers"], call["has_biases"], call["bidirectional"], call["batch_first"])
    projects = len(weights) != op.layers * op.directions * (4 if op.bias else 2)
    if projects or (call["train"] and call["dropout"]) or x.type.rank != 3:
        return None
    return call.emit_many(op, x, *(_absent_when_zero(call, state) for state in states), *weights)


def _absent_when_zero(call: AtenCall, state: Value) -> Value | None:
    """The graph then takes other batches too."""
    tensor = call.constant_tensor(state)
    return None if tensor is not None and not tensor.any() else state
