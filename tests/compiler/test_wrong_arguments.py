"""Wrong arguments of the public Python functions: each is refused with its place, a remedy, and a registered code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxpress import compiler, ir, passes, specs
from fxpress.backends import c, torch_module
from fxpress.backends.c.tools import target_compiler
from fxpress.compiler import Compiled, FxpressError, UserError, compile_model, load_compiled
from fxpress.compiler.codes import ALL_CODES
from fxpress.passes import Context
from fxpress.passes.sensitivity import measure_curvature, measure_sensitivity
from fxpress.specs import SpecError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.head(image.flatten(1))
        return result


@dataclass(frozen=True)
class Given:
    """Objects that wrong calls pass."""

    net: nn.Module
    x: Tensor
    graph: ir.Graph
    compiled: Compiled
    folder: Path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.rand(4, 1, 4, 4)
    compiled = compile_model(net, inputs=x[:1], calibration=x, passes=["fuse", "quantize"], outputs="c")
    folder = tmp_path_factory.mktemp("wrong")
    compiled.write(folder / "out")
    return Given(net, x, compiler.capture(net, (x[:1],)).graph, compiled, folder)


Call = Callable[[Given], object]


def compiled_with(**settings: object) -> Call:
    """A compilation with one wrong argument."""
    return lambda g: compile_model(g.net, **{"inputs": g.x[:1], **settings})  # type: ignore[call-overload]


HOST = specs.load_target("host")
EXPECTS_GRAPH = "expects a graph, got a Net; for a module pass capture(module, inputs).graph [A101]"
WRONG: list[tuple[Call, str]] = [
    (lambda g: compile_model(Net), "got the class Net; pass an instance, as in Net()"),  # type: ignore[call-overload]
    (lambda g: compile_model(42), "expects a module, a graph or the path of a spec, got 42"),  # type: ignore[call-overload]
    (lambda g: compile_model(g.net), "compile_model(inputs=...): is missing; give example inputs"),
    (
        compiled_with(inputs=(1, 1, 4, 4)),
        "expects tensors or arrays, got 1; write a shape as Input(shape=",
    ),
    (
        compiled_with(inputs={"image": (1, 1, 4, 4)}),
        "expects tensors or arrays, got a tuple; write a shape as",
    ),
    (compiled_with(inputs=3), "compile_model(inputs=...): expects tensors or arrays, got 3"),
    (compiled_with(input=1), 'compile_model(input=...): no such argument; did you mean "inputs"?'),
    (
        compiled_with(model=nn.ReLU()),
        "compile_model(model=...): replaces the model of a spec file, but no spec file is given",
    ),
    (compiled_with(calibration=42), "compile_model(calibration=...): expects an array or a tensor [n, ...]"),
    (
        compiled_with(calibration=[[1.0]]),
        "compile_model(calibration=...), image: expects a tensor or a numpy array",
    ),
    (compiled_with(calibration={"image": [[1.0]]}), "convert a list with numpy.array(...)"),
    (
        lambda g: compile_model(g.net, inputs=g.x[:1], calibration=(g.x, g.x)),
        "2 arrays for the inputs image; give",
    ),
    (compiled_with(passes=None), "compile_model(passes=...): expects a list of passes, got None"),
    (
        compiled_with(passes=[passes.fuse]),
        'pass 0: expects a name, options or a mapping, got a Pass; write "fuse"',
    ),
    (compiled_with(passes={"pass": "fuse"}), "expects a list of passes, got a dict"),
    (compiled_with(passes=[{"pass": "fuse", "keep": [object()]}]), "a spec cannot hold an object"),
    (compiled_with(target=None), "compile_model(target=...): expects a name, the path of a target file"),
    (compiled_with(target=specs.load_target("cortex-m4")), 'got a Target; write "cortex-m4"'),
    (compiled_with(outputs=specs.COutput()), 'got a COutput; for example "c"'),
    (compiled_with(outputs=[specs.COutput()]), "expects names of outputs, got a COutput"),
    (compiled_with(overrides="a=b"), "overrides: expects a list of texts, got the text 'a=b'; write ['a=b']"),
    (compiled_with(overrides={"a": 1}), "overrides: expects a list of texts, got a dict"),
    (compiled_with(overrides=[1]), "overrides: expects a list of texts, got 1"),
    (compiled_with(overrides=["passes[0]"]), 'overrides:1:1: "passes[0]" is not an override'),
    (compiled_with(origin="nowhere.py:make"), "model.source: file not found:"),
    (compiled_with(origin=3), "compile_model(origin=...): expects a text such as `nets.py:make`, got 3"),
    (compiled_with(locked=3), "compile_model(locked=...): expects the path of a lock file, got 3"),
    (
        compiled_with(progress=True),
        "compile_model(progress=...): expects a function of label, done and total",
    ),
    (compiled_with(on_stage=3), "compile_model(on_stage=...): expects a function of a `Stage`, got 3"),
    (compiled_with(limit_seconds="3"), "compile_model(limit_seconds=...): expects a number of seconds"),
    (lambda g: compile_model(g.graph, inputs=g.x), "a graph has its own inputs; remove it"),
    (
        lambda g: compile_model("net.yaml", model=42),
        "compile_model(model=...): expects a torch.nn.Module, got 42",
    ),  # type: ignore[call-overload]
    (lambda g: compile_model("net.yaml", overides=[]), 'no such argument; did you mean "overrides"?'),  # type: ignore[call-overload]
    (lambda g: g.compiled.run(None), "run(data): expects an array or a tensor [n, ...]"),  # type: ignore[arg-type]
    (lambda g: g.compiled.run(g.x, on=None), "run(on=...): expects `host`, `torch`"),  # type: ignore[arg-type]
    (lambda g: g.compiled.run(g.x, on="moon"), "on moon: is not a place to run"),
    (
        lambda g: g.compiled.run(g.x, on="torch"),
        "the compiled network: has no torch module; add it to `outputs` in",
    ),
    (lambda g: g.compiled.run(g.x[:0]), "run(data): has no samples; give at least one [D105]"),
    (lambda g: g.compiled.write(None), "write(directory): expects the path of a directory, got None"),  # type: ignore[arg-type]
    (lambda g: g.compiled.write_spec(None), "write_spec(folder): expects the path of a directory"),  # type: ignore[arg-type]
    (lambda g: load_compiled(None), "load_compiled(directory): expects the path of an output directory"),  # type: ignore[arg-type]
    (lambda g: load_compiled(g.folder / "out").module, "out: has no torch module"),
    (
        lambda g: compiler.capture(Net, (g.x,)),
        "capture(model, args): expects a torch.nn.Module, got the class Net",
    ),  # type: ignore[arg-type]
    (
        lambda g: compiler.capture(g.net, g.x),
        "capture(model, args): expects a tuple of the arguments of `forward`",
    ),  # type: ignore[arg-type]
    (
        lambda g: compiler.capture(g.net, (g.x,), 3),
        "capture(model, args, kwargs): expects the keywords of `forward`",
    ),  # type: ignore[arg-type]
    (
        lambda g: compiler.capture(g.net, (g.x,), input_names="a"),
        "capture(input_names=...): expects a list of names",
    ),
    (
        lambda g: compiler.as_callable(g.graph),
        "as_callable(captured): expects what `capture` gives, got a Graph",
    ),  # type: ignore[arg-type]
    (
        lambda g: compiler.as_callable(compiler.capture(g.net, (g.x,)))(3),
        "the call: was captured for a tensor, got 3",
    ),
    (
        lambda g: compiler.load_source("net.py:Net", {}, folder=Path()),
        "load_source(source): expects a `FileSource`",
    ),  # type: ignore[arg-type]
    (lambda g: compiler.open_session(g.net), "open_session(spec): expects the path of a spec"),  # type: ignore[arg-type]
    (lambda g: compiler.run_passes(None), "run_passes(session): expects what `open_session` gives, got None"),  # type: ignore[arg-type]
    (lambda g: compiler.run_samples(g.graph, g.x), "expects `Samples`, got a Tensor; write Samples((x,))"),  # type: ignore[arg-type]
    (lambda g: compiler.Samples(g.x), "Samples(inputs): expects a tuple with a tensor for each input"),  # type: ignore[arg-type]
    (lambda g: compiler.snr_db(1, g.x), "snr_db(reference, approximation): expects a tensor as `reference`"),  # type: ignore[arg-type]
    (lambda g: compiler.snr_db(g.x, g.x[:1]), "snr_db(reference, approximation): tensors of the shapes"),
    (
        lambda g: compiler.correct_answers(g.x, g.x[:, 0, 0, 0][:2]),
        "correct_answers(output, labels): an output of",
    ),
    (lambda g: UserError("text"), "UserError(problems): expects a `Problem` or several, got the text 't'"),  # type: ignore[arg-type]
    (lambda g: specs.SpecError("text"), "SpecError(problems): expects several `Problem`, got the text 't'"),  # type: ignore[arg-type]
    (lambda g: specs.load_spec(None), "load_spec(path): expects the path of a spec file, got None"),  # type: ignore[arg-type]
    (
        lambda g: specs.parse_spec(None, "a.yaml"),
        "parse_spec(text, path): expects the text of a spec, got None",
    ),  # type: ignore[arg-type]
    (lambda g: specs.load_target(None), "load_target(name): expects the name of a target"),  # type: ignore[arg-type]
    (lambda g: specs.load_target("host", "x"), "load_target(name, choice): expects a `TargetChoice`"),  # type: ignore[arg-type]
    (lambda g: specs.layer_matches(None, "a"), "layer_matches(pattern, name): expects a pattern"),  # type: ignore[arg-type]
    (lambda g: specs.match_layers("head", ["head"]), "match_layers(patterns, names): expects a list"),
    (
        lambda g: specs.working_order(["fuze"]),
        "working_order(names): unknown pass 'fuze'; did you mean \"fuse\"?",
    ),
    (lambda g: specs.Input(shape=3), "Input(...): shape: expects a list, got 3; write [3] [S203]"),  # type: ignore[arg-type]
    (lambda g: specs.Input((1, 3)), "Input(...): takes keyword arguments only, got a tuple"),  # type: ignore[call-arg]
    (
        lambda g: specs.QuantizeOptions(observr="mse"),
        'unknown key "observr"; did you mean "observer"? [S201]',
    ),  # type: ignore[call-arg]
    (lambda g: specs.COutput(name="int"), '"int" cannot be the prefix of C names'),
    (
        lambda g: specs.TargetChoice(ram=3),
        "TargetChoice(...): ram: 3 has no unit; write for example `64 KiB`",
    ),
    (lambda g: ir.digraph(g.net), f"digraph(graph): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (lambda g: ir.dump(g.net), f"dump(graph): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (lambda g: ir.verify(g.net), f"verify(graph): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (lambda g: ir.run(g.net, [g.x]), f"run(graph, inputs): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (
        lambda g: ir.run(g.graph, g.x),
        "run(graph, inputs): expects a list of tensors, got a Tensor; write [x]",
    ),  # type: ignore[arg-type]
    (lambda g: ir.run_integer(g.graph, [g.x.numpy()]), "input %image: expects a tensor, got a ndarray"),  # type: ignore[list-item]
    (lambda g: ir.rebatch(g.graph, "2"), "rebatch(graph, batch): expects a whole number of samples"),  # type: ignore[arg-type]
    (lambda g: ir.couple(g.net), f"couple(graph): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (lambda g: ir.cut_graph(g.graph), "cut_graph(kept): expects a `Kept`, got a Graph"),  # type: ignore[arg-type]
    (
        lambda g: ir.rewrite(g.graph, None),
        "rewrite(graph, visit): expects a function of builder, node and operands",
    ),  # type: ignore[arg-type]
    (lambda g: ir.parse(None), "parse(text): expects the text of a graph, got None; dump(graph) writes it"),  # type: ignore[arg-type]
    (lambda g: ir.parse("graph("), "1:7: expected '%', found the end of the text [G102]"),
    (lambda g: ir.node_text(g.graph), "node_text(node): expects a node of a graph, got a Graph"),  # type: ignore[arg-type]
    (lambda g: ir.open_tensors("a"), "open_tensors(path): expects a pathlib.Path"),  # type: ignore[arg-type]
    (lambda g: ir.write_tensors(Path("a"), {}), "write_tensors(path, tensors): expects `Params`, got a dict"),  # type: ignore[arg-type]
    (
        lambda g: ir.TensorType((1,), torch.float32),
        "expects a `DType`, got a dtype; DType.of(torch.float32) makes one",
    ),  # type: ignore[arg-type]
    (lambda g: ir.TensorType.of(np.ones(3)), "TensorType.of(tensor): expects a tensor, got a ndarray"),  # type: ignore[arg-type]
    (lambda g: ir.Value("x", (1, 3)), "Value(name, type): expects a `TensorType`, got a tuple"),  # type: ignore[arg-type]
    (lambda g: ir.Builder().constant("w", [1.0]), "constant w: expects a tensor, got a list"),  # type: ignore[arg-type]
    (lambda g: ir.Builder().add("relu"), "add(op, ...): expects an operator, got the text 'relu'"),  # type: ignore[arg-type]
    (lambda g: g.graph.tensor("head.weight"), "tensor(value): expects a value of the graph, got the text"),  # type: ignore[arg-type]
    (
        lambda g: g.graph.with_precisions({"head": 8}),
        "expects a `Precision`, got 8; write Precision(weights=4)",
    ),  # type: ignore[dict-item]
    (lambda g: passes.fuse(g.net), f"fuse(graph, ...): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (lambda g: passes.quantize(Net), "quantize(graph, ...): expects a graph, got the class Net"),  # type: ignore[arg-type]
    (lambda g: passes.prune(None), "prune(graph, ...): expects a graph, got None"),  # type: ignore[arg-type]
    (lambda g: passes.fuse(g.graph, ["pad"]), "expects options of class FuseOptions, got a list"),  # type: ignore[arg-type]
    (lambda g: passes.prune(g.graph), "prune(...):1:1: takes a `budget` or a `plan`"),
    (
        lambda g: passes.quantize(g.graph),
        "needs calibration; give context=Context(calibration=...), in a spec",
    ),
    (lambda g: passes.quantize(g.graph, context=[(g.x,)]), "expects a `Context` as `context`, got a list"),  # type: ignore[arg-type]
    (lambda g: passes.quantize(g.graph, context=Context(calibration=g.x)), "[(x[None],) for x in images]"),  # type: ignore[arg-type]
    (lambda g: passes.quantize(g.graph, context=Context(calibration=[g.x])), "[(x[None],) for x in images]"),  # type: ignore[list-item]
    (lambda g: passes.quantize(g.graph, context=Context([(3,)])), 'input "image": expects a tensor, got 3'),  # type: ignore[list-item]
    (
        lambda g: passes.fuse(g.compiled.graph),
        "fuse cannot run after quantize: fusion works on the float graph",
    ),
    (lambda g: torch_module.emit(g.net), f"emit(graph, options): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (
        lambda g: torch_module.to_module(g.graph, form="x"),
        "unknown form the text 'x'; there are float, qdq, eager, native",
    ),  # type: ignore[arg-type]
    (lambda g: c.check(g.net, specs.COutput(), HOST), f"check(graph, options, target): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (lambda g: c.emit(g.graph, None, HOST), "expects `COutput` as `options`, got None"),  # type: ignore[arg-type]
    (lambda g: c.emit(g.graph, specs.COutput(), "host"), "expects a `Target`, got the text 'host'"),  # type: ignore[arg-type]
    (lambda g: target_compiler("host"), "target_compiler(target): expects a `Target`, got the text 'host'"),  # type: ignore[arg-type]
    (lambda g: measure_sensitivity(g.net, []), f"measure_sensitivity(graph, batches): {EXPECTS_GRAPH}"),  # type: ignore[arg-type]
    (
        lambda g: measure_curvature(g.graph, g.x),
        "measure_curvature(graph, batches): expects a list with a tuple",
    ),  # type: ignore[arg-type]
    (lambda g: passes.find_pass(passes.fuse), "find_pass(name): expects the name of a pass, got a Pass"),  # type: ignore[arg-type]
    (lambda g: passes.find_pass("fuze"), 'unknown pass "fuze"; did you mean "fuse"? [P600]'),
    (lambda g: passes.register(3), "register(options): expects a subclass of PassOptions, got 3"),  # type: ignore[arg-type, type-var]
    (lambda g: passes.op("conv"), "op(...): expects classes of operators, got the text 'conv'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_call_is_refused_with_place_remedy_and_code(given: Given, call: Call, message: str) -> None:
    with pytest.raises(FxpressError) as caught:
        call(given)
    text = str(caught.value)
    assert message in text
    codes = re.findall(r"\[([A-Z]\d{3})\]", text)
    assert codes and all(code in ALL_CODES for code in codes)


def test_lists_are_tuples_in_options_made_in_python() -> None:
    assert specs.FuseOptions(keep=["head"]) == specs.FuseOptions(keep=("head",))  # type: ignore[arg-type]
    assert specs.Input(shape=[1, 3]).shape == (1, 3)  # type: ignore[arg-type]


def test_data_in_memory_are_named_by_their_argument_not_as_a_file(given: Given) -> None:
    wrong = {"image": given.x, "labels": torch.full((4,), 7)}
    with pytest.raises(UserError, match=r"^memory:evaluation: 4 of 4 labels are not classes of.*\[D109\]"):
        compile_model(given.net, inputs=given.x[:1], evaluation=wrong)
    huge = given.x.clone()
    huge[1] = 3e38
    with pytest.raises(
        UserError, match=r"^memory:calibration: calibration sample 1: .* computes NaN .*\[D107\]"
    ):
        net = nn.Linear(4, 3)
        net.weight.data.fill_(100.0)
        compile_model(net, inputs=given.x[:1], calibration=huge, passes=["quantize"])


def test_the_text_of_a_spec_names_no_file_that_is_not_there(given: Given, tmp_path: Path) -> None:
    text = given.compiled.spec.to_yaml()
    assert "calibration: {source: memory:calibration}" in text and ".npz" not in text
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match="memory:calibration is an array in the memory of a Python program"):
        specs.check_spec(path)
    with pytest.raises(
        UserError, match=r"memory:calibration: was in the memory of a Python program; .*write_spec"
    ):
        compile_model(path, model=given.net)
    found = specs.check_spec(given.compiled.write_spec(tmp_path / "written")).spec.data.calibration
    assert found is not None and found.origin == tmp_path / "written" / "calibration.npz"
