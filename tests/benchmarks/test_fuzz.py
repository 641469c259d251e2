"""Random modules through the whole compiler: a sample of `make fuzz`, and proof that the fuzzer finds and reduces."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from fxpress.compiler import pipeline
from fxpress.ir import Builder, Graph, Node, Value, rewrite
from fxpress.ir.ops.activation import Relu
from fxpress.ir.testing import STATEMENTS, ModulePlan, RandomModule, Step, modules, random_module
from fxpress.passes import Context, Pass, PassReport, PassResult, find_pass
from fxpress.specs.options import CleanOptions

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
SCRIPT = importlib.util.spec_from_file_location("fuzz", FOLDER / "fuzz.py")
assert SCRIPT is not None and SCRIPT.loader is not None
fuzz = importlib.util.module_from_spec(SCRIPT)
sys.modules["fuzz"] = fuzz  # dataclasses look their module up
SCRIPT.loader.exec_module(fuzz)
sys.path.remove(str(FOLDER))

SAMPLE = range(5000, 5016)


@pytest.mark.parametrize("seed", SAMPLE)
def test_random_modules_compile_to_the_same_function_or_are_refused_by_name(seed: int) -> None:
    recipe = [*fuzz.RECIPES][seed % len(fuzz.RECIPES)]
    module = fuzz.drawn(seed, recipe)
    verdict = fuzz.attempt(module, fuzz.RECIPES[recipe])
    assert not verdict.fails, f"{verdict.fact}\n{module.source}"


def relu_taken_for_a_no_op(graph: Graph, options: CleanOptions, context: Context) -> PassResult:
    def visit(_: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        return operands[0] if isinstance(node.op, Relu) else None

    return PassResult(rewrite(graph, visit), PassReport("clean"))


def test_a_planted_bug_is_found_and_reduced_to_its_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: RandomModule) -> bool:
        return fuzz.attempt(module, fuzz.RECIPES["float"]).kind == "wrong"

    kinds = ("conv", "activation", "pool", "linear", "operand")
    module = ModulePlan(0, ((1, 2, 6, 5),), tokens=False, steps=tuple(map(Step, kinds))).module()
    assert "F.relu(" in module.source and not fails(module)
    planted = Pass(CleanOptions, relu_taken_for_a_no_op)
    monkeypatch.setattr(pipeline, "find_pass", lambda name: planted if name == "clean" else find_pass(name))
    assert fails(module)
    small = fuzz.reduced(module, fails)
    assert [step.op for step in small.plan.steps] == ["activation"]


@settings(max_examples=40)
@given(modules())
def test_modules_run_on_their_own_samples(module: RandomModule) -> None:
    result = module.build()(*module.samples(1).values())
    assert torch.utils._pytree.tree_leaves(result)


def test_every_statement_is_drawn() -> None:
    sources = [random_module(seed) for seed in range(200)]
    drawn = {step.op for module in sources for step in module.plan.steps}
    assert drawn == {*STATEMENTS}
    assert len({module.source for module in sources}) > 190


def test_a_seed_gives_the_same_module_and_the_same_weights() -> None:
    first, second = random_module(7), random_module(7)
    assert first.source == second.source
    ours, theirs = first.build().state_dict(), second.build().state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
