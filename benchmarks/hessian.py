"""Traces of every layer's Hessian block: exact, and by PyHessian driven to 5 % on every layer, in one run.

    python benchmarks/hessian.py [--part networks|scores|classes]     all parts by default; five minutes or more

    networks  ResNet-8 (trained, real images) and ResNet-20 with 16 samples, ResNet-18 at 64x64 with 4: CPU seconds of
              both on one thread, and the largest relative error over layers. PyHessian, one layer at a time and in an
              environment of its own, draws probes until the 95 % confidence interval is within 5 % of the mean.
    scores    Spearman correlation of each score with the measured divergence on ResNet-8, bits 2, 3, 4 and 8
    classes   100 and 1,000 classes: exact columns against probes in output space, time and error

PyHessian gets the same network with batch norms folded. Table on standard output, and benchmarks/results/hessian.json
when all parts are run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from environment import interpreter
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch_models import Network, resnet18, resnet20

from fxpress.compiler import capture
from fxpress.ir import Graph, dump, parse, rebatch
from fxpress.ir.ops import Layer
from fxpress.passes import find_pass
from fxpress.passes.sensitivity import (
    Curvature,
    Method,
    Precision,
    measure_curvature,
    measure_sensitivity,
    round_weight,
)
from fxpress.specs.options import FuseOptions

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
ENVIRONMENT = ROOT / "build" / "hessian"
RESULTS = ROOT / "benchmarks" / "results" / "hessian.json"
PROBER = ROOT / "benchmarks" / "hessian_probes.py"
REQUIREMENT = "pyhessian==0.1"
REPEATS = 3
TOLERANCE = 0.05
SCORE_BITS, SCORE_SAMPLES = (2, 3, 4, 8), 64

Sample = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A folded network and its samples, one image each."""

    name: str
    graph: Graph
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Probed:
    """One layer by PyHessian: the mean over its probes, their number, and CPU seconds on one thread."""

    trace: float
    probes: int
    seconds: float


@dataclass(frozen=True)
class TraceRow:
    """CPU seconds on one thread; errors are the largest over layers, relative."""

    name: str
    samples: int
    layers: int
    seconds: float
    pyhessian_seconds: float
    speedup_over_pyhessian: float
    pyhessian_probes: int
    pyhessian_worst_error: float
    worst_error: float


@dataclass(frozen=True)
class ScoreRow:
    """Ranking of (layer, bits) by a score, compared with the ranking by the measured divergence."""

    method: str
    pairs: int
    spearman_with_kl: float
    seconds: float


@dataclass(frozen=True)
class ClassRow:
    """All columns of F, and its first ones with probes for the rest until every interval is within the tolerance."""

    name: str
    classes: int
    samples: int
    exact_seconds: float
    probed_seconds: float
    tolerance: float
    worst_error: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("networks", "scores", "classes"), help="all when left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (SHARED / "models").is_dir():
        print(f"the trained models are not at {SHARED / 'models'}; set FXPRESS_SHARED to the folder above")
        return 2
    found: dict[str, list[dict[str, object]]] = {}
    parts: dict[str, Callable[[], list[dict[str, object]]]] = {
        "networks": trace_rows,
        "scores": score_rows,
        "classes": class_rows,
    }
    for name in [options.part] if options.part else parts:
        found[name] = parts[name]()
        _print(name, found[name])
    if options.part is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"cpu_count": os.cpu_count(), **found}, indent=1) + "\n")
    return 0


def trace_rows() -> list[dict[str, object]]:
    """A row for each network."""
    rows = []
    for case in (resnet8(16), random_network("resnet20", 16), random_network("resnet18_64", 4)):
        seconds, found = _timed(partial(measure_curvature, case.graph, case.samples, shards=1))
        reference = {c.layer: c.trace for c in _in_double(case)}
        probed = _pyhessian(case)
        worst = max(abs(c.trace / reference[c.layer] - 1) for c in found)
        off = max(abs(probed[c.layer].trace / reference[c.layer] - 1) for c in found)
        total = sum(layer.seconds for layer in probed.values())
        probes = sum(layer.probes for layer in probed.values())
        row = TraceRow(
            case.name, len(case.samples), len(found), seconds, total, total / seconds, probes, off, worst
        )
        rows.append(asdict(row))
    return rows


def score_rows() -> list[dict[str, object]]:
    """A row for each method, weights at all widths."""
    case = resnet8(SCORE_SAMPLES)
    losses: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for method in get_args(Method):
        start = time.process_time()
        table = measure_sensitivity(
            case.graph, case.samples, method=method, weight_bits=SCORE_BITS, rounding=symmetric
        )
        seconds[method] = time.process_time() - start
        losses[method] = [score.loss for score in table.scores]
    return [
        asdict(ScoreRow(m, len(found), float(spearmanr(found, losses["kl"]).statistic), seconds[m]))
        for m, found in losses.items()
    ]


def class_rows() -> list[dict[str, object]]:
    """ResNet-20 with 100 and 1,000 classes, random weights: all classes are similar, the hardest case for probes."""
    rows = []
    for classes in (100, 1000):
        case = random_network("resnet20", 4, classes=classes)
        whole, few = Precision(exact_columns=classes), Precision()
        start = time.process_time()
        exact = measure_curvature(case.graph, case.samples, shards=1, precision=whole)
        exact_seconds = time.process_time() - start
        start = time.process_time()
        probed = measure_curvature(case.graph, case.samples, shards=1, precision=few)
        probed_seconds = time.process_time() - start
        worst = max(abs(a.trace / b.trace - 1) for a, b in zip(probed, exact, strict=True))
        row = ClassRow(
            case.name, classes, len(case.samples), exact_seconds, probed_seconds, few.tolerance, worst
        )
        rows.append(asdict(row))
    return rows


def symmetric(op: Layer, weight: Tensor, bits: int) -> Tensor:
    """As `quantize` rounds; three bits, which cannot be stored, by the largest weight of each output channel."""
    if bits != 3:
        return round_weight(op, weight, bits)
    scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / 3
    return (weight / scale).round() * scale


def resnet8(count: int) -> Case:
    """The trained network of MLPerf Tiny on images that it was not trained on."""
    path = ROOT / "examples" / "mlperf_tiny" / "models.py"
    spec = importlib.util.spec_from_file_location("mlperf_tiny_models", path)
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    module: nn.Module = models.ResNet8()
    module.load_state_dict(load_file(SHARED / "models" / "ic01_resnet8.safetensors"), strict=False)
    images = torch.from_numpy(np.load(SHARED / "data" / "ic01_eval_dev.npz")["x"][:count])
    return _case("resnet8", module.eval(), list(images.permute(0, 3, 1, 2).float().split(1)))


def random_network(name: str, count: int, *, classes: int = 10) -> Case:
    """A network with seeded random weights on random inputs."""
    build, size = {"resnet20": (resnet20, 32), "resnet18_64": (resnet18, 64)}[name]
    network = Network(name, lambda: build(classes=classes), (1, 3, size, size))
    return _case(name, network.module(), network.inputs(count))


def _case(name: str, module: nn.Module, inputs: Sequence[Tensor]) -> Case:
    captured = capture(module, (inputs[0],)).graph
    folded = find_pass("fuse")(captured, FuseOptions()).graph
    return Case(name, folded, tuple((x.contiguous(),) for x in inputs))


def _timed(work: Callable[[], tuple[Curvature, ...]]) -> tuple[float, tuple[Curvature, ...]]:
    """Median CPU seconds, and the result."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        found = work()
        seconds.append(time.process_time() - start)
    return sorted(seconds)[REPEATS // 2], found


def _in_double(case: Case) -> tuple[Curvature, ...]:
    """The exact values, computed in float64."""
    params = {name: tensor.double() for name, tensor in case.graph.params.items()}
    doubled = parse(dump(case.graph).replace(": f32[", ": f64["), params=params)
    samples = [tuple(x.double() for x in sample) for sample in case.samples]
    return measure_curvature(doubled, samples, shards=1)


def _pyhessian(case: Case) -> dict[str, Probed]:
    """Result of PyHessian for each layer, from its own environment."""
    count = len(case.samples)
    together = rebatch(case.graph, count)
    layers = [c.layer for c in measure_curvature(case.graph, case.samples[:1], shards=1)]
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "case.pt", Path(folder) / "answer.json"
        inputs = torch.cat([x for (x,) in case.samples])
        torch.save((dump(together), dict(together.params), inputs, layers), given)
        command = [interpreter(ENVIRONMENT, REQUIREMENT), PROBER, given, answer, TOLERANCE]
        subprocess.run(list(map(str, command)), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return {name: Probed(*row) for name, row in json.loads(answer.read_text()).items()}


def _print(name: str, rows: Sequence[dict[str, object]]) -> None:
    print(f"\n{name}")
    for row in rows:
        print(
            "  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        )


if __name__ == "__main__":
    sys.exit(main())
