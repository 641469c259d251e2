"""Rounding column by column against the error of a layer's output."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Builder, Graph, TensorType, run
from fxpress.ir.ops.linear import Linear
from fxpress.passes import MissingNeedError, PassError
from fxpress.passes.base import Context
from fxpress.passes.weight_only import weight_only
from fxpress.passes.weight_only.gptq import quantize_by_gptq
from fxpress.passes.weight_only.groupwise import quantize_groupwise
from fxpress.specs.options import WeightOnlyOptions


def correlated(count: int, inputs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(inputs) + 0.3 * torch.randn(inputs, inputs, generator=generator)
    return torch.randn(count, inputs, generator=generator) @ mixing


def weight_of(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("inputs", "group_size"), [(64, 32), (64, None), (86, 43), (320, 32), (192, 192)])
def test_the_error_of_the_output_falls(bits: int, inputs: int, group_size: int | None) -> None:
    x, weight = correlated(2000, inputs), weight_of(24, inputs)
    hessian = x.T @ x

    def error(integers: Tensor, weights: Tensor) -> float:
        return float((x @ (weights - weight).T).norm())

    integers, encoding = quantize_groupwise(weight, bits=bits, group_size=group_size)
    nearest = error(integers, encoding.dequantize(integers))
    integers, encoding = quantize_by_gptq(weight, hessian, bits=bits, group_size=group_size)
    encoding.check((24, inputs))
    assert integers.min() >= encoding.qmin and integers.max() <= encoding.qmax
    assert error(integers, encoding.dequantize(integers)) < 0.9 * nearest


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = weight_of(8, 64)
    nearest, expected = quantize_groupwise(weight, bits=4, group_size=32)
    integers, encoding = quantize_by_gptq(weight, torch.eye(64), bits=4, group_size=32)
    assert torch.equal(integers, nearest) and encoding == expected


@pytest.mark.parametrize("dead", [0, 31, 63])
def test_inputs_that_are_always_zero_do_no_harm(dead: int) -> None:
    x = correlated(500, 64)
    x[:, dead] = 0
    weight = weight_of(8, 64)
    integers, encoding = quantize_by_gptq(weight, x.T @ x, bits=4, group_size=32)
    assert float((encoding.dequantize(integers) - weight)[:, dead].abs().max()) < 1.0
    integers, encoding = quantize_by_gptq(weight, torch.zeros(64, 64), bits=4, group_size=32)
    assert encoding.dequantize(integers).isfinite().all()


def shared_layer() -> Graph:
    """A layer that is called twice, on inputs of different directions, and one more."""
    builder = Builder()
    x = builder.input("x", TensorType((10, 64)))
    weight = builder.constant("shared.weight", weight_of(64, 64) / 8)
    y = builder.add(Linear(), builder.add(Linear(), x, weight), weight)
    return builder.build([builder.add(Linear(), y, builder.constant("last.weight", weight_of(8, 64)))])


def test_the_pass_rounds_every_linear_layer_for_its_inputs() -> None:
    graph, samples = shared_layer(), [(correlated(10, 64, seed),) for seed in range(40)]
    settings = {"weights": "int3", "activations": "float32"}

    def error(**more: object) -> float:
        options = WeightOnlyOptions.model_validate({**settings, **more})
        after = weight_only(graph, options, Context(calibration=samples)).graph
        held_out = [(correlated(10, 64, seed),) for seed in range(40, 50)]
        return sum(float((run(after, x)[0] - run(graph, x)[0]).norm()) for x in held_out)

    assert error(rounding="gptq") < 0.9 * error()
    assert error(rounding={"kind": "gptq", "samples": 20, "damping": 0.1}) < error()


def test_it_needs_calibration_data() -> None:
    options = WeightOnlyOptions.model_validate({"rounding": "gptq"})
    assert list(options.needed()) == [("calibration", ("rounding",))]
    with pytest.raises(MissingNeedError, match="calibration"):
        weight_only(shared_layer(), options, Context())


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (8, 64)])
def test_the_weight_itself_stays_as_it_is(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    kept = weight.clone()
    quantize_by_gptq(weight, torch.eye(shape[1]), bits=4, group_size=None)
    assert torch.equal(weight, kept)


def test_samples_of_the_rounding_are_its_own() -> None:
    graph, samples = shared_layer(), [(correlated(10, 64, seed),) for seed in range(40)]

    def codes(count: int) -> Tensor:
        settings = {"weights": "int3", "rounding": {"kind": "gptq", "samples": count}}
        options = WeightOnlyOptions.model_validate(settings)
        after = weight_only(graph, options, Context(calibration=samples)).graph
        return after.params["last.weight"]

    assert torch.equal(codes(128), codes(40)) and not torch.equal(codes(40), codes(8))


def test_inputs_that_overflow_are_refused_with_what_helps() -> None:
    with pytest.raises(PassError, match="raise `damping`"):
        quantize_by_gptq(weight_of(8, 64), torch.full((64, 64), torch.inf), bits=4, group_size=32)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [32, None])
def test_the_order_of_activations_is_another_way_to_less_error(bits: int, group_size: int | None) -> None:
    x, weight = correlated(2000, 64) * torch.linspace(0.1, 3.0, 64), weight_of(24, 64)
    found = {}
    for by_activation in (False, True):
        integers, encoding = quantize_by_gptq(
            weight, x.T @ x, bits=bits, group_size=group_size, by_activation=by_activation
        )
        encoding.check((24, 64))
        found[by_activation] = encoding.dequantize(integers)
    nearest, encoding = quantize_groupwise(weight, bits=bits, group_size=group_size)
    error = {order: float((x @ (reals - weight).T).norm()) for order, reals in found.items()}
    assert error[True] < 0.9 * float((x @ (encoding.dequantize(nearest) - weight).T).norm())
    assert not torch.equal(found[True], found[False])


def test_layers_can_be_calibrated_on_what_those_before_them_give() -> None:
    graph, samples = shared_layer(), [(correlated(10, 64, seed),) for seed in range(40)]

    def rounded(**options: object) -> Graph:
        settings = {"weights": "int2", "activations": "float32", "rounding": {"kind": "gptq", **options}}
        return weight_only(
            graph, WeightOnlyOptions.model_validate(settings), Context(calibration=samples)
        ).graph

    plain, sequential = rounded(), rounded(sequential=True)
    assert torch.equal(plain.params["shared.weight"], sequential.params["shared.weight"])
    assert not torch.equal(plain.params["last.weight"], sequential.params["last.weight"])

    def error(stored: Graph) -> float:
        return sum(float((run(stored, x)[0] - run(graph, x)[0]).norm()) for x in samples)

    assert error(sequential) < error(plain)
