"""The wake word networks frame by frame: the bytes of their windows, at a fraction of the work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.compiler import compile_model, load_compiled
from fxpress.ir import rebatch, run_integer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
NETWORKS = [
    ("mlperf_tiny/sww_stream.yaml", "sww01_calibration", (1, 40), 46_040, 3_536, 80_000),
    pytest.param(
        "trained_networks/okay_nabu_stream.yaml",
        "ww_okay_nabu_tts",
        (40,),
        36_480,
        3_408,
        65_000,
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the trained weights and recordings are not in ../shared",
)
@pytest.mark.parametrize(("spec", "data", "frame", "macs", "state_bytes", "instructions"), NETWORKS)
def test_a_wake_word_network_runs_frame_by_frame(
    spec: str,
    data: str,
    frame: tuple[int, ...],
    macs: int,
    state_bytes: int,
    instructions: int,
    tmp_path: Path,
) -> None:
    made = compile_model(ROOT / "examples" / spec)
    made.write(tmp_path / "out")
    network = load_compiled(tmp_path / "out")
    (window,) = (stage.graph for stage in made.stages if stage.name == "remove_dead_channels")
    assert network.graph.macs == macs < window.macs / 15
    assert network.interface.state_bytes <= state_bytes
    (name, *_), count, hop = (
        network.interface.input_names,
        window.inputs[0].type.shape[2],
        network.interface.inputs[0].shape[2],
    )
    with np.load(SHARED / "data" / f"{data}.npz") as archive:
        frames = archive["x"].reshape(-1, *frame)[: (count + 30) // hop * hop]
    found = network.run({name: frames[None]}, on="cortex-m4f")
    assert found.counts is not None and found.counts.instructions <= instructions
    port = network.interface.inputs[0]
    assert port.transform is not None
    real = torch.from_numpy(frames.astype(np.float64) * port.transform.scale + port.transform.offset).float()
    last = real.reshape(len(frames), 40).T  # [channels, frames]
    ends = range(-(-count // hop) * hop, len(frames) + 1, hop)
    windows = torch.stack([last[:, end - count : end] for end in ends])
    windows = windows.reshape(len(windows), *window.inputs[0].type.shape[1:])
    (expected,) = run_integer(rebatch(window, len(windows)), [windows])
    assert torch.equal(found.outputs[0][-len(expected) :], expected)
