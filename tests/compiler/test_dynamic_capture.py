"""Captured modules with dynamic dimensions compute the module at every allowed size, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxpress.backends.torch_module import emit, to_module
from fxpress.compiler import as_callable, capture
from fxpress.compiler.errors import UserError
from fxpress.ir import DType, Graph, dump, parse, verify
from fxpress.passes import clean

BOTH = {0: "batch", 1: "tokens"}


class Written(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function: Callable[..., Any], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def rows(batch: int, tokens: int) -> Tensor:
    return torch.randn(batch, tokens, 6, generator=torch.Generator().manual_seed(batch * 100 + tokens))


def causal(net: Any, x: Tensor) -> Tensor:
    """A mask cut out of a table, a position table, the last token, and a sum that is divided by the length."""
    t = x.shape[1]
    scores = (x @ x.transpose(1, 2)).masked_fill(~net.mask[:t, :t], -torch.inf)
    y = scores.softmax(-1) @ (x + net.positions[:t])
    return torch.cat((y[:, -1], y.sum(1) / t, y[:, : t // 2].amax(1)), -1)


def made(net: Any, x: Tensor) -> Tensor:
    """A mask and a rotary table that are computed from the length in `forward`."""
    t = x.shape[1]
    mask = torch.ones(t, t, dtype=torch.bool).tril()
    angles = torch.outer(torch.arange(t), torch.tensor([1.0, 0.1, 0.01]))
    turned = x * torch.cat((angles, angles), -1).cos()
    return nn.functional.scaled_dot_product_attention(turned, turned, x, mask)


def padded(net: Any, x: Tensor) -> Tensor:
    """Windows of four tokens after padding to a multiple of four."""
    b, t, c = x.shape
    x = nn.functional.pad(x, (0, 0, 0, -t % 4))
    return x.view(b, -1, 4, c).mean(2)


def written(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    y[:, 0] += 1
    return y


def heads(net: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    q, k, v = x.view(b, t, 3, 2).permute(2, 0, 1, 3).unbind(0)
    return nn.functional.scaled_dot_product_attention(q, k, v).reshape(b * t, 2)


TABLES = {"mask": torch.ones(40, 40, dtype=torch.bool).tril(), "positions": torch.randn(40, 6)}
CASES = {
    "causal": (Written(causal, **TABLES), "2..40"),
    "made": (Written(made), "1.."),
    "padded": (Written(padded), "1.."),
    "written": (Written(written), "3.."),
    "heads": (Written(heads), "1.."),
    "encoder": (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), "1.."),
    "convolutions": (
        Written(lambda net, x: nn.functional.avg_pool1d(x.transpose(1, 2), 3, 2, 1).relu()),
        "1..",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_graph_and_emitted_module_compute_the_module_at_other_sizes(name: str) -> None:
    net, span = CASES[name]
    net.eval()
    captured = capture(net, (rows(1, 12),), input_names=["x"], dynamic={"x": BOTH})
    graph = captured.graph
    assert [d.span for d in graph.dimensions.values()] == ["1..", span]
    assert verify(parse(dump(graph), params=graph.params)) == graph
    module = to_module(clean(graph).graph)
    with torch.no_grad():
        for batch, tokens in ((1, 12), (3, 5), (2, 40), (1, graph.dimensions["tokens"].low)):
            x = rows(batch, tokens)
            expected = net(x)
            torch.testing.assert_close(as_callable(captured)(x), expected)
            torch.testing.assert_close(module(x), expected)


def test_constants_of_a_dimension_are_computed_at_each_call() -> None:
    captured = capture(Written(made), (rows(1, 12),), dynamic={"x": BOTH})
    graph = clean(captured.graph).graph
    assert not any(value.type.numel > 6 for value in graph.constants)
    assert "aten.arange.default(n0" in dump(graph)


def test_tensors_of_a_size_are_made_where_the_first_input_is() -> None:
    graph = clean(capture(Written(made), (rows(1, 12),), dynamic={"x": BOTH}).graph).graph
    source = emit(graph).source
    assert "torch.ops.aten.arange.default(tokens, device=x.device, pin_memory=False)" in source
    assert to_module(graph).to("meta")(rows(2, 7).to("meta")).shape == (2, 7, 6)


def test_inputs_share_dimensions_by_name() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return (x * keep[..., None]).sum(1)

    keep = torch.ones(1, 12)
    graph = capture(Masked(), (rows(1, 12), keep), dynamic={"x": BOTH, "keep": BOTH}).graph
    assert list(graph.dimensions) == ["batch", "tokens"]
    module = to_module(graph)
    with pytest.raises(
        ValueError, match=r"input keep has size 4 in dimension 1; the module takes 5 \(tokens\)"
    ):
        module(rows(2, 5), torch.ones(2, 4))
    with pytest.raises(
        UserError, match=r"test_dynamic_capture.py:\d+: with dynamic batch, tokens, rows, .*M216"
    ):
        capture(Masked(), (rows(1, 12), keep), dynamic={"x": BOTH, "keep": {0: "rows", 1: "tokens"}})


def test_a_range_limits_the_sizes() -> None:
    net = Written(causal, **TABLES)
    module = to_module(capture(net, (rows(1, 12),), dynamic={"x": BOTH}, ranges={"tokens": (4, 16)}).graph)
    assert module(rows(2, 16)).shape == (2, 18)
    for tokens in (3, 17):
        with pytest.raises(
            ValueError, match=rf"input x has size {tokens} in dimension 1; .* 4 to 16 \(tokens\)"
        ):
            module(rows(2, tokens))


def test_sizes_of_one_are_left_out_where_the_module_takes_another_path() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return x.squeeze(1).cumsum(0) if x.shape[1] == 1 else x.cumsum(1).flatten(1)[:, :2]

    graph = capture(Written(forward), (rows(2, 12),), dynamic={"x": BOTH}).graph
    assert [d.span for d in graph.dimensions.values()] == ["1..", "2.."]


REFUSED = {
    "a size that is compared": (lambda net, x: x + 1 if x.shape[1] == 11 else x, r"M216"),
    "a table of the example's length": (lambda net, x: x + net.table, r"M216"),
    "a fixed view": (lambda net, x: x.reshape(x.shape[0], 12 * 6), r"M216"),
    "a fraction": (lambda net, x: x / x.shape[1] ** 0.5, r"a fractional number is computed.*M218"),
    "a list of rows": (
        lambda net, x: torch.stack([row * i for i, row in enumerate(x.unbind(1))], 1),
        r"M216",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_dimensions_that_the_module_fixes_are_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        capture(Written(function, table=torch.ones(12, 6)), (rows(1, 12),), dynamic={"x": BOTH})


def test_the_problem_of_a_fixed_dimension_names_the_line() -> None:
    with pytest.raises(
        UserError, match=r"input x: the module fixes dimension 1 \(tokens\) at 11 at .*test_dynamic"
    ):
        capture(Written(REFUSED["a size that is compared"][0]), (rows(1, 12),), dynamic={"x": BOTH})


def test_a_range_that_the_module_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"dimension tokens: `max` is 64; the module supports up to 40.*M216"):
        capture(Written(causal, **TABLES), (rows(1, 12),), dynamic={"x": BOTH}, ranges={"tokens": (2, 64)})


def test_a_size_at_which_graph_and_module_differ_is_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return x * float(net.calls.get(x.shape[0] if isinstance(x.shape[0], int) else 0, 3.0))

    net = Written(forward)
    net.calls = {1: 3.0, 2: 5.0}
    with pytest.raises(UserError, match=r"the graph differs from the module at batch = 2 by .*M217"):
        capture(net, (rows(1, 12),), dynamic={"x": {0: "batch"}}, ranges={"batch": (1, 2)})


@pytest.mark.parametrize(
    ("dynamic", "ranges", "message"),
    (
        ({"y": {0: "batch"}}, {}, r"input y: is not a tensor argument of forward; there are x"),
        ({"x": {3: "batch"}}, {}, r"input x: has no dimension 3"),
        ({"x": {0: "n", 1: "n"}}, {}, r"input x: n has size 12, and 1 in another input"),
        ({"x": {0: "batch"}}, {"tokens": (1, 2)}, r"dimension tokens: is not a dimension of an input"),
    ),
)
def test_dimensions_that_do_not_exist_are_refused(dynamic: Any, ranges: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*M215"):
        capture(Written(made), (rows(1, 12),), dynamic=dynamic, ranges=ranges)


def test_a_graph_without_dynamic_dimensions_is_as_before() -> None:
    graph: Graph = capture(Written(heads), (rows(1, 12),)).graph
    assert not graph.dimensions
    assert graph.inputs[0].type.shape == (1, 12, 6) and graph.inputs[0].type.dtype is DType.F32
    with pytest.raises(ValueError, match=r"input x has size 2 in dimension 0; the module takes 1"):
        to_module(graph)(rows(2, 12))
