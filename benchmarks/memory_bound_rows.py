"""The rows of `memory_bounds.py`, a line of JSON each: `python memory_bound_rows.py [NAME ...]`, with the zoo's
packages.

Each network is compiled in a process of its own, for a Cortex-M4 whose memory is not limited. The weights of public
architectures are random, and one random sample calibrates them: no figure depends on either.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from types import ModuleType

import torch
from branched_networks import NETWORKS
from memory import specs
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpress.backends.c import Program, Step, check, emit, order_steps, plan_memory, refine_order
from fxpress.compiler import FxpressError, capture, compile_model, for_c
from fxpress.ir import Graph
from fxpress.passes import Context, clean, fuse, quantize
from fxpress.specs import COutput, load_target

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
TRAINED = ROOT / "examples" / "trained_networks"
CORE = "cortex-m4f"
SECONDS = 900
_RAISED = (FxpressError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AssertionError)
_OPTIONS = COutput(allow_float=True, self_test=0, weights_file="binary")
_ROOMY = load_target(CORE).model_copy(update={"ram": None, "flash": None, "stack": None})

Form = tuple[str, Graph]
"""The type of most values, and the graph."""


@dataclass(frozen=True)
class Row:
    """One network with inputs and outputs outside the arena, `caller`, or in it.

    Arenas are those of the model's order, of the greedy order, and of the planned order. `bound_bytes` are proven: no
    order of execution and no offsets need less. `offsets_are_least` is true if the offsets are optimal for the planned
        order, `order_is_least` if no order has fewer bytes in use at once. `seconds` is the time of search, offsets and
        proof.
    """

    network: str
    kind: str
    buffers: str
    steps: int
    source_bytes: int
    greedy_bytes: int
    arena_bytes: int
    bound_bytes: int
    offsets_are_least: bool
    order_is_least: bool
    is_proven: bool
    seconds: float


def main() -> None:
    """Prints the rows of the networks on the command line, or of all."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = networks()
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for name in sys.argv[1:] or found:
            try:
                rows, refusal = pool.apply_async(_measured, (name,)).get(SECONDS)
            except TimeoutError:
                rows, refusal = [], f"not ready after {SECONDS} s"
            print(json.dumps({"network": name, "rows": rows, "refusal": refusal}), flush=True)


@functools.cache
def networks() -> Mapping[str, Callable[[], Iterator[Form]]]:
    """The networks by name; each function yields the forms in which it may compile to C, best first."""
    zoo = SHARED / "zoo"
    public = _module(zoo / "zoo.py")
    listed = json.loads((zoo / "lists_public.json").read_text())["public"]
    trained = ("pnet", "rnet", "okay_nabu", "vad", "crepe", "ic_large", "albert")
    found = specs(()) | {name: TRAINED / f"{name}.yaml" for name in trained}
    return {
        **{name: functools.partial(_forms, functools.partial(public.build, name)) for name in listed},
        **{name: functools.partial(_compiled, path) for name, path in found.items()},
        **{name: functools.partial(_forms, functools.partial(_branched, name)) for name in NETWORKS},
    }


def _module(path: Path) -> ModuleType:
    """A module by its path, which finds its neighbours; modules here have the same names."""
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"shared_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _branched(name: str) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return make().eval(), (torch.randn(shape),), {}


def _compiled(path: Path) -> Iterator[Form]:
    """The network of a spec, in int8."""
    common = ("data.evaluation=null", f"target.name={CORE}", "outputs.c.self_test=0")
    yield "int8", compile_model(path, overrides=common, enforce_budget=False).graph


def _forms(build: Callable[[], tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]]) -> Iterator[Form]:
    """A network in int8 if it quantizes, then in float32."""
    model, arguments, keywords = build()
    graph = fuse(clean(for_c(capture(model, arguments, keywords, check=False).graph)).graph).graph
    sample = tuple(leaf for leaf in pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor))
    try:
        yield "int8", quantize(graph, context=Context(calibration=[sample])).graph
    except _RAISED as err:
        print(f"not quantized: {_first_line(err)}", file=sys.stderr)
    yield "float32", graph


def _measured(name: str) -> tuple[list[dict[str, object]], str]:
    """The rows of a network, or the reason why it does not compile to C."""
    refusal = ""
    try:
        for kind, graph in networks()[name]():
            problems = check(graph, _OPTIONS, _ROOMY)
            if not problems:
                return [asdict(row) for row in measure(name, kind, graph)], ""
            refusal = str(problems[0])
    except _RAISED as err:
        refusal = _first_line(err)
    return [], refusal


def measure(name: str, kind: str, graph: Graph) -> Iterator[Row]:
    """The row of each place of inputs and outputs."""
    lowered = emit(graph, _OPTIONS, _ROOMY).lowered
    source, greedy = (_in_order(lowered.program, it) for it in (graph, lowered.program.graph))
    for in_arena in (False, True):
        start = time.process_time()
        order = refine_order(order_steps(greedy, ports_in_arena=in_arena))
        first = plan_memory(greedy, ports_in_arena=in_arena)
        other = first if order.program is greedy else plan_memory(order.program, ports_in_arena=in_arena)
        plan = min(first, other, key=lambda plan: plan.arena_bytes)
        seconds = time.process_time() - start
        assert in_arena or plan.arena_bytes == lowered.plan.arena_bytes
        yield Row(
            name,
            kind,
            "arena" if in_arena else "caller",
            len(greedy.steps),
            plan_memory(source, ports_in_arena=in_arena).arena_bytes,
            first.arena_bytes,
            plan.arena_bytes,
            order.bound_bytes,
            plan.is_least,
            order.is_least,
            plan.arena_bytes == order.bound_bytes,
            round(seconds, 2),
        )


def _in_order(program: Program, graph: Graph) -> Program:
    """The program in the order of a graph's nodes; a step without a node there runs before its first reader."""
    rank = {value.name: number for number, node in enumerate(graph.nodes) for value in node.outputs}
    makers = {stored: step for step in program.steps for stored in step.results}
    steps: dict[int, Step] = {}

    def run(step: Step) -> None:
        waiting = [step]
        while waiting:
            needed = [makers[s] for s in waiting[-1].operands if s is not None and s in makers]
            missing = [maker for maker in needed if id(maker) not in steps]
            if missing:
                waiting.append(missing[0])
            else:
                last = waiting.pop()
                steps[id(last)] = last

    known = [step for step in program.steps if step.node is not None and step.results[0].value.name in rank]
    for step in (*sorted(known, key=lambda step: rank[step.results[0].value.name]), *program.steps):
        if id(step) not in steps:
            run(step)
    return replace(program, steps=tuple(steps.values()))


def _first_line(error: Exception) -> str:
    """The beginning of a message, with its class, and with paths shortened to start at the folder of packages or the
    zoo.
    """
    line = re.sub(r"\S*/(?:site-packages|shared)/", "", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {line}"


if __name__ == "__main__":
    main()
