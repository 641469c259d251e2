"""`make bench-torch`: the torch backend on ResNet-18, MobileNetV2 and a BERT-like encoder, beside ONNX Runtime.

For each network, in one run, one thread, batch 1: fused float against the module; the quantized forms against
`run_integer`, step by step and at the output; CPU time of FP32 eager, FP32 torch.compile with freezing, our eager and
native int8 forms, our QDQ form through torch.compile with freezing, and ONNX Runtime's int8 of the same fused network.
Times are the least of many calls, taken in turns, so that what else runs on the machine falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import config
from torch_models import NETWORKS, Network

from fxpress.backends.torch_module import Form, Mismatch, requantization_mismatch, to_module
from fxpress.compiler import capture
from fxpress.ir import Graph, run_integer
from fxpress.passes import Context, fuse, quantize

RESULTS = Path(__file__).parent / "results" / "torch.json"
FLOAT_TOLERANCE = 1e-5
REQUIRED_SPEEDUP = {
    ("resnet18", "qdq_compiled"): 4.0,
    ("resnet18", "int8_native"): 4.0,
    ("mobilenet_v2", "int8_native"): 4.2,
}
CALIBRATION_SAMPLES = 8
FORMS: tuple[Form, ...] = ("eager", "native", "qdq")
ROUNDS = 40
COMPILE_OPTIONS = {"freezing": True, "cpp_wrapper": True}
"""Weights are constants, and the kernels are called from C++; for FP32 and int8 alike."""

Run = Callable[[Tensor], object]


@dataclass(frozen=True)
class Row:
    """Measurements of one network; times in CPU milliseconds, mismatches at single requantizations."""

    name: str
    float_error: float
    qdq_mismatch: float
    eager_mismatch: float
    native_mismatch: float
    largest_step: int
    output_snr_db: float
    int8_layers: int
    layers: int
    milliseconds: Mapping[str, float]
    speedup: Mapping[str, float]

    @property
    def problems(self) -> list[str]:
        """Claims that do not hold, as sentences."""
        required = {way: least for (name, way), least in REQUIRED_SPEEDUP.items() if name == self.name}
        found = {
            f"fused float differs by {self.float_error:.1e}": self.float_error > FLOAT_TOLERANCE,
            f"a requantization differs by {self.largest_step} steps": self.largest_step > 1,
            f"{self.int8_layers} of {self.layers} layers run in int8": self.int8_layers < self.layers,
        }
        found |= {
            f"{way}: {self.speedup[way]}x is below {x}x": self.speedup[way] < x for way, x in required.items()
        }
        return [f"{self.name}: {text}" for text, holds in found.items() if holds]


def main(arguments: list[str]) -> int:
    """Measures, prints a table, writes the results; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=[network.name for network in NETWORKS], help="one network alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = [measure(network) for network in NETWORKS if options.only in (None, network.name)]
    print_table(rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    results |= {"threads": 1, "batch": 1, "networks": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    problems = [problem for row in rows for problem in row.problems]
    print("\n".join(problems) if problems else f"all holds; results in {options.output}")
    return 1 if problems else 0


def measure(network: Network) -> Row:
    """All figures of one network."""
    print(f"{network.name}: capture, fuse, quantize", flush=True)
    module = network.module()
    (x,) = network.inputs(1)
    fused, integer = prepared(network, module, x)
    float_module = to_module(fused)
    eager, native, qdq = (to_module(integer, form=form) for form in FORMS)
    found = {form: requantization_mismatch(integer, [[x]], form=form) for form in FORMS}
    totals = {form: Mismatch.total(parts.values()) for form, parts in found.items()}
    with torch.no_grad(), config.patch(COMPILE_OPTIONS), tempfile.TemporaryDirectory() as directory:
        reference = module(x)
        exact = run_integer(integer, [x])[0]
        runs: dict[str, Run] = {"fp32_eager": module, "int8_eager": eager, "int8_native": native}
        print(f"{network.name}: torch.compile", flush=True)
        runs["fp32_compiled"] = warm(torch.compile(network.module()), x)
        counters.clear()
        runs["qdq_compiled"] = warm(torch.compile(qdq), x)
        lowered = counters["inductor"]
        int8_layers = sum(
            n for key, n in lowered.items() if key.startswith("q") and key.endswith("_lower_count")
        )
        print(f"{network.name}: ONNX Runtime", flush=True)
        runs["onnxruntime_int8"] = onnxruntime_int8(float_module, network, Path(directory))
        milliseconds = in_turns(runs, x)
        return Row(
            network.name,
            float_error=float((float_module(x) - reference).abs().max() / reference.abs().max()),
            qdq_mismatch=totals["qdq"].rate,
            eager_mismatch=totals["eager"].rate,
            native_mismatch=totals["native"].rate,
            largest_step=max(total.largest_step for total in totals.values()),
            output_snr_db=signal_to_noise_db(exact, torch.as_tensor(runs["qdq_compiled"](x))),
            int8_layers=int8_layers,
            layers=sum(node.op.name in ("conv", "linear") for node in integer.nodes),
            milliseconds={name: round(value, 3) for name, value in milliseconds.items()},
            speedup={
                name: round(milliseconds["fp32_eager"] / value, 2) for name, value in milliseconds.items()
            },
        )


def prepared(network: Network, module: nn.Module, x: Tensor) -> tuple[Graph, Graph]:
    """The network's fused float graph and its integer graph."""
    graph = capture(module, (x,)).graph
    fused = fuse(graph).graph
    samples = [(sample,) for sample in network.inputs(CALIBRATION_SAMPLES, seed=9)]
    return fused, quantize(fused, context=Context(calibration=samples)).graph


def warm(run: Run, x: Tensor) -> Run:
    """`run` after its first calls, which compile it."""
    for _ in range(3):
        run(x)
    return run


class _Samples(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """The calibration inputs in the interface of ONNX Runtime."""

    def __init__(self, name: str, samples: list[Tensor]) -> None:
        self._feeds: Iterator[dict[str, object]] = iter([{name: sample.numpy()} for sample in samples])

    def get_next(self) -> dict[str, object] | None:
        """The next input, or None after the last."""
        return next(self._feeds, None)


def onnxruntime_int8(module: nn.Module, network: Network, directory: Path) -> Run:
    """The fused float module as ONNX Runtime's int8 QDQ model, quantized on the same samples."""
    plain, ready, quantized = (str(directory / f"{name}.onnx") for name in ("plain", "ready", "quantized"))
    (example,) = network.inputs(1)
    torch.onnx.export(module, (example,), plain, dynamo=True, verbose=False)
    quant_pre_process(plain, ready)
    name = onnxruntime.InferenceSession(ready, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    quantization.quantize_static(
        ready,
        quantized,
        _Samples(name, network.inputs(CALIBRATION_SAMPLES, seed=9)),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(quantized, settings, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {name: x.numpy()})


def in_turns(runs: Mapping[str, Run], x: Tensor) -> dict[str, float]:
    """Least CPU time of a call of each, in milliseconds."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run(x)
            start = time.process_time()
            run(x)
            least[name] = min(least[name], 1e3 * (time.process_time() - start))
    return least


def signal_to_noise_db(exact: Tensor, computed: Tensor) -> float:
    """Power of `exact` over that of the difference, in decibels."""
    noise = (computed.double() - exact.double()).square().sum()
    return float(10 * torch.log10(exact.double().square().sum() / noise))


def machine() -> str:
    """The processor in general words."""
    flags = torch.backends.cpu.get_cpu_capability()
    vnni = " with VNNI" if torch.cpu._is_vnni_supported() else ""
    return f"{platform.machine()}, {flags}{vnni}"


def print_table(rows: list[Row]) -> None:
    """Times and ratios, a line for each way to run a network."""
    for row in rows:
        print(
            f"\n{row.name}: fused float within {row.float_error:.1e}; of all requantized elements differ by one step "
            f"{row.qdq_mismatch:.2%} (qdq), {row.eager_mismatch:.2%} (eager), {row.native_mismatch:.2%} (native), "
            f"by more none: {row.largest_step <= 1}; "
            f"output {row.output_snr_db:.1f} dB above the difference; {row.int8_layers}/{row.layers} layers in int8"
        )
        for name, value in row.milliseconds.items():
            print(f"  {name:18s} {value:9.2f} CPU ms {row.speedup[name]:7.2f}x FP32 eager")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
