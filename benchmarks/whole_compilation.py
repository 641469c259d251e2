"""A module through the whole compiler: compiled by the command line, run in each form, compared with torch.

A module passes, is refused by name, or fails: it is wrong, or ends in an internal error.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from fxpress.compiler import load_compiled
from fxpress.compiler import main as fxpress
from fxpress.compiler.noise import Powers
from fxpress.ir import Graph
from fxpress.ir.testing import ModuleSource

CALIBRATION, TESTED = 24, 4
FLOAT_DB = 60.0
TORCH_DB, TORCH_MARGIN_DB = 50.0, 12.0  # ties round otherwise in torch: a step in each requantization
KINDS = (
    "ok",
    "noisy",
    "refused",
    "skipped",
    "wrong",
    "internal",
)  # noisy: correct, and the summary states the noise
_ROUNDING = 3e-5  # root mean square
_DECISIONS_DB = 10.0


@dataclass(frozen=True)
class Recipe:
    """Passes, target and outputs that a module is compiled with, and the machine for its C."""

    passes: Sequence[Mapping[str, object]]
    outputs: Mapping[str, Mapping[str, object]]
    target: str = "cortex-m4f"
    places: Sequence[str] = ("host",)
    least_db: float = 10.0  # below it, a loss that the summary does not mention is a fault


FLOAT_PASSES = ({"pass": "clean"}, {"pass": "fuse"})


def quantized_passes(*after: str, **options: object) -> list[Mapping[str, object]]:
    """Passes of an integer network: `quantize` with these options, then passes named in `after`."""
    return [*FLOAT_PASSES, {"pass": "quantize", **options}, *({"pass": name} for name in after)]


@dataclass(frozen=True)
class Verdict:
    """Outcome for a module, one of KINDS, and its reason."""

    kind: str
    fact: str = ""

    @property
    def fails(self) -> bool:
        """True if the compiler is at fault."""
        return self.kind in {"wrong", "internal"}


def attempt(module: ModuleSource, recipe: Recipe) -> Verdict:
    """Compiles and runs one module; a fault of the compiler never raises."""
    with (
        tempfile.TemporaryDirectory(prefix="fxpress-fuzz-") as name,
        chdir(name),  # a crash file belongs there
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        return _attempt(module, recipe, Path(name))


def _attempt(module: ModuleSource, recipe: Recipe, folder: Path) -> Verdict:
    net = module.build()
    expected = _rows(_called(module, net, _seen(module)))
    if not all(bool(torch.isfinite(y).all()) for y in expected):
        return Verdict("skipped", "the module gives no finite numbers")
    write_project(module, recipe, folder)
    out = folder / "out"
    status, said = _command("compile", folder / "spec.yaml", "-o", out)
    if status:
        return _refused(status, said)
    graph = load_compiled(out).graph
    forms = {**{p: p for p in recipe.places}, **({"torch": "torch"} if "torch" in recipe.outputs else {})}
    integer = _run(out, "integer", folder, "data.npz")
    if isinstance(integer, Verdict):
        return integer
    given = {}
    for place in forms:
        got = _run(out, place, folder, "few.npz")
        if isinstance(got, Verdict):
            return got
        given[place] = got
    noisy = {name for name in graph.output_names if f"low: output {name} has " in said}
    least = [-np.inf if name in noisy else recipe.least_db for name in graph.output_names]
    verdict = _compared(expected, integer, given, graph, least)
    return (
        Verdict("noisy", f"said of {', '.join(sorted(noisy))}") if noisy and verdict.kind == "ok" else verdict
    )


def _called(module: ModuleSource, net: nn.Module, samples: Mapping[str, Tensor]) -> list[object]:
    """Results of the calls in order; states are zeros at first, and then the results of the previous call."""
    states = {name: torch.zeros(module.inputs[name][0]) for name in module.states}
    results = []
    for index in range(len(next(iter(samples.values())))):
        results.append(net(*(states.get(n, x[index : index + 1]) for n, x in samples.items())))
        states = {name: results[-1][output] for name, output in module.states.items()}
    return results


def _seen(module: ModuleSource) -> dict[str, Tensor]:
    """Calibration samples: the tested samples, so that no value is clipped, and others."""
    tested, others = module.samples(TESTED, seed=1), module.samples(CALIBRATION)
    return {name: torch.cat([x, others[name]]) for name, x in tested.items()}


def _compared(
    expected: Sequence[Tensor],
    integer: Sequence[Tensor],
    given: Mapping[str, Sequence[Tensor]],
    graph: Graph,
    least_db: Sequence[float],
) -> Verdict:
    """The verdict on results: torch and integers of all samples, the forms of the first."""
    quantized = any(v.type.is_quantized for v in graph.results)
    floats = any(
        not v.type.is_quantized
        for node in graph.nodes
        if node.op.name != "quantize"
        for v in node.operands
        if v.type.dtype.is_floating
    )
    own = [snr_db(y, have) for y, have in zip(expected, integer, strict=True)]
    for place, outputs in given.items():
        for index, (every, have) in enumerate(zip(integer, outputs, strict=True)):
            exact, usual = every[:TESTED], every.double().square().mean().item()
            if torch.equal(exact.double(), have.double().reshape(exact.shape)):
                continue
            ratio = snr_db(exact, have, usual=usual)
            limit: float | None = FLOAT_DB  # None: all bits are promised
            if quantized and (place == "torch" or floats) and not exact.is_floating_point():
                ratio, limit = _decisions_db(exact, have), np.inf
            elif quantized and place == "torch":
                limit = min(own[index], TORCH_DB) - TORCH_MARGIN_DB
            elif quantized:
                limit = 30.0 if floats else None
            if limit is None or ratio < limit:
                return Verdict(
                    "wrong", f"{place} output {index}: {ratio:.1f} dB from the graph's own integers"
                )
    decided = [
        ratio if want.is_floating_point() else _decisions_db(want, have)
        for ratio, want, have in zip(own, expected, integer, strict=True)
    ]
    for index, (ratio, least) in enumerate(zip(decided, least_db, strict=True)):
        if ratio < least:
            return Verdict("wrong", f"output {index}: {ratio:.1f} dB from torch, and nothing said so")
    return Verdict("ok")


def write_project(module: ModuleSource, recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(module.source)
    save_model(module.build(), str(folder / "weights.safetensors"))
    seen = {name: x.numpy() for name, x in _seen(module).items() if name not in module.states}
    np.savez(folder / "data.npz", allow_pickle=False, **seen)
    np.savez(folder / "few.npz", allow_pickle=False, **{name: x[:TESTED] for name, x in seen.items()})
    inputs = {n: {"shape": s, "dtype": str(d).removeprefix("torch.")} for n, (s, d) in module.inputs.items()}
    spec = {
        "fxpress": 1,
        "model": {
            "source": "model.py:Net",
            "weights": "weights.safetensors",
            "inputs": inputs,
            "state": dict(module.states),
        },
        "data": {"calibration": {"file": "data.npz"}},
        "target": {"name": recipe.target},
        "passes": recipe.passes,
        "outputs": recipe.outputs,
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))


def _run(out: Path, place: str, folder: Path, data: str) -> list[Tensor] | Verdict:
    saved = folder / f"{place}.npz"
    status, said = _command("run", out, "--on", place, "--data", folder / data, "--save", saved)
    if status:
        return Verdict("internal", f"run --on {place}: {_first_line(said)}")
    with np.load(saved) as arrays:
        return [torch.from_numpy(array) for array in arrays.values()]


def _command(*words: object) -> tuple[int, str]:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            status = fxpress([str(word) for word in words])
        except SystemExit as err:
            status = err.code if isinstance(err.code, int) else 1
        except Exception as err:  # reported as what it is
            said.write(f"{type(err).__name__}: {err}")
            status = 1
    return status, said.getvalue()


def _refused(status: int, said: str) -> Verdict:
    code = re.search(r"\b[A-Z]\d{3}\b", said)
    if status == 2 and code and not code[0].startswith("S"):  # the spec is written here
        return Verdict("refused", f"{code[0]} {_first_line(said)}")
    return Verdict("internal", f"compile: exit {status}: {_first_line(said)}")


def _first_line(said: str) -> str:
    """The first line that contains an error or a code."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or re.search(r"\b[A-Z]\d{3}\b", line)]
    return (telling or lines or [""])[0][:200]


def _rows(results: Sequence[object]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*map(_leaves, results), strict=True)]


def _leaves(result: object) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _decisions_db(want: Tensor, have: Tensor) -> float:
    """Ratio of whole numbers to those that differ; infinite for as few as chance makes where one in ten may."""
    powers = Powers.of(want, have.reshape(want.shape), samples=len(want))
    return powers.snr_db if powers.is_below(_DECISIONS_DB) else float("inf")


def snr_db(want: Tensor, have: Tensor, *, usual: float = 0.0) -> float:
    """Signal of `want` over its difference from `have`, in dB; infinite if floats differ only by rounding.

    `usual` is the mean square of the output over more samples: a few on which it is nearly zero tell nothing.
    Modules compute with values about 1, so that what cancels leaves some 1e-7 of rounding, which a norm of a single
    element divides by the root of its epsilon, 3e-3.
    """
    signal, have = want.double(), have.double().reshape(want.shape)
    noise = (signal - have).square().sum().item()
    power = max(signal.square().sum().item(), usual * signal.numel())
    if noise <= max(1e-12 * power, _ROUNDING**2 * signal.numel()):
        return float("inf")
    return 10 * float(np.log10(max(power, 1e-9) / noise))
