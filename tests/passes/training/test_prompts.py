"""Training of prompts alone: before the embeddings of a sequence, and gated ones in attention layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxpress.backends.torch_module import to_module
from fxpress.compiler import UserError, compile_model
from fxpress.ir import Builder, Graph, TensorType, run, verify
from fxpress.ir.ops.attention import Attention
from fxpress.passes import Context, finetune
from fxpress.specs.options import FinetuneOptions
from fxpress.specs.write import read_values

COUNT, WIDTH, TOKENS, LENGTH = 3, 16, 20, 12


class Network(nn.Module):
    """Tokens to scores of a sequence; `positions` and `result` name the form."""

    table: Tensor

    def __init__(self, positions: str = "table", result: str = "all") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions, self.result = positions, result
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.learned = nn.Embedding(32, WIDTH)
        self.qkv, self.out, self.head = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 5),
        )
        self.register_buffer("table", torch.randn(32, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.tokens(tokens), tokens)

    def scores(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Scores of embeddings [n, time, width]."""
        n, time, _ = x.shape
        if self.positions == "table":
            x = x + self.table[:time]
        elif self.positions == "learned":
            x = x + self.learned(torch.arange(time))
        elif self.positions == "turned":
            x = torch.cat([x[..., ::2] * self.table[:time, ::2], x[..., 1::2]], -1)
        mask = (tokens != 0)[:, None, None, :] if self.positions == "padded" else None
        q, k, v = self.qkv(x).view(n, time, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(y.transpose(1, 2).reshape(n, time, WIDTH))
        forms: dict[str, Callable[[Tensor], Tensor]] = {
            "all": lambda x: x,
            "last": lambda x: x[:, -1],
            "all but the last": lambda x: x[:, :-1],
            "mean": lambda x: x.mean(1),
            "first": lambda x: x[:, 0],
            "second on": lambda x: x[:, 1:],
        }
        return self.head(forms[self.result](x))


TEXTS = torch.randint(1, TOKENS, (40, LENGTH), generator=torch.Generator().manual_seed(0))
FLAT = {"epochs": 2, "batch": 8, "learning_rate": 1e-1, "class_axis": -1}


def compiled(
    network: nn.Module, trains: object, *, dynamic: bool = True, data: object = None, **options: object
) -> Graph:
    """The graph after prompts of the network were trained to give the scores of another one."""
    step = {"pass": "finetune", **FLAT, "trains": trains, **options}
    lengths = {"dynamic": {"tokens": {1: "time"}}, "dimensions": {"time": {"max": 32}}} if dynamic else {}
    return compile_model(
        network.eval(),
        inputs={"tokens": TEXTS[:1]},
        calibration=data or {"tokens": TEXTS},
        passes=["clean", step],
        **lengths,
    ).graph


def prompts_of(graph: Graph) -> Tensor:
    (name,) = (name for name in graph.params if name.endswith("prompts"))
    return graph.params[name]


@pytest.mark.parametrize("positions", ["none", "table", "learned", "turned"])
@pytest.mark.parametrize("result", ["all", "last", "all but the last", "mean"])
def test_the_sequence_with_prompts_is_a_longer_one(positions: str, result: str) -> None:
    network = Network(positions, result)
    graph = compiled(network, {"prompts": {"count": COUNT}}, distill={"outputs": "mse"})
    for n, time in ((1, LENGTH), (1, 5), (4, 7)):
        tokens = torch.randint(1, TOKENS, (n, time), generator=torch.Generator().manual_seed(time))
        x = torch.cat([prompts_of(graph).expand(n, -1, -1), network.tokens(tokens)], 1)
        wanted = network.scores(x, tokens)
        wanted = wanted[:, COUNT:] if result.startswith("all") else wanted
        for i in range(n):
            torch.testing.assert_close(run(graph, [tokens[i : i + 1]])[0], wanted[i : i + 1])
            torch.testing.assert_close(to_module(graph)(tokens[i : i + 1]), wanted[i : i + 1])


def test_prompts_alone_are_trained() -> None:
    network = Network()
    graph = compiled(network, {"prompts": {"count": COUNT}}, epochs=0)
    trained = compiled(network, {"prompts": {"count": COUNT}}, distill={"outputs": "mse"})
    assert prompts_of(trained).shape == (1, COUNT, WIDTH)
    for name, tensor in graph.params.items():
        assert torch.equal(tensor, trained.params[name]) != name.endswith("prompts")
    rows = prompts_of(graph)[0]
    assert all(any(torch.equal(row, known) for known in network.tokens.weight) for row in rows)


def test_random_prompts_have_the_deviation_of_the_table() -> None:
    graph = compiled(Network(), {"prompts": {"count": 16, "start": "random"}}, epochs=0)
    assert 0.8 < float(prompts_of(graph).std()) < 1.2


def test_the_longest_sequence_is_shorter_by_the_prompts() -> None:
    graph = compiled(Network(), {"prompts": {"count": COUNT}}, epochs=0)
    assert graph.dimensions["time"].high == 32 - COUNT


class TwoTables(Network):
    """Embeddings that are a sum of two."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.tokens(tokens) + self.learned(tokens), tokens)


@pytest.mark.parametrize(
    ("network", "trains", "options", "message"),
    [
        (
            Network(),
            {"prompts": {"count": 21}},
            {},
            "12 positions and 21 prompts are more than the 32 positions",
        ),
        (Network(result="first"), {"prompts": {}}, {}, "it takes position 0, which would be a prompt's"),
        (Network(result="second on"), {"prompts": {}}, {}, "it takes a range of positions"),
        (Network("padded"), {"prompts": {"count": 2}}, {}, "does not take 2 more positions"),
        (TwoTables(), {"prompts": {}}, {}, "one embedding of the inputs; there are tokens, learned"),
        (Network(), {"prompts": {"count": 2}}, {"dynamic": False}, "capture the model with a dynamic length"),
        (
            Network(),
            {"prompts": {"count": 2}},
            {"distill": {"layers": ["out"]}},
            "features of `distill.layers` have",
        ),
        (Network(), {"adapter": {}}, {"keep": ["**"]}, "there is no attention among these layers"),
        (Network(), {"adapter": {"layers": ["head"]}}, {}, "there is no attention among these layers"),
    ],
)
def test_prompts_that_cannot_be_are_refused(
    network: nn.Module, trains: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compiled(network, trains, **{"dynamic": True, **options})  # type: ignore[arg-type]


def test_integer_graphs_have_no_prompts() -> None:
    passes = ["clean", "fuse", "quantize", {"pass": "finetune", "epochs": 1, "trains": {"adapter": {}}}]
    with pytest.raises(
        UserError, match="trains: adapter: an integer graph has no adapter; move `finetune` before"
    ):
        compile_model(Network().eval(), inputs=TEXTS[:1], calibration=TEXTS, passes=passes)


def attention(q: tuple[int, ...], kv: tuple[int, ...], op: Attention) -> Graph:
    builder = Builder()
    operands = [builder.input(name, TensorType(shape)) for name, shape in (("q", q), ("k", kv), ("v", kv))]
    return builder.build([builder.add(op, *operands)])


@settings(deadline=None, max_examples=25)
@given(
    lead=st.sampled_from([(1,), (1, 1), (1, 3), (1, 2, 3)]),
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    causal=st.booleans(),
    serves=st.sampled_from([1, 1, 2]),
    gate=st.sampled_from([0.0, 0.5]),
)
def test_gated_prompts_add_an_attention_to_constants(
    lead: tuple[int, ...], sizes: tuple[int, int, int, int], causal: bool, serves: int, gate: float
) -> None:
    queries, keys, features, count = sizes
    serves = serves if len(lead) >= 2 else 1
    kv = (*lead, keys, features)
    q = (*lead[:-1], lead[-1] * serves, queries, features)
    op = Attention(causal=causal, grouped=serves > 1)
    graph = attention(q, kv, op)
    given = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate((q, kv, kv))
    ]
    options = read_values(
        FinetuneOptions,
        {"epochs": 0, "trains": {"adapter": {"count": count, "gate": gate}}},
        name="finetune(...)",
    )
    samples = [tuple(given)] * 20
    after = verify(finetune(graph, options, Context(calibration=samples, original=graph)).graph)
    parts = {name.rpartition("_")[2]: tensor for name, tensor in after.params.items()}
    (plain,), (found,) = run(graph, given), run(after, given)
    k, v = (parts[name].repeat_interleave(serves, -3) if serves > 1 else parts[name] for name in "kv")
    scores = (given[0] @ k.transpose(-1, -2) / features**0.5).softmax(-1)
    torch.testing.assert_close(found, plain + parts["gate"] * (scores @ v))
    assert gate or torch.equal(found, plain)


@pytest.mark.parametrize("trains", [{"prompts": {"count": 4}}, {"adapter": {"count": 4}}])
def test_trained_prompts_lower_the_loss_and_nothing_else_changes(trains: dict[str, object]) -> None:
    labels = torch.ones_like(TEXTS)
    data = {"tokens": TEXTS, "labels": labels}
    before, after = (compiled(Network(), trains, data=data, distill=None, epochs=epochs) for epochs in (0, 6))
    loss, trained = (
        float(F.cross_entropy(run(graph, [TEXTS[:1]])[0].flatten(0, 1), labels[:1].flatten()))
        for graph in (before, after)
    )
    assert trained < loss - 0.2
    changed = {name for name in before.params if not torch.equal(before.params[name], after.params[name])}
    assert changed and all("prompt" in name for name in changed)


@pytest.mark.parametrize("passes", [[], ["fuse", "quantize"]])
def test_gated_prompts_run_in_c(passes: list[str]) -> None:
    step = {"pass": "finetune", **FLAT, "trains": {"adapter": {"count": 4, "gate": 0.3}}}
    found = compile_model(
        Network().eval(),
        inputs=TEXTS[:1],
        calibration=TEXTS,
        passes=["clean", step, *passes],
        target="host",
        outputs="c",
    )
    (on_host,), (integers,) = (found.run(TEXTS[:8], on=on).outputs for on in ("host", "integer"))
    torch.testing.assert_close(on_host, integers, rtol=0, atol=0 if passes else 1e-5)
