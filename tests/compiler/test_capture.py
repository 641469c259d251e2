"""A captured module gives the results of the module, and the module stays unchanged."""

import collections
import cProfile
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from fxpress.compiler.frontend.capture import CaptureError, capture, roundtrip
from fxpress.compiler.frontend.captured import as_callable
from fxpress.ir import rebatch, run, verify
from fxpress.passes import find_pass
from fxpress.specs.options.fuse import FuseOptions

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


class Written(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def assert_same(a: Any, b: Any, *, equal: Callable[[Tensor, Tensor], bool] = torch.equal) -> None:
    flat_a, spec_a = torch.utils._pytree.tree_flatten(a)
    flat_b, spec_b = torch.utils._pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(flat_a, flat_b, strict=True):
        assert (x.dtype is y.dtype and equal(x, y)) if isinstance(x, Tensor) else x == y


class Residual(nn.Module):
    """Convolutions, batch norms, a skip connection, an in-place activation, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.body(x) + x)
        return self.head(self.drop(F.avg_pool2d(x, 8).flatten(1)))


def test_a_convolutional_network_is_captured_without_opaque_calls() -> None:
    captured = capture(Residual().eval(), (IMAGE,))

    names = [node.op.name for node in captured.graph.nodes]
    assert names == ["conv", "batch_norm", "relu", "conv", "add", "relu", "avg_pool", "reshape", "linear"]
    assert captured.deviation == 0.0


def test_nodes_know_their_layer_and_the_line_outside_torch() -> None:
    first = capture(Residual().eval(), (IMAGE,)).graph.nodes[0]

    assert first.source.module == "stem.0"
    file, line = first.source.location.rsplit(":", 1)
    assert file.endswith("test_capture.py")
    assert int(line) == Residual.forward.__code__.co_firstlineno + 1


def test_constants_have_the_names_of_the_state_dict() -> None:
    model = Residual().eval()

    assert set(capture(model, (IMAGE,)).graph.params) == {
        name for name in model.state_dict() if not name.endswith("num_batches_tracked")
    }


def test_another_batch_passes_through_the_captured_graph() -> None:
    model = Residual().eval()
    graph = capture(model, (IMAGE,)).graph
    more = torch.randn(5, 3, 8, 8)

    with torch.no_grad():
        assert_same(run(rebatch(graph, 5), [more])[0], model(more))


SIMPLE: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "identity": (nn.Identity(), (ROWS,)),
    "no parameters": (Written(lambda _, x: x.abs().exp()), (ROWS,)),
    "a constant output": (Written(lambda s, x: s.weight, weight=nn.Parameter(torch.ones(3))), (ROWS,)),
    "a made output": (Written(lambda _, x: torch.arange(3)), (ROWS,)),
    "an unused input": (Written(lambda _, x, y: x + 1), (ROWS, IMAGE)),
    "an input that is an output": (Written(lambda _, x: (x, x * 2, x)), (ROWS,)),
    "the same tensor for two inputs": (Written(lambda _, x, y: x - 2 * y), (ROWS, ROWS)),
    "a scalar": (Written(lambda _, x: x * 2 + 1), (torch.tensor(3.0),)),
    "an empty tensor": (Written(lambda _, x: torch.cat([x, x.new_ones(1, 3)]) * 2), (torch.zeros(0, 3),)),
    "integers": (Written(lambda _, x: x * 2 // 3), (torch.arange(4),)),
    "booleans": (Written(lambda _, x: ~x & x.flip(0)), (torch.tensor([True, False]),)),
    "complex numbers": (Written(lambda _, x: torch.fft.fft(x) * (1 + 2j)), (ROWS,)),
    "half precision": (nn.Linear(4, 4).half(), (ROWS.half(),)),
    "bfloat16": (nn.Linear(4, 4).bfloat16(), (ROWS.bfloat16(),)),
    "double precision": (Residual().double(), (IMAGE.double(),)),
    "channels last": (
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        (IMAGE.to(memory_format=torch.channels_last),),
    ),
    "batch norm without statistics": (nn.BatchNorm2d(3, track_running_stats=False), (IMAGE,)),
    "recurrence": (nn.GRU(4, 3, 2, batch_first=True), (torch.randn(2, 5, 4),)),
    "attention": (nn.MultiheadAttention(4, 2, batch_first=True), (ROWS[None],) * 3),
    "weight norm": (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), (IMAGE,)),
    "spectral norm": (parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), (IMAGE,)),
    "a pruning mask": (prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5), (IMAGE,)),
    "layers in a plain list": (Written(lambda s, x: s.layers[0](x), layers=[nn.Conv2d(3, 4, 3)]), (IMAGE,)),
    "a branch without gradient": (Written(lambda _, x: torch.no_grad()(torch.sin)(x) + x), (ROWS,)),
    "one chunk": (Written(lambda _, x: x.chunk(1)[0] + 1), (ROWS,)),
    "strides": (Written(lambda _, x: x.t().as_strided((2, 2), (1, 2), 1) * 2), (ROWS,)),
}


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.filterwarnings("ignore")
def test_a_module_with_this_comes_back_from_text_bit_for_bit(name: str) -> None:
    model, args = SIMPLE[name]
    model.eval()
    other = tuple(a.flip(0) for a in args)

    call = roundtrip(model, (args, {}))
    # attention multiplies what is transposed here and contiguous there, for which some processors have two kernels
    equal = torch.allclose if name == "attention" else torch.equal

    with torch.no_grad():
        assert_same(call(*args), model(*args), equal=equal)
        assert_same(call(*other), model(*other), equal=equal)


Pair = collections.namedtuple("Pair", "first second")


def test_nested_arguments_and_results_keep_their_structure() -> None:
    def forward(_: nn.Module, pair: Any, *, scale: Any, mode: str) -> Any:
        return Pair({"sum": pair["a"] + pair["b"][0], "none": None}, [scale * 2, 3, mode])

    args, kwargs = ({"a": ROWS, "b": [ROWS, 2]},), {"scale": ROWS, "mode": "fast"}
    model = Written(forward)
    call = as_callable(capture(model, args, kwargs))

    assert_same(call(*args, **kwargs), model(*args, **kwargs))
    reordered = {"mode": "fast", "scale": ROWS}
    assert_same(call({"b": [ROWS, 2], "a": ROWS}, **reordered), model(*args, **kwargs))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((ROWS, 4), "captured for 3, got 4"),
        ((ROWS,), "captured for other arguments"),
        ((ROWS.double(), 3), "float64"),
        ((2.0, 3), "captured for a tensor"),
    ],
)
def test_a_call_unlike_the_example_is_refused(args: tuple[Any, ...], message: str) -> None:
    call = as_callable(capture(Written(lambda _, x, n: x * n), (ROWS, 3)))

    with pytest.raises(TypeError, match=message):
        call(*args)


def test_tied_weights_are_one_constant() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight

    graph = capture(nn.Sequential(first, second), (ROWS,)).graph

    assert set(graph.params) == {"0.weight", "0.bias", "1.bias"}
    assert graph.nodes[0].inputs[1] == graph.nodes[1].inputs[1]


def test_a_transposed_tied_weight_is_a_permutation_of_the_one_constant() -> None:
    encode, decode = nn.Linear(4, 6), nn.Linear(6, 4)
    decode.weight = nn.Parameter(encode.weight.t())

    captured = capture(nn.Sequential(encode, decode), (ROWS,))

    assert set(captured.graph.params) == {"0.weight", "0.bias", "1.bias"}
    assert captured.deviation == 0.0


def test_parts_of_one_weight_are_slices_of_the_one_constant() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    parts = {"upper": nn.Parameter(weight[:3]), "lower": nn.Parameter(weight[3:])}
    model = Written(lambda s, x: F.linear(x, s.upper) - F.linear(x, s.lower), weight=weight, **parts)

    captured = capture(model, (ROWS,))

    assert set(captured.graph.params) == {"weight"}
    assert captured.deviation == 0.0


@pytest.mark.parametrize("overlap", [0, 2])
def test_parameters_that_are_two_parts_of_one_storage_keep_their_own_elements(overlap: int) -> None:
    storage = torch.randn(8 - overlap, 4)
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    first.weight, second.weight = nn.Parameter(storage[:4]), nn.Parameter(storage[4 - overlap :])

    captured = capture(nn.Sequential(first, nn.Tanh(), second), (ROWS,))

    want = second.weight @ torch.tanh(first.weight @ ROWS[0])
    torch.testing.assert_close(run(captured.graph, (ROWS,))[0][0], want.detach())
    assert captured.deviation == 0.0


NAMES = ["*/ int evil(void){} /*", "a\"'\n", "int", "a b", "a_b", "n" * 5000]


def test_layers_may_have_any_name() -> None:
    model = nn.Sequential(collections.OrderedDict((name, nn.Conv2d(3, 3, 1)) for name in NAMES))

    call = roundtrip(model, ((IMAGE,), {}))

    with torch.no_grad():
        assert_same(call(IMAGE), model(IMAGE))
    assert [node.source.module for node in capture(model, (IMAGE,)).graph.nodes] == NAMES


def test_the_inputs_take_the_names_that_are_asked_for() -> None:
    graph = capture(Written(lambda _, x, y: x + y), (ROWS, ROWS), input_names=["left", "right"]).graph

    assert [value.name for value in graph.inputs] == ["left", "right"]


def test_too_few_names_for_the_inputs_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"1 names for 2 input tensors.*M213"):
        capture(Written(lambda _, x, y: x + y), (ROWS, ROWS), input_names=["left"])


def test_the_module_and_the_random_generators_are_left_untouched() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.seen, self.calls = x * 2, [*self.calls, 1]
        return self.norm(x)

    model = Written(forward, norm=nn.BatchNorm2d(3), calls=[]).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: value for name, value in vars(model).items() if name != "function"}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    capture(model, (IMAGE,))

    assert {name: value for name, value in vars(model).items() if name != "function"} == attributes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])


def test_two_captures_are_equal() -> None:
    model = Residual().eval()

    assert capture(model, (IMAGE,)).graph == capture(model, (IMAGE,)).graph


class Chain(nn.Module):
    """Linear layers and activations, one after the other."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(nodes // 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.mark.slow
def test_capture_and_fusion_of_a_chain_take_calls_in_proportion_to_its_length() -> None:
    capture(Chain(10), (torch.randn(1, 2),))  # torch's tracer loads on first use

    short, long = (_calls(Chain(nodes)) for nodes in (1000, 5000))

    assert long < 5 * short * 1.2


def _calls(model: nn.Module) -> int:
    """Calls of functions, in Python and of C, that capture and fusion of a chain take."""
    profile = cProfile.Profile()
    graph = profile.runcall(capture, model, (torch.randn(1, 2),)).graph
    fused = profile.runcall(find_pass("fuse"), verify(graph), FuseOptions()).graph
    assert len(fused.nodes) == len(graph.nodes) // 2
    return sum(entry.callcount for entry in profile.getstats())


def test_an_encoder_is_exact_but_for_the_fused_kernel_that_torch_uses_outside_traces() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    rows = torch.randn(2, 12, 32)
    assert capture(layer, (rows,)).deviation < 1e-6

    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert capture(layer, (rows,)).deviation == 0.0
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


Boxes = collections.namedtuple("Boxes", "corners scores")


@dataclass
class Found:
    """A result as libraries give it."""

    logits: Tensor
    states: tuple[Tensor, ...] | None = None


NAMED: dict[str, tuple[Callable[[Tensor], object], tuple[str, ...]]] = {
    "one": (lambda x: x + 1, ("output",)),
    "several": (lambda x: (x + 1, [x, x * 2]), ("output_0", "output_1", "output_2")),
    "keys": (lambda x: {"y": x + 1, "rest": [x, {"z": x * 2}]}, ("y", "rest.0", "rest.1.z")),
    "keys behind a position": (lambda x: (x + 1, {"h": x * 2}), ("output_0", "h")),
    "keys twice": (lambda x: [{"b": x}, {"b": x + 2}], ("output_0.b", "output_1.b")),
    "keys that are texts and numbers": (lambda x: {1: x + 1, "1": x}, ("output_0", "output_1")),
    "fields": (lambda x: Boxes(x + 1, x * 2), ("corners", "scores")),
    "a dataclass": (lambda x: Found(x + 1, (x, x)), ("logits", "states.0", "states.1")),
    "what is left out": (lambda x: {"loss": None, "y": x + 1}, ("y",)),
}


@pytest.mark.parametrize("case", NAMED)
def test_results_keep_their_keys_as_names(case: str) -> None:
    function, names = NAMED[case]

    class Net(nn.Module):
        def forward(self, x: Tensor) -> object:
            return function(x)

    captured = capture(Net(), (torch.randn(2, 3),))
    assert captured.graph.output_names == names


@pytest.mark.parametrize("result", [None, {}, 3], ids=str)
def test_a_result_without_tensors_is_refused(result: object) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> object:
            return result

    with pytest.raises(CaptureError, match=r"Net: forward returns (None|no tensor).*M214"):
        capture(Net(), (torch.randn(2, 3),))


def test_outputs_can_be_named() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    captured = capture(Net(), (torch.randn(2, 3),), output_names=("y", "h_out"))
    assert captured.graph.output_names == ("y", "h_out")
    with pytest.raises(CaptureError, match=r"y are not 2 different names for output_0, output_1.*M213"):
        capture(Net(), (torch.randn(2, 3),), output_names=("y",))


def test_one_tensor_passed_twice_gives_two_inputs() -> None:
    x, y = torch.ones(1, 3), torch.tensor([[1.0, 5.0, -2.0]])
    captured = capture(Written(lambda self, a, b: 2 * a - b), (x, x))
    assert len(captured.graph.inputs) == 2
    (found,) = run(captured.graph, [x, y])
    assert torch.equal(found, 2 * x - y)
