"""Compilations with dynamic dimensions: each pass and form of the torch output at other sizes than the example's."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpress.backends.torch_module import TorchOptions, emit, to_module
from fxpress.compiler import capture, compile_model, load_compiled
from fxpress.compiler.data import Samples
from fxpress.compiler.errors import UserError
from fxpress.compiler.pipeline import one_size_notes
from fxpress.compiler.self_check import InconsistencyError, check_module
from fxpress.ir import Builder, Graph, TensorType, ops, run, verify
from fxpress.ir.sizes import Dimension
from fxpress.ir.testing import random_module
from fxpress.passes import clean, fuse
from fxpress.specs import SpecError


class Encoder(nn.Module):
    """A BERT-like encoder with a table of 24 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30, 32), nn.Embedding(24, 32)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.layers(x)).mean(1)


class Padded(Encoder):
    """The encoder with a mask of tokens that are padding."""

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(ids), src_key_padding_mask=padding))


class Relative(nn.Module):
    """An attention with a bias for each distance, on a logarithmic scale from two on, as in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.bias, self.head = nn.Embedding(30, 32), nn.Embedding(8, 4), nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        n, t = ids.shape
        distance = (torch.arange(t)[:, None] - torch.arange(t)).abs()
        far = 2 + torch.log(distance.float() / 2).clamp(0, 5).long()
        bias = self.bias(torch.where(distance < 2, distance, far)).permute(2, 0, 1)
        x = self.tokens(ids).view(n, t, 4, 8).transpose(1, 2)
        return self.head(((x @ x.mT + bias).softmax(-1) @ x).transpose(1, 2).reshape(n, t, 32))


class Network(nn.Module):
    """A one-dimensional convolutional network with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU())
        self.body = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.body(x)).mean(-1))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(sum(shape)))


def signals(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def built(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


NETWORKS: dict[str, Any] = {
    "encoder": (Encoder, ids, (12,), "ids", {0: "batch", 1: "tokens"}, ((3, 5), (1, 24), (2, 1))),
    "relative": (Relative, ids, (12,), "ids", {0: "batch", 1: "tokens"}, ((3, 5), (1, 24), (2, 1))),
    "convolutions": (Network, signals, (3, 32), "x", {0: "batch", 2: "length"}, ((3, 3, 33), (1, 3, 7))),
}
RECIPES: dict[str, tuple[list[Any], str]] = {
    "none": ([], "float"),
    "fuse": (["clean", "fuse"], "float"),
    "int8": (["clean", {"pass": "weight_only"}], "float"),
    "int4": (["clean", {"pass": "weight_only", "weights": "int4"}], "float"),
    "qdq": (["clean", "fuse", "quantize"], "qdq"),
    "eager": (["clean", "fuse", "quantize"], "eager"),
    "pruned": (["clean", "fuse", {"pass": "prune", "budget": {"macs": "80%"}}, "quantize"], "eager"),
    "learned": (
        ["clean", "fuse", {"pass": "quantize", "rounding": {"kind": "adaround", "iterations": 4}}],
        "eager",
    ),
}


@pytest.mark.parametrize(
    ("network", "recipe"),
    [*((n, r) for n in ("encoder", "convolutions") for r in RECIPES), ("relative", "qdq")],
)
def test_the_emitted_module_is_right_at_other_sizes(network: str, recipe: str) -> None:
    kind, make, shape, name, axes, calls = NETWORKS[network]
    passes, form = RECIPES[recipe]
    net = built(kind)
    compiled = compile_model(
        net,
        inputs={name: make(1, *shape)},
        calibration={name: make(8, *shape)} if form != "float" else None,
        passes=passes,
        dynamic={name: axes},
        outputs={"torch": {"form": form} if form != "float" else {}},
    )
    assert compiled.torch is not None
    module = compiled.torch.build()
    for call in calls:
        x = make(*call)
        with torch.no_grad():
            expected, found, graph = net(x), module(x), run(compiled.graph, [x])[0]
        exact = recipe in ("none", "fuse")
        if form == "float":  # other lengths may leave the ranges of calibration
            assert float((found - expected).norm() / expected.norm()) < (1e-5 if exact else 0.3)
        assert float((found - graph).norm() / graph.norm()) < (1e-5 if exact else 0.05)


SPEC = """
fxpress: 1
model:
  source: net.py:Encoder
  inputs:
    ids: {shape: [1, 12], dtype: int64, dynamic: {0: batch, 1: tokens}}
  dimensions:
    tokens: {min: 2, max: 20}
passes:
  - pass: clean
outputs:
  torch: {}
"""


def project(folder: Path, text: str) -> Path:
    source = Path(__file__).read_text()
    start = source.index("class Encoder")
    code = source[start : source.index("class Network")]
    (folder / "net.py").write_text(f"import torch\nfrom torch import Tensor, nn\n\n\n{code}")
    (folder / "net.yaml").write_text(textwrap.dedent(text))
    return folder / "net.yaml"


def test_a_spec_names_dimensions_and_their_ranges(tmp_path: Path) -> None:
    compiled = compile_model(project(tmp_path, SPEC))
    compiled.write(tmp_path / "out")
    network = load_compiled(tmp_path / "out")
    assert list(network.graph.dimensions) == ["batch", "tokens"]
    assert network.run({"ids": ids(3, 12)}, on="torch").outputs[0].shape == (3, 5)
    assert network.module(ids(2, 7)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"input ids has size 21 in dimension 1; the module takes 2 to 20"):
        network.module(ids(1, 21))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    (
        ("torch: {}", "c: {}", r"C has fixed sizes, but ids has dynamic dimensions.*S209"),
        ("1: tokens}", "2: tokens}", r"dynamic: 2 is not a dimension of the shape \[1, 12\]"),
        ("1: tokens}", "1: a b}", r"'a b' is not a Python identifier"),
        ("{min: 2, max: 20}", "{min: 20, max: 2}", r"min 20 is above max 2"),
        ("{min: 2, max: 20}", "{min: 13}", r"tokens has size 12 in the example, out of its range"),
        ("    tokens: {min", "    words: {min", r"dimensions: words is not a dimension of an input"),
    ),
)
def test_a_spec_with_other_dimensions_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        compile_model(project(tmp_path, SPEC.replace(old, new)))


def test_the_spec_of_a_compilation_in_python_has_its_dimensions() -> None:
    net = built(Encoder)
    compiled = compile_model(
        net, inputs=ids(1, 12), dynamic={"ids": {1: "tokens"}}, dimensions={"tokens": {"max": 16}}
    )
    text = compiled.spec.to_yaml()
    assert "dynamic:" in text and "tokens: {max: 16}" in text
    again = compile_model(compiled.graph, passes=["clean"])
    assert [d.span for d in again.graph.dimensions.values()] == ["1..16"]
    with pytest.raises(TypeError, match="there is no input image; there are ids"):
        compile_model(net, inputs=ids(1, 12), dynamic={"image": {0: "batch"}})


def test_samples_may_have_another_length_than_the_example(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = compile_model(
        built(Encoder),
        inputs=ids(1, 12),
        dynamic={"ids": {0: "batch", 1: "tokens"}},
        calibration={"ids": ids(8, 20)},
        evaluation={"ids": ids(4, 9)},
        passes=["clean", "fuse", "quantize"],
        outputs={"torch": {"form": "eager"}},
    )
    compiled.write(tmp_path / "out")
    (note,) = [note for note in compiled.report.notes if "calibration samples" in note]
    assert note.startswith("all calibration samples have the size tokens = 20 (calls: 1..), and ranges")
    network = load_compiled(tmp_path / "out")
    for on in ("torch", "integer"):
        assert network.run({"ids": ids(3, 5)}, on=on).outputs[0].shape == (3, 5)
    with pytest.raises(UserError, match=r"data\.evaluation: input %ids is \(1, 25\).*tokens 1\.\.24.*D103"):
        compile_model(
            built(Encoder),
            inputs=ids(1, 12),
            dynamic={"ids": {1: "tokens"}},
            dimensions={"tokens": {"max": 24}},
            evaluation={"ids": ids(4, 25)},
        )


AT_OTHER_LENGTHS: dict[str, list[Any]] = {
    "pruned and trained": [
        "clean",
        "fuse",
        {"pass": "prune", "budget": {"macs": "80%"}},
        "quantize",
        {"pass": "finetune", "epochs": 1},
    ],
    "learned": [
        "clean",
        "fuse",
        {"pass": "assign_bits", "budget": {"weights": "80%"}},
        {"pass": "quantize", "rounding": {"kind": "adaround", "iterations": 4}},
    ],
    "stored": ["clean", {"pass": "weight_only", "budget": {"weights": "60%"}}],
}


@pytest.mark.parametrize("passes", AT_OTHER_LENGTHS.values(), ids=AT_OTHER_LENGTHS)
def test_passes_run_on_samples_of_another_length_than_the_example(passes: list[Any]) -> None:
    compiled = compile_model(
        built(Encoder),
        inputs=ids(1, 12),
        dynamic={"ids": {0: "batch", 1: "tokens"}},
        calibration={"ids": ids(16, 9)},
        passes=passes,
        outputs={"torch": {}},
    )
    assert compiled.torch is not None
    with torch.no_grad():
        found, expected = compiled.torch.build()(ids(2, 20)), run(compiled.graph, [ids(2, 20)])[0]
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_dynamic_batch_alone_needs_no_note_on_sizes() -> None:
    graph = scaled(2)
    assert one_size_notes(graph, Samples((torch.zeros(16),))) == []
    assert len(one_size_notes(graph, Samples((torch.zeros(3, 16),), axes=(None,)))) == 1


def scaled(factor: int) -> Graph:
    """x [tokens] times a number, and a dimension of which the example has 16."""
    builder = Builder()
    x = builder.input("x", TensorType((Dimension("tokens", 16, 2, 64).size,)))
    return verify(builder.build([builder.add(ops.TorchCall("aten.mul.Tensor(x0, n0)", (factor,)), x)]))


def test_a_module_that_is_right_at_the_example_alone_is_an_internal_error() -> None:
    right, wrong = scaled(Dimension("tokens", 16, 2, 64).size), scaled(16)
    x = torch.arange(16.0)
    check_module(emit(right, TorchOptions()), right, [x])
    with pytest.raises(InconsistencyError, match="differs from the graph"):
        check_module(emit(wrong, TorchOptions()), right, [x])


def refused_or_right(seed: int) -> bool:
    """Whether a random module is captured with a dynamic batch; it then agrees with the module at other batches."""
    source = random_module(seed)
    net, one = source.build(), source.samples(1)
    try:
        captured = capture(
            net, tuple(one.values()), input_names=list(one), dynamic={name: {0: "batch"} for name in one}
        )
    except UserError:
        return False
    module = to_module(fuse(clean(captured.graph).graph).graph, buffers=captured.graph.params)
    for count in (1, 2, 5):
        inputs = source.samples(count, seed=3)
        with torch.no_grad():
            expected, found = (pytree.tree_leaves(f(*inputs.values())) for f in (net, module))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
    return True


@settings(max_examples=8)
@given(st.integers(0, 1 << 16))
def test_random_modules_with_a_dynamic_batch_agree_at_other_batches(seed: int) -> None:
    refused_or_right(seed)


def test_most_random_modules_take_a_dynamic_batch() -> None:
    assert sum(map(refused_or_right, range(8))) >= 7


def test_a_mask_of_padding_hides_something_but_not_all_in_the_checks() -> None:
    model = Padded().eval()
    inputs = {"ids": torch.ones(2, 12, dtype=torch.long), "padding": torch.zeros(2, 12, dtype=torch.bool)}
    dynamic = {name: {0: "batch", 1: "length"} for name in inputs}
    compiled = compile_model(model, inputs=inputs, dynamic=dynamic, passes=["clean"], outputs="torch")
    assert compiled.torch is not None
    ids, padding = torch.randint(0, 30, (3, 7)), torch.arange(7) >= torch.tensor([7, 4, 2])[:, None]
    with torch.no_grad():
        y, expected = compiled.torch.build()(ids, padding), model(ids, padding)
    torch.testing.assert_close(y[~padding], expected[~padding], rtol=1e-4, atol=1e-5)
