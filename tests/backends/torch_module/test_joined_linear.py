"""Layers that read one input are one call of the kernel, with the same bits and the same state."""

from collections.abc import Sequence
from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from fxpress.backends.torch_module import TorchArtifact, emit, lazy_module
from fxpress.compiler import capture
from fxpress.ir import Graph
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions


class Attention(nn.Module):
    """Three layers of one input, two of them with a bias, and one between the gated pair that follows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, 48), nn.Linear(width, 16, bias=False), nn.Linear(width, 48)
        self.o = nn.Linear(48, width)
        self.gate, self.up = nn.Linear(width, 33, bias=False), nn.Linear(width, 33, bias=False)
        self.down = nn.Linear(33, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(self.q(x) * self.v(x) + self.k(x).mean(-1, keepdim=True))
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Late(nn.Module):
    """The third layer of an input comes after one of another input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) + self.b(x)) + self.d(x)


@cache
def captured(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> Graph:
    torch.manual_seed(0)
    return capture(kind(32).to(dtype).eval(), (torch.randn(1, 3, 32, dtype=dtype),)).graph


def compressed(kind: type[nn.Module], **options: object) -> TorchArtifact:
    chosen = {"weights": "int4", "group_size": 16, "observer": "minmax", **options}
    return emit(weight_only(captured(kind), WeightOnlyOptions.model_validate(chosen)).graph)


def joined(artifact: TorchArtifact) -> list[list[str]]:
    """The layers of each joined call."""
    lines = artifact.source.partition("def forward(self, x)")[2].splitlines()
    lists = [line.partition("[")[2].partition("]")[0] for line in lines if "joined_linear(" in line]
    return [
        [name.removeprefix("self.").removesuffix(".weight") for name in names.split(", ")] for names in lists
    ]


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int3"])
def test_joined_layers_have_the_bits_of_separate_ones(weights: str, activations: str) -> None:
    artifact = compressed(Attention, weights=weights, activations=activations)
    assert joined(artifact) == [["q", "v", "k"], ["gate", "up"]]
    module, x = artifact.build(), torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = module(x)
        names = type(module).forward.__globals__
        call = names["joined_linear"]

        def apart(
            x: Tensor, weights: Sequence[nn.Module], biases: Sequence[Tensor | None] = (), **options: bool
        ) -> list[Tensor]:
            pairs = zip(weights, biases or [None] * len(weights), strict=True)
            return [call(x, [weight], [bias], **options)[0] for weight, bias in pairs]

        with patch.dict(names, joined_linear=apart):
            assert torch.equal(module(x), found)


def test_layers_of_another_form_are_computed_apart() -> None:
    assert joined(compressed(Attention, layers={"k": "int8", "up": "int3"})) == [["q", "v"]]
    assert joined(compressed(Attention, layers={"v": "int8"})) == [["q", "k"], ["gate", "up"]]
    assert joined(compressed(Attention, layers={"v": "float32"})) == [["q", "k"], ["gate", "up"]]
    assert joined(compressed(Attention, weights="nf4")) == []
    assert joined(compressed(Late)) == [["a", "b"]]


def test_the_state_is_that_of_separate_layers() -> None:
    artifact, x = compressed(Attention), torch.randn(1, 3, 32)
    module = artifact.build()
    assert {
        "q.weight.codes",
        "q.weight.scale",
        "k.weight.codes",
        "up.weight.scale",
    } <= module.state_dict().keys()
    twin = type(module)()
    twin.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(twin.eval()(x), expected)
        assert torch.equal(lazy_module(artifact)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_joined(dtype: torch.dtype) -> None:
    artifact = emit(weight_only(captured(Attention, dtype), WeightOnlyOptions()).graph)
    assert joined(artifact) == [["q", "v", "k"], ["gate", "up"]]
    x = torch.randn(1, 3, 32, dtype=dtype)
    with torch.no_grad():
        assert artifact.build()(x).dtype is dtype
