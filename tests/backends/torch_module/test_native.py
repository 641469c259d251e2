"""The native form: the integers of the graph, on every instruction set, and the behaviour without a compiler."""

import copy
import io
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends import torch_module
from fxpress.backends.torch_module import (
    TorchOptions,
    emit,
    output_mismatch,
    requantization_mismatch,
    to_module,
)
from fxpress.backends.torch_module.native import NativeStyle
from fxpress.ir import Graph, Value, parse, rebatch, run_integer
from fxpress.ir.testing import inputs, quantized_graphs

SOURCES = Path(torch_module.__file__).parent
CHECK = Path(__file__).with_name("int8_layers_check.c")
BUILDS = {
    "native": (["gcc", "-O2", "-march=native"], []),
    "avx2": (["gcc", "-O2", "-mavx2"], []),
    "plain": (["gcc", "-O2"], []),
    "clang": (["clang", "-O1", "-march=native"], []),
    "neon": (
        ["aarch64-linux-gnu-gcc", "-O2", "-march=armv8.2-a+dotprod", "-static"],
        ["qemu-aarch64", "-cpu", "max"],
    ),
    "sanitized": (["gcc", "-O1", "-march=native", "-fsanitize=address,undefined"], []),
}


@cache
def outcome(build: str, folder: Path) -> str:
    command, emulator = BUILDS[build]
    for program in (command[0], *emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if build == "avx2" and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this processor has no AVX2")
    flags = ["-DCASES=400", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    subprocess.run([*command, *flags, "-o", folder / build, CHECK, "-lm"], check=True)
    return subprocess.run([*emulator, folder / build], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8_layers")


@pytest.mark.parametrize("build", BUILDS)
def test_every_instruction_set_computes_random_layers_exactly(build: str, folder: Path) -> None:
    name, cases, _, differing, *_ = outcome(build, folder).split()
    assert int(cases) > 500 and differing == "0"
    expected = {"avx2": "avx2", "plain": "c", "neon": "neon-dotprod"}
    assert name.rstrip(":") == expected.get(build, name.rstrip(":"))


@pytest.mark.parametrize("build", ["avx2", "plain", "clang", "neon"])
def test_instruction_sets_give_the_same_bytes(build: str, folder: Path) -> None:
    assert outcome(build, folder).split()[-1] == outcome("native", folder).split()[-1]


def integers(value: Value) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)))
    quantization = value.type.quantization
    assert quantization is not None
    wide = quantization.bits == 32
    low, high = (-500, 500) if wide else (quantization.qmin, quantization.qmax + 1)
    return torch.randint(low, high, value.type.shape, generator=generator).to(value.type.dtype.torch)


LAYERS = {
    "a pointwise convolution": (
        "i8[2x19x5x6]<scale=0.05, zero=-3>",
        "i8[37x19x1x1]<scale=0.01, zero=0>",
        "i8[2x37x5x6]<scale=0.05, zero=9> = conv",
    ),
    "a convolution with strides, dilation and uneven padding": (
        "i8[1x5x9x11]<scale=0.05, zero=20>",
        "i8[18x5x3x2]<scale=0.01, zero=0>",
        "i8[1x18x5x5]<scale=0.05, zero=9> = conv{stride=(2, 2), padding=(2, 1, 0, 1), dilation=(1, 2)}",
    ),
    "a grouped convolution": (
        "i8[1x6x5x5]<scale=0.05, zero=-3>",
        "i8[9x2x3x3]<scale=0.01, zero=0>",
        "i8[1x9x3x3]<scale=0.05, zero=9> = conv{groups=3}",
    ),
    "a depthwise convolution": (
        "i8[2x70x7x7]<scale=0.05, zero=-128>",
        "i8[70x1x3x3]<scale=0.01, zero=0>",
        "i8[2x70x7x7]<scale=0.03, zero=-128> = conv{padding=(1, 1, 1, 1), groups=70, clamp=(0.0, 6.0)}",
    ),
    "a depthwise convolution with two outputs for each channel": (
        "i8[1x6x5x5]<scale=0.05, zero=-3>",
        "i8[12x1x3x3]<scale=0.01, zero=0>",
        "i8[1x12x3x3]<scale=0.05, zero=9> = conv{groups=6}",
    ),
    "a depthwise convolution of signals": (
        "i8[1x33x20]<scale=0.05, zero=-3>",
        "i8[33x1x9]<scale=0.01, zero=0>",
        "i8[1x33x10]<scale=0.05, zero=9> = conv{stride=(2,), padding=(4, 4), dilation=(1,), groups=33}",
    ),
    "a convolution of signals": (
        "i8[2x3x17]<scale=0.05, zero=-3>",
        "i8[5x3x4]<scale=0.01, zero=0>",
        "i8[2x5x11]<scale=0.05, zero=9> = conv{stride=(1,), padding=(0, 0), dilation=(2,)}",
    ),
    "weights and activations of 4 bits": (
        "i8[1x8x3x3]<bits=4, scale=0.5, zero=-3>",
        "i8[16x8x1x1]<bits=4, scale=0.1, zero=0>",
        "i8[1x16x3x3]<bits=4, scale=0.9, zero=2> = conv",
    ),
    "a linear layer": (
        "i8[2x3x70]<scale=0.05, zero=-3>",
        "i8[21x70]<scale=0.01, zero=0>",
        "i8[2x3x21]<scale=0.05, zero=9> = linear{clamp=(-1.0, 3.0)}",
    ),
    "a linear layer of a vector": (
        "i8[7]<scale=0.05, zero=-3>",
        "i8[5x7]<scale=0.01, zero=0>",
        "i8[5]<scale=0.05, zero=9> = linear",
    ),
    "large scales, shifted": (
        "i8[4x8]<scale=0.5, zero=0>",
        "i8[5x8]<scale=0.5, zero=0>",
        "i8[4x5]<scale=0.2, zero=9> = linear",
    ),
}


def layer_graph(layer: str, *, with_bias: bool, with_residual: bool) -> Graph:
    x, weight, result = LAYERS[layer]
    y, _, op = result.partition(" = ")
    x_scale, weight_scale = (float(text.split("scale=")[1].split(",")[0]) for text in (x, weight))
    outputs = weight[weight.index("[") + 1 :].replace("]", "x").split("x")[0]
    arguments, constants, operands = [f"%x: {x}"], [f"const %w: {weight}"], ["%x", "%w"]
    if with_bias:
        constants.append(f"const %b: i32[{outputs}]<scale={x_scale * weight_scale!r}, zero=0>")
    if with_bias or with_residual:
        operands.append("%b" if with_bias else "none")
    if with_residual:
        arguments.append(f"%r: {y.replace('scale=0.', 'scale=0.1')}")
        operands.append("%r")
    lines = [*constants, f"%y: {y} = {op}({', '.join(operands)})", "return y: %y"]
    return parse("\n".join([f"graph({', '.join(arguments)}) {{", *lines, "}"]), fill=integers)


def batches(graph: Graph) -> list[list[torch.Tensor]]:
    return [[integers(value) for value in graph.inputs]]


@pytest.mark.parametrize("with_bias", (False, True))
@pytest.mark.parametrize("with_residual", (False, True))
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_equals_its_integers(layer: str, with_bias: bool, with_residual: bool) -> None:
    graph = layer_graph(layer, with_bias=with_bias, with_residual=with_residual)
    module = to_module(graph, form="native")
    assert output_mismatch(graph, module, batches(graph)).differing == 0
    assert any(layer.call is not None for layer in module.modules() if hasattr(layer, "call"))
    assert not emit(graph, TorchOptions("native")).notes


BYTES = """
graph(%x: f32[2x3x6x6]) {
  %q: i8[2x3x6x6]<scale=0.05, zero=-3> = quantize(%x)
  %t: i8[2x3x6x6]<scale=0.03, zero=3> = tanh(%q)
  %s: i8[2x3x6x6]<scale=0.07, zero=5> = sub(%q, %t)
  %m: i8[2x3x6x6]<scale=0.02, zero=-9> = mul(%s, %t)
  %a: i8[2x3x6x6]<scale=0.05, zero=1> = add{clamp=(-2.0, 2.0)}(%m, %q)
  %g: i8[2x3x1x1]<scale=0.02, zero=4> = mean{axes=(2, 3), keepdim=True}(%a)
  %k: i8[2x3x6x6]<scale=0.02, zero=4> = mul(%a, %g)
  %p: i8[2x3x3x4]<scale=0.04, zero=0> = avg_pool{kernel=(2, 3), stride=(2, 2), padding=(0, 0, 1, 1)}(%k)
  %u: i8[2x3x4x4]<scale=0.03, zero=7> = adaptive_avg_pool{size=(4, 4)}(%k)
  %e: i8[2x3]<scale=0.02, zero=0> = mean{axes=(2, 3)}(%k)
  %c: i8[2x6]<scale=0.02, zero=0> = concat{axis=1}(%e, %e)
  %r: f32[2x6] = dequantize(%c)
  return y: %r, k: %k, p: %p, u: %u
}
"""


def test_functions_of_bytes_equal_their_integers_and_notes_name_the_others() -> None:
    graph = parse(BYTES)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, generator=generator)
    x[0, 0, 0, :4] = torch.tensor([0.125, -0.125, float("nan"), float("inf")])  # halves away from zero
    found = requantization_mismatch(graph, [[x], [x.mT * 5]], form="native")
    assert {name for name, mismatch in found.items() if mismatch.differing} <= {"u"}
    (note,) = emit(graph, TorchOptions("native")).notes
    assert "without an integer kernel: 1 adaptive_avg_pool. " in note


@pytest.mark.parametrize("length", [1, 3, 4])
def test_windows_that_end_beyond_the_values_are_averaged(length: int) -> None:
    count = -(-length // 2)
    graph = parse(f"""
    graph(%x: f32[2x3x{length}]) {{
      %q: i8[2x3x{length}]<scale=0.05, zero=-3> = quantize(%x)
      %y: i8[2x3x{count}]<scale=0.05, zero=-3> = avg_pool{{kernel=(2,), stride=(2,), padding=(0, 0), ceil=True}}(%q)
      return y: %y
    }}""")
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0))
    found = requantization_mismatch(graph, [[x]], form="native")
    assert max(mismatch.largest_step for mismatch in found.values()) <= 1


def test_random_graphs_are_exact_but_for_the_operators_of_the_notes() -> None:
    @settings(max_examples=10)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        graph: Graph = data.draw(quantized_graphs())
        style = NativeStyle(graph)
        exact = {v.name for node in graph.nodes if style._is_exact(node) for v in node.outputs}
        found = requantization_mismatch(graph, [data.draw(inputs(graph))], form="native")
        assert not {name for name, mismatch in found.items() if mismatch.differing} & exact

    holds()


CHAIN = """
graph(%x: f32[1x3x10x10]) {
  const %stem.weight: i8[8x3x3x3]<scale=0.01, zero=0>
  const %stem.bias: i32[8]<scale=0.0005, zero=0>
  const %depthwise.weight: i8[8x1x3x3]<scale=0.01, zero=0>
  const %head.weight: i8[5x8]<scale=0.02, zero=0>
  %q: i8[1x3x10x10]<scale=0.05, zero=-3> = quantize(%x)
  %a: i8[1x8x10x10]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%q, %stem.weight, %stem.bias)
  %b: i8[1x8x10x10]<scale=0.03, zero=9> = conv{padding=(1, 1, 1, 1), groups=8}(%a, %depthwise.weight, none, %a)
  %m: i8[1x8]<scale=0.01, zero=-20> = mean{axes=(2, 3)}(%b)
  %y: i8[1x5]<scale=0.02, zero=5> = linear(%m, %head.weight)
  %r: f32[1x5] = dequantize(%y)
  return scores: %r
}
"""


def chain() -> Graph:
    return parse(CHAIN, fill=integers)


def test_a_saved_copied_and_reloaded_module_keeps_the_integers() -> None:
    graph, x = chain(), torch.randn(1, 3, 10, 10)
    module, (expected,) = to_module(graph, form="native"), run_integer(graph, [x])
    assert torch.equal(module(x), expected)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    other = to_module(parse(CHAIN, fill=lambda value: integers(value) // 2), form="native")
    before = other(x)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected) and not torch.equal(before, expected)


def test_state_has_integers_under_the_users_keys() -> None:
    state = to_module(chain(), form="native").state_dict()
    assert state["stem.weight"].dtype is torch.int8 and state["stem.bias"].dtype is torch.int32
    steps = {f"{layer}.{name}" for layer in ("stem", "depthwise", "head") for name in ("multiplier", "shift")}
    scales = {f"{layer}.weight_scale" for layer in ("stem", "depthwise", "head")}
    assert set(state) == {
        "stem.weight",
        "stem.bias",
        "depthwise.weight",
        "head.weight",
        *steps,
        *scales,
    }


def test_batches_layouts_and_threads_change_no_byte() -> None:
    x = torch.randn(5, 3, 10, 10)
    single, several = (to_module(graph, form="native") for graph in (chain(), rebatch(chain(), 5)))
    expected = torch.cat([single(one[None]) for one in x])
    assert torch.equal(several(x), expected)
    assert torch.equal(several(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(several(x.mT.contiguous().mT), expected)
    bytes_in, layer = torch.randint(0, 256, (5, 3, 10, 10), dtype=torch.uint8), single.stem
    expected, results = layer(bytes_in), [torch.empty(0)] * 8

    def compute(index: int) -> None:
        results[index] = layer(bytes_in[: 1 + index % 5])

    threads = [threading.Thread(target=compute, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected[: 1 + index % 5]) for index, result in enumerate(results))


def test_several_threads_compute_large_layers_alike() -> None:
    graph = parse(
        """
        graph(%x: i8[1x64x18x18]<scale=0.05, zero=-3>) {
          const %a.weight: i8[64x64x3x3]<scale=0.01, zero=0>
          const %b.weight: i8[64x1x3x3]<scale=0.01, zero=0>
          %a: i8[1x64x16x16]<scale=0.5, zero=-3> = conv(%x, %a.weight)
          %b: i8[1x64x14x14]<scale=0.5, zero=-3> = conv{groups=64}(%a, %b.weight)
          return y: %b
        }""",
        fill=integers,
    )
    module, threads = to_module(graph, form="native"), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert output_mismatch(graph, module, batches(graph)).differing == 0
    finally:
        torch.set_num_threads(threads)


def test_sums_beyond_32_bits_are_left_to_the_eager_kernels_and_reported() -> None:
    graph = parse(
        """
        graph(%x: i8[1x4]<scale=0.5, zero=0>) {
          const %w: i8[2x4]<scale=0.01, zero=0>
          const %b: i32[2]<scale=0.005, zero=0>
          %y: i8[1x2]<scale=100000.0, zero=0> = linear(%x, %w, %b)
          return y: %y
        }""",
        fill=lambda value: (
            integers(value) if value.name == "w" else torch.full((2,), 2**31 - 9, dtype=torch.int32)
        ),
    )
    (note,) = emit(graph, TorchOptions("native")).notes
    assert "1 linear" in note
    module = to_module(graph, form="native")
    assert output_mismatch(graph, module, batches(graph)).largest_step <= 1


def test_without_a_compiler_torch_computes_the_layers_within_one_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    graph, x = parse(BYTES), torch.randn(2, 3, 6, 6)
    artifact = emit(graph, TorchOptions("native", name="Uncompiled"))
    artifact.save(tmp_path)
    assert (tmp_path / "int8_layers.c").read_bytes() == (SOURCES / "int8_layers.c").read_bytes()
    with pytest.warns(UserWarning, match="int8_layers.c was not compiled.*no-such-compiler"):
        _, k, p, u = artifact.build()(x)
    _, exact_k, exact_p, exact_u = run_integer(graph, [x])
    limits = zip(
        (k, p, u), (exact_k, exact_p, exact_u), (2, 2, 2), strict=True
    )  # an average is one step apart
    assert all((found.int() - exact).abs().max() <= limit for found, exact, limit in limits)
    for layer in LAYERS:
        graph = layer_graph(layer, with_bias=True, with_residual=True)
        with pytest.warns(UserWarning, match="was not compiled"):
            module = emit(graph, TorchOptions("native", name="Uncompiled")).build()
            assert output_mismatch(graph, module, batches(graph)).largest_step <= 1, layer
