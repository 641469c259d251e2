"""The pass `finetune`: it learns, keeps the best, and does the same twice."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, Source, Value, parse, run
from fxpress.passes import CalibrationError, Context, MissingNeedError, PassError, PassResult, find_pass
from fxpress.specs.options import FinetuneOptions

NET = """
graph(%x: f32[1x6]) {
  const %a: f32[8x6]
  const %ab: f32[8]
  const %g: f32[8]
  const %b: f32[8]
  const %m: f32[8]
  const %v: f32[8]
  const %two: f32[]
  const %w: f32[3x8]
  %h: f32[1x8] = linear(%x, %a, %ab)
  %n: f32[1x8] = batch_norm(%h, %g, %b, %m, %v)
  %r: f32[1x8] = relu(%n)
  %s: f32[1x8] = mul(%r, %two)
  %y: f32[1x3] = linear(%s, %w)
  return output: %y
}"""


def net(seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def fill(value: Value) -> Tensor:
        if value.name in ("g", "v", "two"):
            return torch.ones(value.type.shape)
        return torch.randn(value.type.shape, generator=generator)

    return parse(NET, fill=fill)


def labelled_context(graph: Graph, *, labelled: bool = True, count: int = 160) -> Context:
    """Samples labelled by a teacher, which is also the original."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(5)).split(1)
    labels = [run(graph, [piece])[0].argmax(1) for piece in x] if labelled else []
    return Context([(piece,) for piece in x], labels, original=graph)


def finetune(graph: Graph, context: Context, **options: object) -> PassResult:
    return find_pass("finetune")(
        graph, FinetuneOptions.model_validate({"epochs": 6, "batch": 16, **options}), context
    )


def losses(result: PassResult) -> list[float]:
    return [float(str(row[2])) for row in result.report.table("epochs").rows]


@pytest.mark.parametrize("options", [{}, {"distill": None}, {"optimizer": "sgd", "learning_rate": 0.01}])
def test_training_lowers_the_loss_on_samples_it_does_not_see(options: dict[str, object]) -> None:
    result = finetune(net(seed=1), labelled_context(net()), **{"learning_rate": 0.02, **options})
    measured = losses(result)
    assert min(measured[1:]) < 0.8 * measured[0]


def test_a_student_learns_from_the_original_without_labels() -> None:
    measured = losses(finetune(net(seed=1), labelled_context(net(), labelled=False), learning_rate=0.02))
    assert min(measured[1:]) < 0.8 * measured[0]


def test_the_best_epoch_is_kept() -> None:
    context = labelled_context(net())
    result = finetune(net(), context, learning_rate=0.3, optimizer="sgd", distill=None)
    assert result.graph == net() or min(losses(result)[1:]) < losses(result)[0]


def test_only_weights_and_biases_of_layers_are_trained() -> None:
    result = finetune(net(seed=1), labelled_context(net()))
    changed = {
        n for n in result.graph.params if not torch.equal(result.graph.params[n], net(seed=1).params[n])
    }
    assert changed == {"a", "ab", "g", "b", "w"}


def test_kept_layers_are_not_trained() -> None:
    graph, head = net(seed=1), Source("head")
    nodes = tuple(replace(node, source=head) if node.output.name == "y" else node for node in graph.nodes)
    result = finetune(replace(graph, nodes=nodes), labelled_context(net()), keep=("head",))
    assert torch.equal(result.graph.params["w"], graph.params["w"])
    assert not torch.equal(result.graph.params["a"], graph.params["a"])


def test_two_runs_give_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (
        finetune(net(seed=1), labelled_context(net()), seed=seed).graph for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_it_stops_when_it_gets_no_better() -> None:
    result = finetune(
        net(), labelled_context(net()), learning_rate=0.3, optimizer="sgd", epochs=30, patience=2
    )
    assert len(losses(result)) < 31


def test_a_graph_of_one_batch_size_is_trained_in_several_runs() -> None:
    graph = parse(
        NET.replace(
            "return output: %y",
            "%z: f32[3] = reshape{shape=(3,)}(%y)\n"
            "  %t: f32[1x3] = reshape{shape=(1, 3)}(%z)\n  return output: %t",
        ),
        params=net(seed=1).params,
    )
    one, many = (
        finetune(graph, labelled_context(net()), epochs=1),
        finetune(net(seed=1), labelled_context(net()), epochs=1),
    )
    assert losses(one) == pytest.approx(losses(many), rel=0.1)


def test_what_is_missing_is_asked_for() -> None:
    with pytest.raises(MissingNeedError, match="calibration"):
        finetune(net(), Context())
    unlabelled = replace(labelled_context(net(), labelled=False), original=None)
    with pytest.raises(PassError, match="give labels, or set `distill`"):
        finetune(net(), unlabelled)
    with pytest.raises(CalibrationError, match="too few"):
        finetune(net(), labelled_context(net(), count=1))


def test_a_loss_that_is_not_finite_names_the_learning_rate() -> None:
    graph = net()
    broken = graph.with_params({"a": graph.params["a"] * float("nan")})
    with pytest.raises(PassError, match="lower learning_rate"):
        finetune(broken, labelled_context(net()))
