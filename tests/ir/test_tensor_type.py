"""Types: what they refuse, and how integers stand for reals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import DType, Quantization, ShapeError, TensorType, element_bytes

BITS = (2, 4, 8, 16)


@st.composite
def grids(draw: st.DrawFn) -> Quantization:
    bits = draw(st.sampled_from(BITS))
    zero = draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    return Quantization((draw(st.floats(2.0**-20, 2.0**10)),), (zero,), bits)


@given(grids())
def test_every_integer_survives_its_real(grid: Quantization) -> None:
    integers = torch.arange(grid.qmin, grid.qmax + 1)
    assert torch.equal(grid.quantize(grid.dequantize(integers)), integers)
    assert torch.equal(grid.quantize(grid.dequantize(integers, dtype=torch.float64)), integers)


@given(grids(), st.floats(allow_nan=False, width=32))
def test_quantization_saturates_and_is_within_half_a_step(grid: Quantization, real: float) -> None:
    q = int(grid.quantize(torch.tensor(real, dtype=torch.float64)))
    assert grid.qmin <= q <= grid.qmax
    low, high = ((n - grid.zero_point[0]) * grid.scale[0] for n in (grid.qmin, grid.qmax))
    nearest = (q - grid.zero_point[0]) * grid.scale[0]
    assert abs(nearest - min(max(real, low), high)) <= grid.scale[0] * 0.5000001


def test_halves_are_rounded_away_from_zero_and_nan_gives_the_zero_point() -> None:
    grid = Quantization((1.0,), (3,))
    reals = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.49, float("nan"), float("inf"), -float("inf")])
    assert grid.quantize(reals).tolist() == [4, 2, 5, 1, 3, 3, 127, -128]


def test_scales_lie_along_their_axis() -> None:
    grid = Quantization((1.0, 10.0), (0,), 8, 1)
    assert grid.dequantize(torch.ones(2, 2, dtype=torch.int64)).tolist() == [[1.0, 10.0], [1.0, 10.0]]


def test_groups_divide_each_channel_in_order() -> None:
    grid = Quantization((1.0, 2.0, 3.0, 4.0), (0,), 4, 0, 2)
    TensorType((2, 4), DType.I8, grid)
    assert grid.dequantize(torch.ones(2, 4)).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    moved = Quantization((1.0, 2.0, 3.0, 4.0), (0,), 4, 1, 2)
    assert moved.dequantize(torch.ones(4, 2)).tolist() == [[1, 3], [1, 3], [2, 4], [2, 4]]


REFUSED = [
    ({"scale": (1.0,), "bits": 3}, "3 storage bits; the choices are 2, 4, 8, 16, 32"),
    ({"scale": ()}, "a scale must be a positive finite number"),
    ({"scale": (0.0,)}, "a scale must be a positive finite number"),
    ({"scale": (float("nan"),)}, "a scale must be a positive finite number"),
    ({"scale": (float("inf"),)}, "a scale must be a positive finite number"),
    ({"scale": (1.0, 1.0, 1.0), "zero_point": (0, 0), "axis": 0}, "2 zero points for 3 scales"),
    ({"scale": (1.0,), "zero_point": (1 << 21,)}, "a zero point lies outside -1048576..1048576"),
    ({"scale": (1.0, 2.0)}, "several scales or a group size need an axis"),
    ({"scale": (1.0,), "group_size": 4}, "several scales or a group size need an axis"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_quantization_that_means_nothing_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Quantization(**fields)


MISFITS = [
    ((2, 3), DType.I8, Quantization((1.0, 1.0), axis=2), "axis 2 outside a tensor of rank 2"),
    ((2, 3), DType.I8, Quantization((1.0, 1.0), axis=1), "2 scales for axis 1 of"),
    (
        (2, 3),
        DType.I8,
        Quantization((1.0, 1.0), axis=0, group_size=2),
        "groups of 2 do not divide 3 elements",
    ),
    ((2, 3), DType.I16, Quantization((1.0,)), "8-bit values are kept in i8, not in i16"),
    ((2, -3), DType.F32, None, "negative size"),
]


@pytest.mark.parametrize(("shape", "dtype", "grid", "message"), MISFITS)
def test_type_that_its_quantization_does_not_fit_is_refused(
    shape: tuple[int, ...], dtype: DType, grid: Quantization | None, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        TensorType(shape, dtype, grid)


def test_element_types_of_torch_are_known_or_refused() -> None:
    assert all(DType.of(dtype.torch) is dtype for dtype in DType)
    with pytest.raises(ShapeError, match=r"torch\.complex32 is not supported"):
        DType.of(torch.complex32)


def test_storage_below_eight_bits_shares_bytes() -> None:
    assert TensorType((3, 3)).storage_bytes == 36
    assert TensorType((3, 3)).quantized(Quantization((1.0,), bits=4)).storage_bytes == 5
    assert TensorType((3, 3)).quantized(Quantization((1.0,), bits=2)).storage_bytes == 3
    assert TensorType((3, 3)).quantized(Quantization((1.0,), bits=16)).storage_bytes == 18


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.ones(3).as_strided((1,), (0,)),
        torch.ones(1).expand(4),
        torch.tensor(2.5),
        torch.ones(0, 3),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
    ],
)
def test_elements_are_those_of_a_plain_copy(tensor: torch.Tensor) -> None:
    plain = torch.tensor(tensor.tolist(), dtype=tensor.dtype)
    assert element_bytes(tensor) == element_bytes(plain)
    assert len(element_bytes(tensor)) == tensor.numel() * tensor.element_size()
