"""Random modules through the whole compiler: compiled, run in each form, compared with torch.

    python benchmarks/fuzz.py 2000 --jobs 2        # make fuzz N=2000

Each module is compiled through the command line with one of RECIPES, and its C, its integer graph and its torch
module are run on samples that the calibration did not see. A module passes, is refused by name, or fails: it is
wrong, or ends in an internal error. A failing module is reduced to a small one and printed whole.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_model
from torch import Tensor

from fxpress.compiler.cli import main as fxpress
from fxpress.compiler.execution import load_graph
from fxpress.ir import Graph
from fxpress.ir.testing import RandomModule, random_module

Arrays = Mapping[str, NDArray[np.generic]]

CALIBRATION, TESTED = 24, 4
FLOAT_DB, TORCH_MARGIN_DB = 60.0, 12.0
_REDUCTIONS, _REPORTED = 120, 20


@dataclass(frozen=True)
class Recipe:
    """Passes, target and outputs that a module is compiled with, and where its C is run."""

    passes: Sequence[Mapping[str, object]]
    outputs: Mapping[str, Mapping[str, object]]
    target: str = "cortex-m4f"
    places: Sequence[str] = ("host",)
    least_db: float = 10.0  # below it, a loss that nobody mentions is a fault


def _quantized(*after: str, **options: object) -> list[Mapping[str, object]]:
    return [
        {"pass": "clean"},
        {"pass": "fuse"},
        {"pass": "quantize", **options},
        *({"pass": p} for p in after),
    ]


_QDQ, _EAGER, _C = {"form": "qdq"}, {"form": "eager"}, {"name": "net", "self_test": 1}
RECIPES: Mapping[str, Recipe] = {
    "float": Recipe([{"pass": "clean"}, {"pass": "fuse"}], {"c": _C, "torch": {}}, least_db=FLOAT_DB),
    "int8": Recipe(_quantized(), {"c": {**_C, "io": "float"}, "torch": _QDQ}),
    "int8_m4": Recipe(_quantized("remove_dead_channels"), {"c": _C, "torch": _EAGER}, places=("cortex-m4",)),
    "int16": Recipe(_quantized("remove_dead_channels", activations="int16"), {"c": _C, "torch": _QDQ}),
    "int4": Recipe(_quantized(weights="int4", observer="mse"), {"c": _C}, target="cortex-m0plus"),
    "per_tensor": Recipe(_quantized(per_channel=False), {"c": {**_C, "weights": "huffman"}, "torch": _QDQ}),
    "adaround": Recipe(
        _quantized(rounding={"method": "adaround", "steps": 20}), {"c": _C}, places=("cortex-m4",)
    ),
    "weight_only": Recipe(
        [{"pass": "clean"}, {"pass": "weight_only", "weights": "int8"}], {"torch": {}}, places=()
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What became of a module: `ok`, `refused`, `wrong` or `internal`, and the fact."""

    kind: str
    fact: str = ""

    @property
    def fails(self) -> bool:
        """Whether the compiler is at fault."""
        return self.kind in {"wrong", "internal"}


def attempt(module: RandomModule, recipe: Recipe) -> Verdict:
    """Compile and run one module; never raises for a fault of the compiler."""
    with (
        tempfile.TemporaryDirectory(prefix="fxpress-fuzz-") as name,
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        return _attempt(module, recipe, Path(name))


def _attempt(module: RandomModule, recipe: Recipe, folder: Path) -> Verdict:
    net = module.build()
    tested = module.samples(TESTED, seed=1)
    expected = _rows([net(*(x[i : i + 1] for x in tested.values())) for i in range(TESTED)])
    if not all(bool(torch.isfinite(y).all()) for y in expected):
        return Verdict("skipped", "the module gives no finite numbers")
    _write(module, recipe, folder)
    out = folder / "out"
    status, said = _command("compile", folder / "spec.yaml", "-o", out)
    if status:
        return _refused(status, said)
    graph = load_graph(out)
    forms = {**{p: p for p in recipe.places}, **({"torch": "torch"} if "torch" in recipe.outputs else {})}
    integer = _run(out, "integer", folder)
    if isinstance(integer, Verdict):
        return integer
    given = {}
    for place in forms:
        got = _run(out, place, folder)
        if isinstance(got, Verdict):
            return got
        given[place] = got
    return _compared(expected, integer, given, graph, 0.0 if "signal-to-noise" in said else recipe.least_db)


def _compared(
    expected: Sequence[Tensor],
    integer: Sequence[Tensor],
    given: Mapping[str, Sequence[Tensor]],
    graph: Graph,
    least_db: float,
) -> Verdict:
    quantized = any(v.type.is_quantized for v in graph.results)
    floats = any(
        not v.type.is_quantized for node in graph.nodes for v in node.operands if v.type.dtype.is_floating
    )
    own = [snr_db(want, have) for want, have in zip(expected, integer, strict=True)]
    for place, outputs in given.items():
        for index, (exact, have) in enumerate(zip(integer, outputs, strict=True)):
            ratio, limit = snr_db(exact, have), FLOAT_DB
            if quantized:
                limit = own[index] - TORCH_MARGIN_DB if place == "torch" else 30.0 if floats else np.inf
            if ratio < limit and not torch.equal(exact.double(), have.double().reshape(exact.shape)):
                return Verdict(
                    "wrong", f"{place} output {index}: {ratio:.1f} dB from the graph's own integers"
                )
    least = min(own, default=np.inf)
    if least < least_db:
        return Verdict("wrong", f"output {own.index(least)}: {least:.1f} dB from torch, and nothing said so")
    return Verdict("ok")


def _write(module: RandomModule, recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(module.source)
    save_model(module.build(), str(folder / "weights.safetensors"))
    for file, count, seed in (("data.npz", CALIBRATION, 0), ("few.npz", TESTED, 1)):
        np.savez(
            folder / file,
            allow_pickle=False,
            **{name: x.numpy() for name, x in module.samples(count, seed=seed).items()},
        )
    inputs = {n: {"shape": s, "dtype": str(d).removeprefix("torch.")} for n, (s, d) in module.inputs.items()}
    spec = {
        "fxpress": 1,
        "model": {"source": "model.py:Net", "weights": "weights.safetensors", "inputs": inputs},
        "data": {"calibration": {"file": "data.npz"}},
        "target": {"name": recipe.target},
        "passes": recipe.passes,
        "outputs": recipe.outputs,
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))


def _run(out: Path, place: str, folder: Path) -> list[Tensor] | Verdict:
    saved = folder / f"{place}.npz"
    status, said = _command("run", out, "--on", place, "--data", folder / "few.npz", "--save", saved)
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
    if status == 2 and code:
        return Verdict("refused", f"{code[0]} {_first_line(said)}")
    return Verdict("internal", f"compile: exit {status}: {_first_line(said)}")


def _first_line(said: str) -> str:
    """The first line that names an error or a code."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or re.search(r"\b[A-Z]\d{3}\b", line)]
    return (telling or lines or [""])[0][:200]


def _rows(results: Sequence[object]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*map(_leaves, results), strict=True)]


def _leaves(result: object) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def snr_db(want: Tensor, have: Tensor) -> float:
    """Signal of `want` over its difference from `have`, in dB; infinite where they are equal."""
    signal, have = want.double(), have.double().reshape(want.shape)
    noise = (signal - have).square().sum().item()
    power = signal.square().sum().item()
    return (
        float("inf") if noise <= 1e-12 * max(power, 1e-9) else 10 * float(np.log10(max(power, 1e-9) / noise))
    )


def reduced(module: RandomModule, fails: Callable[[RandomModule], bool]) -> RandomModule:
    """The smallest module found, step by step, that still fails."""
    left = _REDUCTIONS
    while left:
        for smaller in module.simpler():
            left -= 1
            if fails(smaller):
                module = smaller
                break
            if not left:
                break
        else:
            break
    return module


def campaign(
    seeds: Sequence[int], *, jobs: int, recipes: Sequence[str]
) -> Iterator[tuple[int, str, Verdict]]:
    """The verdict on the module of each seed, as they come."""
    work = [(seed, recipes[index % len(recipes)]) for index, seed in enumerate(seeds)]
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(_judge, work, chunksize=4)


def _judge(work: tuple[int, str]) -> tuple[int, str, Verdict]:
    seed, recipe = work
    return seed, recipe, attempt(random_module(seed), RECIPES[recipe])


def main() -> int:
    """The command; 1 where a module failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="these only")
    parser.add_argument("--keep", type=Path, help="write reduced modules here, ready to compile")
    options = parser.parse_args()
    recipes, began = options.recipe or [*RECIPES], time.monotonic()
    verdicts, reasons, failed = Counter[str](), Counter[str](), []
    seeds = range(options.seed, options.seed + options.count)
    for seed, recipe, verdict in campaign(seeds, jobs=options.jobs, recipes=recipes):
        verdicts[verdict.kind] += 1
        if verdict.kind == "refused":
            reasons[verdict.fact.split()[0]] += 1
        if verdict.fails:
            failed.append((seed, recipe, verdict))
            print(f"seed {seed} ({recipe}): {verdict.kind}: {verdict.fact}", flush=True)
    for seed, recipe, verdict in failed[:_REPORTED]:
        small = reduced(random_module(seed), partial(_fails_alike, RECIPES[recipe], verdict.kind))
        print(
            f"\n# seed {seed} ({recipe}): {attempt(small, RECIPES[recipe]).fact}\n{small.source}", flush=True
        )
        if options.keep:
            _write(small, RECIPES[recipe], options.keep / f"{seed}_{recipe}")
    print("refused by name:", ", ".join(f"{code} {n}" for code, n in reasons.most_common()) or "none")
    counts = {kind: verdicts[kind] for kind in ("ok", "refused", "skipped", "wrong", "internal")}
    print(f"{options.count} modules: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(bool(failed))


def _fails_alike(recipe: Recipe, kind: str, module: RandomModule) -> bool:
    return attempt(module, recipe).kind == kind


if __name__ == "__main__":
    sys.exit(main())
