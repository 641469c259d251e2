"""Memory of small networks: the planned arena against the least possible arena of its blocks, and its cost.

    python benchmarks/memory.py [ic kws ...]      # make bench-memory: a table, and benchmarks/results/memory.json

Each row is a network with its inputs and outputs outside the arena or in it, planned for speed and, for some
networks, within a limit of RAM, where layers compute some rows at a time. The C runs on a simulated Cortex-M4 and is
compared byte for byte with the integer graph. `live` is the maximum size of blocks at one step; a result that follows
an operand counts with the bytes that it adds. `least` is true if no offsets of these blocks give a smaller arena. No
layer is computed twice under any limit: the ratio of multiply-accumulates is 1 by construction.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from mcu import NAMES, SPECS
from numpy.typing import NDArray
from torch import Tensor

from fxpress.backends.c import CArtifact, SimulatedNetwork, emit
from fxpress.compiler import Compiled, compile_model, text_table
from fxpress.ir import Value, run_integer
from fxpress.specs import Target, load_target

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT.parent / "shared" / "zoo" / "mcu"
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
CORE = "cortex-m4f"
CHECKED = 8
LIMITS = {  # bytes of RAM, inputs and outputs beside the arena or in it
    "ic": (("caller", 25_200), ("caller", 20_500), ("arena", 20_500)),
    "vww": (("caller", 28_600), ("caller", 19_500), ("caller", 15_300), ("arena", 28_600)),
    "sww": (("caller", 5_120), ("caller", 4_400)),
    "ad": (("caller", 768),),
    "resnet20": (("caller", 23_300), ("caller", 21_200)),
    "mbv2": (("caller", 24_700), ("caller", 16_900)),
    "mbv2_144": (("caller", 46_300), ("caller", 28_500)),
    "tcn": (("caller", 10_800),),
}
LARGER = {"mbv2_144": ("mbv2", (1, 3, 144, 144))}  # the same network for larger images
_KINDS = {"int8": (), "float32": ("passes=[{pass: clean}, {pass: fuse}]", "outputs.c.io=float")}


@dataclass(frozen=True)
class Row:
    """One network in one form, within a limit of RAM or none; `emit_seconds` is the time of the whole C backend."""

    network: str
    kind: str
    buffers: str
    limit_bytes: int | None
    arena_bytes: int
    live_bytes: int
    is_least: bool
    emit_seconds: float
    cycles: int | None
    cycles_of_fastest: int | None
    macs_ratio: float
    equal_inputs: int | None


def specs(chosen: Sequence[str]) -> dict[str, Path]:
    """Specs by the names of their networks: of the examples, and of typical networks if they are available."""
    found = {name: SPECS / f"{name}.yaml" for name in NAMES}
    found |= {path.stem: path for path in sorted(ZOO.glob("*.yaml"))}
    found |= {name: found[other] for name, (other, _) in LARGER.items() if other in found}
    return {name: path for name, path in found.items() if not chosen or name in chosen}


def measure(name: str, spec: Path, folder: Path) -> Iterator[Row]:
    """Rows of a network: int8 built and run, within its limits too; float32 planned."""
    for kind, overrides in _KINDS.items():
        changes = [f"target.name={CORE}", *overrides, *_larger(name)]
        compiled = compile_model(spec, overrides=changes, enforce_budget=False)
        limits = LIMITS.get(name, ()) if kind == "int8" else ()
        for buffers in ("caller", "arena"):
            fastest = _row(name, compiled, folder, kind, buffers)
            yield fastest
            for place, limit in limits:
                if place == buffers:
                    row = _row(name, compiled, folder, kind, buffers, limit=limit)
                    yield replace(row, cycles_of_fastest=fastest.cycles)


def _larger(name: str) -> Iterator[str]:
    """Overrides for larger images."""
    if name in LARGER:
        _, shape = LARGER[name]
        yield f"model.inputs.x.shape={list(shape)}"
        for part in ("calibration", "evaluation"):
            yield f"data.{part}.source={Path(__file__).resolve()}:{name}"


def mbv2_144() -> dict[str, NDArray[np.float32]]:
    """Random images, as those of the network for smaller ones."""
    shape = LARGER["mbv2_144"][1][1:]
    return {"x": np.random.default_rng(1).normal(size=(16, *shape)).astype(np.float32)}


def _row(
    name: str, compiled: Compiled, folder: Path, kind: str, buffers: str, *, limit: int | None = None
) -> Row:
    """A network in one form, run on samples if it is int8; `limit` is in bytes of RAM."""
    assert compiled.spec.outputs.c is not None
    options = compiled.spec.outputs.c.model_copy(update={"buffers": buffers})
    target = load_target(CORE).with_ram(limit)
    start = time.process_time()
    artifact = emit(compiled.graph, options, target)
    seconds = time.process_time() - start
    cycles = equal = None
    if kind == "int8":
        with tempfile.TemporaryDirectory(dir=folder) as built:
            cycles, equal = _run(name, compiled, artifact, Path(built), target)
    plan = artifact.plan
    return Row(
        name,
        kind,
        buffers,
        limit,
        plan.arena_bytes,
        plan.bound,
        plan.is_least,
        seconds,
        cycles,
        cycles,
        1.0,
        equal,
    )


def _run(name: str, compiled: Compiled, artifact: CArtifact, folder: Path, target: Target) -> tuple[int, int]:
    """Cycles on the simulated core, and the number of samples with the bytes of the integer graph."""
    data = compiled.session.evaluation or compiled.session.calibration
    assert data is not None
    inputs = compiled.graph.inputs
    samples = [data.call(inputs, index) for index in range(min(CHECKED, data.calls(inputs)))]
    network = SimulatedNetwork.of(artifact, folder, target)
    for sample in samples:
        stored = [_stored(x, value) for x, value in zip(sample, artifact.graph.inputs, strict=True)]
        found = network.run(stored)
        wanted = run_integer(compiled.graph, sample)
        for ours, theirs, value in zip(found, wanted, artifact.graph.outputs, strict=True):
            assert torch.equal(ours, _stored(theirs, value)), f"{name} differs from the integer graph"
    cycles = network.profile(stored).cycles
    assert cycles is not None
    return cycles, len(samples)


def _stored(x: Tensor, value: Value) -> Tensor:
    """Real numbers as the codes of a value, if it has codes."""
    return x if value.type.quantization is None else value.type.quantization.quantize(x)


def table(rows: Sequence[Row]) -> str:
    """One line for each row, and the number of plans that are the least."""
    header = (
        "network",
        "form",
        "buffers",
        "arena",
        "live",
        "least",
        "emit, s",
        "est. cycles",
        "over fastest",
        "equal",
    )
    lines = [
        (
            row.network,
            row.kind,
            row.buffers,
            f"{row.arena_bytes:,}",
            f"{row.live_bytes:,}",
            "yes" if row.is_least else "",
            f"{row.emit_seconds:.2f}",
            "" if row.cycles is None else f"{row.cycles:,}",
            _over_fastest(row),
            "" if row.equal_inputs is None else str(row.equal_inputs),
        )
        for row in rows
    ]
    least = sum(row.is_least for row in rows)
    slowest = max(row.emit_seconds for row in rows)
    found = f"{least} of {len(rows)} plans are the least; the C backend takes at most {slowest:.1f} s"
    return f"{text_table(header, lines)}\n{found}"


def _over_fastest(row: Row) -> str:
    if row.cycles is None or row.cycles_of_fastest is None:
        return ""
    return f"{row.cycles / row.cycles_of_fastest:.3f}"


def main() -> None:
    """Measures, prints and, unless networks were selected, writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*")
    chosen = parser.parse_args().networks
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in specs(chosen).items():
            for row in measure(name, spec, Path(folder)):
                rows.append(row)
                print(f"{row.network} {row.kind} {row.buffers} {row.arena_bytes:,} B", flush=True)
    print(table(rows))
    if not chosen:
        text = json.dumps({"core": CORE, "networks": [asdict(row) for row in rows]}, indent=2)
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
