"""Random modules through the whole compiler: compiled, run in each form, compared with torch.

    python benchmarks/fuzz.py 2000 --jobs 2        # make fuzz N=2000

Each module is compiled through the command line with one of RECIPES, and its C, its integer graph and its torch
module are run. A module passes, is refused by name, or fails: it is
wrong, or ends in an internal error. A failing module is reduced to a small one and printed whole.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from whole_compilation import (
    FLOAT_DB,
    FLOAT_PASSES,
    KINDS,
    Recipe,
    Verdict,
    attempt,
    quantized_passes,
    write_project,
)

from fxpress.ir.testing import RandomModule, random_module

_REDUCTIONS, _REPORTED, _PROGRESS = 120, 20, 100
_APART = 10**6  # seeds of modules drawn instead of one another

_QDQ, _EAGER, _NATIVE = {"form": "qdq"}, {"form": "eager"}, {"form": "native"}
_C = {"name": "net", "self_test": 1}
RECIPES: Mapping[str, Recipe] = {
    "float": Recipe(FLOAT_PASSES, {"c": _C, "torch": {}}, least_db=FLOAT_DB),
    "int8": Recipe(quantized_passes(), {"c": {**_C, "io": "float"}, "torch": _QDQ}),
    "int8_m4": Recipe(
        quantized_passes("remove_dead_channels"), {"c": _C, "torch": _EAGER}, places=("cortex-m4",)
    ),
    "int16": Recipe(quantized_passes("remove_dead_channels", activations="int16"), {"c": _C, "torch": _QDQ}),
    "int4": Recipe(quantized_passes(weights="int4", observer="mse"), {"c": _C}, target="cortex-m0plus"),
    "per_tensor": Recipe(
        quantized_passes(per_channel=False), {"c": {**_C, "weights": "huffman"}, "torch": _NATIVE}
    ),
    "adaround": Recipe(
        quantized_passes(rounding={"kind": "adaround", "iterations": 20}), {"c": _C}, places=("cortex-m4",)
    ),
    "weight_only": Recipe(
        [{"pass": "clean"}, {"pass": "weight_only", "weights": "int8"}],
        {"torch": {}},
        places=(),
        least_db=15.0,
    ),
}


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


def drawn(seed: int, recipe: str) -> RandomModule:
    """The module of a seed; the first of several with a weight if the recipe requires one."""
    made = map(random_module, itertools.count(seed, _APART))
    needed = ("nn.Linear(", "nn.Embedding(") if recipe == "weight_only" else ("",)
    return next(module for module in made if any(word in module.source for word in needed))


def _judge(work: tuple[int, str]) -> tuple[int, str, Verdict]:
    seed, recipe = work
    return seed, recipe, attempt(drawn(seed, recipe), RECIPES[recipe])


def main() -> int:
    """The command; returns 1 if a module failed."""
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
        if verdicts.total() % _PROGRESS == 0:
            print(f"{verdicts.total()} of {options.count}: {dict(verdicts)}", file=sys.stderr, flush=True)
        if verdict.kind == "refused":
            reasons[verdict.fact.split()[0]] += 1
        if verdict.fails:
            failed.append((seed, recipe, verdict))
            print(f"seed {seed} ({recipe}): {verdict.kind}: {verdict.fact}", flush=True)
    for seed, recipe, verdict in failed[:_REPORTED]:
        small = reduced(drawn(seed, recipe), partial(_fails_alike, RECIPES[recipe], verdict.kind))
        print(
            f"\n# seed {seed} ({recipe}): {attempt(small, RECIPES[recipe]).fact}\n{small.source}", flush=True
        )
        if options.keep:
            write_project(small, RECIPES[recipe], options.keep / f"{seed}_{recipe}")
    print("refused by name:", ", ".join(f"{code} {n}" for code, n in reasons.most_common()) or "none")
    counts = {kind: verdicts[kind] for kind in KINDS}
    print(f"{options.count} modules: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(bool(failed))


def _fails_alike(recipe: Recipe, kind: str, module: RandomModule) -> bool:
    return attempt(module, recipe).kind == kind


if __name__ == "__main__":
    sys.exit(main())
