"""The order of passes."""

from collections.abc import Callable
from itertools import pairwise, permutations
from random import Random

import pytest

from fxpress.specs import PASSES, Problem, render, working_order

ProblemsOf = Callable[..., tuple[Problem, ...]]


def _with_passes(sound: str, *names: str) -> str:
    head, _, rest = sound.partition("passes:\n")
    return (
        f"{head}passes: [{', '.join(f'{{pass: {name}}}' for name in names)}]\n{rest[rest.index('outputs') :]}"
    )


@pytest.mark.parametrize(
    ("passes", "code", "message"),
    [
        (
            ["quantize", "fuse"], "S301",
            "passes[1].pass: fuse cannot run after quantize: fusion works on the float graph, and fused operators are "
            "quantized as one; a valid order is fuse, quantize",
        ),
        (
            ["clean", "quantize", "clean", "fuse"], "S301",
            "a valid order is clean, clean, fuse, quantize",
        ),
        (
            ["remove_dead_channels", "quantize"], "S301",
            "passes[0].pass: remove_dead_channels cannot run before quantize: the proof that a channel is constant "
            "is made on the integer graph; a valid order is quantize, remove_dead_channels",
        ),
        (
            ["fuse", "remove_dead_channels"], "S302",
            "passes[1].pass: remove_dead_channels needs quantize before it: the proof that a channel is constant "
            "is made on the integer graph; add `- pass: quantize`",
        ),
        (["quantize", "quantize"], "S303", "passes[1].pass: quantize occurs twice"),
        (["fuse", "clean", "fuse"], "S303", "passes[2].pass: fuse occurs twice"),
    ],
)  # fmt: skip
def test_a_pass_that_cannot_work_where_it_stands_is_told_with_what_does(
    problems_of: ProblemsOf, sound: str, passes: list[str], code: str, message: str
) -> None:
    problems = problems_of(_with_passes(sound, *passes))
    assert [problem.code for problem in problems] == [code]
    assert message in render(problems)


def test_bits_are_decided_for_a_pass_that_obeys(problems_of: ProblemsOf, sound: str) -> None:
    problems = problems_of(_with_passes(sound, "clean", "assign_bits"))
    (found,) = [problem for problem in problems if problem.code == "S302"]
    assert "assign_bits needs quantize after it" in str(found) and found.hint == "add `- pass: quantize`"


def test_every_misplaced_pass_is_told(problems_of: ProblemsOf, sound: str) -> None:
    problems = problems_of(_with_passes(sound, "remove_dead_channels", "quantize", "fuse"))
    assert [problem.code for problem in problems] == ["S301", "S301"]
    assert {p.hint for p in problems} == {"a valid order is fuse, quantize, remove_dead_channels"}


def test_the_order_that_is_advised_stays_and_is_sound_from_wherever_one_starts() -> None:
    random = Random(0)
    shuffled = (random.sample(sorted(PASSES), len(PASSES)) for _ in range(300))
    for names in (*permutations(PASSES, 4), *shuffled):
        order = working_order(names)
        assert sorted(order) == sorted(names)
        assert working_order(order) == order
        for first, second in pairwise(("fuse", "quantize", "remove_dead_channels")):
            assert not {first, second} <= set(names) or order.index(first) < order.index(second)
