"""Instructions and cycles of the kernels on each core, counted on layers side by side: predictions are made of them.

    python benchmarks/kernel_costs.py [--cores cortex-m0plus ...]              # counted beside predicted, by kernel
    python benchmarks/kernel_costs.py --write                                  # renews cost/measured/costs.json

Counted are the layers of cost_layers.py and every operator of tests/backends/c/operators.txt, compiled with each core's
compiler. A kernel states its work in parts (`kernels/base.py`); a core's prices of the parts are those with the least
squares of relative errors, kept near to one common factor where few layers tell them apart. Counts are kept in
build/kernel_costs until the C changes.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cost_layers import layers
from scipy.optimize import nnls

from fxpress.backends.c import CArtifact, SimulatedNetwork, emit
from fxpress.backends.c.cost import Price, Work
from fxpress.compiler import text_table
from fxpress.ir import Graph, Value
from fxpress.specs import COutput, Target, load_target

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "backends" / "c" / "conftest.py"
KEPT = ROOT / "build" / "kernel_costs"
TABLE = ROOT / "backends" / "c" / "cost" / "measured" / "costs.json"
CORES = ("cortex-m4f", "cortex-m0plus", "cortex-m3", "riscv32", "cortex-m4", "cortex-m7", "cortex-m33")
HEADER = ("template", "form", "steps", "products", "loops", "results", "call", "error %", "of large steps %")
_CHUNK = 16
_SLOW = "16 float"  # layers that take long without a float unit, and tell nothing new
_SMALL = 5000.0  # instructions at which a step counts half: GCC writes the loops of tiny ones out
_LARGE = 5000  # instructions of a step whose error is shown
_CALL = 60.0  # instructions of a call, where nothing is known
_PULL = 0.05  # weight of the common factor beside a step


@dataclass(frozen=True, slots=True)
class Count:
    """Counted instructions and cycles of a step on a core."""

    instructions: int
    cycles: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A counted step: the template of its first call, its form and work, how many calls it makes."""

    template: str
    form: str
    work: Work
    calls: int
    count: Count


def counts(artifact: CArtifact, target: Target) -> list[Count | None]:
    """For each step of an artifact what its calls took; None where a step makes no call, or fewer than it has."""
    file = KEPT / f"{target.name}-{_digest(artifact)}.json"
    if not file.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_counted(artifact, target)))
    return [None if row is None else Count(*row) for row in json.loads(file.read_text())]


def _digest(artifact: CArtifact) -> str:
    code = b"".join(artifact.files[f"{artifact.name}{end}"] for end in (".c", "_weights.c"))
    return hashlib.sha256(code).hexdigest()[:16]


def _counted(artifact: CArtifact, target: Target) -> list[tuple[int, int | None] | None]:
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="fxpress-costs-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), target, flags=("-fno-ipa-icf",))
        inputs = [drawn(port.stored.value, generator) for port in network.inputs]
        profile = network.profile(inputs)
    symbols = {function.symbol for function in artifact.source.functions} | {"fxp_decode"}
    calls = iter([call for call in profile.calls if call.name.partition(".")[0] in symbols])
    found: list[tuple[int, int | None] | None] = []
    for text in artifact.source.steps[: len(artifact.program.steps)]:
        made = [m[1] for line in text.lines if (m := re.match(r"(\w+)\(.*\);$", line)) and m[1] in symbols]
        costs = [next(calls) for _ in made]
        assert [cost.name.partition(".")[0] for cost in costs] == made, f"{target.name}: {made}"
        cycles = [cost.cycles for cost in costs if cost.cycles is not None]
        instructions = sum(cost.instructions for cost in costs)
        found.append((instructions, sum(cycles) if len(cycles) == len(costs) else None) if costs else None)
    return found


def drawn(value: Value, generator: torch.Generator) -> torch.Tensor:
    """An operand as behind a ReLU, half of it zero: additions of floats in software take less time with zeros."""
    type = value.type
    if type.quantization is not None:
        low, high = type.quantization.qmin, type.quantization.qmax
        return torch.randint(low, high + 1, type.shape, generator=generator).to(type.dtype.torch)
    if not type.dtype.is_floating:
        return torch.randint(0, 4, type.shape, generator=generator).to(type.dtype.torch)
    return torch.randn(type.shape, generator=generator).clamp(min=0.0)


def artifacts(core: str) -> Iterator[CArtifact]:
    """The C of all layers and operators for a core, in parts."""
    tests = runpy.run_path(str(TESTS))
    target = load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})
    texts = [*layers(), *tests["cases"]().items()]
    for start in range(0, len(texts), _CHUNK):
        chunk = {
            name: text
            for name, text in texts[start : start + _CHUNK]
            if "fpu" in target.features or not name.endswith(_SLOW)
        }
        graph: Graph = tests["joined"](chunk)
        yield emit(graph, COutput(name="net", io="float", self_test=0), target)


def samples(core: str) -> Iterator[Sample]:
    """Counts of the steps of all layers on a core."""
    for artifact in artifacts(core):
        steps = zip(artifact.program.steps, counts(artifact, load_target(core)), strict=True)
        for step, count in steps:
            if count is not None:
                calls = step.calls
                yield Sample(calls[0].function.template, step.form, step.offer.work, len(calls), count)


def main() -> None:
    """Count, fit, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", nargs="*", choices=CORES, default=CORES)
    parser.add_argument("--write", action="store_true", help="renew the table in the package")
    options = parser.parse_args()
    table = json.loads(TABLE.read_text())
    for core in options.cores:
        groups = defaultdict(list)
        for sample in samples(core):
            groups[sample.template, sample.form].append(sample)
        prices: dict[str, dict[str, dict[str, list[float]]]] = {}
        rows = []
        for (template, form), group in sorted(groups.items()):
            instructions = fitted(group, [s.count.instructions for s in group])
            found = {"instructions": _rounded(instructions)}
            timed = [s.count.cycles for s in group if s.count.cycles is not None]
            if len(timed) == len(group):
                found["cycles"] = _rounded(fitted(group, timed))
            prices.setdefault(template, {})[form] = found
            rows.append(_row(template, form, group, instructions))
        print(f"{core}\n{text_table(HEADER, rows)}\n", flush=True)
        table[load_target(core).core] = prices
    if options.write:
        TABLE.write_text(_json(table))


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
