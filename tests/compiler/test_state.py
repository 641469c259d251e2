"""State: an input that continues an output, in calibration, in every place that runs, and in its encoding."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxpress.compiler import Compiled, UserError, compile_model
from fxpress.compiler.cli import main
from fxpress.compiler.execution import execute, read_interface
from fxpress.compiler.interface import Port
from fxpress.ir import run

INTEGER = """
import torch
from torch import nn


def curve(x):  # a logarithm stays in float
    return torch.log(2 + torch.sigmoid(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.h, self.o = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, h):
        h = torch.tanh(self.x(x) + self.h(h))
        return {"y": self.o(h), "h_out": h}
"""
FORMS = {
    "integers at both ends": INTEGER,
    "read by a layer, made in float": INTEGER.replace("torch.tanh(", "curve("),
    "read in float, made by a layer": INTEGER.replace("self.h(h))", "curve(h))"),
    "read in both": INTEGER.replace("self.h(h))", "self.h(h) + curve(h))"),
}
Arrays = dict[str, NDArray[np.generic]]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compiled(folder: Path, arrays: Arrays, *, source: str = INTEGER, **changed: object) -> Compiled:
    (folder / "net.py").write_text(source)
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's types know `allow_pickle` only
    spec = {
        "fxpress": 1,
        "model": {
            "source": "net.py:Net",
            "inputs": {"x": {"shape": [1, 3]}, "h": {"shape": [1, 4]}},
            "state": {"h": "h_out"},
        },
        "data": {"calibration": {"file": "data.npz"}, "evaluation": {"file": "data.npz"}},
        "passes": [{"pass": "clean"}, {"pass": "fuse"}, {"pass": "quantize"}],
        "outputs": {"c": {"name": "net"}, "torch": {}},
        **changed,
    }
    (folder / "net.yaml").write_text(json.dumps(spec))
    made = compile_model(folder / "net.yaml")
    made.write(folder / "out")
    return made


def stepped(made: Compiled, x: NDArray[np.float32], h: Tensor) -> list[Tensor]:
    """The states of the captured network at each step."""
    params, found = made.session.captured.params, []
    for row in torch.from_numpy(x):
        read = row @ params["x.weight"].T + params["x.bias"] + h @ params["h.weight"].T + params["h.bias"]
        h = torch.tanh(read)
        found.append(h)
    return found


@pytest.mark.parametrize("on", ["host", "torch", "integer", "cortex-m4"])
def test_a_run_carries_the_state_from_step_to_step(tmp_path: Path, on: str) -> None:
    x = normal(20, 3)
    made = compiled(tmp_path, {"x": x})
    assert made.session.evaluation is not None
    y, h = execute(tmp_path / "out", made.session.evaluation, on=on).outputs
    wanted = torch.stack(stepped(made, x, torch.zeros(4)))
    assert y.shape == (20, 2) and h.shape == (20, 4)
    assert float((h - wanted).abs().max()) < 0.08  # ten steps of int8, since errors are carried too


def test_calibration_sees_the_states_that_the_network_reaches(tmp_path: Path) -> None:
    x = normal(20, 3)
    made = compiled(tmp_path, {"x": x})
    samples = made.session.calibration
    assert samples is not None and not samples.states
    before = torch.stack([torch.zeros(4), *stepped(made, x, torch.zeros(4))[:-1]])
    assert torch.allclose(samples.inputs[1].reshape(20, 4), before, atol=1e-6)


def test_sequences_start_anew(tmp_path: Path) -> None:
    """As [n, t, ...], or flat with a starting state for each sequence."""
    x, h = normal(4, 5, 3), normal(4, 4, seed=1)
    made = compiled(tmp_path, {"x": x, "h": h})
    assert made.session.evaluation is not None
    wanted = torch.cat([torch.stack(stepped(made, x[i], torch.from_numpy(h[i]))) for i in range(4)])
    nested = execute(tmp_path / "out", made.session.evaluation, on="host").outputs[1]
    assert float((nested - wanted).abs().max()) < 0.08
    (tmp_path / "flat").mkdir()
    flat = compiled(tmp_path / "flat", {"x": x.reshape(20, 3), "h": h})
    assert flat.session.evaluation is not None
    assert torch.equal(execute(tmp_path / "flat/out", flat.session.evaluation, on="host").outputs[1], nested)


def encoding(port: Port) -> tuple[object, ...]:
    return port.c_dtype, port.scale, port.zero_point, port.c_order


@pytest.mark.parametrize("form", FORMS)
def test_a_state_has_one_encoding(tmp_path: Path, form: str) -> None:
    made = compiled(tmp_path, {"x": normal(20, 3)}, source=FORMS[form], outputs={"c": {"name": "net"}})
    interface = read_interface(tmp_path / "out")
    before, after = interface.inputs[1], interface.outputs[1]
    assert encoding(before) == encoding(after)
    assert before.c_dtype == "i8"
    assert before.zero_point is not None and -128 <= before.zero_point <= 127
    assert made.session.evaluation is not None
    exact = execute(tmp_path / "out", made.session.evaluation, on="integer").outputs[1]
    assert torch.allclose(execute(tmp_path / "out", made.session.evaluation, on="host").outputs[1], exact)


def test_states_of_several_layers_are_carried(tmp_path: Path) -> None:
    model = (
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.gru = nn.GRU(3, 4, 2, batch_first=True)\n\n"
        "    def forward(self, x, h):\n        return self.gru(x, h)\n"
    )
    inputs = {"x": {"shape": [1, 1, 3]}, "h": {"shape": [2, 1, 4], "batch": 1}}
    described = {"source": "net.py:Net", "inputs": inputs, "outputs": ["y", "h_out"], "state": {"h": "h_out"}}
    x = normal(12, 1, 3)
    (tmp_path / "net.py").write_text(model)
    np.savez(tmp_path / "data.npz", x=x)
    spec = {
        "fxpress": 1,
        "model": described,
        "data": {"evaluation": {"file": "data.npz"}},
        "outputs": {"c": {"name": "net"}},
    }
    (tmp_path / "net.yaml").write_text(json.dumps(spec))
    made = compile_model(tmp_path / "net.yaml")
    made.write(tmp_path / "out")
    gru = nn.GRU(3, 4, 2, batch_first=True)
    gru.load_state_dict({n.removeprefix("gru."): t for n, t in made.session.captured.params.items()})
    wanted, _ = gru(torch.from_numpy(x).view(1, 12, 3))
    assert made.session.evaluation is not None
    (got, _) = execute(tmp_path / "out", made.session.evaluation, on="host").outputs
    assert torch.allclose(got.view(1, 12, 4), wanted, atol=1e-5)


@pytest.mark.parametrize("target", ["host", "cortex-m4", "cortex-m0plus", "riscv32"])
def test_states_in_place_give_what_copied_ones_do(tmp_path: Path, target: str) -> None:
    x = normal(3, 5, 3)
    made = compiled(tmp_path, {"x": x}, target={"name": target})
    assert made.session.evaluation is not None
    copied = execute(tmp_path / "out", made.session.evaluation, on=target).outputs
    outputs = {"c": {"name": "net", "states": "in_place"}}
    compiled(tmp_path, {"x": x}, target={"name": target}, outputs=outputs)
    assert (tmp_path / "out/c/net.h").read_text().count("int net_step(const int8_t *x, void *state, ") == 1
    in_place = execute(tmp_path / "out", made.session.evaluation, on=target).outputs
    assert all(map(torch.equal, in_place, copied))
    test = tmp_path / "test"
    sources = [str(tmp_path / "out/c" / name) for name in ("net.c", "net_weights.c", "net_test.c")]
    subprocess.run(
        ["gcc", "-std=c99", "-Wall", "-Werror", "-DNET_TEST_MAIN", *sources, "-o", test, "-lm"], check=True
    )
    assert b"0 of 5 outputs differ" in subprocess.run([test], capture_output=True, check=True).stdout


CELLS = {
    "gru": ("self.cell = nn.GRUCell(3, 4)", "h = self.cell(x, h)"),
    "two layers": ("self.cell = nn.RNN(3, 2, 2)", "h = self.cell(x[None], h.view(2, 1, 2))[1].reshape(1, 4)"),
    "lstm": ("self.cell = nn.LSTMCell(3, 2)", "h = torch.cat(self.cell(x, h.split(2, 1)), 1)"),
}


@pytest.mark.parametrize("target", ["host", "cortex-m4"])
@pytest.mark.parametrize("cell", CELLS)
def test_states_of_recurrent_cells_are_carried_as_integers(tmp_path: Path, cell: str, target: str) -> None:
    made, step = CELLS[cell]
    source = INTEGER.replace("h = torch.tanh(self.x(x) + self.h(h))", step)
    source = source.replace("self.x, self.h, self.o = nn.Linear(3, 4), nn.Linear(4, 4)", f"{made}; self.o =")
    source = source.replace("self.o =, ", "self.o = ")
    x, found = normal(3, 5, 3), {}
    for states in ("copied", "in_place"):
        outputs = {"c": {"name": "net", "states": states, "allow_float": False}}
        network = compiled(tmp_path, {"x": x}, source=source, target={"name": target}, outputs=outputs)
        assert network.session.evaluation is not None
        for on in (target, "integer"):
            found[states, on] = execute(tmp_path / "out", network.session.evaluation, on=on).outputs
    exact = found["copied", "integer"]
    assert all(torch.equal(a, b) for outputs in found.values() for a, b in zip(outputs, exact, strict=True))
    assert encoding(read_interface(tmp_path / "out").inputs[1])[0] == "i16"
    reached = []
    for sequence in torch.from_numpy(x):
        h = torch.zeros(1, 4)
        for row in sequence:
            _, h = run(network.session.captured, [row[None], h])
            reached.append(h)
    assert float((torch.cat(reached) - exact[1]).abs().max()) < 0.02


def test_states_in_place_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    outputs = {"c": {"name": "net", "states": "in_place"}}
    inputs = {name: {"shape": [1, 3]} for name in ("x", "h", "g")}
    state = {"h": "g_out", "g": "h_out"}
    source = (
        INTEGER.replace("forward(self, x, h)", "forward(self, x, h, g)")
        .replace('{"y": self.o(h), "h_out": h}', '{"y": self.x(x + h), "h_out": h, "g_out": g}')
        .replace("        h = torch.tanh(self.x(x) + self.h(h))\n", "")
    )
    model = {"source": "net.py:Net", "inputs": inputs, "state": state}
    with pytest.raises(UserError, match="take each other's values"):
        compiled(
            tmp_path,
            {"x": normal(4, 3)},
            source=source,
            model=model,
            target={"name": "host"},
            outputs=outputs,
            passes=[],
        )


ENDS = {
    "integers": ({"io": {"h": "float"}}, "give h and h_out the same `io`"),
    "bytes": ({"io": {"h_out": "uint8"}}, "give h and h_out the same `io`"),
    "order": (
        {"layouts": {"h": "nchw"}},
        "give h and h_out the same `layouts`: `{h: model, h_out: model}`",
    ),
}
OF_IMAGES = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, h):
        h = self.layer(x + h).sigmoid()
        return h[:, 0], h
"""


@pytest.mark.parametrize("case", ENDS)
def test_ends_of_a_state_that_differ_are_refused_with_what_differs(tmp_path: Path, case: str) -> None:
    options, advice = ENDS[case]
    model = {
        "source": "net.py:Net",
        "inputs": {"x": {"shape": [1, 2, 4, 5]}, "h": {"shape": [1, 2, 4, 5]}},
        "outputs": ["y", "h_out"],
        "state": {"h": "h_out"},
    }
    with pytest.raises(UserError, match=rf"state h: .*{re.escape(advice)} \[B603\]"):
        compiled(
            tmp_path,
            {"x": normal(20, 2, 4, 5)},
            source=OF_IMAGES,
            model=model,
            outputs={"c": {"name": "net", **options}},
        )


WRONG = {
    "no such input": ({"k": "h_out"}, "k is not an input"),
    "no such output": ({"h": "z"}, r"z, which does not exist; there are y, h_out.*M106"),
    "another shape": ({"h": "y"}, r"state h is f32\[1x4\], the output y f32\[1x2\].*M106"),
    "every input": ({"h": "h_out", "x": "y"}, "every input is a state"),
}


@pytest.mark.parametrize("case", WRONG)
def test_states_that_cannot_be_are_refused(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state, message = WRONG[case]
    compiled(tmp_path, {"x": normal(20, 3)})
    spec = json.loads((tmp_path / "net.yaml").read_text())
    spec["model"]["state"] = state
    (tmp_path / "net.yaml").write_text(json.dumps(spec))
    assert main(["compile", str(tmp_path / "net.yaml"), "-o", str(tmp_path / "other")]) == 2
    text = capsys.readouterr().err.replace("\n", " ")
    assert re.search(message, text), text


def test_sequences_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"20 steps are not 3 sequences of equal length.*D104"):
        compiled(tmp_path, {"x": normal(20, 3), "h": normal(3, 4)})


def test_sensitivity_is_measured_on_the_states_that_calibration_reaches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled(tmp_path, {"x": normal(20, 3)})
    arguments = ["sensitivity", str(tmp_path / "net.yaml"), "-o", str(tmp_path / "table.json")]
    assert main(arguments) == 0
    assert "20 samples" in capsys.readouterr().out
