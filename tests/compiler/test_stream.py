"""A streamed network in a compilation: states, recordings as calls, and the same results as the window network."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fxpress.compiler import Compiled, UserError, compile_model, load_compiled
from fxpress.compiler.cli import main
from fxpress.specs import SpecError

FRAMES = 12
SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 4, 3, dilation=2, groups=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a)) + a[:, :, 4:]
        return self.head(b.mean(2))


class Rows(Net):
    # frames [t, 3] without a batch, and an offset that each call is given

    def forward(self, x, offset):
        a = torch.relu(self.a(x.T[None]))
        return self.head(torch.relu(self.b(a)).mean(2)) + offset


class Padded(Net):
    def forward(self, x):
        return self.head(nn.functional.conv1d(x, self.a.weight, padding=1).mean(2))
"""
Array = NDArray[np.float32]


def recording(frames: int, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(1, 3, frames)).astype(np.float32)


def compiled(folder: Path, *, model: str = "Net", batch: int = 1, **changed: object) -> Compiled:
    """The network with 20 windows as calibration and evaluation data, in C and torch."""
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(SOURCE)
    long = recording(20 * FRAMES, seed=1)
    np.savez(folder / "data.npz", x=long[0].reshape(3, 20, FRAMES).transpose(1, 0, 2))
    spec = {
        "fxpress": 1,
        "target": {"name": "cortex-m4"},
        "model": {"source": f"net.py:{model}", "inputs": {"x": {"shape": [batch, 3, FRAMES]}}},
        "data": {
            "calibration": {"file": "data.npz"},
            "evaluation": {"file": "data.npz", "metric": "snr"},
        },
        "passes": [{"pass": "fuse"}, {"pass": "quantize"}, {"pass": "stream", "axis": 2}],
        "outputs": {"c": {"name": "net"}, "torch": {"form": "native"}},
        **changed,
    }
    (folder / "net.yaml").write_text(json.dumps(spec))
    made = compile_model(folder / "net.yaml")
    made.write(folder / "out")
    return made


def windows(x: Array, *, hop: int = 1) -> Array:
    """Each window of a recording, from the first whole one on."""
    starts = range(0, x.shape[2] - FRAMES + 1, hop)
    return np.stack([x[0, :, start : start + FRAMES] for start in starts])


PASSES = [{"pass": "fuse"}, {"pass": "quantize"}]


@pytest.mark.parametrize("hop", [1, 3])
@pytest.mark.parametrize("on", ["integer", "host", "torch", "cortex-m4"])
def test_calls_give_what_windows_give(tmp_path: Path, on: str, hop: int) -> None:
    compiled(tmp_path / "window", passes=PASSES)
    compiled(tmp_path / "stream", passes=[*PASSES, {"pass": "stream", "axis": {"x": 2}, "hop": hop}])
    x = recording(30)
    expected = load_compiled(tmp_path / "window/out").run({"x": windows(x, hop=hop)}, on="integer").outputs[0]
    found = load_compiled(tmp_path / "stream/out").run({"x": x}, on=on).outputs[0]
    assert found.shape == (30 // hop, 2)
    assert torch.equal(found[FRAMES // hop - 1 :], expected)


def test_a_float_network_is_streamed(tmp_path: Path) -> None:
    compiled(tmp_path / "window", passes=[], outputs={"torch": {}})
    passes = [{"pass": "stream", "axis": 2}, {"pass": "quantize"}]
    with pytest.raises(SpecError, match="quantize cannot run after stream: samples are windows"):
        compiled(tmp_path / "stream", passes=passes)
    compiled(tmp_path / "stream", passes=passes[:1], outputs={"torch": {}})
    x = recording(20)
    expected = load_compiled(tmp_path / "window/out").run({"x": windows(x)}, on="torch").outputs[0]
    found = load_compiled(tmp_path / "stream/out").run({"x": x}, on="torch").outputs[0]
    torch.testing.assert_close(found[FRAMES - 1 :], expected)


def test_calls_one_by_one_and_several_recordings_are_samples_too(tmp_path: Path) -> None:
    compiled(tmp_path / "out")
    network, x = load_compiled(tmp_path / "out/out"), recording(15)
    whole = network.run({"x": x}, on="integer").outputs[0]
    frames = np.ascontiguousarray(x[0].T[:, :, None])
    assert torch.equal(network.run({"x": frames}, on="integer").outputs[0], whole)
    assert torch.equal(network.run(x, on="integer").outputs[0], whole)
    both = network.run({"x": np.concatenate([x, x])}, on="integer").outputs[0]
    assert torch.equal(both, torch.cat([whole, whole]))


@pytest.mark.parametrize("on", ["integer", "host", "torch"])
def test_recordings_are_cut_where_a_call_takes_the_whole_window(tmp_path: Path, on: str) -> None:
    made = compiled(tmp_path / "out", passes=[*PASSES, {"pass": "stream", "axis": 2, "hop": FRAMES}])
    assert not made.spec.model.state
    network, x = load_compiled(tmp_path / "out/out"), recording(3 * FRAMES)
    expected = network.run({"x": windows(x, hop=FRAMES)}, on="integer").outputs[0]
    assert torch.equal(network.run({"x": x}, on=on).outputs[0], expected)


def test_a_recording_has_whole_calls(tmp_path: Path) -> None:
    compiled(tmp_path / "out", passes=[*PASSES, {"pass": "stream", "axis": 2, "hop": 2}])
    with pytest.raises(UserError, match="recordings of 15 frames, not a multiple of the 2 of a call"):
        load_compiled(tmp_path / "out/out").run({"x": recording(15)}, on="integer")


def test_the_report_states_what_a_call_costs(tmp_path: Path) -> None:
    made = compiled(tmp_path / "out")
    states = next(resource for resource in made.report.resources if resource.name == "states")
    assert made.c is not None
    aligned = [
        -(-size // made.c.plan.state_alignment) for size in (2 * 3, 4 * 4, 5 * 4)
    ]  # of a, b and the mean
    assert states.used == made.c.plan.state_bytes == sum(aligned) * made.c.plan.state_alignment
    (section,) = (section for section in made.report.passes if section.name == "stream")
    table = next(table for table in section.tables if table.name == "stream")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["macs_per_call"] == 3 * 4 * 3 + 2 * 4 * 3 + 4 * 2
    assert row["equal_from_call"] == FRAMES
    assert any("byte for byte on 3 calls with calibration data" in note for note in made.report.notes)
    window = compiled(tmp_path / "window", passes=PASSES).report
    assert made.report.measurements == window.measurements
    assert made.report.noise == window.noise


def test_the_spec_describes_states_in_the_interface(tmp_path: Path) -> None:
    compiled(tmp_path / "out")
    interface = load_compiled(tmp_path / "out/out").interface
    assert interface.state == {name: f"{name}_out" for name in interface.input_names[1:]}
    assert interface.inputs[0].shape == (1, 3, 1) and interface.inputs[0].frames_axis == 2


def test_a_layer_that_needs_the_window_is_an_error_of_the_pass(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"passes\[2\] \(stream\): .* pads at the start: a stream has no start"
    ):
        compiled(tmp_path / "out", model="Padded")


def test_windows_come_one_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model takes 2 windows at once"):
        compiled(tmp_path / "out", batch=2)


def test_two_sequences_with_two_states_do_not_meet(tmp_path: Path) -> None:
    made = compiled(tmp_path)
    assert made.c is not None
    macros = {name.removeprefix("NET_"): value for name, value in made.c.macros.items()}
    sources = [str(tmp_path / "out/c" / name) for name in ("net.c", "net_weights.c")]
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", *sources, "-o", tmp_path / "net.so", "-lm"], check=True)
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    arena = (ctypes.c_int64 * (int(macros["ARENA_BYTES"]) // 8 + 1))()
    scale, zero = float(macros["X_SCALE"].rstrip("f")), int(macros["X_ZERO_POINT"].strip("()"))

    def state() -> ctypes.Array[ctypes.c_int64]:
        block = (ctypes.c_int64 * (int(macros["STATE_BYTES"]) // 8 + 1))(*[-1] * 4)
        assert library.net_reset(block) == 0
        return block

    def step(frame: Array, block: ctypes.Array[ctypes.c_int64]) -> bytes:
        codes = np.clip(np.round(frame / scale) + zero, -128, 127).astype(np.int8).tobytes()
        result = ctypes.create_string_buffer(2)
        assert library.net_step(codes, block, result, arena) == 0
        return result.raw

    first, second = recording(20, seed=5)[0].T, recording(20, seed=6)[0].T
    held, other = state(), state()
    alone = [[step(frame, block) for frame in frames] for frames, block in ((first, held), (second, other))]
    held, other = state(), state()
    both = [(step(a, held), step(b, other)) for a, b in zip(first, second, strict=True)]
    assert [list(side) for side in zip(*both, strict=True)] == alone
    assert len(set(alone[0])) > 5


def test_a_reset_needs_an_aligned_block(tmp_path: Path) -> None:
    compiled(tmp_path)
    sources = [str(tmp_path / "out/c" / name) for name in ("net.c", "net_weights.c")]
    subprocess.run(["gcc", "-shared", "-fPIC", *sources, "-o", tmp_path / "net.so", "-lm"], check=True)
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    block = (ctypes.c_int64 * 64)()
    assert library.net_reset(None) == 1
    assert library.net_reset(ctypes.c_void_p(ctypes.addressof(block) + 1)) == 2
    assert library.net_reset(block) == 0


@pytest.mark.parametrize("fault", ["", "memcpy(states + ", "memset(states + "])
def test_the_self_test_runs_a_whole_window_from_the_start(tmp_path: Path, fault: str) -> None:
    compiled(tmp_path)
    source = tmp_path / "out/c/net.c"
    lines = source.read_text().splitlines()
    broken = [line for line in lines if not (fault and line.strip().startswith(fault))]
    assert bool(fault) == (len(broken) < len(lines))
    source.write_text("\n".join(broken) + "\n")
    sources = [str(tmp_path / "out/c" / name) for name in ("net.c", "net_weights.c", "net_test.c")]
    program = str(tmp_path / "test")
    subprocess.run(["gcc", "-std=c99", "-DNET_TEST_MAIN", *sources, "-o", program, "-lm"], check=True)
    done = subprocess.run([program], capture_output=True, check=False)
    assert (done.returncode == 0) == (not fault), done.stdout
    if not fault:
        assert b"0 of 15 outputs differ" in done.stdout  # twelve calls, and three states at the end


def test_states_of_a_streamed_network_can_be_arguments(tmp_path: Path) -> None:
    compiled(tmp_path, outputs={"c": {"name": "net", "states": "copied", "io": "float"}})
    header = (tmp_path / "out/c/net.h").read_text()
    assert "int net_run(const float *x, const int8_t *" in header and "net_reset" not in header
    x = recording(15)
    network = load_compiled(tmp_path / "out")
    assert torch.equal(
        network.run({"x": x}, on="host").outputs[0], network.run({"x": x}, on="integer").outputs[0]
    )


def test_the_float_network_is_not_run_on_frames(tmp_path: Path) -> None:
    made = compiled(tmp_path)
    with pytest.raises(UserError, match="takes windows, but the compiled network takes new frames"):
        made.run({"x": recording(15)}, on="reference")


def test_sensitivity_is_that_of_the_window_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled(tmp_path, passes=[{"pass": "fuse"}, {"pass": "stream", "axis": 2}])
    assert main(["sensitivity", str(tmp_path / "net.yaml"), "-o", str(tmp_path / "table.json")]) == 0
    assert "20 samples" in capsys.readouterr().out


def test_a_model_in_python_is_streamed(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv1d(4, 2, 4)).eval()
    x = torch.from_numpy(recording(20))
    steps = ["quantize", {"pass": "stream", "axis": 2}]
    windows_of = torch.from_numpy(windows(recording(20)))
    made = compile_model(net, inputs=x[:, :, :6], calibration=windows_of[:, :, :6], passes=steps, outputs="c")
    assert made.run({"input": x.numpy()}, on="integer").outputs[0].shape == (20, 2, 1)


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("on", ["host", "cortex-m4"])
def test_widths_of_activations_are_those_of_states(tmp_path: Path, activations: str, on: str) -> None:
    passes = [
        {"pass": "fuse"},
        {"pass": "quantize", "activations": activations},
        {"pass": "stream", "axis": 2},
    ]
    compiled(tmp_path, passes=passes)
    network, x = load_compiled(tmp_path / "out"), recording(20)
    width = {"int8": "i8", "int16": "i16"}[activations]
    assert {port.c_dtype for port in network.interface.inputs[1:]} == {width}
    assert torch.equal(
        network.run({"x": x}, on=on).outputs[0], network.run({"x": x}, on="integer").outputs[0]
    )


def test_an_input_without_batch_and_one_without_time(tmp_path: Path) -> None:
    x, offset = recording(30)[0].T.copy(), np.float32([[0.5, -1.5]])
    (tmp_path / "net.py").write_text(SOURCE)
    pieces = np.stack([x[i : i + FRAMES] for i in range(18)])
    np.savez(tmp_path / "data.npz", x=pieces, offset=offset.repeat(18, 0))
    spec = {
        "fxpress": 1,
        "target": {"name": "cortex-m4"},
        "model": {
            "source": "net.py:Rows",
            "inputs": {"x": {"shape": [FRAMES, 3], "batch": None}, "offset": {"shape": [1, 2]}},
        },
        "data": {"calibration": {"file": "data.npz"}},
        "passes": [{"pass": "fuse"}, {"pass": "quantize"}],
        "outputs": {"c": {"name": "net"}},
    }
    found = {}
    for name, more in (("window", []), ("stream", [{"pass": "stream", "axis": {"x": 0}}])):
        spec["passes"] = [{"pass": "fuse"}, {"pass": "quantize"}, *more]
        (tmp_path / "net.yaml").write_text(json.dumps(spec))
        compile_model(tmp_path / "net.yaml").write(tmp_path / name)
        found[name] = load_compiled(tmp_path / name)
    windows_of = {"x": pieces, "offset": offset.repeat(18, 0)}
    expected = found["window"].run(windows_of, on="integer").outputs[0]
    frames = {"x": x[:29, None], "offset": offset.repeat(29, 0)}
    for on in ("integer", "host", "cortex-m4"):
        assert torch.equal(found["stream"].run(frames, on=on).outputs[0][FRAMES - 1 :], expected)
