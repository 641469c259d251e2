"""The rows of `architectures.py`, a line of JSON each: `python architecture_rows.py [NAME ...]`, with transformers.

Each row is computed in a separate process.

    lengths     the emitted float module against the network, at three sizes of batch and lengths
    int8, int4  the emitted module of stored weights against the network with the dequantized weights, at the same sizes
    snr_db      the emitted module of static int8 against the network: signal-to-noise ratio of the first output
    alone       true if the int8 module gives equal bits where neither fxpress nor transformers can be imported

Differences are the largest one, relative to the reference's largest element. Dequantized weights are the network's
own, rounded here by the stored scales; stored integers that differ from those count as a difference of 1.
`falls_short` lists figures beyond their limits, and refusals.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from typing import Any

import torch
from architecture_configs import ARCHITECTURES, Architecture
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpress.backends.torch_module import TorchArtifact, TorchOptions, emit, to_module
from fxpress.compiler import FxpressError, capture
from fxpress.ir import Encoding, Graph
from fxpress.passes import Context, clean, fuse, quantize, weight_only

EXAMPLE = {"batch": 1, "tokens": 12, "decoder_tokens": 7}
CALLS = (
    EXAMPLE,
    {"batch": 2, "tokens": 5, "decoder_tokens": 3},
    {"batch": 3, "tokens": 29, "decoder_tokens": 16},
)
LIMITS = {"lengths": 1e-4, "int8": 1e-3, "int4": 1e-3}
LEAST_SNR_DB = 25.0
CALIBRATION, EVALUATION = 16, 4  # calls
MEASURED = ("nodes", "lengths", "int8", "int4", "snr_db", "alone")
SECONDS = 900
_RAISED = (FxpressError, RuntimeError, ValueError, TypeError, KeyError, IndexError)
_ALONE = """
import sys
sys.modules["fxpress"] = sys.modules["transformers"] = None
import torch
from safetensors.torch import load_file, load_model
from model import Model
module = Model()
load_model(module, "model.safetensors")
given = load_file("call.safetensors")
with torch.no_grad():
    found = module.eval()(*(given[f"input_{i}"] for i in range(int(sys.argv[1]))))
found = [found] if isinstance(found, torch.Tensor) else found
assert all(torch.equal(x, given[f"output_{i}"]) for i, x in enumerate(found))
"""
Row = dict[str, Any]  # any: a number, a text, or None for a missing figure


def main() -> None:
    """Prints the rows of the networks on the command line, or of all."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for name in sys.argv[1:] or ARCHITECTURES:
            try:
                found = pool.apply_async(row, (name,)).get(SECONDS)
            except TimeoutError:
                found = {
                    **dict.fromkeys(MEASURED),
                    "name": name,
                    "falls_short": f"not ready after {SECONDS} s",
                }
            print(json.dumps(found), flush=True)


def row(name: str) -> Row:
    """All columns; `falls_short` joins refusals and figures beyond their limits."""
    architecture = ARCHITECTURES[name]
    model = architecture.module()
    found: Row = dict.fromkeys(MEASURED)
    faults: list[str] = []

    def column(key: str, measure: Callable[[], object]) -> None:
        try:
            found[key] = measure()
        except _RAISED as err:
            faults.append(f"{key}: {_first_line(err)}")

    graph = captured(model, architecture, faults)
    if graph is not None:
        cleaned = clean(graph).graph
        found["nodes"] = len(cleaned.nodes)
        calls = CALLS if graph.dimensions else (EXAMPLE,)
        column("lengths", lambda: difference(model, to_module(cleaned), architecture, calls))
        for bits in (8, 4):
            column(f"int{bits}", partial(stored, model, cleaned, architecture, calls, bits))
        column("snr_db", lambda: static_snr_db(model, cleaned, architecture))
        column("alone", lambda: runs_alone(cleaned, architecture))
    for key, limit in LIMITS.items():
        if found[key] is not None and found[key] > limit:
            faults.append(f"{key}: {found[key]:.1e} above {limit:.0e}")
    if found["snr_db"] is not None and found["snr_db"] < LEAST_SNR_DB:
        faults.append(f"snr_db: below {LEAST_SNR_DB:g}")
    return {"name": name, **found, "falls_short": "; ".join(faults)}


def captured(model: nn.Module, architecture: Architecture, faults: list[str]) -> Graph | None:
    """The graph with dynamic dimensions, without them if they are refused; None if both are refused."""
    arguments = architecture.arguments(EXAMPLE, seed=0)
    for dynamic in (architecture.dynamic, {}):
        try:
            return capture(model, (), arguments, dynamic=dynamic).graph
        except _RAISED as err:
            faults.append(f"{'lengths' if dynamic else 'capture'}: {_first_line(err)}")
    return None


def difference(
    model: nn.Module, module: nn.Module, architecture: Architecture, calls: tuple[Mapping[str, int], ...]
) -> float:
    """Largest difference of an emitted module's outputs from the network's."""
    largest = 0.0
    for seed, sizes in enumerate(calls):
        arguments = architecture.arguments(sizes, seed=seed)
        with torch.no_grad():
            expected = _tensors(model(**arguments))
            found = _tensors(module(*_tensors(arguments)))
        for x, y in zip(expected, found, strict=True):
            largest = max(largest, float((x - y).abs().max() / x.abs().max().clamp(min=1e-12)))
    return largest


def stored(
    model: nn.Module,
    graph: Graph,
    architecture: Architecture,
    calls: tuple[Mapping[str, int], ...],
    bits: int,
) -> float:
    """Largest difference of stored weights from the network with the same weights, dequantized."""
    compressed = weight_only(graph, weights=f"int{bits}", activations="float32").graph
    reference = copy.deepcopy(model)
    places = dict(reference.state_dict(keep_vars=True))
    for value in compressed.constants:
        encoding = value.type.quantization
        if encoding is None:
            continue
        real = encoding.dequantize(compressed.tensor(value))
        own = _own_tensor(places, value.name, real)
        rounded = _rounded(own.detach().float(), real, encoding, compressed.tensor(value))
        if rounded != 1.0:
            return 1.0
        with torch.no_grad():
            own.copy_(real)
    return difference(reference, to_module(compressed), architecture, calls)


def _own_tensor(places: Mapping[str, Tensor], name: str, real: Tensor) -> Tensor:
    """The network's tensor of a stored weight: the tensor with its name, else the nearest one, transposed if the
    shape requires it.
    """
    named = [places[name]] if name in places else []
    fitting = _turned(named, real) or _turned(places.values(), real)
    if not fitting:
        raise KeyError(f"the network has no tensor like {name}")
    return min(fitting, key=lambda own: float((own.detach() - real).abs().mean()))


def _turned(tensors: Iterable[Tensor], real: Tensor) -> list[Tensor]:
    """The tensors with the shape of `real`, unchanged or transposed; square tensors in both forms."""
    return [
        t for own in tensors for t in ((own, own.mT) if own.ndim > 1 else (own,)) if t.shape == real.shape
    ]


def _rounded(own: Tensor, real: Tensor, encoding: Encoding, integers: Tensor) -> float:
    """Fraction of stored integers that equal the weights rounded by the stored scales."""
    half_step = (real - encoding.dequantize(integers.to(torch.int16) - 1)).abs() / 2
    lowest, highest = -(1 << (encoding.bits - 1)), (1 << (encoding.bits - 1)) - 1
    is_end = (integers == lowest) | (integers == highest) | (integers == -highest)
    fits = ((own - real).abs() <= half_step * 1.001) | is_end
    return float(fits.double().mean())


def static_snr_db(model: nn.Module, graph: Graph, architecture: Architecture) -> float:
    """Signal-to-noise ratio of the first output of static int8, on other inputs than those of calibration."""
    samples = [tuple(_tensors(architecture.arguments(EXAMPLE, seed=100 + i))) for i in range(CALIBRATION)]
    quantized = quantize(fuse(graph).graph, context=Context(calibration=samples)).graph
    module = to_module(quantized, form="qdq")
    signal = noise = 0.0
    for seed in range(EVALUATION):
        arguments = architecture.arguments(EXAMPLE, seed=seed)
        with torch.no_grad():
            expected, found = _tensors(model(**arguments))[0], _tensors(module(*_tensors(arguments)))[0]
        signal += float(expected.double().square().sum())
        noise += float((expected - found).double().square().sum())
    return round(float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-30)))), 1)


def runs_alone(graph: Graph, architecture: Architecture) -> bool:
    """True if the files of the int8 module give the same outputs in a process that has only torch."""
    artifact: TorchArtifact = emit(weight_only(graph, weights="int8").graph, TorchOptions())
    inputs = _tensors(architecture.arguments(EXAMPLE, seed=0))
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        artifact.save(folder)
        outputs = _tensors(artifact.build()(*inputs))
        call = {f"input_{i}": x.contiguous() for i, x in enumerate(inputs)}
        call |= {f"output_{i}": x.contiguous().clone() for i, x in enumerate(outputs)}
        save_file(call, folder / "call.safetensors")
        command = [sys.executable, "-c", _ALONE, str(len(inputs))]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    return True


def _first_line(error: Exception) -> str:
    """Beginning of a message, with paths shortened to start at the folder of packages."""
    return re.sub(r"\S*/site-packages/", "", str(error).partition("\n")[0])


def _tensors(result: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


if __name__ == "__main__":
    main()
