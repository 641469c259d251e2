"""The emitted module of a graph with integer weights and float activations."""

import copy

import pytest
import torch
from torch import Tensor

from fxpress.backends.packed_linear import pack_codes
from fxpress.backends.torch_module import emit, prelude_weight_only, to_module
from fxpress.backends.torch_module.weight_only import is_weight_only
from fxpress.ir import Builder, DType, Graph, TensorType, run
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.matmul import MatMul
from fxpress.passes.base import Context
from fxpress.passes.weight_only.weight_storage import weight_only
from fxpress.specs.options import WeightOnlyOptions

TOKENS = torch.tensor([[0, 31, 7, 7, 2]])


def graph_of(bits: int, group_size: int | None, *, features: int = 64, activations: str = "int8") -> Graph:
    """Embedding, a layer with bias, residual and activation, and the table once more as output layer."""
    generator = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    builder = Builder()
    tokens = builder.input("tokens", TensorType((1, 5), DType.I64))
    table = builder.constant("table.weight", randn(32, features))
    weight, bias = builder.constant("middle.weight", randn(features, features)), None
    bias = builder.constant("middle.bias", randn(features))
    x = builder.add(Embedding(), tokens, table)
    x = builder.add(Linear(clamp=(0.0, float("inf"))), x, weight, bias, x)
    graph = builder.build([builder.add(Linear(), x, table), x])
    chosen = {"weights": f"int{bits}", "group_size": group_size, "activations": activations}
    return weight_only(graph, WeightOnlyOptions.model_validate(chosen), Context()).graph


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [None, 16, 32, 43])
@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_the_module_computes_what_the_graph_does(bits: int, group_size: int | None, activations: str) -> None:
    """Sums in another order can move an activation to the next integer: that token has an error of a step then."""
    graph = graph_of(bits, group_size, features=86 if group_size == 43 else 64, activations=activations)
    with torch.no_grad():
        found = to_module(graph)(TOKENS)
    for y, expected in zip(found, run(graph, [TOKENS]), strict=True):
        error = (y - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.median() < 1e-5 and error.max() < (3e-2 if activations == "int8" else 1e-5)


def test_a_tied_weight_is_stored_once_in_half_a_byte_each() -> None:
    artifact = emit(graph_of(4, 32))
    stored = {key: t for key, t in artifact.tensors.items() if t.dtype == torch.uint8}
    assert sorted(t.numel() for t in stored.values()) == [32 * 64 // 2, 64 * 64 // 2]
    assert artifact.source.count("PackedWeight(") == 3  # the class and two weights


def test_packing_is_made_anew_after_a_copy_and_after_loading() -> None:
    module = to_module(graph_of(4, 32))
    with torch.no_grad():
        expected = module(TOKENS)[0]
        twin = copy.deepcopy(module)
        assert torch.equal(twin(TOKENS)[0], expected)
        state = {key: torch.zeros_like(tensor) for key, tensor in module.state_dict().items()}
        module.load_state_dict(state)
        assert not module(TOKENS)[0].any()


def test_planes_of_packed_codes_start_with_the_low_bits() -> None:
    def first_bytes(levels: list[int], bits: int, *at: int) -> list[int]:
        return [int(pack_codes(torch.tensor([levels]), bits, 16).flatten()[i]) for i in at]

    columns = list(range(-8, 8))
    assert first_bytes(columns, 8, 0, 3, 64, 192) == [120, 123, 124, 132]
    assert first_bytes(columns, 4, 0, 3, 64, 127) == [0x40, 0x73, 0xC8, 0x88]
    assert first_bytes(columns, 5, 0, 64, 128, 136, 144) == [0xC8, 0x40, 0b11110000, 0xF0, 0xFF]


def test_a_graph_with_integer_activations_is_another_form() -> None:
    assert is_weight_only(graph_of(8, None))
    assert not is_weight_only(Builder().build([]))


def test_one_number_of_a_wider_tensor_is_multiplied() -> None:
    weight = prelude_weight_only.PackedWeight(6, 1, bits=8, group_size=1)
    weight.codes.copy_(pack_codes(torch.full((6, 1), 3), 8, 1))
    number = torch.arange(8.0).reshape(1, 1, 8)[..., 3]  # strides (8, 8), yet contiguous: it is alone
    assert torch.equal(weight.linear(number), torch.full((1, 6), 9.0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_that_are_not_contiguous_are_multiplied(bits: int) -> None:
    module = to_module(graph_of(bits, 32 if bits == 4 else None))
    (weight, *_) = [part for part in module.modules() if hasattr(part, "packed")]
    for x in (
        torch.randn(1, 64, 5).transpose(1, 2),
        torch.randn(5, 128)[:, ::2],
        torch.randn(64).expand(3, 64),
    ):
        with torch.no_grad():
            expected = weight.linear(x.contiguous())
            torch.testing.assert_close(weight.linear(x), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_of_experts_are_packed_and_multiplied(bits: int, dtype: torch.dtype) -> None:
    builder = Builder()
    x = builder.input("x", TensorType((3, 5, 8), DType.of(dtype)))
    experts = builder.constant("experts.weight", torch.randn(3, 8, 16).to(dtype))
    graph = builder.build([builder.add(MatMul(), x, experts)])
    options = WeightOnlyOptions.model_validate({"weights": f"int{bits}", "group_size": 8})
    graph = weight_only(graph, options, Context()).graph
    artifact, rows = emit(graph), torch.randn(3, 5, 8).to(dtype)
    assert artifact.tensors["experts.weight.codes"].shape == (2, 2, 32 * bits)
    with torch.no_grad():
        torch.testing.assert_close(artifact.build()(rows), run(graph, [rows])[0])
