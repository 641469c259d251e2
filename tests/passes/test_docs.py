"""The examples of docs/passes.md: each pass transforms the graph before to the graph after."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fxpress.ir import Value, dump, parse, verify
from fxpress.passes import PASSES, Context, Match, base, find_pass

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"
EXAMPLES = re.findall(r"```before (\w+)\n(.*?)```\n\n```after\n(.*?)```", PAGE.read_text(), re.DOTALL)


def fill(value: Value) -> torch.Tensor:
    """Constants by name: `zero` is zero, the second channel of `dead` far below it, all else the same number."""
    shape, dtype = value.type.shape, value.type.dtype
    if "zero" in value.name:
        return torch.zeros(shape, dtype=dtype.torch)
    if "dead" in value.name:
        return torch.tensor([8, -30000, 8], dtype=dtype.torch)
    return torch.full(shape, 0.25 if dtype.is_floating else 64, dtype=dtype.torch)


@pytest.mark.parametrize(("name", "before", "after"), EXAMPLES)
def test_an_example_is_what_the_pass_does(name: str, before: str, after: str) -> None:
    graph = verify(parse(before, fill=fill))
    ramps = tuple(torch.linspace(-1, 1, v.type.numel).view(v.type.shape) for v in graph.inputs)
    found = find_pass(name)
    assert dump(found(graph, found.options(), Context(calibration=[ramps])).graph) == after


def test_every_pass_has_a_section_and_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == {
        name for name in PASSES if f"\n## {name}\n" in PAGE.read_text()
    }
    assert {"clean", "fuse", "quantize", "remove_dead_channels"} <= {name for name, _, _ in EXAMPLES}


def test_the_rule_and_the_pass_that_the_page_shows_are_applied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_PASSES", dict(base._PASSES))
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile("".join(programs), "passes.md", "exec", dont_inherit=True), {"__name__": "page"})
    said = capsys.readouterr().out
    assert '%add: f32[1x4] = add(%x, %x)   # "head", "net.py:12"' in said and " applied\n" in said
    assert said.splitlines()[-1] == (
        "Counter({'doubled': 1}) {'doubled': Counter({'the spec keeps this layer': 1})}"
    )


def test_the_page_names_every_public_member_of_a_match() -> None:
    members = {name for name in (*vars(Match), *Match.__dataclass_fields__) if not name.startswith("_")}
    row = PAGE.read_text().partition("| member of `Match` |")[2].partition("`Builder.add")[0]
    assert members - {"bound", "builder", "uses"} <= set(re.findall(r"`(\w+)", row))
