"""The MLPerf Tiny networks in int8 and float32 on a simulated Cortex-M4, compared with other frameworks.

    python benchmarks/mcu.py [ic kws vww ad sww]          # table, and benchmarks/results/mcu.json

The C is compared byte for byte with the integer graph on the host, under sanitizers, and on the simulated core, on at
least 200 inputs and the extreme ones. Anchors: TensorFlow Lite Micro with CMSIS-NN (int8) and the best open generator
of plain C (float32), compiled with the same compiler and flags and counted by the same method.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sanitized import run_sanitized
from torch import Tensor

from fxpress.compiler import (
    Compiled,
    Counts,
    Samples,
    compile_model,
    correct_answers,
    load_compiled,
    run_samples,
    snr_db,
    text_table,
)
from fxpress.ir import run, run_integer

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "examples" / "mlperf_tiny"
RESULTS = ROOT / "benchmarks" / "results" / "mcu.json"
CORE = "cortex-m4f"
CHECKED = 200
FLOAT_PASSES = ("passes=[{pass: clean}, {pass: fuse}]", "outputs.c.io=float")


@dataclass(frozen=True)
class Anchor:
    """Figures of other tools: int8 by TensorFlow Lite Micro with CMSIS-NN, float32 by the best open generator of C."""

    instructions: int
    cycles: int
    arena_bytes: int
    flash_bytes: int
    float_instructions: int


ANCHORS = {
    "ic": Anchor(29_874_113, 35_500_000, 54_996, 189_776, 91_946_785),
    "kws": Anchor(7_847_272, 9_240_000, 22_820, 146_456, 15_507_873),
    "vww": Anchor(24_720_371, 29_500_000, 100_708, 425_808, 49_846_626),
    "ad": Anchor(582_323, 722_000, 2_580, 313_920, 1_341_008),
}
NAMES = (*ANCHORS, "sww")


@dataclass(frozen=True)
class Result:
    """Figures of one network; accuracies are counts of right answers where there are labels."""

    name: str
    macs: int
    samples: int
    float_correct: int | None
    integer_correct: int | None
    agreement_percent: float | None
    snr_db: float
    equal_inputs: int
    instructions: int
    instructions_per_mac: float
    cycles: int
    arena_bytes: int
    stack_bytes: int
    code_bytes: int
    constant_bytes: int
    float_instructions: int
    float_snr_db: float
    anchor: Anchor | None

    @property
    def flash_bytes(self) -> int:
        return self.code_bytes + self.constant_bytes


def measure(name: str, folder: Path) -> Result:
    """Compiles the network both ways, compares its C with its graph, and counts."""
    spec = SPECS / f"{name}.yaml"
    compiled = compile_model(spec)
    compiled.write(folder / name)
    evaluation = compiled.session.evaluation
    assert evaluation is not None
    reference = run_samples(compiled.session.captured, evaluation)[0]
    integer = run_samples(compiled.graph, evaluation, interpreter=run_integer)[0]
    equal, counts = _hold_equal(compiled, folder / name)
    floating, float_snr = _measure_float(spec, folder / f"{name}_float")
    labels = evaluation.labels
    macs = compiled.report.macs_before
    return Result(
        name=name,
        macs=macs,
        samples=len(evaluation),
        float_correct=None if labels is None else correct_answers(reference, labels),
        integer_correct=None if labels is None else correct_answers(integer, labels),
        agreement_percent=_agreement(reference, integer)
        if compiled.report.measurements[0].metric == "agreement"
        else None,
        snr_db=snr_db(reference, integer),
        equal_inputs=equal,
        instructions=counts.instructions,
        instructions_per_mac=counts.instructions / macs,
        cycles=counts.cycles or 0,
        arena_bytes=load_compiled(folder / name).interface.arena_bytes,
        stack_bytes=counts.stack_bytes,
        code_bytes=counts.footprint.code,
        constant_bytes=counts.footprint.constants + counts.footprint.initialised,
        float_instructions=floating.instructions,
        float_snr_db=float_snr,
        anchor=ANCHORS.get(name),
    )


def _agreement(reference: Tensor, integer: Tensor) -> float:
    """Percentage of samples with equal decisions."""
    return 100 * correct_answers(integer, reference.flatten(1).argmax(1)) / len(reference)


def _hold_equal(compiled: Compiled, directory: Path) -> tuple[int, Counts]:
    """Number of inputs that give the same bytes in every form; AssertionError if one does not."""
    samples = _checked_samples(compiled, directory)
    expected = run_samples(compiled.graph, samples, interpreter=run_integer)
    simulated = load_compiled(directory).run(samples, on=CORE)
    forms = {CORE: simulated, "host": load_compiled(directory).run(samples, on="host")}
    for form, execution in forms.items():
        for ours, found in zip(expected, execution.outputs, strict=True):
            assert torch.equal(ours, found), f"{directory.name}: {form} differs from the integer graph"
    assert _sanitized(directory, samples) == [_bytes(t) for t in zip(*simulated.stored, strict=True)]
    assert simulated.counts is not None
    return len(samples), simulated.counts


def _checked_samples(compiled: Compiled, directory: Path) -> Samples:
    """Samples of both sets, at least CHECKED, and inputs that are all smallest, all zero, all largest."""
    sets = [s for s in (compiled.session.evaluation, compiled.session.calibration) if s is not None]
    ports = load_compiled(directory).interface.inputs
    inputs = []
    for index, port in enumerate(ports):
        real = torch.cat([s.inputs[index] for s in sets])
        while len(real) < CHECKED:  # a small set again, in reverse order
            real = torch.cat([real, real.flip(0) * 0.9])
        assert port.zero_point is not None
        extremes = [
            port.from_c(bytes([byte & 0xFF]) * port.elements) for byte in (-128, port.zero_point, 127)
        ]
        inputs.append(torch.cat([real[:CHECKED], *extremes]))
    return Samples(tuple(inputs))


def _sanitized(directory: Path, samples: Samples) -> list[list[bytes]]:
    interface = load_compiled(directory).interface
    rows = [
        [port.to_c(x[i : i + 1]) for port, x in zip(interface.inputs, samples.inputs, strict=True)]
        for i in range(len(samples))
    ]
    with tempfile.TemporaryDirectory() as folder:
        return run_sanitized(load_compiled(directory).c_sources, interface, rows, Path(folder))


def _bytes(tensors: Sequence[Tensor]) -> list[bytes]:
    return [t.contiguous().numpy().tobytes() for t in tensors]


def _measure_float(spec: Path, directory: Path) -> tuple[Counts, float]:
    """Counts of the network in float32, and its output against the captured model's."""
    compiled = compile_model(spec, overrides=FLOAT_PASSES, enforce_budget=False)
    compiled.write(directory)
    evaluation = compiled.session.evaluation
    assert evaluation is not None
    few = evaluation.first(2)
    execution = load_compiled(directory).run(few, on=CORE)
    assert execution.counts is not None
    expected = run_samples(compiled.session.captured, few, interpreter=run)[0]
    return execution.counts, snr_db(expected, execution.outputs[0])


def table(results: Sequence[Result]) -> str:
    """Figures with their ratio to the anchor's, a ratio below one being better."""
    header = ("network", "accuracy", "instructions", "/MAC", "est. cycles", "arena", "stack", "code", "constants",
              "flash", "float32 instr.", "equal")  # fmt: skip
    return text_table(header, [_row(result) for result in results])


def _row(result: Result) -> tuple[str, ...]:
    anchor = result.anchor
    if result.integer_correct is not None:
        accuracy = f"{result.integer_correct}/{result.samples} (float {result.float_correct})"
    else:
        accuracy = f"{result.snr_db:.1f} dB"
    if result.agreement_percent is not None:
        accuracy += f", decides {result.agreement_percent:.1f} % alike"
    return (
        result.name,
        accuracy,
        _beside(result.instructions, anchor.instructions if anchor else None),
        f"{result.instructions_per_mac:.2f}",
        _beside(result.cycles, anchor.cycles if anchor else None),
        _beside(result.arena_bytes, anchor.arena_bytes if anchor else None),
        f"{result.stack_bytes}",
        f"{result.code_bytes:,}",
        f"{result.constant_bytes:,}",
        _beside(result.flash_bytes, anchor.flash_bytes if anchor else None),
        _beside(result.float_instructions, anchor.float_instructions if anchor else None),
        f"{result.equal_inputs}",
    )


def _beside(value: int, anchor: int | None) -> str:
    return f"{value:,}" if not anchor else f"{value:,} ({value / anchor:.2f}x)"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NETWORK", help=", ".join(NAMES))
    names = parser.parse_args().names
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory(prefix="fxpress-mcu-") as folder:
        for name in names:
            results.append(measure(name, Path(folder)))
            print(table(results[-1:]), flush=True)
    print(f"\n{table(results)}\n")
    print(
        "0.50x: half of what TensorFlow Lite Micro with CMSIS-NN needs; float32: of the best open generator of plain C"
    )
    if set(names) != set(NAMES):
        return
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) | {"flash_bytes": result.flash_bytes} for result in results]
    RESULTS.write_text(json.dumps({"core": CORE, "networks": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
