"""Wake word networks frame by frame on a simulated Cortex-M4, compared with their window networks.

    python benchmarks/stream.py [sww okay_nabu]          # table, and benchmarks/results/stream.json

Each network is compiled as a window network and with the pass `stream`. The C of the streamed one runs along a
recording; an equal frame is a call after the warm-up whose outputs are those that the window network computes, in
integers, for the window that ends there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fxpress.compiler import CompiledNetwork, compile_model, load_compiled, text_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "stream.json"
CORE = "cortex-m4f"
FRAMES = 1350
WINDOW = "{pass: clean}, {pass: fuse}, {pass: quantize}, {pass: remove_dead_channels}"


@dataclass(frozen=True)
class Network:
    """A spec of the examples, its streaming options, and recordings in the form of its data, [frames, ...]."""

    name: str
    spec: str
    input: str
    axis: int
    hop: int
    data: str
    frame: tuple[int, ...]


NETWORKS = {
    network.name: network
    for network in (
        Network("sww", "mlperf_tiny/sww.yaml", "energies", 2, 1, "sww01_calibration", (1, 40)),
        Network("okay_nabu", "trained_networks/okay_nabu.yaml", "features", 2, 3, "ww_okay_nabu_tts", (40,)),
    )
}


@dataclass(frozen=True)
class Result:
    """Figures of a call, and of a run of the window network beside it; `equal_frames` of `compared_frames`."""

    name: str
    hop_frames: int
    window_frames: int
    macs_per_frame: int
    macs_of_window: int
    state_bytes: int
    arena_bytes: int
    flash_bytes: int
    instructions: int
    cycles: int
    instructions_of_window: int
    arena_bytes_of_window: int
    equal_frames: int
    compared_frames: int

    def row(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.macs_per_frame:,} ({self.macs_of_window:,})",
            f"{self.state_bytes:,}",
            f"{self.arena_bytes:,} ({self.arena_bytes_of_window:,})",
            f"{self.instructions:,} ({self.instructions_of_window:,})",
            f"{self.cycles:,}",
            f"{self.equal_frames:,} of {self.compared_frames:,}",
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the networks, prints the table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NETWORKS)}; default: all")
    names = parser.parse_args(arguments).names or list(NETWORKS)
    results = [measure(NETWORKS[name]) for name in names]
    header = (
        "network",
        "MACs a call (window)",
        "states B",
        "arena B",
        "instructions",
        "cycles",
        "equal calls",
    )
    print(text_table(header, [result.row() for result in results]))
    RESULTS.write_text(json.dumps({"core": CORE, "networks": [asdict(r) for r in results]}, indent=2) + "\n")
    if any(result.equal_frames < result.compared_frames for result in results):
        sys.exit("outputs differ from those of the window network")


def measure(network: Network) -> Result:
    """Compiles both forms of a network, runs them, and compares."""
    with tempfile.TemporaryDirectory(prefix="fxpress-stream-") as folder:
        window = compiled(network, WINDOW, Path(folder) / "window")
        streamed = compiled(
            network,
            f"{WINDOW}, {{pass: stream, axis: {network.axis}, hop: {network.hop}}}",
            Path(folder) / "stream",
        )
        frames = recording(network)
        equal, compared = compare(window, streamed, frames, network)
        count = window.interface.inputs[0].shape[network.axis]
        counts = streamed.run({network.input: frames[None, : network.hop]}, on=CORE).counts
        of_window = window.run({network.input: frames[None, :count]}, on=CORE).counts
        assert counts is not None and of_window is not None and counts.cycles is not None
        return Result(
            network.name,
            network.hop,
            count,
            streamed.graph.macs,
            window.graph.macs,
            streamed.interface.state_bytes,
            streamed.interface.arena_bytes,
            counts.footprint.flash,
            counts.instructions,
            counts.cycles,
            of_window.instructions,
            window.interface.arena_bytes,
            equal,
            compared,
        )


def compiled(network: Network, passes: str, folder: Path) -> CompiledNetwork:
    """The network after these passes, for the core."""
    overrides = [f"target={{name: {CORE}}}", f"passes=[{passes}]"]
    compile_model(ROOT / "examples" / network.spec, overrides=overrides).write(folder)
    return load_compiled(folder)


def recording(network: Network) -> NDArray[np.generic]:
    """The first frames of the data, in order."""
    with np.load(ROOT.parent / "shared" / "data" / f"{network.data}.npz") as archive:
        frames: NDArray[np.generic] = archive["x"]
    return frames.reshape(-1, *network.frame)[:FRAMES]


def compare(
    window: CompiledNetwork, streamed: CompiledNetwork, frames: NDArray[np.generic], network: Network
) -> tuple[int, int]:
    """Calls after the warm-up with outputs equal to those of the window network, and all of them."""
    count, hop = window.interface.inputs[0].shape[network.axis], network.hop
    found = streamed.run({network.input: frames[None, : len(frames) // hop * hop]}, on="host").outputs[0]
    ends = range(-(-count // hop) * hop, len(frames) + 1, hop)
    windows = np.stack([frames[end - count : end] for end in ends])
    expected = window.run({network.input: windows}, on="integer").outputs[0]
    equal = (found[-len(expected) :] == expected).flatten(1).all(1)
    return int(equal.sum()), len(expected)


if __name__ == "__main__":
    main()
