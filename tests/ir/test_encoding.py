"""Types: refusals, and integers that represent reals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import DType, Encoding, ShapeError, TensorType

BITS = (2, 4, 8, 16)


@st.composite
def grids(draw: st.DrawFn) -> Encoding:
    bits = draw(st.sampled_from(BITS))
    zero = draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    return Encoding((draw(st.floats(2.0**-20, 2.0**10)),), (zero,), bits)


@given(grids())
def test_every_integer_survives_its_real(grid: Encoding) -> None:
    integers = torch.arange(grid.qmin, grid.qmax + 1)
    assert torch.equal(grid.quantize(grid.dequantize(integers)), integers)
    assert torch.equal(grid.quantize(grid.dequantize(integers, dtype=torch.float64)), integers)


@given(grids(), st.floats(allow_nan=False, width=32))
def test_quantization_saturates_and_is_within_half_a_step(grid: Encoding, real: float) -> None:
    q = int(grid.quantize(torch.tensor(real, dtype=torch.float64)))
    assert grid.qmin <= q <= grid.qmax
    low, high = ((n - grid.zero_point[0]) * grid.scale[0] for n in (grid.qmin, grid.qmax))
    nearest = (q - grid.zero_point[0]) * grid.scale[0]
    assert abs(nearest - min(max(real, low), high)) <= grid.scale[0] * 0.5000001


def test_halves_are_rounded_away_from_zero_and_nan_gives_the_zero_point() -> None:
    grid = Encoding((1.0,), (3,))
    reals = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.49, float("nan"), float("inf"), -float("inf")])
    assert grid.quantize(reals).tolist() == [4, 2, 5, 1, 3, 3, 127, -128]


def test_scales_lie_along_their_axis() -> None:
    grid = Encoding((1.0, 10.0), (0,), 8, 1)
    assert grid.dequantize(torch.ones(2, 2, dtype=torch.int64)).tolist() == [[1.0, 10.0], [1.0, 10.0]]


def test_groups_divide_each_channel_in_order() -> None:
    grid = Encoding((1.0, 2.0, 3.0, 4.0), (0,), 4, 0, 2)
    TensorType((2, 4), DType.I8, grid)
    assert grid.dequantize(torch.ones(2, 4)).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    moved = Encoding((1.0, 2.0, 3.0, 4.0), (0,), 4, 1, 2)
    assert moved.dequantize(torch.ones(4, 2)).tolist() == [[1, 3], [1, 3], [2, 4], [2, 4]]


REFUSED = [
    ({"scale": (1.0,), "bits": 7}, "7 storage bits; the choices are 2, 3, 4, 5, 6, 8, 16, 32"),
    ({"scale": ()}, "a scale must be a finite number other than 0"),
    ({"scale": (0.0,)}, "a scale must be a finite number other than 0"),
    ({"scale": (float("nan"),)}, "a scale must be a finite number other than 0"),
    ({"scale": (float("inf"),)}, "a scale must be a finite number other than 0"),
    ({"scale": (-1.0,)}, "the scale of a whole tensor must be positive"),
    ({"scale": (1.0, 1.0, 1.0), "zero_point": (0, 0), "axis": 0}, "2 zero points for 3 scales"),
    ({"scale": (1.0,), "zero_point": (1 << 21,)}, "a zero point is outside -1048576..1048576"),
    ({"scale": (1.0, 2.0)}, "several scales or a group size need an axis"),
    ({"scale": (1.0,), "group_size": 4}, "several scales or a group size need an axis"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_quantization_that_means_nothing_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Encoding(**fields)


NORMAL = (-1.0, -0.5, 0.0, 0.5, 1.0)


@given(st.lists(st.floats(-4, 4, width=32), min_size=8, max_size=8))
def test_codes_of_a_codebook_give_the_nearest_level_times_the_scale_of_their_group(
    reals: list[float],
) -> None:
    book = Encoding((1.0, 2.0), bits=4, axis=0, group_size=4, levels=NORMAL)
    weight = torch.tensor(reals).view(2, 4)
    codes = book.quantize(weight)
    assert codes.min() >= book.qmin == 0 and codes.max() <= book.qmax == 4
    levels = torch.tensor(NORMAL) * torch.tensor([1.0, 2.0])[:, None]
    nearest = (weight[..., None] - levels[:, None]).abs().amin(-1)
    assert torch.equal((book.dequantize(codes) - weight).abs(), nearest)
    assert TensorType((2, 4)).quantized(book).dtype is DType.U8


def test_a_codebook_that_is_the_integers_stands_for_the_same_reals() -> None:
    integers, weight = Encoding((0.1,), bits=4), torch.linspace(-1, 1, 101)
    book = Encoding((0.1,), bits=4, levels=range(-8, 8))
    assert torch.equal(book.dequantize(book.quantize(weight)), integers.dequantize(integers.quantize(weight)))


REFUSED_CODEBOOKS = [
    ({"levels": (0.0, 1.0), "bits": 16}, "codes of 16 bits; a codebook takes"),
    ({"levels": range(17), "bits": 4}, "17 levels for codes of 4 bits"),
    ({"levels": ()}, "0 levels for codes of 8 bits"),
    ({"levels": (1.0, 0.0)}, "finite and ascend"),
    ({"levels": (0.0, float("nan"))}, "finite and ascend"),
    ({"levels": (0.0, 1.0), "zero_point": (1,)}, "no zero point beside its levels"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED_CODEBOOKS)
def test_codebook_that_means_nothing_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Encoding((1.0,), **fields)


def test_scales_keep_the_element_type_in_which_they_are_stored() -> None:
    scales = torch.rand(6) + 0.5
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        encoding = Encoding(scales.to(dtype), bits=4, axis=0, group_size=2)
        assert encoding.scale.dtype.torch is dtype
        assert encoding.parameter_bytes == 6 * dtype.itemsize
        step, _ = encoding.expand((3, 4))
        assert torch.equal(step[:, ::2], scales.to(dtype).double().view(3, 2))
    assert Encoding((1.0, 2.0), torch.tensor([3, 4], dtype=torch.int8), 4, 0).parameter_bytes == 18


def test_channels_are_taken_with_their_scales() -> None:
    grid = Encoding((1.0, 2.0, 3.0), axis=0)
    assert list(grid.of_channels(torch.tensor([2, 0])).scale) == [3.0, 1.0]
    assert Encoding((1.0,)).of_channels(torch.tensor([2, 0])) == Encoding((1.0,))
    with pytest.raises(ShapeError, match="one scale per channel"):
        Encoding((1.0, 2.0), axis=0, group_size=2).of_channels(torch.tensor([0]))
