"""Recurrent layers on integers on Cortex-M with DSP: four rows at a time, of the products with the input and the state.

Input and state of a step are expanded to words of two numbers of 16 bits. Constants of four rows, as 32-bit words:
four biases, for every step of four inputs a word of each row, and four multipliers, for the input, then for the state.
Rows of a GRU's third gate begin a separate group of four. A projection follows, with one product.

Weights of 8 bits are paired: a word has two of each of two rows, and is multiplied as it is, which gives 256 times the
second sum plus the first, and once more with the second row's alone (`row_pairs`). Where weights are coded, words of a
single row take fewer bits, so that this form is offered too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir.ops.recurrent_form import RecurrentForm
from ...plan.layout import contiguous
from .. import recurrent_numbers as numbers
from ..base import AnyArray, Offer, Offers, Site, Work, kernel, offer
from ..low_bits import BYTE
from ..recurrent_numbers import Sizes, StepsContext, fours
from .expand import Expansion, plan_expansion
from .gemm import tap_words
from .row_pairs import pair_biases, pair_words

_ROWS = 4
_REGISTERS = (("r2", "r8"), ("r3", "r9"), ("r4", "r10"), ("r5", "r11"))  # of sums and of multipliers
_STRAIGHT = 16  # number of unrolled steps
_UNROLL = 8
_STEPS = {
    (8, True): ("FXP_STEP_1X4_PAIRED", 14.0),
    (8, False): ("FXP_STEP_1X4", 18.0),
    (16, False): ("FXP_STEP_1X4_INT16", 11.0),
}
"""Macro of a step of four inputs and four rows, and its instructions, by the bits of weights and if they are paired."""
_PART = 5.0  # instructions that take the sums of pairs of rows apart
_PAIRED = "paired"


@dataclass(frozen=True)
class ProductContext:
    """A product with four rows: its name, the expansion of its operand, and the form of its steps."""

    name: str
    expansion: Expansion
    loops: int
    shift: int
    weight_bits: int
    paired: bool

    @property
    def registers(self) -> tuple[tuple[str, str], ...]:
        """Registers of each sum and of its multiplier."""
        return _REGISTERS

    def shifted(self, sum: str) -> str:
        """A sum, shifted to the left if its requantization requires it."""
        return f"fxp_shift_left({sum}, {self.shift})" if self.shift else sum

    @property
    def single_steps(self) -> range:
        """The steps before the loop."""
        return range(self.expansion.steps - self.loops * _UNROLL)

    @property
    def looped_steps(self) -> range:
        """The steps of an iteration of the loop."""
        return range(_UNROLL)

    @property
    def columns(self) -> int:
        """Words of the expanded operand."""
        return self.expansion.words

    @property
    def step(self) -> str:
        """Macro of a step."""
        return _STEPS[self.weight_bits, self.paired][0]

    @property
    def instructions(self) -> float:
        """Instructions of the steps for four rows."""
        return _STEPS[self.weight_bits, self.paired][1] * self.expansion.steps

    @property
    def is_wide(self) -> bool:
        """True if weights have 16 bits."""
        return self.weight_bits > BYTE

    @property
    def words(self) -> int:
        """Words of the weights of four rows."""
        return _ROWS * self.expansion.steps * self.weight_bits // BYTE


@dataclass(frozen=True)
class DspContext(StepsContext):
    """Additional template context: the products, the third of which is that of a projection."""

    products: tuple[ProductContext, ...]


@kernel("rnn", "gru", "lstm")
def recurrent(site: Site) -> Offers:
    """One layer in one direction, on integers."""
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    if not site.is_integer:
        return "the DSP kernels compute on int8 and int16"
    if refusal := numbers.refusal(site):
        return refusal
    forms = (True, False) if numbers.sizes(site).weight_bits == BYTE else (False,)
    return tuple(_offer(site, paired=paired) for paired in forms)


def _offer(site: Site, *, paired: bool) -> Offer:
    form = numbers.form_of(site)
    own = numbers.sizes(site)
    products = _products(own, form, paired=paired)
    words = _words(own, products)
    steps = numbers.steps_context(
        site,
        form,
        gates=f"(int16_t *)(scratch + {_columns(products)})",
        gate_arguments="constants, scratch, gates",
        projection_arguments=f"constants + {words[0]}, scratch, gates",
    )
    context = DspContext(
        **{name: getattr(steps, name) for name in steps.__dataclass_fields__}, products=products
    )
    updates = own.steps * own.batch
    return offer(
        site,
        "dsp/recurrent.c.j2",
        context,
        _work(own, products, updates),
        kernel=f"{site.node.op.name}_dsp",
        reads=numbers.layouts(site),
        writes=tuple(contiguous(v.type.shape) for v in site.node.outputs),
        operands={"x": site.index("x"), **numbers.states(site)},
        results=("y", "state", "cell")[: 1 + numbers.operator_of(site).states],
        constants={"constants": 4 * sum(words)},
        pack=lambda: (_packed(site, own, products),),
        tables=numbers.tables(own),
        scratch="uint32_t",
        scratch_bytes=4 * _columns(products) + 2 * own.stored,
        headers=numbers.HEADERS,
        variant=_PAIRED if paired else "",
    )


def _products(own: Sizes, form: RecurrentForm, *, paired: bool) -> tuple[ProductContext, ...]:
    wide = (own.x_type == "int16_t", True, True)
    read = zip(("input", "state", "projection"), (own.inputs, own.width, own.hidden), wide, strict=True)
    found = []
    for (name, count, is_wide), product in zip(read, form.products, strict=False):
        expansion = plan_expansion(1, 1, count, count, interleaved=1, wide=is_wide, summed=paired)
        loops = 0 if expansion.steps <= _STRAIGHT else expansion.steps // _UNROLL
        found.append(ProductContext(name, expansion, loops, product.shift, own.weight_bits, paired))
    return tuple(found)


def _columns(products: tuple[ProductContext, ...]) -> int:
    both = products[0].columns + products[1].columns
    return max([both, *(product.columns for product in products[2:])])


def _words(own: Sizes, products: tuple[ProductContext, ...]) -> tuple[int, int]:
    """Words of the constants of the gates, and of a projection."""
    gates = own.groups * sum(2 * _ROWS + product.words for product in products[:2])
    return gates, sum(fours(own.width) // _ROWS * (2 * _ROWS + product.words) for product in products[2:])


def _packed(site: Site, own: Sizes, products: tuple[ProductContext, ...]) -> AnyArray:
    arrays, rows = numbers.matrices(site), numbers.row_numbers(site, numbers.form_of(site))
    read = list(zip(products, arrays, rows, strict=True))
    parts = [_groups(read[:2], slice(low, high)) for low, high in own.ranges]
    parts += [_groups([projection], slice(None)) for projection in read[2:]]
    return np.concatenate(parts)


def _groups(read: list[tuple[ProductContext, AnyArray, tuple[AnyArray, AnyArray]]], rows: slice) -> AnyArray:
    """Constants of rows of some products."""
    joined = [
        part
        for product, weights, (bias, multipliers) in read
        for part in (
            pair_biases(_grouped(bias[rows])) if product.paired else _grouped(bias[rows]),
            _grouped_words(product, weights[rows]),
            _grouped(multipliers[rows]),
        )
    ]
    return np.concatenate(joined, axis=1).reshape(-1)


def _grouped(values: AnyArray) -> AnyArray:
    """Numbers of rows [groups, 4], with zeros for missing rows."""
    filled = np.zeros(fours(len(values)), np.int32)
    filled[: len(values)] = values
    return filled.reshape(-1, _ROWS)


def _grouped_words(product: ProductContext, weights: AnyArray) -> AnyArray:
    """Weights of rows, [groups, words of four rows]: the words of each row for every step."""
    order = np.array(product.expansion.order)
    taps = np.where(order >= 0, weights[:, np.maximum(order, 0)], 0)
    if product.paired:
        return pair_words(taps, together=_ROWS)
    return tap_words(taps, together=_ROWS, bits=product.weight_bits)


def _work(own: Sizes, products: tuple[ProductContext, ...], updates: int) -> Work:
    steps = own.groups * sum(product.instructions for product in products[:2])
    steps += sum(fours(own.width) // _ROWS * product.instructions for product in products[2:])
    expansion = sum(product.expansion.instructions for product in products)
    around = 50.0 + 2 * _PART * products[0].paired
    return Work(
        steps * updates,
        (around * own.groups + expansion) * updates,
        10.0 * own.functions * updates,
        900,
    )
