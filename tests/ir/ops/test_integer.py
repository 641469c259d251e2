"""Properties of integer forms in addition to small errors: bounds, padding, tables, exact sums."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fxpress.ir import Encoding, Graph, OverflowBoundError, TensorType, parse, run_integer, verify
from fxpress.ir.arithmetic import INT32_MAX
from fxpress.ir.ops.accumulate import FixedPoint, clamp_bounds, fits_int32, fixed_point, prove_accumulator
from fxpress.ir.ops.activation import Relu, Sigmoid
from fxpress.ir.ops.pool import AdaptiveAvgPool, AvgPool
from fxpress.ir.ops.resize import ResizeLinear, ResizeNearest
from fxpress.ir.ops.softmax import Softmax

X = Encoding((0.05,), (-3,))


def integers(*shape: int, seed: int = 0, low: int = -128, high: int = 127) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator)


def single(body: str, **params: torch.Tensor) -> Graph:
    """A graph of one quantized node."""
    return verify(
        parse(f"graph(%x: i8[1x2x4x4]<scale=0.05, zero=-3>) {{ {body} return y: %y }}", params=params)
    )


plain = FixedPoint((1 << 20,), (0,), 0, -128, 127)
rows = st.lists(st.integers(-127, 127), min_size=1, max_size=6)


@given(rows, st.integers(-(1 << 20), 1 << 20), st.integers(-128, 127))
def test_accumulator_bound_is_attained_by_adversarial_inputs(row: list[int], bias: int, zero: int) -> None:
    weight = torch.tensor([row])
    grid = Encoding((1.0,), (zero,))
    bound = int(prove_accumulator(weight, torch.tensor([bias]), plain, x=grid))
    reached = []
    for sign in (1, -1):
        worst = torch.where(weight * sign > 0, 127, -128)
        reached.append(abs(int(((worst - zero) * weight).sum()) + bias))
    folded = abs(bias - zero * sum(row)) + 128 * sum(map(abs, row))
    assert bound == max(*reached, folded)


def test_accumulator_that_could_leave_48_bits_is_refused_with_its_channel() -> None:
    weight = torch.tensor([[0, 0], [127, 127]], dtype=torch.int8)
    shifted = FixedPoint((1 << 30,), (32,), 0, -128, 127)
    with pytest.raises(OverflowBoundError, match="output channel 1 can reach an accumulator of"):
        prove_accumulator(weight, None, shifted, x=Encoding((1.0,), (-128,)))


def test_a_sum_fits_int32_only_with_its_left_shift() -> None:
    weight, shifted = torch.full((1, 1000), 127), FixedPoint((1 << 30,), (8,), 0, -128, 127)
    bound = prove_accumulator(weight, None, shifted, x=X)
    assert int(bound) * 256 > INT32_MAX > int(bound)
    assert fits_int32(bound, plain) and not fits_int32(bound, shifted)


def test_padding_of_a_convolution_is_the_zero_point() -> None:
    weight, x = integers(3, 2, 3, 3), integers(1, 2, 4, 4, seed=1).to(torch.int8)
    rest = "const %w: i8[3x2x3x3]<scale=0.01, zero=0> %y: i8[1x3x4x4]<scale=0.04, zero=5> = conv"
    padded = single(f"{rest}{{padding=(1, 1, 1, 1)}}(%x, %w)", w=weight.to(torch.int8))
    (y,) = run_integer(padded, [x])
    bare = parse(
        "graph(%x: i8[1x2x6x6]<scale=0.05, zero=-3>) { " + rest + "(%x, %w) return y: %y }",
        params={"w": weight.to(torch.int8)},
    )
    (expected,) = run_integer(verify(bare), [functional.pad(x, (1, 1, 1, 1), value=-3)])
    assert torch.equal(y, expected)


def test_pad_puts_in_the_zero_point_and_the_integer_nearest_to_another_value() -> None:
    x = torch.zeros(1, 2, 4, 4, dtype=torch.int8)
    text = "%y: i8[1x2x4x6]<scale=0.05, zero=-3> = pad{{padding=(1, 1), value={}}}(%x)"
    for value, byte in ((0.0, -3), (1.0, 17), (-100.0, -128), (float("inf"), 127)):
        (y,) = run_integer(single(text.format(value)), [x])
        assert y[0, 0, 0].tolist() == [byte, 0, 0, 0, 0, byte]


@given(st.integers(0, 99), st.integers(-128, 127), st.integers(1, 3), st.booleans())
def test_convolution_is_the_sum_that_it_says(seed: int, zero: int, stride: int, depthwise: bool) -> None:
    groups = 2 if depthwise else 1
    weight, x = integers(4, 2 // groups, 2, 3, seed=seed), integers(1, 2, 5, 6, seed=seed + 1)
    grid = Encoding((0.05,), (zero,))
    scales = tuple(0.01 * (c + 1) for c in range(4))
    sizes = ((5 - 2) // stride + 1, (6 - 3) // stride + 1)
    attributes = f"{{stride=({stride}, {stride}), groups={groups}}}"
    text = f"""graph(%x: i8[1x2x5x6]<scale=0.05, zero={zero}>) {{
      const %w: i8[4x{2 // groups}x2x3]<scale={scales}, zero=0, axis=0>
      %y: i8[1x4x{sizes[0]}x{sizes[1]}]<scale=0.2, zero=7> = conv{attributes}(%x, %w)
      return y: %y
    }}"""
    graph = verify(parse(text, params={"w": weight.to(torch.int8)}))
    (y,) = run_integer(graph, [x.to(torch.int8)])
    fixed = fixed_point(
        TensorType((1, 2, 5, 6)).quantized(grid),
        graph.constants[0].type,
        graph.outputs[0].type,
    )
    for c in range(4):
        inputs = [c // 2] if depthwise else [0, 1]
        for i in range(sizes[0]):
            for j in range(sizes[1]):
                window = x[0, inputs, i * stride : i * stride + 2, j * stride : j * stride + 3] - zero
                acc = int((window * weight[c]).sum())
                step = ((acc << fixed.shifts[c]) * fixed.multipliers[c] + (1 << 31)) >> 32
                assert y[0, c, i, j] == max(-128, min(127, step + 7))


def test_fused_clamp_becomes_bounds_on_the_results_grid() -> None:
    grid = Encoding((0.05,), (-100,))
    assert clamp_bounds(None, grid) == (-128, 127)
    assert clamp_bounds((0.0, float("inf")), grid) == (-100, 127)
    assert clamp_bounds((0.0, 6.0), grid) == (-100, 20)
    assert clamp_bounds((-1.0, 1.0), grid) == (-120, -80)


def test_table_has_the_functions_value_for_each_of_256_integers() -> None:
    x, y = TensorType((4,)).quantized(X), TensorType((4,)).quantized(Encoding((1 / 256,), (-128,)))
    table = Sigmoid().table(x, y)
    reals = torch.sigmoid((torch.arange(-128, 128) + 3).double() * 0.05)
    assert table.shape == (256,) and (table - (reals * 256 - 128).clamp(max=127)).abs().max() <= 0.5
    same = TensorType((4,)).quantized(X)
    assert Relu().table(same, same).tolist() == [max(n, -3) for n in range(-128, 128)]


@pytest.mark.parametrize("count", [1, 2, 10, 127, 128, 255, 256, 1000, 65536])
def test_sum_of_a_row_of_exponentials_stays_below_2_to_the_31(count: int) -> None:
    x = TensorType((1, count)).quantized(X)
    table = Softmax(1).table(x, TensorType((1, count)).quantized(Softmax(1).result_encoding(1.0)))
    assert int(table[0]) * count < 1 << 31
    assert int(table[0]) >= min(1 << 23, (1 << 30) // count)


def test_softmax_of_equal_and_of_one_dominating_element() -> None:
    graph = parse(
        """graph(%x: i8[1x4]<scale=1.0, zero=0>) {
          %y: i8[1x4]<scale=0.00390625, zero=-128> = softmax{axis=1}(%x)
          return y: %y
        }"""
    )
    assert verify(graph).outputs[0].type.quantization == Softmax(1).result_encoding(1.0)
    equal, one = torch.full((1, 4), 50).to(torch.int8), torch.tensor([[127, -128, -128, -128]]).to(torch.int8)
    assert run_integer(graph, [equal])[0].tolist() == [[-64] * 4]
    assert run_integer(graph, [one])[0].tolist() == [[127, -128, -128, -128]]


def test_average_divides_by_the_count_of_its_own_window() -> None:
    op = AvgPool((3, 3), (2, 2), (1, 1, 1, 1), False, False)
    assert op.counts((1, 1, 4, 4))[0, 0].tolist() == [[4, 6], [6, 9]]
    assert AvgPool((3, 3), (2, 2), (1, 1, 1, 1)).counts((1, 1, 4, 4))[0, 0].tolist() == [[9, 9], [9, 9]]
    assert AvgPool((2,), (2,), (0, 0), True).counts((1, 1, 5))[0, 0].tolist() == [2, 2, 1]
    assert AdaptiveAvgPool((2,)).counts((1, 1, 5))[0, 0].tolist() == [3, 3]


def test_adaptive_pool_that_divides_has_a_plain_form() -> None:
    assert AdaptiveAvgPool((2, 3)).as_avg_pool(TensorType((1, 1, 4, 6))) == AvgPool(
        (2, 2), (2, 2), (0, 0, 0, 0)
    )
    assert AdaptiveAvgPool((2, 4)).as_avg_pool(TensorType((1, 1, 4, 6))) is None


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(sizes, st.booleans())
def test_interpolation_weights_are_those_of_torch_within_their_11_bits(
    size: tuple[int, int], corners: bool
) -> None:
    n, count = size
    (taps,) = ResizeLinear((count,), align_corners=corners).taps(TensorType((1, 1, n)))
    basis = torch.eye(n).double()[:, None]
    matrix = functional.interpolate(basis, size=count, mode="linear", align_corners=corners)[:, 0].T
    mine = torch.zeros(count, n, dtype=torch.float64)
    for i, (low, high, weight) in enumerate(taps):
        mine[i, low] += 1 - weight / 2048
        mine[i, high] += weight / 2048
    assert (mine - matrix).abs().max() <= 0.5 / 2048 + 1e-6


def test_interpolation_on_one_grid_is_a_rounding_shift() -> None:
    text = "%y: i8[1x2x8x8]<scale=0.05, zero=-3> = resize_linear{size=(8, 8)}(%x)"
    x = integers(1, 2, 4, 4).to(torch.int8)
    (y,) = run_integer(single(text), [x])
    exact = functional.interpolate(x.double(), size=(8, 8), mode="bilinear")
    assert torch.equal(y, torch.floor(exact + 0.5).to(torch.int8))


@given(sizes)
def test_nearest_sources_are_those_of_torch(size: tuple[int, int]) -> None:
    n, count = size
    (sources,) = ResizeNearest((count,)).sources(TensorType((1, 1, n)))
    x = torch.arange(n).view(1, 1, n).float()
    assert list(sources) == functional.interpolate(x, size=count).flatten().int().tolist()
