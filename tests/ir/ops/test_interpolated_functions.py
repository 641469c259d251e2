"""Functions of operands of 16 bits: on a straight line between the entries of a table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import Encoding, ShapeError, TensorType
from fxpress.ir.interpolation import ENTRIES, interpolate, places
from fxpress.ir.ops.activation import Elu, Gelu, Hardswish, LeakyRelu, Sigmoid, Silu, Tanh, Threshold
from fxpress.ir.ops.elementary import Log, Sqrt

SMOOTH = [Sigmoid(), Tanh(), Gelu(), Gelu("tanh"), Silu(), Elu(), Hardswish(), LeakyRelu(0.1)]
X = Encoding((8.0 / 32768,), bits=16)


def typed(encoding: Encoding) -> TensorType:
    return TensorType((4,)).quantized(encoding)


def exact(op, qx: Encoding, qy: Encoding) -> torch.Tensor:
    integers = torch.arange(qx.qmin, qx.qmax + 1)
    return qy.quantize(op.reference(qx.dequantize(integers, dtype=torch.float64)))


@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.name)
def test_functions_are_within_steps_of_16_bits_and_one_step_of_8(op):
    for bits, most in ((16, 16), (8, 1)):
        largest = float(op.reference(torch.tensor([-8.0, 8.0], dtype=torch.float64)).abs().max())
        qy = Encoding((largest / (1 << (bits - 1)),), bits=bits)
        op.check_quantized([typed(X)], [typed(qy)])
        found = op.table(typed(X), typed(qy))
        assert len(found) == X.qmax - X.qmin + 1
        assert found.min() >= qy.qmin and found.max() <= qy.qmax
        assert (found - exact(op, X, qy)).abs().max() <= most


@given(st.sampled_from(SMOOTH), st.floats(-14, -6), st.floats(-14, -2), st.integers(-128, 127))
def test_an_operand_of_16_bits_is_never_worse_than_of_8(op, fine, coarse, zero):
    qx = Encoding((2.0**fine,), bits=16)
    narrow = Encoding((2.0 ** (fine + 8),), bits=8)
    qy = Encoding((2.0**coarse,), zero_point=(zero,), bits=8)
    integers = torch.arange(qx.qmin, qx.qmax + 1)
    rounded = narrow.quantize(qx.dequantize(integers, dtype=torch.float64))
    by_byte = op.table(typed(narrow), typed(qy))[rounded - narrow.qmin]
    wanted = exact(op, qx, qy)
    off = (op.table(typed(qx), typed(qy)) - wanted).abs().max()
    assert off <= max(1, int((by_byte - wanted).abs().max()))


def test_what_jumps_or_is_not_defined_has_no_form_on_16_bits():
    y = typed(Encoding((8.0 / 32768,), bits=16))
    with pytest.raises(ShapeError, match="jumps"):
        Threshold(0.5, -4.0).check_quantized([typed(X)], [y])
    for op in (Sqrt(), Log()):
        with pytest.raises(ShapeError, match="not defined"):
            op.check_quantized([typed(X)], [y])
    Threshold(0.5, -4.0).check_quantized([typed(Encoding((0.05,), bits=8))], [y])


def test_entries_are_met_and_lines_lie_between_them():
    table = torch.randint(-(1 << 15), 1 << 15, (ENTRIES,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate(table, places()[:-1]), table[:-1])
    x = torch.arange(-(1 << 15), 1 << 15)
    low, high = table[:-1].repeat_interleave(128), table[1:].repeat_interleave(128)
    line = low + (high - low) * ((x + (1 << 15)) % 128).double() / 128
    assert (interpolate(table, x) - line).abs().max() <= 0.5
