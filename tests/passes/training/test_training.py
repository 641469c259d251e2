"""The training loop: resumed, continued, and repeated training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, dump, parse, run
from fxpress.passes import Context, PassError
from fxpress.passes.training import Trained, train
from fxpress.passes.training.optimizer import learning_rate
from fxpress.specs.options import FinetuneOptions

NET = """
graph(%x: f32[1x2x4x4]) {
  const %a: f32[6x2x3x3]
  const %b: f32[6]
  const %w: f32[3x96]
  %c: f32[1x6x4x4] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %a, %b)
  %f: f32[1x96] = reshape{shape=(-1, 96)}(%c)
  %y: f32[1x3] = linear(%f, %w)
  return output: %y
}"""


class KilledError(Exception):
    pass


def net(seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    return parse(NET, fill=lambda v: torch.randn(v.type.shape, generator=generator) / 4)


def context(*, dies_at: int | None = None) -> Context:
    pieces = torch.randn(96, 2, 4, 4, generator=torch.Generator().manual_seed(5)).split(1)
    labels = [run(net(), [piece])[0].argmax(1) for piece in pieces]

    def progress(label: str, done: int, total: int) -> None:
        if done == dies_at:
            raise KilledError

    return Context([(piece,) for piece in pieces], labels, original=net(), progress=progress)


def options(**chosen: object) -> FinetuneOptions:
    base = {"epochs": 5, "batch": 16, "learning_rate": 0.02, "augment": {"flip": True, "shift": 1}}
    return FinetuneOptions.model_validate(base | chosen)


def trained(surroundings: Context | None = None, **chosen: object) -> Trained:
    return train(net(seed=1), options(**chosen), surroundings or context())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    file = str(tmp_path / "state" / "training.pt")
    whole = trained(optimizer=optimizer)
    with pytest.raises(KilledError):
        trained(context(dies_at=15), optimizer=optimizer, checkpoint=file)
    resumed = trained(optimizer=optimizer, checkpoint=file)
    assert resumed.graph == whole.graph
    assert resumed.rows == whole.rows
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["training.pt"]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    file = str(tmp_path / "training.pt")
    first = trained(checkpoint=file)
    again = trained(context(dies_at=1), checkpoint=file)
    assert again.graph == first.graph


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.pt"
    trained(checkpoint=str(file), epochs=1)
    with pytest.raises(PassError, match="belongs to another training"):
        trained(checkpoint=str(file), epochs=2)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(PassError, match="is not a checkpoint; remove it"):
        trained(checkpoint=str(file))


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PassError, match="cannot be written"):
        trained(checkpoint=str(tmp_path / "file" / "training.pt"), epochs=1)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_optimizer_is_carried_over_with_the_channels_that_stay(optimizer: str) -> None:
    first = trained(optimizer=optimizer, augment=None)
    kept = torch.tensor([0, 1, 3, 5])
    text = NET.replace("6x", "4x").replace("[6]", "[4]").replace("1x6", "1x4").replace("96", "64")

    def cut(name: str, tensor: Tensor) -> Tensor:
        return tensor.view(3, 6, 16)[:, kept].reshape(3, 64) if name == "w" else tensor[kept]

    smaller = parse(text, params={name: cut(name, t) for name, t in first.graph.params.items()})
    state = first.state.mapped(cut)
    assert all(
        t.shape == smaller.params[name].shape for of in state.moments.values() for name, t in of.items()
    )
    chosen = options(optimizer=optimizer, augment=None, epochs=1)
    carried, afresh = (train(smaller, chosen, context(), state=s) for s in (state, None))
    assert carried.graph != afresh.graph
    if optimizer == "adamw":
        assert carried.state.steps == first.state.steps + afresh.state.steps


def test_a_state_goes_on_where_the_optimizer_stopped() -> None:
    """Two steps of one call are those of two calls: with a constant rate, and all samples in one step."""
    chosen = {"optimizer": "sgd", "batch": 96, "augment": None, "learning_rate": 0.01}
    first = trained(epochs=1, **chosen)
    assert first.state.moments.keys() == {"momentum_buffer"}
    buffer = first.state.moments["momentum_buffer"]["a"]
    again = train(first.graph, options(epochs=1, **chosen), context(), state=first.state)
    without = train(first.graph, options(epochs=1, **chosen), context())
    difference = again.state.moments["momentum_buffer"]["a"] - without.state.moments["momentum_buffer"]["a"]
    assert torch.allclose(difference, 0.9 * buffer, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_is_told_with_what_helps() -> None:
    overflowing = net(seed=1).with_params({"a": torch.full((6, 2, 3, 3), 1e38), "b": torch.full((6,), 1e38)})
    with pytest.raises(PassError, match=r"the loss is (nan|inf) in epoch 1; lower learning_rate"):
        train(overflowing, options(), context())
    with pytest.raises(PassError, match=r"the loss is nan in epoch 1; set `dtype: float32` under `model`"):
        train(in_halves(net(seed=1)), options(augment=None), halved(context()))


def in_halves(graph: Graph) -> Graph:
    params = {name: tensor.half() for name, tensor in graph.params.items()}
    return parse(dump(graph).replace("f32", "f16"), params=params)


def halved(whole: Context) -> Context:
    pieces = [tuple(x.half() for x in piece) for piece in whole.calibration]
    return replace(whole, calibration=pieces, original=in_halves(net()))


def test_no_epoch_changes_nothing() -> None:
    result = trained(epochs=0)
    assert result.graph == net(seed=1)
    assert len(result.rows) == 1


def test_the_rate_rises_and_falls_along_half_a_cosine_wave() -> None:
    chosen = options(epochs=10, warmup=2, learning_rate=1.0)
    assert [round(learning_rate(chosen, e), 3) for e in (0, 1, 2, 6, 10)] == [0, 0.5, 1, 0.5, 0]
