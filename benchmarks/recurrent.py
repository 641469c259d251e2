"""Recurrent networks on integers on a Cortex-M4: a metric beside the float network's, instructions and memory.

    python benchmarks/recurrent.py [gru lstm vad]          # table, and benchmarks/results/recurrent.json

`gru` is a keyword spotter, trained here in seconds on spoken digits (../shared/data/fsdd_mfcc.npz): 49 steps of 10
features, 64 units, accuracy in percent. `lstm` is a step of an LSTM of 128 inputs and 128 units with torch's initial
weights, whose state is an input and an output; its metric is the error of the state along a sequence, of its size.
`vad` is examples/trained_networks/vad.yaml, its metric the percentage of steps decided as the original decides them.
The C on the simulated core is held against the integer graph, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fxpress.backends.c import SimulatedNetwork, emit
from fxpress.compiler import capture, compile_model, text_table
from fxpress.ir import Graph, Value, run, run_integer
from fxpress.passes import Context, find_pass
from fxpress.specs import COutput, load_target
from fxpress.specs.options import QuantizeOptions

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
RESULTS = ROOT / "benchmarks" / "results" / "recurrent.json"
CORE = "cortex-m4f"
EPOCHS, BATCH, CALIBRATION = 16, 64, 64
STEPS = 200
CHECKED = 3
Sample = tuple[Tensor, ...]


@dataclass(frozen=True)
class Row:
    """One network: metrics, counted instructions of a run, per multiply-accumulate, and inputs with equal bytes."""

    name: str
    metric: str
    float_metric: float
    integer_metric: float
    instructions: int
    instructions_per_mac: float
    predicted_instructions: int
    arena_bytes: int
    equal_inputs: int


class Keywords(nn.Module):
    """GRU over the frames, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(10, 64, batch_first=True)
        self.words = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x)
        scores: Tensor = self.words(last[0])
        return scores


class Step(nn.Module):
    """A step of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 128)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        _, state = self.lstm(x, (h, c))
        return tuple(state)


def gru() -> Row:
    data = np.load(SHARED / "data" / "fsdd_mfcc.npz")
    x, y, seen, truth = (torch.from_numpy(data[k]) for k in ("x_train", "y_train", "x_test", "y_test"))
    mean, deviation = x.mean((0, 1)), x.std((0, 1))
    x, seen = (x - mean) / deviation, (seen - mean) / deviation
    model = _trained(Keywords(), x, y.long())
    graph = capture(model, (seen[:1],)).graph
    integers = _quantized(graph, [(x[i : i + 1],) for i in range(CALIBRATION)])

    def accuracy(interpreter: Callable[..., list[Tensor]], graph: Graph) -> float:
        scores = torch.cat([interpreter(graph, [seen[i : i + 1]])[0] for i in range(len(seen))])
        return 100 * float((scores.argmax(1) == truth).float().mean())

    metrics = accuracy(run, graph), accuracy(run_integer, integers)
    return _row("gru", "accuracy %", metrics, integers, [(seen[i : i + 1],) for i in range(CHECKED)])


def _trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, epochs=EPOCHS, steps_per_epoch=-(-len(x) // BATCH)
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def lstm() -> Row:
    torch.manual_seed(0)
    model, inputs = Step().eval(), torch.randn(STEPS, 1, 1, 128)
    zeros = torch.zeros(1, 1, 128)
    graph = capture(
        model,
        (inputs[0], zeros, zeros.clone()),
        input_names=["x", "h", "c"],
        output_names=["h_next", "c_next"],
    ).graph
    exact = _sequence(run, graph, inputs)
    samples = [(x, *before) for x, before in zip(inputs, [(zeros, zeros), *exact], strict=False)]
    integers = _quantized(graph, samples, state={"h": "h_next", "c": "c_next"}, activations="int16")
    found = _sequence(run_integer, integers, inputs)
    wanted, got = (torch.cat([h for h, _ in sequence]) for sequence in (exact, found))
    error = 100 * float(((wanted - got).square().mean() / wanted.square().mean()).sqrt())
    return _row("lstm", "error of h, %", (0.0, error), integers, samples[50 : 50 + CHECKED])


def _sequence(interpreter: Callable[..., list[Tensor]], graph: Graph, inputs: Tensor) -> list[list[Tensor]]:
    """States after each step."""
    states: list[list[Tensor]] = []
    for x in inputs:
        before = states[-1] if states else [torch.zeros(1, 1, 128)] * 2
        states.append(interpreter(graph, [x, *before]))
    return states


def vad() -> Row:
    compiled = compile_model(ROOT / "examples" / "trained_networks" / "vad.yaml", enforce_budget=False)
    of_float, of_integer = compiled.report.measurements
    evaluation = compiled.session.evaluation
    assert evaluation is not None
    samples = [_drawn(compiled.graph.inputs, seed) for seed in range(CHECKED)]
    return _row("vad", of_integer.metric, (of_float.value, of_integer.value), compiled.graph, samples)


def _drawn(inputs: Sequence[Value], seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(v.type.shape, generator=generator) - 0.5 for v in inputs)


def _quantized(
    graph: Graph, samples: Sequence[Sample], *, state: dict[str, str] | None = None, **options: str
) -> Graph:
    context = Context(calibration=samples, state=state or {})
    return find_pass("quantize")(graph, QuantizeOptions.model_validate(options), context).graph


def _row(
    name: str, metric: str, metrics: tuple[float, float], graph: Graph, samples: Sequence[Sample]
) -> Row:
    """Runs the C on the simulated core; AssertionError where it differs from the integer graph."""
    target = load_target(CORE)
    artifact = emit(
        graph, COutput(name="net", io="float", self_test=0), target.model_copy(update={"ram": None})
    )
    with tempfile.TemporaryDirectory(prefix="fxpress-recurrent-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), target)
        equal = 0
        for sample in samples:
            found, wanted = network.run(sample), run_integer(graph, sample)
            equal += all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        counted = network.profile(samples[0]).instructions
    return Row(
        name,
        metric,
        *metrics,
        counted,
        counted / max(artifact.prediction.macs, 1),
        artifact.prediction.instructions,
        artifact.plan.arena_bytes,
        equal,
    )


NETWORKS = {"gru": gru, "lstm": lstm, "vad": vad}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", default=list(NETWORKS), metavar="NETWORK", help=", ".join(NETWORKS)
    )
    rows = [NETWORKS[name]() for name in parser.parse_args().networks]
    header = ("network", "metric", "float", "integer", "instructions", "a MAC", "predicted", "arena", "equal")
    print(text_table(header, [_cells(row) for row in rows]))
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    kept = {row["name"]: row for row in known} | {row.name: asdict(row) for row in rows}
    ordered = [kept[name] for name in NETWORKS if name in kept]
    RESULTS.write_text(json.dumps({"core": CORE, "rows": ordered}, indent=2) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    return (row.name, row.metric, f"{row.float_metric:.2f}", f"{row.integer_metric:.2f}", f"{row.instructions:,}",
            f"{row.instructions_per_mac:.3f}", f"{row.predicted_instructions:,}", f"{row.arena_bytes:,}",
            f"{row.equal_inputs} of {CHECKED}")  # fmt: skip


if __name__ == "__main__":
    main()
