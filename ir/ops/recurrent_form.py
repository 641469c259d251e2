"""Recurrent layers on integers: one layer in one direction, step by step. The weights have 8 bits or fewer and a scale
for each row; hidden state, gates and cell have 16 bits.

Both products of a step have separate accumulators, which are requantized to the scale of the gates:

    p = requant(b_x + W_x (x - zero point), multiplier_x, shift_x),   q = requant(b_h + W_h h, multiplier_h, shift_h)

    RNN    h' = tanh(sat(p + q)),   h' = relu(sat(p + q)) in the scale of the state
    GRU    r, z = sigmoid(sat(p + q)),   u = tanh(sat(sat(p_n) + half(r * sat(q_n)))),   h' = u + half(z * (h - u))
    LSTM   i, f, o = sigmoid(sat(p + q)),   u = tanh(sat(p + q))
           c' = sat(half(f * c + ((i * u) >> (15 - n)))),   h' = half(o * tanh(sat(c' << (12 - n))))
    half(v) = (v + 2^14) >> 15,   sat saturates to 16 bits

Operands of sigmoid have steps of 2^-11, those of tanh 2^-12, their results and the state 2^-15, the cell 2^-n with n
from 0 to 12. Both functions are interpolated between the entries of a table (`interpolation`).

A projection rescales half(o * tanh(...)) to the scale of the state: h' = sat(requant(W_p half(...), multiplier,
shift)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import Requant, check_int32, requant
from ..encoding import Encoding
from ..errors import OverflowBoundError
from ..interpolation import interpolate, places
from .accumulate import FixedPoint, fits_int32, prove_accumulator

STATE_BITS = 16
UNIT = Encoding((2.0**-15,), bits=STATE_BITS)
"""Encoding of values between -1 and 1: results of sigmoid and tanh, and the states computed from them."""

SIGMOID_STEP, TANH_STEP = 2.0**-11, 2.0**-12
FINEST_CELL = 12  # fraction bits


@dataclass(frozen=True)
class Product:
    """Requantization of a matrix product: a multiplier for each row, one left shift for all."""

    multipliers: tuple[int, ...]
    shift: int
    zero_point: int

    @staticmethod
    def of(x: Encoding, weight: Encoding, steps: Sequence[float]) -> Product:
        """Requantization of the products of each row to its step; OverflowBoundError if none exists."""
        scales = list(weight.scale) if weight.axis is not None else [weight.scale[0]] * len(steps)
        factors = [x.scale[0] * scale / step for scale, step in zip(scales, steps, strict=True)]
        shift = Requant.of(max(factors)).shift
        multipliers = tuple(round(Fraction(factor) * (1 << (32 - shift))) for factor in factors)
        return Product(multipliers, shift, x.zero_point[0])

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of integers `x` [..., in] with `weight` [rows, in], requantized but not saturated."""
        acc = functional.linear((x - self.zero_point).double(), weight.double()).to(torch.int64)
        acc = check_int32(acc if bias is None else acc + bias, "an accumulator")
        return requant(acc, torch.tensor(self.multipliers), self.shift)

    def prove(self, x: Encoding, weight: Tensor, bias: Tensor | None) -> int:
        """Largest accumulator over all inputs; OverflowBoundError if it could exceed int32 after its left shift.

        The requantized result is below 2^30, so that two products can be added.
        """
        shifts = (self.shift,) * len(self.multipliers)
        fixed = FixedPoint(self.multipliers, shifts, 0, 0, 0)
        bound = prove_accumulator(weight, bias, fixed, x=x)
        if not fits_int32(bound, fixed):
            raise OverflowBoundError(f"a recurrent layer can reach an accumulator of {int(bound.max()):,}")
        return int(bound.max())


@dataclass(frozen=True)
class RecurrentForm:
    """Numbers of the integer form of one layer in one direction.

    `update` is the state update: "rnn_tanh", "rnn_relu", "gru" or "lstm". `products` are those with the input, with
    the state, and of a projection. `cell_bits` are the fraction bits of an LSTM's cell.
    """

    update: str
    products: tuple[Product, ...]
    cell_bits: int = FINEST_CELL

    def apply(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Sequence of states [t, n, width] for x [t, n, in], and the final states; `states` are the initial ones, [n,
        ...].
        """
        step, (of_input, of_state, *projections) = _UPDATES[self.update], self.products
        from_input = of_input.apply(x, weights[0], biases[0])
        state, *cell = states
        sequence = []
        for given in from_input:
            from_state = of_state.apply(state, weights[1], biases[1])
            state, *cell = step(self, given, from_state, state, *cell)
            for projection in projections:
                state = saturate(projection.apply(state, weights[2], None))
            sequence.append(state)
        return (torch.stack(sequence), state, *cell)

    def prove(
        self, x: Encoding, state: Encoding, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> int:
        """Largest accumulator over all inputs and states; OverflowBoundError if one could exceed int32."""
        read = zip(self.products, (x, state, UNIT), weights, (*biases, None), strict=False)
        return max(product.prove(own, weight, bias) for product, own, weight, bias in read)


def saturate(x: Tensor) -> Tensor:
    """Saturates to 16 bits."""
    return x.clamp(UNIT.qmin, UNIT.qmax)


@cache
def sigmoid_table() -> Tensor:
    """Integers (int64) of 1 / (1 + exp(-x)) for operands with steps of 2^-11."""
    return _table(torch.sigmoid, SIGMOID_STEP)


@cache
def tanh_table() -> Tensor:
    """Integers (int64) of tanh(x) for operands with steps of 2^-12."""
    return _table(torch.tanh, TANH_STEP)


def _table(function: Callable[[Tensor], Tensor], step: float) -> Tensor:
    return (function(places().double() * step) * 2**15).round().clamp(-UNIT.qmax, UNIT.qmax).to(torch.int64)


def cell_encoding(largest: float) -> Encoding:
    """The finest encoding of an LSTM's cell that represents magnitudes up to `largest`, or the coarsest encoding if
    none does.
    """
    bits = FINEST_CELL
    while bits and largest * 2**bits > UNIT.qmax:
        bits -= 1
    return Encoding((2.0**-bits,), bits=STATE_BITS)


def _half(x: Tensor) -> Tensor:
    return (check_int32(x, "a product of gates") + (1 << 14)) >> 15


def _rnn_tanh(form: RecurrentForm, given: Tensor, own: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    return (interpolate(tanh_table(), saturate(given + own)),)


def _rnn_relu(form: RecurrentForm, given: Tensor, own: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    return (saturate(given + own).clamp(min=0),)


def _gru(form: RecurrentForm, given: Tensor, own: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    width = state.shape[-1]
    reset, keep = interpolate(sigmoid_table(), saturate((given + own)[..., : 2 * width])).chunk(2, -1)
    inner = _half(reset * saturate(own[..., 2 * width :]))
    fresh = interpolate(tanh_table(), saturate(saturate(given[..., 2 * width :]) + inner))
    return (fresh + _half(keep * (state - fresh)),)


def _lstm(form: RecurrentForm, given: Tensor, own: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
    enter, keep, fresh, leave = saturate(given + own).chunk(4, -1)
    enter, keep, leave = (interpolate(sigmoid_table(), gate) for gate in (enter, keep, leave))
    added = (enter * interpolate(tanh_table(), fresh)) >> (15 - form.cell_bits)
    cell = saturate(_half(keep * cell + added))
    shown = interpolate(tanh_table(), saturate(cell << (FINEST_CELL - form.cell_bits)))
    return _half(leave * shown), cell


_UPDATES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
    "gru": _gru,
    "lstm": _lstm,
}
