"""Each fact that an operator declares holds on all examples; each one that it does not declare, some example refutes.

Examples are evaluated by `reference` in float64 on random operands, so that no rounding hides a difference.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from math import inf
from random import Random

import pytest
import torch
from torch import Tensor

from fxpress.ir import OPERATORS, DType, Graph, Node, TensorType
from fxpress.ir.ops.activation import Hardswish, Relu
from fxpress.ir.ops.base import Op
from fxpress.ir.ops.facts import Facts
from fxpress.ir.testing.growth import DIGITS, Growth, Step

CONVERSIONS = {
    "quantize",
    "dequantize",
    "requantize",
    "offset_binary",
    "cast",
}  # reals that they leave as they are
NAMES = sorted(OPERATORS.keys() - CONVERSIONS - {"torch_call"})  # a call of which nothing is known
SHAPES = ((2, 4, 6, 6), (1, 2, 5, 5), (2, 4, 8), (3, 6), (2, 3, 4))
EXAMPLES = 60
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Example:
    """A node and its operands, floats in float64."""

    node: Node
    operands: tuple[Tensor | None, ...]

    def results(self, changed: dict[int, Tensor] | None = None) -> list[Tensor]:
        """The results with some operands changed."""
        operands = [(changed or {}).get(i, t) for i, t in enumerate(self.operands)]
        results = self.node.op.reference(*operands)
        return [t.double() for t in (results if isinstance(results, tuple) else (results,))]

    @property
    def floats(self) -> dict[int, Tensor]:
        """The float operands by position."""
        return {i: t for i, t in enumerate(self.operands) if t is not None and t.is_floating_point()}

    @property
    def names(self) -> list[str]:
        """Names of the float operands."""
        return sorted({self.node.op.name_of(i) for i in self.floats})

    def named(self, *names: str) -> dict[int, Tensor]:
        """The float operands of these names."""
        return {i: t for i, t in self.floats.items() if self.node.op.name_of(i) in names}


@cache
def examples(name: str) -> tuple[Example, ...]:
    """Nodes of an operator with float results, random attributes and operands."""
    made = (example(name, seed) for seed in range(EXAMPLES))
    return tuple(e for e in made if e is not None)


def example(name: str, seed: int) -> Example | None:
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    growth = Growth(seed, dtype=DType.F64)
    growth.input(TensorType(SHAPES[seed % len(SHAPES)], DType.F64))
    digits = tuple(rng.randrange(12) for _ in range(DIGITS))
    growth.grow(Step(name, digits=digits if seed else (0,) * DIGITS))
    graph = growth.graph()
    node = next((n for n in graph.nodes if n.op.name == name), None)
    if node is None or not any(v.type.dtype.is_floating for v in node.outputs):
        return None
    spread = rng.choice((0.4, 3.0))
    operands = tuple(
        None if v is None else operand(graph, v.name, v.type, spread, generator) for v in node.inputs
    )
    return Example(node, operands)


def operand(graph: Graph, name: str, type: TensorType, spread: float, generator: torch.Generator) -> Tensor:
    if type.dtype.is_floating:
        return torch.randn(type.shape, generator=generator, dtype=torch.float64) * spread
    if name in graph.params:
        return graph.params[name]
    high = 2 if type.dtype is DType.BOOL else 1
    return torch.randint(0, high, type.shape, generator=generator).to(type.dtype.torch)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Elementwise difference, scaled; 0 where either is not finite."""
    scale = 1 + before.abs() + after.abs()
    return torch.where(before.isfinite() & after.isfinite(), (after - before) / scale, 0.0)


def raised(tensors: dict[int, Tensor], seed: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {i: t + torch.rand(t.shape, generator=generator, dtype=t.dtype) for i, t in tensors.items()}


def refutes_monotone(e: Example, name: str) -> bool:
    pairs = zip(e.results(), e.results(raised(e.named(name), 1)), strict=True)
    return any(bool((changed(before, after) < -TOLERANCE).any()) for before, after in pairs)


def refutes_piecewise_linear(e: Example, *names: str) -> bool:
    """Whether second differences along a random direction are more than a few kinks."""
    at, step = e.named(*names), 1e-4
    direction = {i: t - at[i] - 0.5 for i, t in raised(at, 2).items()}
    low, high = ({i: t + sign * step * direction[i] for i, t in at.items()} for sign in (-1, 1))
    for left, middle, right in zip(e.results(low), e.results(), e.results(high), strict=True):
        bent = changed(2 * middle, left + right).abs() > 1e-12
        if middle.numel() and float(bent.double().mean()) > 0.2:
            return True
    return False


def refutes_homogeneous(e: Example) -> bool:
    pairs = zip(e.results(), e.results({i: 2.7 * t for i, t in e.floats.items()}), strict=True)
    return any(
        float((changed(2.7 * before, after).abs() > 1e-7).double().mean()) > 0.05 for before, after in pairs
    )


def can_exchange(e: Example) -> bool:
    return len(e.operands) == len(e.floats) == 2 and e.floats[0].shape == e.floats[1].shape


def refutes_commutative(e: Example) -> bool:
    if not can_exchange(e):
        return False
    pairs = zip(e.results(), e.results({0: e.floats[1], 1: e.floats[0]}), strict=True)
    return any(bool((changed(before, after).abs() > TOLERANCE).any()) for before, after in pairs)


def refutes_whole(e: Example) -> bool:
    return any(bool((t != t.round())[t.isfinite()].any()) for t in e.results())


def refutes_selects(e: Example) -> bool:
    elements = torch.cat([t.double().flatten() for t in e.operands if t is not None])
    return any(not bool(torch.isin(t, elements).all()) for t in e.results())


def shows_pole(e: Example, name: str) -> bool:
    """Whether a result grows without end while an operand falls to zero."""
    sizes = []
    for tiny in (1e-30, 1e-60):
        results = e.results({i: torch.full_like(t, tiny) for i, t in e.named(name).items()})
        sizes.append(max(float(t.nan_to_num(0.0, inf, -inf).abs().max()) for t in results if t.numel()))
    return sizes[1] > sizes[0] + 1 or (sizes[0] == inf)


Refutation = Callable[[Example], bool]


def claims(name: str) -> Iterator[tuple[str, Callable[[Facts], bool], Refutation]]:
    """Each statement about an operator: its text, whether the facts declare it, and a counterexample."""
    names = sorted({operand for e in examples(name) for operand in e.names})
    yield "homogeneous", lambda f: f.homogeneous, refutes_homogeneous
    yield "whole", lambda f: f.whole, refutes_whole
    yield "selects", lambda f: f.selects, refutes_selects
    if any(map(can_exchange, examples(name))):
        yield "commutative", lambda f: f.commutative, refutes_commutative
    for a in names:
        yield f"monotone in {a}", lambda f, a=a: f.is_monotone_in({a}), lambda e, a=a: refutes_monotone(e, a)
    for joint in (*((a,) for a in names), *combinations(names, 2)):
        yield (
            f"piecewise linear in {joint}",
            lambda f, joint=joint: f.is_piecewise_linear_in(joint),
            lambda e, joint=joint: refutes_piecewise_linear(e, *joint),
        )


def contradictions(name: str) -> Iterator[str]:
    for text, declares, refutes in claims(name):
        declared = [e for e in examples(name) if declares(e.node.op.facts)]
        others = [e for e in examples(name) if not declares(e.node.op.facts)]
        yield from (f"{text}, as {e.node.op} is declared, is refuted" for e in declared if refutes(e))
        if others and not any(map(refutes, others)):
            yield f"{text} holds on all examples, but is not declared"
    for operand in sorted({operand for e in examples(name) for operand in e.names}):
        for declared in (True, False):
            found = [e for e in examples(name) if (operand in e.node.op.facts.poles) is declared]
            if found and any(shows_pole(e, operand) for e in found) is not declared:
                yield f"a pole in {operand} is {'' if declared else 'not '}declared"


@pytest.mark.parametrize("name", [name for name in NAMES if examples(name)])
def test_declared_facts_hold_and_others_are_refuted(name: str) -> None:
    assert list(contradictions(name)) == []


@pytest.mark.parametrize("name", [name for name in NAMES if examples(name)])
def test_results_lie_within_the_declared_bounds(name: str) -> None:
    for e in examples(name):
        low, high = e.node.op.facts.bounds
        for t in e.results():
            assert bool(((t >= low - TOLERANCE) & (t <= high + TOLERANCE))[~t.isnan()].all())


@pytest.mark.parametrize("name", [name for name in NAMES if examples(name)])
def test_a_neutral_number_leaves_the_other_operand_as_it_is(name: str) -> None:
    for e in examples(name):
        if e.node.op.facts.neutral:
            assert len(e.operands) == 2
        for operand, number in e.node.op.facts.neutral.items():
            at = e.node.op.position(operand)
            (result,) = e.results({at: torch.full_like(e.floats[at], number)})
            other = e.operands[1 - at]
            assert other is not None and torch.equal(result, other.expand(result.shape))


@pytest.mark.parametrize("name", [name for name in NAMES if examples(name)])
def test_identities_give_their_operand(name: str) -> None:
    for e in examples(name):
        if e.node.op.is_identity(e.node.operand_types, e.node.output_types):
            first = e.operands[0]
            assert first is not None and torch.equal(e.results()[0], first.double())


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (Hardswish, Facts(monotone=("x",))),
        (Hardswish, Facts(piecewise_linear=(("x",),))),
        (Hardswish, Facts(homogeneous=True)),
        (Hardswish, Facts(whole=True)),
        (Hardswish, Facts(selects=True)),
        (Hardswish, Facts(poles=("x",))),
        (Relu, replace(Relu.facts, monotone=())),
        (Relu, replace(Relu.facts, homogeneous=False)),
        (Relu, replace(Relu.facts, piecewise_linear=())),
    ],
)
def test_a_wrong_and_a_missing_declaration_are_found(
    cls: type[Op], wrong: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cls, "facts", wrong)
    assert list(contradictions(cls.name)) != []
