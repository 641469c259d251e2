"""Instructions and cycles of the kernels on each core, counted on layers side by side: predictions are made of them.

    python benchmarks/kernel_costs.py [--cores cortex-m0plus ...]              # counted beside predicted, by kernel
    python benchmarks/kernel_costs.py --write                                  # renews cost/measured/costs.json
    python benchmarks/kernel_costs.py --write --only recurrent                 # those of some templates alone

Counted are the layers of cost_layers.py and every operator of tests/backends/c/operators.txt, compiled with each core's
compiler. A kernel states its work in parts (`kernels/base.py`); a core's prices of the parts are those with the least
squares of relative errors, kept near to one common factor where few layers tell them apart. Counts are kept in
build/kernel_costs until the C changes.

Kernels are chosen by their prices. So that the table does not depend on the one before, `--write` counts twice: the
kernels that are chosen where all prices are 1, then those that are chosen at the prices of the first round, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import runpy
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import qemu_counts
import torch
from cost_layers import (
    block_sparse_layers,
    coded_layers,
    layers,
    sparse_layers,
    with_few_values,
    with_zero_blocks,
    with_zeros,
)
from scipy.optimize import nnls

from fxpress.backends.c import CArtifact, SimulatedNetwork, emit
from fxpress.backends.c.cost import DECODER, Price, Work, decoding, priced_form, read_prices_anew
from fxpress.compiler import text_table
from fxpress.ir import Graph, Value
from fxpress.specs import COutput, Target, load_target

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "backends" / "c" / "conftest.py"
KEPT = ROOT / "build" / "kernel_costs"
TABLE = ROOT / "backends" / "c" / "cost" / "measured" / "costs.json"
CORES = (
    "cortex-m4f", "cortex-m0plus", "cortex-m3", "riscv32", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"
)  # fmt: skip
HEADER = ("template", "form", "steps", "products", "loops", "results", "call", "error %", "of large steps %")
Table = dict[str, dict[str, dict[str, dict[str, list[float]]]]]
_ROUNDS = 2
_CHUNK = 16
_APART = ("-fno-ipa-icf",)  # equal kernels of several layers stay apart
_SLOW = "16 float"  # layers that take long without a float unit, and tell nothing new
_SMALL = 5000.0  # instructions at which a step has half weight: GCC unrolls the loops of tiny steps
_LARGE = 5000  # instructions of a step whose error is shown
_CALL = 60.0  # instructions of a call without measurements
_PULL = 0.05  # weight of the common factor beside a step


@dataclass(frozen=True, slots=True)
class Count:
    """Counted instructions and cycles of a step on a core."""

    instructions: int
    cycles: int | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a whole run, and of each step; None for a step without calls."""

    total: Count
    steps: tuple[Count | None, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A counted step: the template of its first call, its form and work, how many calls it makes."""

    template: str
    form: str
    work: Work
    calls: int
    count: Count


def counted(artifact: CArtifact, target: Target, *, flags: Sequence[str] = ()) -> Counts:
    """One run of an artifact on random inputs: on the simulated core, or in QEMU where the simulator has no model."""
    file = KEPT / f"{target.name}-{_digest(artifact, target, flags)}.json"
    if not file.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        found = (
            _simulated(artifact, target, flags) if target.simulator else _emulated(artifact, target, flags)
        )
        file.write_text(json.dumps(asdict(found)))
    kept = json.loads(file.read_text())
    steps = tuple(None if row is None else Count(**row) for row in kept["steps"])
    return Counts(Count(**kept["total"]), steps)


def _digest(artifact: CArtifact, target: Target, flags: Sequence[str]) -> str:
    code = b"".join(artifact.files[f"{artifact.name}{end}"] for end in (".c", "_weights.c"))
    return hashlib.sha256(code + f"{flags} {target.timing}".encode()).hexdigest()[:16]


def _simulated(artifact: CArtifact, target: Target, flags: Sequence[str]) -> Counts:
    with tempfile.TemporaryDirectory(prefix="fxpress-costs-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), target, flags=flags)
        profile = network.profile(inputs(artifact))
    symbols = {function.symbol for function in artifact.source.functions} | {"fxp_decode"}
    calls = iter([call for call in profile.calls if call.name.partition(".")[0] in symbols])
    steps: list[Count | None] = []
    for lines in _steps(artifact):
        made = [m[1] for line in lines if (m := re.match(r"(\w+)\(.*\);$", line)) and m[1] in symbols]
        costs = [next(calls) for _ in made]
        assert [cost.name.partition(".")[0] for cost in costs] == made, f"{target.name}: {made}"
        cycles = [cost.cycles for cost in costs if cost.cycles is not None]
        count = Count(
            sum(cost.instructions for cost in costs), sum(cycles) if len(cycles) == len(costs) else None
        )
        steps.append(count if costs else None)
    return Counts(Count(profile.instructions, profile.cycles), tuple(steps))


def _emulated(artifact: CArtifact, target: Target, flags: Sequence[str]) -> Counts:
    found = qemu_counts.count(artifact, target, inputs(artifact), flags=flags)
    marks = iter(found.marks)
    steps: list[Count | None] = []
    for lines in _steps(artifact):
        own = [next(marks) for line in lines if line.startswith("FXP_TRACE(")]
        calls = any(re.match(r"(?!FXP_TRACE|memcpy)\w+\(.*\);$", line) for line in lines)
        steps.append(Count(sum(own), None) if calls else None)
    return Counts(Count(found.instructions, None), tuple(steps))


def _steps(artifact: CArtifact) -> list[tuple[str, ...]]:
    """The lines of each step."""
    return [step.lines for step in artifact.source.steps[: len(artifact.program.steps)]]


def inputs(artifact: CArtifact) -> list[torch.Tensor]:
    """Random inputs. Half of the operands of layers with weights is zero, as after a ReLU: software adds it in less
    time.
    """
    generator, graph = torch.Generator().manual_seed(0), artifact.graph
    values = [port.stored.value for port in artifact.ports if port.is_input]
    return [
        _drawn(value, generator, rectified=any(user.macs for user in graph.users.get(value.name, ())))
        for value in values
    ]


def _drawn(value: Value, generator: torch.Generator, *, rectified: bool) -> torch.Tensor:
    type = value.type
    if type.quantization is not None:
        low, high = type.quantization.qmin, type.quantization.qmax
        return torch.randint(low, high + 1, type.shape, generator=generator).to(type.dtype.torch)
    if not type.dtype.is_floating:
        return torch.randint(0, 4, type.shape, generator=generator).to(type.dtype.torch)
    drawn = torch.randn(type.shape, generator=generator)
    return drawn.clamp(min=0.0) if rectified else drawn


def artifacts(core: str, only: str = "") -> Iterator[CArtifact]:
    """The C of all layers and operators for a core, or of the layers with `only` in their name, in parts."""
    tests = runpy.run_path(str(TESTS))
    target = load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})
    texts = [
        (name, text)
        for name, text in (*layers(), *({} if only else tests["cases"]()).items())
        if only in name
        if "fpu" in target.features or not name.endswith(_SLOW)
    ]
    for start in range(0, len(texts), _CHUNK):
        graph: Graph = tests["joined"](dict(texts[start : start + _CHUNK]))
        yield emit(graph, COutput(name="net", io="float", self_test=0), target)
    if sparse := {name: text for name, text in sparse_layers() if only in name}:
        graph = with_zeros(tests["joined"](sparse))
        yield emit(graph, COutput(name="net", io="float", self_test=0, weights="huffman"), target)
    if blocks := {name: text for name, text in block_sparse_layers() if only in name}:
        graph = with_zero_blocks(tests["joined"](blocks))
        yield emit(graph, COutput(name="net", io="float", self_test=0), target)


def samples(core: str, only: str = "") -> Iterator[Sample]:
    """Counts of the steps of all layers on a core; with `only`, of the templates and layers with that in their name."""
    target = load_target(core)
    for artifact in artifacts(core, only):
        steps = zip(artifact.program.steps, counted(artifact, target, flags=_APART).steps, strict=True)
        for step, count in steps:
            made = step.offer
            if count is not None and only in made.templates[0] and not made.coded:
                form = priced_form(step.form, made.variant)
                yield Sample(made.templates[0], form, made.work, len(made.templates), count)
    if only in DECODER:
        yield from _decoder_samples(core)


def _decoder_samples(core: str) -> Iterator[Sample]:
    """Counts of the decoder of coded weights: the difference between a layer with coded and with plain weights."""
    target = load_target(core)
    unlimited = target.model_copy(update={"ram": None, "flash": None, "stack": None})
    joined = runpy.run_path(str(TESTS))["joined"]
    for start in range(0, len(texts := list(coded_layers())), _CHUNK):
        graph = with_few_values(joined(dict(texts[start : start + _CHUNK])))
        coded, plain = (
            emit(graph, COutput(name="net", io="float", self_test=0, weights=weights), unlimited)
            for weights in ("huffman", "plain")
        )
        steps = zip(coded.program.steps, plain.program.steps, strict=True)
        costs = zip(*(counted(one, target, flags=_APART).steps for one in (coded, plain)), strict=True)
        for (step, other), (count, without) in zip(steps, costs, strict=True):
            made = step.offer
            if count is None or without is None or made.kernel != other.offer.kernel:
                continue
            if images := made.images:
                more = Count(
                    count.instructions - without.instructions, _difference(count.cycles, without.cycles)
                )
                yield Sample(DECODER, "", decoding(images), len(images), more)


def _difference(cycles: int | None, without: int | None) -> int | None:
    return None if cycles is None or without is None else cycles - without


def main() -> None:
    """Counts, fits, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", nargs="*", choices=CORES, default=CORES)
    parser.add_argument("--write", action="store_true", help="renew the table in the package")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="part of the names of layers and templates"
    )
    options = parser.parse_args()
    if options.only:
        _renew(options.only, options.cores, write=options.write)
        return
    found: dict[str, list[Sample]] = {core: [] for core in options.cores}
    chosen = {load_target(core).core for core in options.cores}
    table: Table = {core: kept for core, kept in json.loads(TABLE.read_text()).items() if core not in chosen}
    for _ in range(_ROUNDS if options.write else 1):
        if options.write:
            TABLE.write_text(_json(table))
            read_prices_anew()
        for core, own in found.items():
            own.extend(samples(core))
            table[load_target(core).core or core] = prices(core, list(dict.fromkeys(own)))
    if options.write:
        TABLE.write_text(_json(table))


def _renew(only: str, cores: Sequence[str], *, write: bool) -> None:
    """Count the layers of some templates alone, and renew the entries of these in the table."""
    table: Table = json.loads(TABLE.read_text())
    for core in cores:
        table[load_target(core).core or core] |= prices(core, list(samples(core, only)))
    if write:
        TABLE.write_text(_json(table))


def prices(core: str, counted: Sequence[Sample]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Prices of a core by template, form and unit; prints how far they are off."""
    groups = defaultdict(list)
    for sample in counted:
        groups[sample.template, sample.form].append(sample)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    rows = []
    for (template, form), group in sorted(groups.items()):
        instructions = fitted(group, [s.count.instructions for s in group])
        each = {"instructions": _rounded(instructions)}
        timed = [s.count.cycles for s in group if s.count.cycles is not None]
        if len(timed) == len(group):
            each["cycles"] = _rounded(fitted(group, timed))
        found.setdefault(template, {})[form] = each
        rows.append(_row(template, form, group, instructions))
    print(f"{core}\n{text_table(HEADER, rows)}\n", flush=True)
    return found


def fitted(group: Sequence[Sample], took: Sequence[int]) -> Price:
    """Prices by least squares of relative errors; small layers count less, a common factor is preferred."""
    y = np.array(took, dtype=float)
    parts = np.array([(s.work.products, s.work.loops, s.work.results, s.calls) for s in group], dtype=float)
    stated = np.maximum(parts[:, :3].sum(axis=1), 1.0)
    weights = y / (y + _SMALL)
    factor = float(np.exp(np.average(np.log(y / stated), weights=weights)))
    matrix = parts * (weights / y)[:, None]
    unit = np.array([factor, factor, factor, _CALL])
    pull = _PULL * np.eye(4) / unit
    wanted = _PULL * np.array([1.0, 1.0, 1.0, 0.5])
    found, _ = nnls(np.vstack([matrix, pull]), np.concatenate([weights, wanted]))
    return Price(*map(float, found))


def _row(template: str, form: str, group: Sequence[Sample], price: Price) -> tuple[str, ...]:
    large = [s for s in group if s.count.instructions >= _LARGE] or list(group)
    errors = [price.of(s.work, s.calls) / s.count.instructions - 1 for s in large]
    return (
        template,
        form,
        str(len(group)),
        *(f"{part:.3g}" for part in (price.products, price.loops, price.results, price.call)),
        f"{100 * float(np.sqrt(np.mean(np.square(errors)))):.1f}",
        f"{100 * min(errors):+.0f} to {100 * max(errors):+.0f}",
    )


def _rounded(price: Price) -> list[float]:
    return [float(f"{part:.4g}") for part in (price.products, price.loops, price.results, price.call)]


def _json(table: object) -> str:
    """With each list of prices in one line."""
    text = json.dumps(table, indent=1, sort_keys=True)
    return re.sub(r"\[[^\]]+\]", lambda prices: " ".join(prices[0].split()), text) + "\n"


if __name__ == "__main__":
    main()
