"""Models of the zoo pruned to half their channels and verified; run by prune.py, in the zoo's environment.

    python prune_model.py ZOO_FOLDER LIMIT_SECONDS NAME[+rival] ...

The zoo is imported once; each model has a process of its own, forked from there. A line `RESULT {...}` for each. With
`+rival` Torch-Pruning prunes the same model, in another process.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxpress.compiler import CaptureError, capture
from fxpress.ir import Graph, changed_statistics, couple, cut_graph, run, verify
from fxpress.passes import Context
from fxpress.passes.prune import allocate, costs_of, rank, score_units, verify_cut, why_nothing_goes
from fxpress.specs.options import PruneOptions

OPTIONS = PruneOptions.model_validate({"budget": {"channels": "50 %"}, "allocation": "uniform"})
RIVAL_LIMIT_SECONDS = 100.0
OUT_OF_TIME = "no answer in the time limit"
Row = dict[str, Any]  # any: the columns of the result


def main() -> None:
    folder, limit = sys.argv[1:3]
    sys.path.insert(0, folder)
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    zoo = import_module("zoo")  # of the folder that the command names
    for name, _, against in (item.partition("+") for item in sys.argv[3:]):
        row: Row = {"name": name, "verified": False, "wrong": False, "refused": False, "reason": OUT_OF_TIME}
        row |= apart(partial(ours, zoo, name), float(limit))
        row["reason"] = re.sub(
            r"[^\s(]*/(site-packages|zoo)/", "", str(row["reason"])
        )  # the same on every machine
        if against:
            row |= {"rival": OUT_OF_TIME} | apart(partial(rival, zoo, name), RIVAL_LIMIT_SECONDS)
            if "rival_seconds" in row and row.get("seconds"):
                row["times_faster"] = round(row["rival_seconds"] / row["seconds"], 2)
        print("RESULT " + json.dumps(row), flush=True)


def apart(work: Callable[[], Row], limit: float) -> Row:
    """Result of `work` in a separate process; None if it dies or takes more than `limit` seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit) else {}
    except EOFError:
        return {"reason": "the process died"}
    finally:
        process.kill()
        process.join()


def ours(zoo: ModuleType, name: str) -> Row:
    """A row of the table, also for any failure."""
    try:
        return measured(*zoo.build(name))
    except AssertionError as err:
        return {"wrong": True, "reason": str(err)}
    except CaptureError as err:
        return {"refused": True, "reason": str(err).partition("\n")[0]}
    except Exception as err:  # any exception of a model becomes a row of the table, and counts as a failure
        places = [f"{f.filename[-40:]}:{f.lineno}" for f in traceback.extract_tb(err.__traceback__)[-2:]]
        return {"reason": f"{type(err).__name__}: {str(err)[:200]} at {', '.join(places)}"}


def measured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Row:
    """Captures, prunes, verifies; CPU seconds of each."""
    awaken(model)
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
    verified = verify_cut(kept, cut, [inputs, [_other(x) for x in inputs]])
    seconds["verify_seconds"] = time.process_time() - start
    return {
        "verified": True,
        "reason": "; ".join(refusals),
        "params_ratio": round(_params(cut) / _params(graph), 4),
        "macs_ratio": round(cut.macs / max(graph.macs, 1), 4),
        "units": coupling.count,
        "groups": len(ranked.units),
        "nodes": len(graph.nodes),
        "masked_error": verified.outputs,
        "masked_error_of_values": verified.values,
        "masked_change": verified.change,
        "largest_output": largest_output(graph, inputs),
        "changed_statistics": len(changed_statistics(kept)),
        **{name: round(value, 3) for name, value in seconds.items()},
    }


def awaken(model: nn.Module) -> None:
    """Draws weights again that are initialized to zero: with them, all outputs are zero and the check shows nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" not in name.rsplit(".", 1)[-1] and parameter.numel() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def rival(zoo: ModuleType, name: str) -> Row:
    """Torch-Pruning on the same model: CPU seconds, parameter ratio, or its failure."""
    torch_pruning = import_module("torch_pruning")  # imported only on request
    model, args, kwargs = zoo.build(name)
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
    except Exception as err:  # the failure is a result
        return {"rival": f"{type(err).__name__}: {str(err)[:120]}"}
    after = sum(p.numel() for p in model.parameters())
    return {
        "rival": "runs",
        "rival_seconds": round(seconds, 3),
        "rival_params_ratio": round(after / before, 4),
    }


def largest_output(graph: Graph, inputs: list[Tensor]) -> float:
    """Largest magnitude of an output: zero outputs are equal for any cut."""
    with torch.no_grad():
        outputs = [y for y in run(graph, inputs) if y.numel() and y.is_floating_point()]
    return max((float(y.abs().max()) for y in outputs), default=0.0)


def _params(graph: Graph) -> int:
    return sum(tensor.numel() for tensor in graph.params.values())


def _other(x: Tensor) -> Tensor:
    """A second input of the same kind."""
    if x.is_floating_point():
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return x if x.numel() == 0 or int(x.max()) <= 1 else torch.roll(x, 1, -1)


if __name__ == "__main__":
    main()
