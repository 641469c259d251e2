"""Norms on integers with contiguous groups, on Cortex-M with DSP: statistics of two to four elements at a time.

Weight and bias of an element are adjacent, and the power of two by which an element is shifted is folded into them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .....ir import DType
from .....ir.ops.norm import RowNorm
from .....ir.ops.norm_form import NormForm
from ...write.literal import c_type, integer
from ..base import Call, Constant, Offer, Offers, Site, Work, call, kernel
from ..layouts import dense_at_hand
from ..nest import Nest, nest
from ..rounding import saturated
from .epilogue import HEADERS

_PATH = "dsp/norm.c.j2"
_BLOCKS = (16, 8, 4)  # elements of a turn of the loop, as few as leave less than four
_WORDS = 4  # of parameters, loaded at once


@dataclass(frozen=True)
class DspContext:
    """Template context.

    `each` is the number of parameters of an element; `weight` and `bias` are one for all, if there is one; `value` is
    the C expression of a result.
    """

    title: str
    outer: Nest
    x: str
    y: str
    count: int
    wide: bool
    centred: bool
    doubled_spread: int
    missing: int
    each: int
    weight: str
    bias: str
    value: str

    @property
    def moments(self) -> str:
        """The function that sums elements and their squares."""
        return "fxp_moments16" if self.wide else "fxp_moments8"

    @property
    def block(self) -> int:
        """Elements of an iteration of the loop that computes results."""
        return next(block for block in _BLOCKS if self.count % block < 4)

    @property
    def divides(self) -> bool:
        """True if elements of some groups are shifted to the right."""
        return self.missing > 0

    def turns(self, block: int) -> int:
        """Iterations over blocks of `block` elements."""
        return self.count // block

    def loads(self, element: int) -> str:
        """Name of the four words of parameters that begin with those of an element; empty if none do."""
        begins = self.each and element * self.each % _WORDS == 0
        return f"p{element * self.each // _WORDS}" if begins else ""

    def parameters(self, element: int) -> tuple[str, str]:
        """C expressions of weight and bias of an element of a turn, in the words that `loads` names."""
        words = [f"p{word // _WORDS}.{'abcd'[word % _WORDS]}" for word in self._places(element)]
        return self._both(words)

    def last_parameters(self, element: int) -> tuple[str, str]:
        """The same of an element after the turns."""
        return self._both([f"p[{word}]" for word in self._places(element)])

    def _places(self, element: int) -> range:
        return range(element * self.each, (element + 1) * self.each)

    def _both(self, words: list[str]) -> tuple[str, str]:
        return self.weight or words[0], self.bias or words[-1]


@kernel("layer_norm", "rms_norm")
def rows(site: Site) -> Offers:
    """Statistics over the last dimensions, which are contiguous."""
    op = site.node.op
    assert isinstance(op, RowNorm)
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    if not site.is_integer or any(
        t.dtype not in (DType.I8, DType.I16) for t in (site.type("x"), site.output)
    ):
        return "the DSP norm computes on int8 and int16"
    layout, shape = dense_at_hand(site), site.output.shape
    dims = op.dimensions(len(shape))
    if dims != tuple(range(len(shape) - len(dims), len(shape))) or len(dims) == len(shape):
        return "the DSP norm supports statistics over the last dimensions"
    strides = layout.strides(shape)
    inner = nest([shape[d] for d in dims], [strides[d] for d in dims])
    if len(inner.loops) > 1 or (inner.steps[0] and inner.steps[0] != (1,)):
        return "the elements of a group are not contiguous"
    if not all(site.is_constant(name) for name in op.real_operands if site.has(name)):
        return "weight and bias must be constants"
    rest = [d for d in range(len(shape)) if d not in dims]
    outer = nest([shape[d] for d in rest], [strides[d] for d in rest])
    arrays = [name for name in op.real_operands if site.has(name) and site.type(name).numel > 1]
    numbers = 16 if op.is_centred else 20
    sizes = ({"parameters": sum(map(site.array_bytes, arrays))} if arrays else {}) | {"numbers": numbers}
    count = op.groups_of(shape).count

    def build() -> tuple[Call, ...]:
        parameters = [
            torch.from_numpy(site.array(name)) if site.has(name) else None for name in op.real_operands
        ]
        form = op.form(site.type("x"), site.output, *parameters)
        constants = _constants(form, site.output_quantization.zero_point[0])
        assert {c.role: c.data.nbytes for c in constants} == sizes
        made = call(
            site,
            _PATH,
            _context(site, form, outer),
            {"x": "x"},
            constants=constants,
            headers=(*HEADERS, "moments.h"),
        )
        return (made,)

    return Offer(
        f"{op.name}_dsp",
        site.reads({"x": layout}),
        (layout,),
        Work(8.0 * site.output.numel, 0.0, 150.0 * site.output.numel / count, 500),
        (_PATH,),
        build,
        sizes,
        overwrites=(0,) if site.type("x").dtype is site.output.dtype else (),
    )


def _constants(form: NormForm, zero_point: int) -> tuple[Constant, ...]:
    """Weight and bias of each element in turn, and multiplier, zero points and epsilon."""
    arrays = [array.reshape(-1).numpy() for array in (form.weight, form.bias) if array.numel() > 1]
    words = [form.multiplier, zero_point, form.epsilon >> 32, form.epsilon & 0xFFFFFFFF, form.zero_point]
    numbers = np.array(words[: 4 if form.is_centred else 5], np.int64).astype(np.uint32).view(np.int32)
    found = (Constant("numbers", numbers),)
    if not arrays:
        return found
    return (Constant("parameters", np.stack(arrays, -1).reshape(-1).astype(np.int32)), *found)


def _context(site: Site, form: NormForm, outer: Nest) -> DspContext:
    y, arrays = site.output_quantization, (form.weight, form.bias)
    numbers = ["" if array.numel() > 1 else integer(int(array)) for array in arrays]
    op = site.node.op
    return DspContext(
        title=f"{op.name} of {site.output.numel // form.count} groups of {form.count} elements",
        outer=outer,
        x=c_type(site.type("x").dtype),
        y=c_type(site.output.dtype),
        count=form.count,
        wide=site.type("x").dtype is DType.I16,
        centred=form.is_centred,
        doubled_spread=2 * form.spread,
        missing=form.root_bits - form.spread,
        each=sum(array.numel() > 1 for array in arrays),
        weight=numbers[0],
        bias=numbers[1],
        value=saturated("fxp_scale(fxp_scale(%s, %s, %s), multiplier, zero)", y.qmin, y.qmax),
    )
