"""The quantized forms: one step from `run_integer` at each requantization, and int8 kernels underneath."""

import copy
import io
import shutil
import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config

from fxpress.backends.torch_module import (
    Mismatch,
    TorchOptions,
    emit,
    output_mismatch,
    requantization_mismatch,
    to_module,
)
from fxpress.ir import parse, run_integer

FORMS = ("qdq", "eager", "native")
IS_EXACT = torch.cpu._is_vnni_supported()  # without, compiled int8 kernels saturate sums of two products

TIED = """
graph(%t: i64[1x5]) {
  const %embed.weight: i8[20x8]<scale=0.02, zero=-22>
  const %embed.weight_1: i8[20x8]<scale=0.01, zero=0>
  const %embed.bias: i32[20]<scale=0.0002, zero=0>
  %x: i8[1x5x8]<scale=0.02, zero=-22> = embedding(%t, %embed.weight)   # "embed", "net.py:7"
  %y: i8[1x5x20]<scale=0.03, zero=4> = linear(%x, %embed.weight_1, %embed.bias)   # "head", "net.py:8"
  %r: f32[1x5x20] = dequantize(%y)
  return scores: %r
}
"""

ROWS = """
graph(%t: i64[1x5]) {
  const %embed.weight: i8[20x8]<scale=0.02, zero=-22>
  %x: i8[1x5x8]<scale=0.02, zero=-22> = embedding(%t, %embed.weight)   # "embed", "net.py:7"
  %r: f32[1x5x8] = dequantize(%x)
  return rows: %x, reals: %r
}
"""

NETWORK = """
graph(%x: f32[1x4x9x9]) {
  const %stem.weight: i8[8x4x3x3]<scale=@0, zero=0, axis=0>
  const %stem.bias: i32[8]<scale=@1, zero=0, axis=0>
  const %block.conv.weight: i8[8x8x3x3]<scale=@0, zero=0, axis=0>
  const %block.depthwise.weight: i8[8x1x3x3]<scale=0.01, zero=0>
  const %fc.weight: i8[20x8]<scale=0.01, zero=0>
  const %fc.bias: i32[20]<scale=0.0002, zero=0>
  %q: i8[1x4x9x9]<scale=0.05, zero=-3> = quantize(%x)
  %a: i8[1x8x9x9]<scale=0.02, zero=-128> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%q, %stem.weight, %stem.bias)
  %b: i8[1x8x9x9]<scale=0.04, zero=9> = conv{padding=(1, 1, 1, 1)}(%a, %block.conv.weight, none, %a)
  %c: i8[1x8x5x5]<scale=0.03, zero=-128> = conv{stride=(2, 2), padding=(1, 1, 1, 1), groups=8, clamp=(0.0, 6.0)}\
    (%b, %block.depthwise.weight)
  %d: i8[1x8x5x5]<scale=0.03, zero=4> = hardswish(%c)
  %e: i8[1x8x5x5]<scale=0.05, zero=-7> = add{clamp=(-1.0, 3.0)}(%c, %d)
  %m: i8[1x8x2x2]<scale=0.05, zero=-7> = max_pool(%e)
  %p: i8[1x8x1x1]<scale=0.02, zero=-20> = mean{axes=(2, 3), keepdim=True}(%m)
  %v: i8[1x8]<scale=0.02, zero=-20> = reshape{shape=(-1, 8)}(%p)
  %y: i8[1x20]<scale=0.1, zero=5> = linear(%v, %fc.weight, %fc.bias)
  %s: i8[1x20]<scale=0.00390625, zero=-128> = softmax{axis=1}(%y)
  %r: f32[1x20] = dequantize(%s)
  return scores: %r, features: %b
}
@0 = (0.01, 0.02, 0.005, 0.01, 0.03, 0.01, 0.012, 0.02)
@1 = (0.0005, 0.001, 0.00025, 0.0005, 0.0015, 0.0005, 0.0006, 0.001)
"""

TOKENS = """
graph(%x: f32[2x3x16]) {
  const %query.weight: i8[16x16]<scale=0.01, zero=0>
  const %key.weight: i8[16x16]<scale=0.02, zero=0>
  const %out.weight: i8[16x16]<scale=0.01, zero=0>
  %q: i8[2x3x16]<scale=0.03, zero=2> = quantize(%x)
  %a: i8[2x3x16]<scale=0.05, zero=5> = linear(%q, %query.weight)
  %b: i8[2x3x16]<scale=0.06, zero=-5> = linear(%q, %key.weight)
  %g: i8[2x3x16]<scale=0.02, zero=-100> = gelu(%a)
  %m: i8[2x3x16]<scale=0.05, zero=0> = mul(%g, %b)
  %t: i8[3x2x16]<scale=0.05, zero=0> = permute{order=(1, 0, 2)}(%m)
  %u: i8[2x3x16]<scale=0.05, zero=0> = permute{order=(1, 0, 2)}(%t)
  %y: i8[2x3x16]<scale=0.07, zero=1> = linear{clamp=(-2.0, inf)}(%u, %out.weight, none, %q)
  return y: %y
}
"""


def integers(value):
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)))
    low, high = (-500, 500) if value.type.quantization.bits == 32 else (-127, 128)
    return torch.randint(low, high, value.type.shape, generator=generator).to(value.type.dtype.torch)


def network():
    return parse(NETWORK, fill=integers)


def tokens():
    return parse(TOKENS, fill=integers)


def batches(graph, count=4):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(v.type.shape, generator=generator) for v in graph.inputs] for _ in range(count)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", (network, tokens))
def test_each_requantization_is_within_one_step_of_the_integers(build, form):
    graph = build()
    found = requantization_mismatch(graph, batches(graph), form=form)
    assert len(found) == sum(node.output.type.is_quantized for node in graph.nodes)
    assert max(mismatch.largest_step for mismatch in found.values()) <= 1
    assert Mismatch.total(found.values()).rate < 0.1


def test_eager_tables_equal_the_integers():
    found = requantization_mismatch(tokens(), batches(tokens()), form="eager")
    assert found["g"] == Mismatch(2 * 3 * 16 * 4, 0, 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_recurrent_layers_are_near_the_integers(kind, form):
    unit, weight = "<scale=3.0517578125e-05, zero=0>", "<scale=0.0078125, zero=0>"
    rows = 4 * {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    cell = ", %m: i16[1x2x4]<scale=0.000244140625, zero=0>" if kind == "lstm" else ""
    text = f"""graph(%x: f32[5x2x3], %h: f32[1x2x4]) {{
      const %wi: i8[{rows}x3]{weight}
      const %wh: i8[{rows}x4]{weight}
      %q: i8[5x2x3]<scale=0.03125, zero=3> = quantize(%x)
      %s: i16[1x2x4]{unit} = quantize(%h)
      %y: i16[5x2x4]{unit}, %l: i16[1x2x4]{unit}{cell} = {kind}{{bias=False}}(%q, %s, {"none, " * bool(cell)}%wi, %wh)
      %r: f32[5x2x4] = dequantize(%y)
      %e: f32[1x2x4] = dequantize(%l)
      return y: %r, last: %e
    }}"""
    generator = torch.Generator().manual_seed(0)
    graph = parse(
        text, fill=lambda v: torch.randint(-127, 128, v.type.shape, generator=generator).to(torch.int8)
    )
    inputs = [torch.randn(5, 2, 3, generator=generator), torch.rand(1, 2, 4, generator=generator) - 0.5]
    found = to_module(graph, form=form)(*inputs)
    for result, expected in zip(found, run_integer(graph, inputs), strict=True):
        assert (result - expected).abs().max() < 2e-3
    notes = emit(graph, TorchOptions(form=form)).notes
    assert any("recurrent layers within several" in note for note in notes) == (form == "native")


@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_near_the_integers_and_integer_outputs_are_integers(form):
    graph = network()
    module = to_module(graph, form=form)
    mismatch = output_mismatch(graph, module, batches(graph))
    assert mismatch.rate < 0.1
    assert mismatch.largest_step <= 8  # a step in one of the eight layers grows in those after it
    assert module(*batches(graph)[0])[1].dtype == torch.int8


def test_a_wrong_zero_point_is_seen_by_the_comparison():
    graph = network()
    source = NETWORK.replace("scale=0.04, zero=9", "scale=0.04, zero=32")
    wrong = to_module(parse(source, params=graph.params), form="eager")
    assert output_mismatch(graph, wrong, batches(graph)).largest_step > 8


def test_qdq_layers_keep_int8_weights_under_the_users_keys():
    state = to_module(network(), form="qdq").state_dict()
    assert state["block.conv.weight"].dtype == torch.int8
    assert state["stem.bias"].dtype == torch.float32
    assert set(state) == {
        *("stem.weight", "stem.weight_scale", "stem.bias", "block.conv.weight", "block.conv.weight_scale"),
        *(
            "block.depthwise.weight",
            "block.depthwise.weight_scale",
            "fc.weight",
            "fc.weight_scale",
            "fc.bias",
        ),
    }


@pytest.mark.parametrize("form", FORMS)
def test_quantized_modules_are_saved_and_copied(form):
    module = to_module(network(), form=form)
    x = torch.randn(1, 4, 9, 9)
    expected = module(x)[0]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], expected)
    assert torch.equal(copy.deepcopy(module)(x)[0], expected)


def test_loading_other_weights_after_a_call_takes_effect():
    module, x = to_module(network(), form="eager"), torch.randn(1, 4, 9, 9)
    before = module(x)[1]
    state = module.state_dict()
    module.load_state_dict(
        {key: -tensor if tensor.dtype == torch.int8 else tensor for key, tensor in state.items()}
    )
    assert not torch.equal(module(x)[1], before)


def test_the_qdq_form_exports():
    module, x = to_module(network(), form="qdq"), torch.randn(1, 4, 9, 9)
    assert torch.equal(torch.export.export(module, (x,)).module()(x)[0], module(x)[0])


def test_the_qdq_form_exports_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = to_module(network(), form="qdq")
    x = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(module, (x,), str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    scores = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert scores.shape == (1, 20)
    assert not IS_EXACT or (scores - module(x)[0]).abs().max() <= 3 / 256


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or not torch.backends.mkldnn.is_available(),
    reason="torch.compile needs g++, and its int8 kernels need oneDNN",
)
def test_torch_compile_lowers_every_layer_to_an_int8_kernel():
    counters.clear()
    with torch.no_grad(), config.patch(freezing=True):
        for graph in (network(), tokens()):
            module = to_module(graph, form="qdq")
            for inputs in batches(graph, 1):
                compiled = torch.compile(module)(*inputs)
                first = compiled if isinstance(compiled, torch.Tensor) else compiled[0]
                exact = run_integer(graph, inputs)[0]
                limit = 2 if exact.dtype == torch.int8 else 8 / 256  # a step of the scores before the softmax
                assert not IS_EXACT or (first.double() - exact.double()).abs().max() <= limit
    assert (
        counters["inductor"]["qconv_unary_lower_count"] + counters["inductor"]["qconv2d_binary_lower_count"]
        == 3
    )
    assert (
        counters["inductor"]["qlinear_unary_lower_count"] + counters["inductor"]["qlinear_binary_lower_count"]
        == 4
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_called_twice_on_other_grids_is_two_submodules_with_one_weight(form):
    graph = parse(
        """
        graph(%x: f32[1x4]) {
          const %fc.weight: i8[4x4]<scale=0.01, zero=0>
          %q: i8[1x4]<scale=0.03, zero=2> = quantize(%x)
          %a: i8[1x4]<scale=0.02, zero=5> = linear(%q, %fc.weight)
          %b: i8[1x4]<scale=0.01, zero=3> = linear(%a, %fc.weight)
          return y: %b
        }""",
        fill=integers,
    )
    module = to_module(graph, form=form)
    weights = [tensor for key, tensor in module.state_dict().items() if key.endswith("weight")]
    assert len({tensor.data_ptr() for tensor in weights}) == 1
    assert output_mismatch(graph, module, batches(graph)).largest_step <= 2


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_with_weight_and_bias_from_elsewhere_keeps_the_integers(form):
    graph = parse(TIED, fill=integers)
    module = to_module(graph, form=form)
    tokens = torch.arange(5)[None]
    expected = run_integer(graph, [tokens])[0]
    with torch.no_grad():
        assert (module(tokens) - expected).abs().max() <= 1.01 * 0.03
    if form == "qdq":
        assert module.head.weight is module.embed.weight_1 and module.head.weight.dtype is torch.int8


@pytest.mark.parametrize("form", FORMS)
def test_int16_activations_and_four_bit_weights_are_computed(form):
    graph = parse(
        """
        graph(%x: f32[1x4]) {
          const %fc.weight: i8[4x4]<bits=4, scale=0.1, zero=0>
          %q: i16[1x4]<bits=16, scale=0.001, zero=0> = quantize(%x)
          %a: i16[1x4]<bits=16, scale=0.001, zero=0> = linear(%q, %fc.weight)
          return y: %a
        }""",
        fill=lambda value: torch.randint(-8, 8, value.type.shape).to(torch.int8),
    )
    assert output_mismatch(graph, to_module(graph, form=form), batches(graph)).largest_step <= 1


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("form", FORMS)
def test_activations_of_few_bits_saturate_at_their_own_levels(form, bits):
    encoding = f"i8[1x8]<bits={bits}, scale=0.25, zero=1>"
    graph = parse(
        f"""
        graph(%x: f32[1x8]) {{
          const %fc.weight: i8[8x8]<scale=0.1, zero=0>
          %q: {encoding} = quantize(%x)
          %a: {encoding} = linear(%q, %fc.weight)
          %g: {encoding} = gelu(%a)
          %s: {encoding} = add(%a, %q)
          %p: {encoding} = mul(%s, %g)
          return a: %a, g: %g, s: %s, p: %p
        }}""",
        fill=integers,
    )
    calls = [[20 * x for x in call] for call in batches(graph)]
    found = requantization_mismatch(graph, calls, form=form)
    assert found.keys() == {"q", "a", "g", "s", "p"}
    assert max(mismatch.largest_step for mismatch in found.values()) <= 1
    assert found["q"].largest_step == 0


@pytest.mark.parametrize("form", FORMS)
def test_signals_with_uneven_padding_are_computed(form):
    graph = parse(
        """
        graph(%x: f32[2x4x9]) {
          const %conv.weight: i8[4x4x3]<scale=0.01, zero=0>
          const %lone.weight: i8[3x4]<scale=0.01, zero=0>
          %q: i8[2x4x9]<scale=0.03, zero=20> = quantize(%x)
          %a: i8[2x4x9]<scale=0.05, zero=-9> = conv{stride=(1,), padding=(2, 0), dilation=(1,)}\
            (%q, %conv.weight, none, %q)
          %b: i8[2x4]<scale=0.05, zero=-9> = select{axis=2, index=1}(%a)
          %v: i8[4]<scale=0.05, zero=-9> = select{axis=0, index=1}(%b)
          %y: i8[3]<scale=0.05, zero=1> = linear(%v, %lone.weight)
          return y: %y
        }""",
        fill=integers,
    )
    found = requantization_mismatch(graph, batches(graph), form=form)
    assert max(mismatch.largest_step for mismatch in found.values()) <= 1


@pytest.mark.parametrize("form", FORMS)
def test_the_written_file_needs_nothing_but_torch(form, tmp_path):
    artifact = emit(network(), TorchOptions(form))
    artifact.save(tmp_path)
    runs = "import torch, model, safetensors.torch as s; m = model.Model(); s.load_model(m, 'model.safetensors');"
    runs += "m.eval(); torch.save(m(torch.ones(1, 4, 9, 9))[1], 'y.pt')"
    subprocess.run([sys.executable, "-c", runs], cwd=tmp_path, check=True)
    assert "import fxpress" not in artifact.source and "from fxpress" not in artifact.source
    assert torch.equal(torch.load(tmp_path / "y.pt"), artifact.build()(torch.ones(1, 4, 9, 9))[1])


def test_the_eager_source_shows_kernels_by_name():
    source = emit(network(), TorchOptions("eager", name="net")).source
    assert "self.block.conv = Int8Conv((8, 8, 3, 3), stride=(1, 1), padding=(1, 1, 1, 1)" in source
    assert "self.block.conv(x, x)" in source
    assert "lookup(self.table_0, " in source
    assert "class Int8Linear" in source
    assert "QuantizedConv2d" not in source


def test_weights_and_bytes_at_the_ends_of_their_range_do_not_saturate_within_a_kernel():
    graph = parse(
        """
graph(%x: i8[1x24]<scale=0.01, zero=-128>) {
  const %l.weight: i8[2x24]<scale=(0.01, 0.02), zero=0, axis=0>
  %y: i8[1x2]<scale=0.25, zero=-128> = linear(%x, %l.weight)   # "l", "net.py:1"
  return y: %y
}
""",
        params={"l.weight": torch.full((2, 24), 127, dtype=torch.int8)},
    )
    x = torch.full((1, 24), 127, dtype=torch.int8)
    for form in FORMS:
        assert output_mismatch(graph, to_module(graph, form=form), [[x]]).largest_step <= 1, form


@pytest.mark.parametrize("form", FORMS)
def test_tables_stay_integers_and_their_rows_are_moved(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(-128, 128, (20, 8), generator=generator).to(torch.int8)
    graph = parse(ROWS, params={"embed.weight": table})
    artifact, indices = emit(graph, TorchOptions(form)), torch.tensor([[0, 19, 7, 7, 3]])
    assert torch.equal(artifact.tensors["embed.weight"], table)
    for y, expected in zip(artifact.build()(indices), run_integer(graph, [indices]), strict=True):
        assert torch.equal(y, expected)
