"""Recurrent and causal networks and a transformer in integers on a Cortex-M4: metric, instructions, memory.

    python benchmarks/recurrent.py [NAME ...]          # table, and benchmarks/results/recurrent.json

    gru, tcn                keyword spotters, trained here in seconds on spoken digits (../shared/data/fsdd_mfcc.npz):
                            49 steps of 10 features to a GRU of 64 units, or to causal convolutions over time
    gru step 16+64          a step of 16 inputs and 64 units with torch's initial weights, states in and out;
    lstm step 128+128       the metric is the error of the state along a sequence, in percent of its size
    gru step int16          the same with weights of 16 bits, which need no unpacking
    lstm step int16
    vad                     examples/trained_networks/vad.yaml along a recording: steps decided as the original decides
    vad quiet               them, the recording at a gain of 0.02 in the second row
    text                    examples/text_classifier, trained before by its train.py, quantized without more training
    attention 49x64         scaled dot-product attention of 49 positions and 4 heads of 16, a layer norm of 64 elements
    layer norm 64           of 16 bits, a softmax of 49 scores, on random numbers; the metric is the error of the
    softmax 49              result in percent of its size

Each C is held against the integer graph, byte for byte: on this machine for `INPUTS` inputs, on the simulated core for
`SIMULATED` of them. The linked program must have no function for floating point.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxpress.backends.c import CArtifact, SimulatedNetwork, emit
from fxpress.backends.c.tools import find_compiler, link_shared, read_elf
from fxpress.compiler import capture, compile_model, text_table
from fxpress.ir import Graph, run, run_integer
from fxpress.passes import Context, find_pass
from fxpress.specs import COutput, load_target
from fxpress.specs.options import FuseOptions, QuantizeOptions

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
RESULTS = ROOT / "benchmarks" / "results" / "recurrent.json"
CORE = "cortex-m4f"
EPOCHS, BATCH, CALIBRATION = 16, 64, 64
STEPS = 250
INPUTS, SIMULATED = 200, 5
QUIET = 0.02
FLOAT_FUNCTION = re.compile(r"__aeabi_\w*[fd]|__\w*[sd]f\w*|(exp|tanh|sqrt|log|pow)f?")
Sample = tuple[Tensor, ...]
Interpreter = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Row:
    """One network: metrics, counted instructions of a run, per multiply-accumulate, and inputs with equal bytes.

    `mean_error` is that of a probability, where the output is one. `float_functions` are functions for floating point
    in the linked program.
    """

    name: str
    metric: str
    float_metric: float
    integer_metric: float
    mean_error: float | None
    instructions: int
    cycles: int | None
    instructions_per_mac: float
    predicted_instructions: int
    arena_bytes: int
    flash_bytes: int
    equal_inputs: int
    equal_on_core: int
    float_functions: int


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


class Causal(nn.Module):
    """Convolutions over time that read no later frame, with dilations 1, 2, 4 and 8, and a linear layer on the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(32 if d > 1 else 10, 32, 3, dilation=d, padding=0) for d in (1, 2, 4, 8)
        )
        self.words = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mT
        for layer in self.layers:
            assert isinstance(layer, nn.Conv1d)
            x = functional.relu(layer(functional.pad(x, (2 * layer.dilation[0], 0))))
        scores: Tensor = self.words(x.mean(2))
        return scores


class Step(nn.Module):
    """A step of a recurrent layer whose states are inputs and outputs."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        _, after = self.layer(x, states if isinstance(self.layer, nn.LSTM) else states[0])
        return tuple(after) if isinstance(self.layer, nn.LSTM) else (after,)


def keywords(name: str, made: type[nn.Module]) -> Row:
    data = np.load(SHARED / "data" / "fsdd_mfcc.npz")
    x, y, seen, truth = (torch.from_numpy(data[k]) for k in ("x_train", "y_train", "x_test", "y_test"))
    mean, deviation = x.mean((0, 1)), x.std((0, 1))
    x, seen = (x - mean) / deviation, (seen - mean) / deviation
    torch.manual_seed(0)
    graph = capture(_trained(made(), x, y.long()), (seen[:1],)).graph
    integers = _quantized(graph, [(x[i : i + 1],) for i in range(CALIBRATION)])

    def accuracy(interpreter: Interpreter, graph: Graph) -> float:
        scores = torch.cat([interpreter(graph, [seen[i : i + 1]])[0] for i in range(len(seen))])
        return 100 * float((scores.argmax(1) == truth).float().mean())

    metrics = accuracy(run, graph), accuracy(run_integer, integers)
    return _row(name, "accuracy %", metrics, integers, [(seen[i : i + 1],) for i in range(INPUTS)])


def _trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
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


def step(name: str, made: type[nn.GRU | nn.LSTM], inputs: int, units: int, weights: str = "int8") -> Row:
    torch.manual_seed(0)
    model, sequence = Step(made(inputs, units)).eval(), torch.randn(STEPS, 1, 1, inputs)
    zeros = [torch.zeros(1, 1, units) for _ in range(1 + (made is nn.LSTM))]
    states = ["h", "c"][: len(zeros)]
    graph = capture(
        model,
        (sequence[0], *zeros),
        input_names=["x", *states],
        output_names=[f"{n}_next" for n in states],
    ).graph
    exact = _followed(run, graph, sequence, zeros)
    samples = [(x, *before) for x, before in zip(sequence, [zeros, *exact], strict=False)]
    state = {n: f"{n}_next" for n in states}
    integers = _quantized(graph, samples, state=state, activations="int16", weights=weights)
    found = _followed(run_integer, integers, sequence, zeros)
    wanted, got = (torch.cat([h for h, *_ in after]) for after in (exact, found))
    error = 100 * float(((wanted - got).square().mean() / wanted.square().mean()).sqrt())
    taken = [(x, *before) for x, before in zip(sequence, [zeros, *found], strict=False)]
    return _row(name, "error of h, %", (0.0, error), integers, taken[-INPUTS:])


class Attention(nn.Module):
    """Scaled dot-product attention of queries, keys and values [1, heads, positions, size]."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)


def part(name: str, model: nn.Module, shapes: Sequence[tuple[int, ...]], activations: str = "int8") -> Row:
    """One operator of transformers on normal random numbers."""
    torch.manual_seed(0)
    samples = [tuple(torch.randn(shape) for shape in shapes) for _ in range(INPUTS)]
    graph = capture(model.eval(), samples[0]).graph
    integers = _quantized(graph, samples[:CALIBRATION], activations=activations)
    wanted, got = (
        torch.stack([interpreter(one, sample)[0] for sample in samples])
        for interpreter, one in ((run, graph), (run_integer, integers))
    )
    error = 100 * float(((wanted - got).square().mean() / wanted.square().mean()).sqrt())
    return _row(name, "error, %", (0.0, error), integers, samples)


def _followed(
    interpreter: Interpreter, graph: Graph, inputs: Tensor, zeros: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Outputs at each step of a network whose only outputs are its states."""
    given, after = list(zeros), list[list[Tensor]]()
    for x in inputs:
        given = interpreter(graph, [x, *given])
        after.append(given)
    return after


def vad(name: str, gain: float) -> Row:
    compiled = compile_model(ROOT / "examples" / "trained_networks" / "vad.yaml", enforce_budget=False)
    evaluation = compiled.session.evaluation
    assert evaluation is not None and evaluation.labels is not None
    waves = gain * evaluation.inputs[0]

    def along(interpreter: Interpreter, graph: Graph) -> tuple[Tensor, list[Sample]]:
        states, found, given = [torch.zeros(1, 128)] * 2, list[Tensor](), list[Sample]()
        for wave in waves:
            given.append((wave[None], *states))
            probability, *states = interpreter(graph, given[-1])
            found.append(probability.flatten())
        return torch.cat(found), given

    exact = along(run, compiled.session.captured)[0]
    original = evaluation.labels.flatten() if gain == 1 else exact
    found, samples = along(run_integer, compiled.graph)
    metrics = tuple(100 * float(((p > 0.5) == (original > 0.5)).double().mean()) for p in (exact, found))
    error = float((found - original).abs().mean())
    return _row(name, "same decisions %", (metrics[0], metrics[1]), compiled.graph, samples[:INPUTS], error)


def text(name: str) -> Row:
    """The text classifier of the examples; `examples/text_classifier/train.py` writes its weights."""
    spec = ROOT / "examples" / "text_classifier" / "int8.yaml"
    passes = "passes=[{pass: clean}, {pass: fuse}, {pass: quantize, samples: 128}]"
    compiled = compile_model(
        spec, overrides=[passes, f"target={{name: {CORE}, flash: 2 MiB}}", "outputs={c: {name: net}}"]
    )
    evaluation = compiled.session.evaluation
    assert evaluation is not None and evaluation.labels is not None
    labels, samples = evaluation.labels, [(ids[None],) for ids in evaluation.inputs[0]]

    def accuracy(interpreter: Interpreter, graph: Graph) -> float:
        found = torch.cat([interpreter(graph, sample)[0].argmax(-1) for sample in samples])
        return 100 * float((found == labels).double().mean())

    metrics = accuracy(run, compiled.session.captured), accuracy(run_integer, compiled.graph)
    return _row(name, "accuracy %", metrics, compiled.graph, samples[:INPUTS])


def _quantized(
    graph: Graph, samples: Sequence[Sample], *, state: dict[str, str] | None = None, **options: str
) -> Graph:
    context = Context(calibration=samples, state=state or {})
    fused = find_pass("fuse")(graph, FuseOptions(), context).graph
    return find_pass("quantize")(fused, QuantizeOptions.model_validate(options), context).graph


def _row(
    name: str,
    metric: str,
    metrics: tuple[float, float],
    graph: Graph,
    samples: Sequence[Sample],
    mean_error: float | None = None,
) -> Row:
    """Runs the C on this machine and on the simulated core, and compares both with the integer graph."""
    target = load_target(CORE)
    real, stored = (_emitted(graph, io) for io in ("float", "auto"))
    wanted = [run_integer(graph, sample) for sample in samples]
    with tempfile.TemporaryDirectory(prefix="fxpress-recurrent-") as folder:
        places = [Path(folder) / place for place in ("host", "core", "counted")]
        for place in places:
            place.mkdir()
        host = _host(real, places[0])
        network, counted = (
            SimulatedNetwork.of(one, place, target)
            for one, place in zip((real, stored), places[1:], strict=True)
        )
        equal = [_same(host(sample), expected) for sample, expected in zip(samples, wanted, strict=True)]
        on_core = [_same(network.run(samples[i]), wanted[i]) for i in range(SIMULATED)]
        profile = counted.profile(samples[0])  # of any integers: there is no branch on them
        names = [function.name for function in read_elf(places[2] / "net.elf").functions]
    return Row(
        name,
        metric,
        *metrics,
        mean_error,
        profile.instructions,
        profile.cycles,
        profile.instructions / max(stored.prediction.macs, 1),
        stored.prediction.instructions,
        stored.plan.arena_bytes,
        counted.footprint.flash,
        sum(equal),
        sum(on_core),
        sum(FLOAT_FUNCTION.fullmatch(name) is not None for name in names),
    )


def _emitted(graph: Graph, io: str) -> CArtifact:
    names = [*(value.name for value in graph.inputs), *graph.output_names]
    layouts = dict.fromkeys(names, "model") if io == "float" else {}
    options = COutput.model_validate({"name": "net", "io": io, "layouts": layouts, "self_test": 0})
    return emit(graph, options, load_target(CORE).model_copy(update={"ram": None, "flash": None}))


def _same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def _host(artifact: CArtifact, folder: Path) -> Callable[[Sample], list[Tensor]]:
    """The C for float inputs and outputs in the model's order, built for this machine."""
    library = link_shared(find_compiler("gcc"), artifact.write(folder), folder / "net.so", flags=("-O2",))
    entry = ctypes.CDLL(str(library)).net_run
    arena = np.zeros(artifact.plan.arena_bytes + 64, np.uint8)
    start = arena.ctypes.data + -arena.ctypes.data % 64

    def call(sample: Sample) -> list[Tensor]:
        given = [
            np.ascontiguousarray(x.numpy(), np.float32 if x.is_floating_point() else np.int64) for x in sample
        ]
        made = [np.zeros(v.type.shape, np.float32) for v in artifact.graph.outputs]
        places = [array.ctypes.data for array in (*given, *made)] + [start]
        assert len(arena) and entry(*map(ctypes.c_void_p, places)) == 0
        return [torch.from_numpy(array) for array in made]

    return call


NETWORKS: dict[str, Callable[[str], Row]] = {
    "gru": lambda name: keywords(name, Keywords),
    "tcn": lambda name: keywords(name, Causal),
    "gru step 16+64": lambda name: step(name, nn.GRU, 16, 64),
    "gru step int16": lambda name: step(name, nn.GRU, 16, 64, "int16"),
    "lstm step 128+128": lambda name: step(name, nn.LSTM, 128, 128),
    "lstm step int16": lambda name: step(name, nn.LSTM, 128, 128, "int16"),
    "vad": lambda name: vad(name, 1.0),
    "vad quiet": lambda name: vad(name, QUIET),
    "text": text,
    "attention 49x64": lambda name: part(name, Attention(), 3 * [(1, 4, 49, 16)]),
    "layer norm 64": lambda name: part(name, nn.LayerNorm(64), [(1, 64)], "int16"),
    "softmax 49": lambda name: part(name, nn.Softmax(-1), [(1, 49)]),
}


def main() -> None:
    """Measures, prints, writes; ends with an error if C and integer graph differ, or if the program has float
    functions.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS)
    )
    rows = [NETWORKS[name](name) for name in parser.parse_args().networks]
    header = ("network", "metric", "float", "integer", "mean error", "instructions", "a MAC", "predicted",
              "arena", "flash", "equal", "on core", "floats")  # fmt: skip
    print(text_table(header, [_cells(row) for row in rows]))
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    kept = {row["name"]: row for row in known} | {row.name: asdict(row) for row in rows}
    ordered = [kept[name] for name in NETWORKS if name in kept]
    RESULTS.write_text(json.dumps({"core": CORE, "rows": ordered}, indent=2) + "\n")
    wrong = [row.name for row in rows if row.equal_inputs < INPUTS or row.equal_on_core < SIMULATED]
    wrong += [row.name for row in rows if row.float_functions]
    if wrong:
        raise SystemExit(f"not equal byte for byte, or not without floats: {', '.join(wrong)}")


def _cells(row: Row) -> tuple[str, ...]:
    error = "" if row.mean_error is None else f"{row.mean_error:.4f}"
    return (row.name, row.metric, f"{row.float_metric:.2f}", f"{row.integer_metric:.2f}", error,
            f"{row.instructions:,}", f"{row.instructions_per_mac:.3f}", f"{row.predicted_instructions:,}",
            f"{row.arena_bytes:,}", f"{row.flash_bytes:,}", f"{row.equal_inputs} of {INPUTS}",
            f"{row.equal_on_core} of {SIMULATED}", f"{row.float_functions}")  # fmt: skip


if __name__ == "__main__":
    main()
