"""The registry of passes, requirements of a pass, and its report as plain data."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field

from fxpress.ir import Graph, Precision, VerifyError, parse
from fxpress.ir.testing import drawn_constant
from fxpress.passes import (
    PASSES,
    Context,
    Decision,
    MissingNeedError,
    PassReport,
    PassResult,
    Table,
    UnknownPassError,
    base,
    find_pass,
    fuse,
    quantize,
    register,
)
from fxpress.specs import FuseOptions, SpecError, plugins
from fxpress.specs.options import PassOptions

CONV_RELU = """
graph(%x: f32[1x3x8x8]) {
  const %w: f32[4x3x3x3]
  %c: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %w)  # "head.conv", ""
  %r: f32[1x4x8x8] = relu(%c)  # "head.act", ""
  return output: %r
}"""
GRAPH = parse("graph(%x: f32[4]) {\n%a: f32[4] = relu(%x)\nreturn output: %a\n}")


class LabelledOptions(PassOptions):
    """Options of a pass for these tests."""

    needs: ClassVar = frozenset({"calibration", "labels"})
    pass_: Literal["labelled"] = Field(default="labelled", alias="pass")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A copy of the registry, so that passes of tests do not stay."""
    copied = dict(PASSES)
    monkeypatch.setattr(base, "_PASSES", copied)
    return copied


def unchanged(graph: Graph, options: LabelledOptions, context: Context) -> PassResult:
    return PassResult(graph, PassReport("labelled"))


def test_our_passes_are_registered_under_the_names_that_their_options_declare() -> None:
    assert {"clean", "fuse", "quantize", "remove_dead_channels"} <= PASSES.keys()
    assert all(found.name == name for name, found in PASSES.items())


def test_an_unknown_pass_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UnknownPassError, match='unknown pass "quantise"; did you mean "quantize"'):
        find_pass("quantise")


def test_a_name_cannot_be_registered_twice(registry: dict[str, Any]) -> None:
    register(LabelledOptions)(unchanged)
    with pytest.raises(ValueError, match="'labelled' is registered twice"):
        register(LabelledOptions)(unchanged)


def test_a_pass_of_another_package_is_found_through_its_entry_point(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(EntryPoint):
        def load(self) -> object:
            return register(LabelledOptions)(unchanged)

    entries = EntryPoints([Loaded("labelled", "package:labelled", "fxpress.passes")])
    monkeypatch.setattr(plugins, "_entries", lambda group: entries.select(group=group))
    assert find_pass("labelled").options is LabelledOptions


def test_what_a_pass_needs_and_lacks_is_told_before_it_runs(registry: dict[str, Any]) -> None:
    found = register(LabelledOptions)(unchanged)
    with pytest.raises(
        MissingNeedError,
        match=r'pass "labelled" needs calibration and labels; give context=Context\(calibration=..., labels=...\)',
    ):
        found(GRAPH, LabelledOptions(), Context())
    sample = (torch.zeros(4),)
    assert found.missing(found.options(), Context(calibration=[sample])) == ("labels",)
    assert found(GRAPH, LabelledOptions(), Context([sample], [torch.zeros(1)])).graph is GRAPH


def test_a_graph_that_a_pass_breaks_does_not_leave_it(registry: dict[str, Any]) -> None:
    def broken(graph: Graph, options: LabelledOptions, context: Context) -> PassResult:
        return PassResult(Graph(graph.inputs, graph.outputs, ()), PassReport("labelled"))

    sample = (torch.zeros(4),)
    with pytest.raises(VerifyError, match="output %a is not defined"):
        register(LabelledOptions)(broken)(GRAPH, LabelledOptions(), Context([sample], [torch.zeros(1)]))


def test_a_pass_that_loses_the_bits_of_layers_is_refused(registry: dict[str, Any]) -> None:
    def forgetful(graph: Graph, options: LabelledOptions, context: Context) -> PassResult:
        return PassResult(replace(graph, precisions={}), PassReport("labelled"))

    registered = register(LabelledOptions)(forgetful)
    given = Context(calibration=[(torch.ones(4),)], labels=[torch.ones(1)])
    with pytest.raises(
        VerifyError, match=r"pass labelled loses the bits of head\.conv; copy graph\.precisions"
    ):
        registered(GRAPH.with_precisions({"head.conv": Precision(4)}), LabelledOptions(), given)


def test_bits_of_layers_stay_in_the_graph_through_the_passes_that_follow() -> None:
    chosen = parse(CONV_RELU, fill=drawn_constant).with_precisions({"head.conv": Precision(4)})
    context = Context(calibration=[(torch.randn(1, 3, 8, 8),)])
    graph = chosen
    for name in ("clean", "fuse", "equalize", "quantize", "remove_dead_channels"):
        graph = find_pass(name)(graph, find_pass(name).options(), context).graph
        assert graph.precisions == chosen.precisions, name
    weight = next(v for v in graph.constants if v.name == "w").type.quantization
    assert weight is not None and weight.bits == 4


def test_a_report_counts_its_decisions_and_is_plain_data() -> None:
    node = GRAPH.nodes[0]
    decisions = tuple(
        Decision("rule", "a", node.source, applied, reason)
        for applied, reason in ((True, "done"), (False, "why not"), (False, "why not"))
    )
    report = PassReport("some", decisions, (Table("sizes", ("layer", "bytes"), (("a", 4),)),), ("careful",))
    assert (report.applied, report.declined) == ({"rule": 1}, {"rule": {"why not": 2}})
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["tables"] == [{"name": "sizes", "columns": ["layer", "bytes"], "rows": [["a", 4]]}]
    assert plain["warnings"] == ["careful"]
    assert plain["decisions"][0]["reason"] == "done"


def test_a_pass_is_called_with_options_by_name_or_as_an_object() -> None:
    graph = parse(CONV_RELU, fill=drawn_constant)
    assert len(fuse(graph).graph.nodes) == 1
    assert len(fuse(graph, disable=["activation"]).graph.nodes) == 2
    assert len(fuse(graph, FuseOptions(disable=("activation",))).graph.nodes) == 2
    assert len(fuse(graph, keep=["head.*"]).graph.nodes) == 2


def test_options_by_name_are_checked_as_those_of_a_spec() -> None:
    with pytest.raises(SpecError, match=r'fuse\(...\):1:1: unknown key "kepe"; did you mean "keep"'):
        fuse(parse(CONV_RELU, fill=drawn_constant), kepe=["head"])
    with pytest.raises(SpecError, match=r'the pattern "haed" matches no layer'):
        fuse(parse(CONV_RELU, fill=drawn_constant), keep=["haed"])
    with pytest.raises(
        TypeError, match="both an options object and keep; pass the options either as one object or by name"
    ):
        fuse(parse(CONV_RELU, fill=drawn_constant), FuseOptions(), keep=["head"])


def test_a_pass_that_is_called_takes_its_data_from_the_context() -> None:
    graph = parse(CONV_RELU, fill=drawn_constant)
    with pytest.raises(MissingNeedError, match='pass "quantize" needs calibration'):
        quantize(graph)
    context = Context(calibration=[(torch.rand(1, 3, 8, 8),)])
    after = quantize(graph, activations="int16", context=context).graph
    assert any(value.type.is_quantized for value in after.results)
