"""Graphs that cannot be emitted are refused before anything is written, with all problems at once."""

from __future__ import annotations

import pytest

from fxpress.backends.c.check import check
from fxpress.backends.c.cost.predict import predict_node
from fxpress.backends.c.lower import predict
from fxpress.backends.errors import CODES
from fxpress.ir import parse
from fxpress.ir.errors import UnsupportedError
from fxpress.specs.outputs import COutput

Q = "<scale=0.1, zero=0>"
REFUSED = {
    "C701": (
        "graph(%x: f32[1x2x2x2x2]) {\n %y: f32[1x2x2x2x2] = relu(%x)\n return y: %y\n}",
        "input x: has 5 dimensions; C supports at most 4 [C701]",
    ),
    "C702": (
        """graph(%x: f32[1x4]) {
          %y: f32[1x4] = torch_call{call='aten.cumsum.default(x0, 1)'}(%x)   # "head.scan", "net.py:7"
          return y: %y
        }""",
        "head.scan at net.py:7: no C kernel for aten.cumsum.default: this operator is not part of the C backend; "
        "replace the operator, or do not compile this part of the model [C702]",
    ),
    "C703": (
        "graph(%x: f64[1x4]) {\n %y: f64[1x4] = relu(%x)\n return y: %y\n}",
        "%y: relu on elements of type f64; C computes on float32 and on integers quantized from it: set "
        "`dtype: float32` under `model` [C703]",
    ),
    "C704": (
        "graph(%x: i32[1x4]<scale=0.1, zero=0>) {\n %y: i32[1x4]<scale=0.1, zero=0> = copy(%x)\n return y: %y\n}",
        "%y: copy on activations of 32 bits; the C kernels support 8 or 16 bits [C704]",
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_refusal_names_the_place_the_fact_and_what_to_do(code, host):
    text, message = REFUSED[code]
    assert [str(p) for p in check(parse(text), COutput(name="net"), host)] == [message]


def test_a_layer_in_float_is_refused_where_that_is_asked_for(host):
    graph = parse("graph(%x: f32[1x4]) {\n %y: f32[1x4] = relu(%x)\n return y: %y\n}")
    problems = check(graph, COutput(name="net", allow_float=False), host)
    assert [str(p) for p in problems] == [
        "%y: relu computes in float; quantize this layer, or set allow_float: true [C705]"
    ]
    assert not check(graph, COutput(name="net"), host)


def test_a_float_port_is_refused_where_int8_is_asked_for(host):
    graph = parse("graph(%x: f32[1x4]) {\n %y: f32[1x4] = relu(%x)\n return y: %y\n}")
    messages = [p.message for p in check(graph, COutput(name="net", io="int8"), host)]
    assert messages == ["is not quantized, but io is int8"] * 2


def test_a_port_of_whole_numbers_is_no_float_port(host):
    graph = parse("""graph(%ids: i64[1x4]) {
      const %table: i8[8x4]<scale=0.1, zero=0>
      %y: i8[1x4x4]<scale=0.1, zero=0> = embedding(%ids, %table)
      return y: %y
    }""")
    assert not check(graph, COutput(name="net", io="int8"), host)


def test_conversions_at_the_edges_count_as_int8(host):
    graph = parse(f"""graph(%x: f32[1x4]) {{
      %q: i8[1x4]{Q} = quantize(%x)
      %r: i8[1x4]{Q} = relu(%q)
      %y: f32[1x4] = dequantize(%r)
      return y: %y
    }}""")
    assert not check(graph, COutput(name="net", io="int8", allow_float=False), host)


def test_an_arena_or_flash_beyond_the_target_is_refused_with_both_figures(host):
    graph = parse("""graph(%x: f32[1x64]) {
      const %w: f32[512x64]
      %a: f32[1x512] = linear(%x, %w)
      %b: f32[1x512] = relu(%a)
      %c: f32[1x512] = add(%b, %a)
      return c: %c
    }""")
    small = host.model_copy(update={"ram": 1024, "flash": 4096})
    messages = [p.message for p in check(graph, COutput(name="net"), small)]
    assert (
        messages[0] == "the arena needs 2,048 bytes in the smallest plan that was found, the target has 1,024"
    )
    assert messages[1].startswith("code and constants need about 13")


def test_all_problems_come_at_once(host):
    graph = parse("""graph(%x: f32[1x1x1x2x4]) {
      %a: f32[1x1x1x2x4] = torch_call{call='aten.cumsum.default(x0, 1)'}(%x)
      %b: f32[1x1x1x2x4] = torch_call{call='aten.cumprod.default(x0, 1)'}(%a)
      return b: %b
    }""")
    assert [p.code for p in check(graph, COutput(name="net"), host)] == ["C701", "C702", "C702"]


def test_every_code_of_these_refusals_is_registered():
    assert set(REFUSED) <= CODES.keys()


def test_emission_without_check_names_the_node(host):
    graph = parse(REFUSED["C702"][0])
    with pytest.raises(UnsupportedError, match=r"no C kernel for %y.*cumsum.*not part of the C backend"):
        predict(graph, host)


def test_a_prediction_counts_each_node_and_the_arena(fill, host, cortex_m4):
    graph = parse(
        f"""graph(%x: i8[1x8x6x6]{Q}) {{
          const %w: i8[16x8x1x1]<scale=0.01, zero=0>
          %a: i8[1x16x6x6]{Q} = conv(%x, %w)
          %b: i8[1x16x6x6]{Q} = conv{{groups=1}}(%x, %w)
          %c: i8[1x16x6x6]{Q} = add(%a, %b)
          return c: %c
        }}""",
        fill=fill,
    )
    on_m4, portable = predict(graph, cortex_m4), predict(graph, host)
    assert [n.operator for n in on_m4.nodes] == ["conv", "conv", "add"]
    assert on_m4.macs == graph.macs == 2 * 16 * 8 * 36
    assert on_m4.instructions < portable.instructions
    assert on_m4.nodes[1].code_bytes == 0, "the second convolution shares the function of the first"
    assert on_m4.nodes[1].constant_bytes == 0, "and its constants"
    assert on_m4.arena_bytes >= 576
    alone = predict_node(graph.nodes[0], graph, cortex_m4)
    assert alone is not None
    assert alone.kernel == on_m4.nodes[0].kernel


def test_a_stack_beyond_what_the_target_allows_is_refused(host):
    graph = parse("graph(%x: f32[1x4]) {\n %y: f32[1x4] = relu(%x)\n return y: %y\n}")
    small = host.model_copy(update={"stack": 256})
    assert [str(p) for p in check(graph, COutput(name="net"), small)] == [
        "target host: the stack may need 320 bytes, the target allows 256; quantize the float layers, or raise "
        "stack [C709]"
    ]


def test_a_layout_for_something_that_is_no_port_is_refused(host):
    graph = parse("graph(%x: f32[1x4]) {\n %y: f32[1x4] = relu(%x)\n return y: %y\n}")
    options = COutput(name="net", layouts={"z": "nchw"})
    assert [str(p) for p in check(graph, options, host)] == [
        "layouts.z: is not an input or output; the names are x, y [C710]"
    ]


@pytest.mark.parametrize("word", ["nhwc", "nchw"])
def test_an_order_of_images_for_a_port_without_four_dimensions_is_refused(host, word):
    graph = parse("graph(%x: f32[1x2x4]) {\n %y: f32[1x2x4] = relu(%x)\n return y: %y\n}")
    options = COutput(name="net", layouts={"x": word, "y": "model"})
    assert [str(p) for p in check(graph, options, host)] == [
        f"layouts.x: {word} is an order of four dimensions, but there are 3; remove it: the order is the "
        "model's [C710]"
    ]


def test_an_order_of_sequences_is_for_three_dimensions(host):
    graph = parse("graph(%x: f32[1x2x4], %z: f32[2x4]) {\n %y: f32[1x2x4] = add(%x, %z)\n return y: %y\n}")
    options = COutput(name="net", layouts={"x": "ntc", "z": "ntc"})
    assert [str(p) for p in check(graph, options, host)] == [
        "layouts.z: ntc is an order of three dimensions, but there are 2; remove it: the order is the model's "
        "[C710]"
    ]


def test_values_without_elements_are_refused(host):
    graph = parse(
        "graph(%x: f32[1x4]) {\n %y: f32[1x0] = slice{axis=1, start=2, stop=2}(%x)\n return y: %y\n}"
    )
    assert [str(p) for p in check(graph, COutput(name="net"), host)] == [
        "%y: slice on values without elements; remove such parts [C701]"
    ]


def test_a_network_without_nodes_gives_back_its_input(assert_equal_to_interpreter):
    assert_equal_to_interpreter(parse("graph(%x: f32[1x4], %unused: f32[3]) {\n return y: %x\n}"))
