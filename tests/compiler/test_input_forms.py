"""Inputs of every form: numbers without dimensions, a batch that is not dimension 0, whole arrays for each call."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxpress.compiler import Compiled, UserError, compile_model
from fxpress.compiler.cli import main
from fxpress.compiler.data import snr_db
from fxpress.compiler.execution import execute
from fxpress.ir import run
from fxpress.ir.ops.call import TorchCall

GAINED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, gain):
        return self.layer(x) * gain
"""
STACKED = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, 2, batch_first=True)

    def forward(self, x, h):
        y, h = self.gru(x, h)
        return y[:, -1], h
"""
Arrays = dict[str, NDArray[np.generic]]


def compiled(folder: Path, model: str, inputs: dict[str, object], arrays: Arrays) -> Compiled:
    """A network with calibration data, compiled to C and a torch module, and written to `folder / "out"`."""
    (folder / "net.py").write_text(model)
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's types know `allow_pickle` only
    spec = {
        "fxpress": 1,
        "model": {"source": "net.py:Net", "inputs": inputs},
        "data": {"calibration": {"file": "data.npz"}, "evaluation": {"file": "data.npz"}},
        "passes": [{"pass": "clean"}, {"pass": "fuse"}, {"pass": "quantize"}],
        "outputs": {"c": {"name": "net"}, "torch": {}},
    }
    (folder / "net.yaml").write_text(json.dumps(spec))
    made = compile_model(folder / "net.yaml")
    made.write(folder / "out")
    return made


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("on", ["host", "torch", "integer"])
def test_a_number_without_dimensions_is_an_input(tmp_path: Path, on: str) -> None:
    arrays: Arrays = {"x": normal(8, 4), "gain": np.linspace(0.1, 1, 8, dtype=np.float32)}
    made = compiled(tmp_path, GAINED, {"x": {"shape": [1, 4]}, "gain": {"shape": []}}, arrays)
    samples = made.session.evaluation
    assert samples is not None
    (got,) = execute(tmp_path / "out", samples, on=on).outputs
    layer = made.session.captured.params
    reals = torch.from_numpy(arrays["x"]) @ layer["layer.weight"].T + layer["layer.bias"]
    wanted = reals * torch.from_numpy(arrays["gain"])[:, None]
    assert got.shape == (8, 3)
    assert float((got - wanted).abs().max()) < 0.05  # several steps of int8


@pytest.mark.parametrize("batch", [0, 1])
def test_states_of_several_layers_come_whole_or_without_their_batch(tmp_path: Path, batch: int) -> None:
    """The batch of h is dimension 1: arrays [n, 2, 4] leave it out; whole arrays need not say which it is."""
    h = normal(6, 2, 4, seed=1)
    arrays: Arrays = {"x": normal(6, 5, 3), "h": h if batch else h[:, :, None]}
    inputs: dict[str, object] = {"x": {"shape": [1, 5, 3]}, "h": {"shape": [2, 1, 4], "batch": batch}}
    made = compiled(tmp_path, STACKED, inputs, arrays)
    samples = made.session.evaluation
    assert samples is not None
    last, states = execute(tmp_path / "out", samples, on="host").outputs
    gru = nn.GRU(3, 4, 2, batch_first=True)
    gru.load_state_dict({n.removeprefix("gru."): t for n, t in made.session.captured.params.items()})
    y, wanted = gru(torch.from_numpy(arrays["x"]), torch.from_numpy(h).transpose(0, 1).contiguous())
    assert torch.allclose(last, y[:, -1], atol=1e-3)  # a few steps of int16
    assert torch.allclose(states.reshape(6, 2, 4).transpose(0, 1), wanted, atol=1e-3)


def test_arrays_that_serve_another_number_of_calls_are_refused(tmp_path: Path) -> None:
    arrays: Arrays = {"x": normal(8, 4), "gain": np.ones(7, np.float32)}
    with pytest.raises(UserError, match=r"arrays differ in length: \[7, 8\].*D104"):
        compiled(tmp_path, GAINED, {"x": {"shape": [1, 4]}, "gain": {"shape": []}}, arrays)


def test_a_batch_that_is_no_dimension_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.yaml").write_text(
        "fxpress: 1\nmodel: {source: net.py:Net, inputs: {x: {shape: [2, 3], batch: 2}}}\noutputs: {torch: {}}\n"
    )
    assert main(["check", str(tmp_path / "net.yaml")]) == 2
    assert "batch 2 is not a dimension of the shape [2, 3]" in capsys.readouterr().err


UNBATCHED = {
    "nn.Conv1d(6, 4, 5, padding=2), nn.ReLU(), nn.AvgPool1d(2)": (6, 12),
    "nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)": (2, 7, 7),
    "nn.ConvTranspose1d(4, 3, 4, 2, 1), nn.AdaptiveMaxPool1d(5)": (4, 9),
    "nn.PixelUnshuffle(2), nn.InstanceNorm2d(4), nn.Flatten(0), nn.Linear(24, 3)": (1, 6, 4),
    "nn.Linear(8, 3), nn.Softmax(-1)": (5, 8),
    "nn.TransformerEncoderLayer(8, 2, 16, 0.0)": (5, 8),
}


@pytest.mark.parametrize("layers", UNBATCHED)
def test_a_single_sample_without_batch_is_an_input(tmp_path: Path, layers: str) -> None:
    """As torch takes it: the data have one input for each call, which is what tells it from a batch."""
    shape = UNBATCHED[layers]
    model = f"from torch import nn\n\n\ndef Net():\n    return nn.Sequential({layers})\n"
    made = compiled(tmp_path, model, {"input": {"shape": list(shape)}}, {"input": normal(12, *shape)})
    assert not any(isinstance(node.op, TorchCall) for node in made.graph.nodes)
    samples = made.session.evaluation
    assert samples is not None
    (got,) = execute(tmp_path / "out", samples, on="host").outputs
    captured = made.session.captured
    wanted = torch.stack([run(captured, [x.reshape(shape)])[0] for x in samples.inputs[0]])
    assert got.shape == wanted.shape
    assert snr_db(wanted, got) > 25  # dB, of int8


def test_a_recurrent_network_takes_a_sequence_without_batch(tmp_path: Path) -> None:
    model = STACKED.replace("self, x, h", "self, x").replace("self.gru(x, h)", "self.gru(x)")
    made = compiled(
        tmp_path, model.replace("y[:, -1], h", "y, h"), {"x": {"shape": [5, 3]}}, {"x": normal(6, 5, 3)}
    )
    samples = made.session.evaluation
    assert samples is not None
    sequence, state = execute(tmp_path / "out", samples, on="host").outputs
    assert (sequence.shape, state.shape) == ((6, 5, 4), (6, 2, 4))
    assert torch.allclose(sequence[:, -1], state[:, -1], atol=1e-6)


def float_spec(folder: Path, described: str) -> Path:
    """A spec without data for a linear layer on eight features."""
    (folder / "net.py").write_text("from torch import nn\n\n\ndef Net():\n    return nn.Linear(8, 3)\n")
    path = folder / "net.yaml"
    path.write_text(
        f"fxpress: 1\nmodel: {{source: net.py:Net, inputs: {{input: {described}}}}}\noutputs: {{c: {{}}}}\n"
    )
    return path


def test_a_batch_is_refused_unless_the_spec_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input input: has a batch of 5; .*`batch: null`.*C701"):
        compile_model(float_spec(tmp_path, "{shape: [5, 8]}"))
    made = compile_model(float_spec(tmp_path, "{shape: [5, 8], batch: null}"))
    assert json.loads(made.files["interface.json"])["inputs"][0]["batch"] is None


def test_a_batch_that_is_not_the_first_dimension_is_one_of_one(tmp_path: Path) -> None:
    """Time comes first: five steps of one sample."""
    assert compile_model(float_spec(tmp_path, "{shape: [5, 1, 8], batch: 1}")).c is not None


def test_an_input_without_batch_takes_no_array_of_parts(tmp_path: Path) -> None:
    described = {"x": {"shape": [5, 3], "batch": None}}
    with pytest.raises(UserError, match=r"has samples of shape \(3,\); the model takes \(5, 3\).*D103"):
        compiled(tmp_path, "from torch import nn\nNet = nn.Linear(3, 4)\n", described, {"x": normal(10, 3)})


def test_training_takes_a_batch(tmp_path: Path) -> None:
    """Rows of a sample without batch are no samples that can be put in another order."""
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef Net():\n    return nn.Conv1d(4, 3, 3)\n")
    np.savez(tmp_path / "data.npz", input=normal(8, 4, 9))
    (tmp_path / "net.yaml").write_text(
        "fxpress: 1\nmodel: {source: net.py:Net, inputs: {input: {shape: [4, 9]}}}\n"
        "data: {calibration: {file: data.npz}}\npasses: [{pass: finetune}]\noutputs: {torch: {}}\n"
    )
    with pytest.raises(UserError, match=r"first dimension is the batch: add one to the model.*P601"):
        compile_model(tmp_path / "net.yaml")


def test_outputs_without_batch_are_saved_one_for_each_sample(tmp_path: Path) -> None:
    model = GAINED.replace(
        "return self.layer(x) * gain", "return self.layer(x), self.layer(x).amax(), x + gain"
    )
    arrays: Arrays = {"x": normal(7, 4), "gain": normal(7)}
    compiled(tmp_path, model, {"x": {"shape": [4]}, "gain": {"shape": []}}, arrays)
    for place in ("integer", "host", "torch"):
        command = ["run", str(tmp_path / "out"), "--on", place, "--data", str(tmp_path / "data.npz")]
        assert main([*command, "--save", str(tmp_path / "y.npz")]) == 0
        with np.load(tmp_path / "y.npz") as saved:
            assert [saved[name].shape for name in saved] == [(7, 3), (7,), (7, 4)]


MASKED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 4, padding_idx=0)

    def forward(self, ids):
        kept = (ids != 0).float()
        return (self.words(ids) * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
"""


def test_the_example_for_capture_comes_from_the_data(tmp_path: Path) -> None:
    """With padding alone the network divides by zero: neither the first sample nor zeros would do."""
    ids = np.concatenate([np.zeros((1, 6), np.int64), np.arange(1, 19).reshape(3, 6)])
    (tmp_path / "net.py").write_text(MASKED)
    np.savez(tmp_path / "data.npz", ids=ids)
    (tmp_path / "net.yaml").write_text(
        "fxpress: 1\n"
        "model: {source: net.py:Net, inputs: {ids: {shape: [1, 6], dtype: int64}}}\n"
        "data: {calibration: {file: data.npz}}\n"
        "outputs: {torch: {}}\n"
    )
    assert compile_model(tmp_path / "net.yaml").session.captured.inputs[0].type.shape == (1, 6)


def test_init_writes_integer_inputs_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width, mode):\n"
        "        super().__init__()\n"
        "        assert mode == 'mean'\n"
        "        self.words, self.head = nn.Embedding(9, width), nn.Linear(width, 2)\n\n"
        "    def forward(self, ids, gain):\n"
        "        return self.head(self.words(ids).mean(1)) * gain\n"
    )
    command = ["init", "net.py:Net", "--arg", "width=4", "--arg", "mode=mean"]
    assert main([*command, "--input", "ids=1x6:int64", "--input", "gain=scalar"]) == 0
    text = Path("spec.yaml").read_text()
    assert '  args: {"width": 4, "mode": "mean"}\n' in text
    assert "    ids: {shape: [1, 6], dtype: int64}\n    gain: {shape: []}\n" in text
    assert "transform" not in text  # there are no axes to move in ids, and no reals to scale
    assert main(["check", "spec.yaml"]) == 2  # the calibration file is still to come
    for wrong in ("ids=1x0", "ids=1x6:int3", "ids", "ids=ax2"):
        assert main([*command, "--input", wrong, "-o", "other.yaml"]) == 2
    assert main(["init", "net.py:Net", "--arg", "width", "--input", "x=1", "-o", "other.yaml"]) == 2


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--arg", "mode=[1"), "--arg:1:8: is not YAML.*S103"),
        (("--arg", "mode={a: 1"), "S103"),
        (("--arg", "mode=1", "--arg", "mode=2"), "--arg mode: is given twice.*M105"),
        (("--input", "x=1x2"), "--input x: is given twice.*M105"),
    ],
)
def test_init_refuses_arguments_that_are_no_yaml_or_given_twice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("def Net(mode): raise AssertionError\n")
    assert main(["init", "net.py:Net", "--input", "x=1x2", *option]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_an_argument_of_init_is_read_as_in_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\n\n"
        "def Net(widths, deep, name):\n"
        "    assert widths == [4, 2] and deep is True and name == 'a b'\n"
        "    return nn.Linear(*widths)\n"
    )
    arguments = ["--arg", "widths=[4, 2]", "--arg", "deep=True", "--arg", "name=a b"]
    assert main(["init", "net.py:Net", *arguments, "--input", "input=1x4"]) == 0
    assert '  args: {"widths": [4, 2], "deep": true, "name": "a b"}' in Path("spec.yaml").read_text()


EXITS = {
    "at import": "import sys\nsys.exit()\n",
    "in the constructor": "class Net:\n    def __init__(self):\n        raise SystemExit\n",
    "in forward": "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n        exit(0)\n",
}


@pytest.mark.parametrize("place", EXITS)
def test_a_model_that_ends_the_program_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "net.py").write_text(EXITS[place])
    (tmp_path / "net.yaml").write_text(
        "fxpress: 1\nmodel: {source: net.py:Net, inputs: {x: {shape: [1, 3]}}}\noutputs: {torch: {}}\n"
    )
    assert main(["compile", str(tmp_path / "net.yaml"), "-o", str(tmp_path / "out")]) == 2
    assert "raises SystemExit" in capsys.readouterr().err


def test_outputs_are_saved_under_any_name(tmp_path: Path) -> None:
    """`file` and `arr_0` are names that `np.savez` keeps for itself."""
    model = GAINED.replace("return self.layer(x) * gain", "return {'file': self.layer(x), 'a/b': gain}")
    arrays: Arrays = {"x": normal(4, 4), "gain": np.ones(4, np.float32)}
    compiled(tmp_path, model, {"x": {"shape": [1, 4]}, "gain": {"shape": []}}, arrays)
    command = ["run", str(tmp_path / "out"), "--on", "integer", "--data", str(tmp_path / "data.npz")]
    assert main([*command, "--save", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as saved:
        assert {name: saved[name].shape for name in saved} == {"file": (4, 3), "a/b": (4,)}


def test_labels_and_samples_keep_their_order(tmp_path: Path) -> None:
    arrays: Arrays = {"x": normal(5, 4), "gain": np.ones(5, np.float32)}
    made = compiled(tmp_path, GAINED, {"x": {"shape": [1, 4]}, "gain": {"shape": []}}, arrays)
    samples = made.session.evaluation
    assert samples is not None
    few = samples.first(2)
    x, gain = (tensor for tensor in few.inputs)
    assert len(few) == 2 and isinstance(x, Tensor) and x.shape == (2, 4) and gain.shape == (2,)
