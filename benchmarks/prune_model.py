"""One model of the zoo pruned to half its channels and verified; run by prune.py, in the zoo's environment.

    python prune_model.py ZOO_FOLDER NAME [--rival]

Prints one line, `RESULT {...}`. With `--rival` Torch-Pruning prunes the same model in the same process.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fxpress.compiler.capture import CaptureError, capture
from fxpress.ir import Graph, verify
from fxpress.ir.coupling import couple
from fxpress.ir.cutting import changed_statistics, cut_graph
from fxpress.passes import Context
from fxpress.passes.prune import verify_cut, why_nothing_goes
from fxpress.passes.prune_allocation import allocate, rank
from fxpress.passes.prune_cost import costs_of
from fxpress.passes.prune_scores import score_units
from fxpress.specs.options import PruneOptions

OPTIONS = PruneOptions.model_validate({"budget": {"channels": "50 %"}, "allocation": "uniform"})
Row = dict[str, Any]  # any: the columns of the result


def main() -> None:
    folder, name = sys.argv[1:3]
    sys.path.insert(0, folder)
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    zoo = import_module("zoo")  # of the folder that the command names

    row: Row = {"name": name, "verified": False, "wrong": False, "refused": False, "reason": ""}
    try:
        row |= measured(*zoo.build(name))
        if "--rival" in sys.argv:
            row |= rival(*zoo.build(name))
    except AssertionError as err:
        row |= {"wrong": True, "reason": str(err)}
    except CaptureError as err:
        row |= {"refused": True, "reason": str(err).partition("\n")[0]}
    except Exception as err:  # whatever a model brings up is a row of the table, and counts as a failure
        places = [f"{f.filename[-40:]}:{f.lineno}" for f in traceback.extract_tb(err.__traceback__)[-2:]]
        row["reason"] = f"{type(err).__name__}: {str(err)[:200]} at {', '.join(places)}"
    print("RESULT " + json.dumps(row))


def measured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Row:
    """Capture, prune, verify; CPU seconds of each."""
    start = time.process_time()
    captured = capture(model, args, kwargs, check=False)
    graph = captured.graph
    seconds = {"capture_seconds": time.process_time() - start}

    start = time.process_time()
    coupling = couple(graph)
    refusals = [str(reason) for reason in coupling.refusals]
    if not coupling.count:
        return {"refused": True, "reason": why_nothing_goes(coupling)}
    scores = score_units(coupling, OPTIONS, Context())
    ranked = rank(coupling, scores, scores < 0, OPTIONS)
    allocation = allocate(ranked, costs_of(coupling), OPTIONS)
    kept = coupling.kept(ranked.removed(allocation.kept))
    cut = cut_graph(kept)
    seconds["seconds"] = time.process_time() - start

    verify(cut)
    inputs = captured.signature.flatten(args, kwargs)
    start = time.process_time()
    error, change = verify_cut(kept, cut, [inputs, [_other(x) for x in inputs]])
    seconds["verify_seconds"] = time.process_time() - start
    return {
        "verified": True,
        "reason": "; ".join(refusals),
        "params_ratio": round(_params(cut) / _params(graph), 4),
        "macs_ratio": round(cut.macs / max(graph.macs, 1), 4),
        "units": coupling.count,
        "groups": len(ranked.units),
        "nodes": len(graph.nodes),
        "masked_error": error,
        "masked_change": change,
        "changed_statistics": len(changed_statistics(kept)),
        **{name: round(value, 3) for name, value in seconds.items()},
    }


def rival(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Row:
    """Torch-Pruning on the same model: CPU seconds, parameter ratio, or how it ends."""
    torch_pruning = import_module("torch_pruning")  # only where it is asked for
    before = sum(p.numel() for p in model.parameters())
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    start = time.process_time()
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            kwargs or args[0],
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=last,
        )
        pruner.step()
        seconds = time.process_time() - start
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as err:  # the rival's failure is a result
        return {"rival": f"{type(err).__name__}: {str(err)[:120]}"}
    after = sum(p.numel() for p in model.parameters())
    return {
        "rival": "runs",
        "rival_seconds": round(seconds, 3),
        "rival_params_ratio": round(after / before, 4),
    }


def _params(graph: Graph) -> int:
    return sum(tensor.numel() for tensor in graph.params.values())


def _other(x: Tensor) -> Tensor:
    """A second input of the same kind."""
    if x.is_floating_point():
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return x if x.numel() == 0 or int(x.max()) <= 1 else torch.roll(x, 1, -1)


if __name__ == "__main__":
    main()
