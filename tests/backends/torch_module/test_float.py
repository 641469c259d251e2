"""The float form: the bits of `run`, the user's keys, readable source, and all that torch does with modules."""

import copy
import inspect
import io
import keyword
import re
import textwrap
import tokenize

import pytest
import torch
from torch import nn

from fxpress.backends.torch_module import TorchOptions, emit, read_back, to_module
from fxpress.backends.torch_module.shapes import check_shapes
from fxpress.ir import Builder, Graph, Source, TensorType, UnsupportedError, parse, run, verify
from fxpress.ir.ops.activation import Relu
from fxpress.ir.ops.binary import Add
from fxpress.ir.ops.call import TorchCall
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.slicing import Split

SMALL = """
graph(%image: f32[2x3x8x8]) {
  const %features.0.weight: f32[4x3x3x3]
  const %features.0.bias: f32[4]
  const %features.1.weight: f32[4]
  const %features.1.bias: f32[4]
  const %features.1.running_mean: f32[4]
  const %features.1.running_var: f32[4]
  const %fc.weight: f32[10x64]
  %c: f32[2x4x8x8] = conv{padding=(0, 1, 1, 1)}(%image, %features.0.weight, %features.0.bias)
  %n: f32[2x4x8x8] = batch_norm{eps=0.001}(%c, %features.1.weight, %features.1.bias, \
    %features.1.running_mean, %features.1.running_var)
  %r: f32[2x4x8x8] = relu(%n)
  %p: f32[2x4x4x4] = max_pool(%r)
  %v: f32[2x64] = reshape{shape=(-1, 64)}(%p)
  %y: f32[2x10] = linear{clamp=(0.0, 6.0)}(%v, %fc.weight)
  return scores: %y, features: %r
}
"""


def random_fill(value):
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)))
    return torch.rand(value.type.shape, generator=generator, dtype=value.type.dtype.torch)


def parsed(text):
    return parse(
        text.replace("[2x4x8x8]", "[2x4x7x8]").replace("[2x4x4x4]", "[2x4x3x4]").replace("64", "48"),
        fill=random_fill,
    )


def test_the_module_computes_the_bits_of_run():
    graph = parsed(SMALL)
    x = torch.randn(2, 3, 8, 8)
    for mine, reference in zip(to_module(graph)(x), run(graph, [x]), strict=True):
        assert torch.equal(mine, reference)


def test_submodules_and_keys_are_the_users():
    module = to_module(parsed(SMALL))
    assert {key for key in module.state_dict() if "num_batches" not in key} == set(parsed(SMALL).params)
    assert isinstance(module.get_submodule("features.0"), nn.Conv2d)
    assert isinstance(module.get_submodule("features.1"), nn.BatchNorm2d)
    assert "features.1.running_mean" in dict(module.named_buffers())
    assert set(dict(module.named_parameters())) == {
        "features.0.weight",
        "features.0.bias",
        "features.1.weight",
        "features.1.bias",
        "fc.weight",
    }


def test_the_lines_of_the_docstring_load_and_call_the_module(tmp_path, monkeypatch):
    graph = parsed(SMALL.replace("scores: %y, features: %r", "boxes.0: %y, boxes_0: %r, class: %r"))
    artifact = emit(graph)
    artifact.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    x = torch.randn(2, 3, 8, 8)
    module = {"image": x}
    exec(artifact.source, module)
    exec(textwrap.dedent(module["__doc__"].partition("\n\n")[2]), module)
    for name, wanted in zip(("boxes_0", "boxes_0_2", "class_"), run(graph, [x]), strict=True):
        assert torch.equal(module[name], wanted)


def test_the_source_reads_as_a_person_would_write_it():
    assert (
        emit(parsed(SMALL), TorchOptions(name="small")).source
        == '''"""Small, written by fxpress.

    import safetensors.torch
    import torch

    model = Small()
    safetensors.torch.load_model(model, "model.safetensors")
    model.eval()
    with torch.no_grad():
        scores, features = model(image)
"""

import torch
import torch.nn.functional as F
from torch import nn


{CHECK}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self.features["0"] = nn.Conv2d(3, 4, 3)
        self.features["1"] = nn.BatchNorm2d(4, eps=0.001)
        self.fc = nn.Linear(48, 10, bias=False)

    def forward(self, image):
        check_shapes({"image": (image, (2, 3, 8, 8))})
        x = self.features["0"](F.pad(image, (1, 1, 0, 1)))
        x = self.features["1"](x)
        x = torch.relu(x)
        y = F.max_pool2d(x, (2, 2), stride=(2, 2), padding=[0, 0], dilation=(1, 1))
        y = y.reshape((-1, 48))
        y = torch.clamp(self.fc(y), 0.0, 6.0)
        return y, x
'''.replace("{CHECK}", inspect.getsource(check_shapes).strip())
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    (
        ((5, 3, 8, 8), "input image has size 5 in dimension 0; the module takes 2"),
        ((2, 3, 8, 9), "input image has size 9 in dimension 3; the module takes 8"),
        ((3, 8, 8), "input image has 3 dimensions; the module takes 4"),
    ),
)
def test_other_shapes_than_the_compiled_ones_are_refused(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_module(parsed(SMALL))(torch.randn(shape))


DYNAMIC = """
dim batch = 2 in 1..
dim image = 8 in 4..64
graph(%image: f32[${batch}x3x${image}x${image}]) {
  const %w: f32[4x3x3x3]
  %c: f32[${batch}x4x${(image + 1) // 2}x${(image + 1) // 2}] = conv{stride=(2, 2), padding=(1, 1, 1, 1)}(%image, %w)
  %n: f32[${batch}x${4*((image + 1) // 2)}x${(image + 1) // 2}] = \
reshape{shape=(${batch}, ${4*((image + 1) // 2)}, ${(image + 1) // 2})}(%c)
  return scores: %n
}
""".replace("\\\n", "")


def test_sizes_of_dimensions_are_expressions_of_the_arguments():
    graph = parse(DYNAMIC, fill=lambda v: torch.ones(v.type.shape))
    source = emit(verify(graph)).source
    assert "batch, image_2 = check_shapes(" in source
    assert "{\"image\": (image, ('batch', 3, 'image', 'image'))}, batch=(1, None), image=(4, 64)" in source
    assert "x.reshape((batch, 4*((image_2 + 1) // 2), (image_2 + 1) // 2))" in source
    module, x = to_module(graph), torch.randn(3, 3, 7, 7)
    assert torch.equal(module(x), run(graph, [x])[0])
    with pytest.raises(ValueError, match=r"size 65 in dimension 2; the module takes 4 to 64 \(image\)"):
        module(torch.randn(1, 3, 65, 65))
    with pytest.raises(ValueError, match=r"size 6 in dimension 3; the module takes 7 \(image\) as before"):
        module(torch.randn(1, 3, 7, 6))


def test_a_module_with_dynamic_dimensions_is_exported_with_them():
    graph = parse(DYNAMIC, fill=lambda v: torch.ones(v.type.shape))
    shapes = {"image": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(to_module(graph), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(program.module()(x), run(graph, [x])[0])


def test_the_written_file_needs_nothing_but_torch_and_gives_the_same_bytes_again(tmp_path):
    artifact = emit(parsed(SMALL))
    first = [path.read_bytes() for path in artifact.save(tmp_path)]
    assert first == [path.read_bytes() for path in emit(parsed(SMALL)).save(tmp_path)]
    namespace = {}
    exec((tmp_path / "model.py").read_text(), namespace)
    safetensors = pytest.importorskip("safetensors.torch")
    module = namespace["Model"]()
    safetensors.load_model(module, str(tmp_path / "model.safetensors"))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module.eval()(x)[0], artifact.build()(x)[0])


def test_building_leaves_the_random_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    to_module(parsed(SMALL))
    assert torch.equal(torch.rand(1), expected)


def test_the_module_is_saved_copied_exported_and_compiled():
    module, x = to_module(parsed(SMALL)), torch.randn(2, 3, 8, 8)
    expected = module(x)[0]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], expected)
    assert torch.equal(copy.deepcopy(module)(x)[0], expected)
    assert torch.equal(torch.export.export(module, (x,)).module()(x)[0], expected)
    assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(x)[0], expected)


def test_the_module_exports_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, x = to_module(parsed(SMALL)), torch.randn(2, 3, 8, 8)
    torch.onnx.export(module, (x,), str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (scores, _) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(scores), module(x)[0], atol=1e-4)


def test_training_moves_weights_and_they_are_read_back_into_the_graph():
    graph, x = parsed(SMALL), torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in graph.params.items()}
    module = to_module(graph).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x)[1].square().mean().backward()
    optimizer.step()
    trained = read_back(graph, module)
    assert not torch.equal(trained.params["features.0.weight"], before["features.0.weight"])
    assert not torch.equal(trained.params["features.1.running_mean"], before["features.1.running_mean"])
    assert all(torch.equal(graph.params[name], tensor) for name, tensor in before.items())
    assert torch.equal(run(trained, [x])[0], module.eval()(x)[0])


def linear_graph(*names: str, sources: tuple[str, ...] = ("", "")) -> Graph:
    builder = Builder()
    x = builder.input("x", TensorType((2, 4)))
    weights = {name: builder.constant(name, random_fill_of(name)) for name in dict.fromkeys(names)}
    for name, source in zip(names, sources, strict=True):
        x = builder.add(Linear(), x, weights[name], source=Source(source))
    return builder.build([x])


def random_fill_of(name: str) -> torch.Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(len(name)))


def test_a_tied_weight_stays_one_parameter_under_both_names():
    module = to_module(linear_graph("a.weight", "a.weight", sources=("a", "head")))
    assert module.get_submodule("a").weight is module.get_submodule("head").weight
    assert list(module.state_dict()) == ["a.weight", "head.weight"]
    assert len(list(module.parameters())) == 1


def test_a_layer_that_is_called_twice_is_one_submodule():
    module = to_module(linear_graph("a.weight", "a.weight", sources=("a", "a")))
    assert list(module.state_dict()) == ["a.weight"]
    assert emit(linear_graph("a.weight", "a.weight", sources=("a", "a"))).source.count("self.a(") == 2


def test_a_replaced_weight_takes_the_place_of_the_users():
    graph = linear_graph("a.weight_1", "b.c.weight_7", sources=("a", "b.c"))
    assert list(to_module(graph).state_dict()) == ["a.weight", "b.c.weight"]


def test_two_weights_made_from_one_become_two_layers():
    graph = linear_graph("a.weight_1", "a.weight_2", sources=("a", "a"))
    module, x = to_module(graph), torch.randn(2, 4)
    assert list(module.state_dict()) == ["a.weight", "a_2.weight"]
    assert torch.equal(module(x), run(graph, [x])[0])


HOSTILE = [
    '"; import os; "',
    "a\nb",
    "class",
    "x" * 5000,
    "é*/",
    "self",
    "train",
    "0x",
    "",
    "a.b..c",
    "forward",
    "torch",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layer_names_become_identifiers(name):
    graph = linear_graph(f"{name}.weight", f"{name}!.weight", sources=(name, f"{name}!"))
    artifact, x = emit(graph), torch.randn(2, 4)
    assert max(map(len, artifact.source.splitlines())) < 400
    for token in tokenize.generate_tokens(io.StringIO(artifact.source).readline):
        assert token.type != tokenize.NAME or token.string.isidentifier() or keyword.iskeyword(token.string)
    assert torch.equal(artifact.build()(x), run(graph, [x])[0])


@pytest.mark.parametrize(
    "names", (("a..w", "a.w"), ("a", "a.w"), ("a b", "a_b"), ("", "constant"), ("0", "0.1.w"), (".", "a."))
)
def test_constants_whose_names_collide_or_are_numbers_keep_their_tensors(names):
    graph = linear_graph(*names)
    module, x = to_module(graph), torch.randn(2, 4)
    assert len(module.state_dict()) == 2
    assert torch.equal(module(x), run(graph, [x])[0])


def test_hostile_inputs_and_sources_cannot_inject_code():
    builder = Builder()
    x = builder.input("x): import os #", TensorType((2,)))
    y = builder.input("self", TensorType((2,)))
    z = builder.add(Add(), x, y, source=Source('"""\nraise SystemExit', "a\rb.py:1"))
    graph, tensors = builder.build([z]), [torch.randn(2), torch.randn(2)]
    assert torch.equal(to_module(graph)(*tensors), run(graph, tensors)[0])


def test_an_opaque_call_computes_the_same_bits():
    builder = Builder()
    x = builder.input("x", TensorType((2, 6)))
    values = builder.append(
        TorchCall("aten.topk.default(x0, 2, 1, True, True)"),
        (x,),
        TorchCall("aten.topk.default(x0, 2, 1, True, True)").infer(x.type),
    )
    graph, tensor = builder.build(values), torch.randn(2, 6)
    module = to_module(graph)
    assert all(torch.equal(a, b) for a, b in zip(module(tensor), run(graph, [tensor]), strict=True))


@pytest.mark.parametrize(
    "call",
    ("aten.silu_.default(x0)", "aten.add_.Tensor(x0, x0)", "aten.index_fill_.int_Scalar(x0, 1, x1, 2)"),
)
def test_an_opaque_call_that_writes_to_its_operand_leaves_the_operand_as_it_was(call):
    builder = Builder()
    x = builder.input("x", TensorType((2, 6)))
    index = builder.constant("index", torch.tensor([1, 3]))
    operands = (x, index) if "x1" in call else (x,)
    y = builder.add(TorchCall(call), *operands)
    graph, tensor = builder.build([builder.add(Add(), x, y)]), torch.randn(2, 6)
    assert torch.equal(to_module(graph)(tensor.clone()), run(graph, [tensor])[0])


def test_unread_results_and_unused_inputs_are_kept_out_of_the_way():
    builder = Builder()
    x = builder.input("x", TensorType((2, 6)))
    builder.input("unused", TensorType((1,)))
    split = Split(1, (2, 2, 2))
    first, _, last = builder.append(split, (x,), split.infer(x.type))
    graph = builder.build([last, x, first])
    tensors = [torch.randn(2, 6), torch.randn(1)]
    assert all(
        torch.equal(a, b) for a, b in zip(to_module(graph)(*tensors), run(graph, tensors), strict=True)
    )


def test_an_identity_a_constant_output_and_a_graph_without_parameters_are_emitted():
    builder = Builder()
    x = builder.input("x", TensorType((2,)))
    c = builder.constant("c", torch.tensor([1.0, 2.0]))
    identity, constant = to_module(builder.build([x])), to_module(builder.build([c]))
    assert torch.equal(identity(torch.ones(2)), torch.ones(2))
    assert torch.equal(constant(torch.ones(2)), torch.tensor([1.0, 2.0]))
    assert to_module(builder.build([builder.add(Relu(), x)]))(torch.tensor([-1.0, 1.0])).tolist() == [
        0.0,
        1.0,
    ]


def test_a_chain_of_five_thousand_layers_is_emitted_and_runs():
    builder = Builder()
    x = builder.input("x", TensorType((1, 1, 2, 2)))
    w = builder.constant("w.weight", torch.ones(1, 1, 1, 1))
    for index in range(2500):
        x = builder.add(
            Relu(), builder.add(Conv(), x, w, source=Source("w")), source=Source(f"chain.{index}")
        )
    module = to_module(builder.build([x]))
    assert torch.equal(module(torch.ones(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))


def test_a_quantized_graph_is_refused_in_float_form():
    graph = parse("""
    graph(%x: f32[2]) {
      %q: i8[2]<scale=0.1, zero=0> = quantize(%x)
      %y: f32[2] = dequantize(%q)
      return y: %y
    }""")
    with pytest.raises(UnsupportedError, match="emit it in form 'qdq', 'eager' or 'native'"):
        emit(graph)
