"""Predicted bytes of constants are those of the arrays in the file of constants; less memory where it is short."""

import re

from fxpress.backends.c import check, emit
from fxpress.backends.c.lower import lower
from fxpress.ir import parse
from fxpress.specs import COutput, load_target

OUTPUT = COutput(name="net", io="float", self_test=0)
BYTES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "float": 4, "int64_t": 8}
CONV = """
graph(%x: i8[1x8x16x16]<scale=0.05, zero=-3>) {
  const %w: i8[8x8x3x3]<scale=0.01, zero=0>
  const %v: i8[8x8x3x3]<scale=0.01, zero=0>
  %y: i8[1x8x16x16]<scale=0.07, zero=6> = conv{padding=(1, 1, 1, 1)}(%x, %w)
  %z: i8[1x8x16x16]<scale=0.07, zero=6> = conv{padding=(1, 1, 1, 1)}(%y, %v)
  return y: %z
}
"""


def array_bytes(text: str) -> int:
    """Bytes of the arrays that a file of constants defines, each aligned to 4."""
    found = re.findall(r"^const (\w+) \w+\[(\d+)\]", text, re.MULTILINE)
    assert found or "const" not in text
    return sum(-(-BYTES[kind] * int(size) // 4) * 4 for kind, size in found)


def test_every_constant_that_is_written_is_predicted(operators, cortex_m4):
    artifact = emit(operators, OUTPUT, cortex_m4)
    predicted = sum(node.constant_bytes for node in artifact.prediction.nodes)
    assert predicted == artifact.constant_bytes == array_bytes(artifact.files["net_weights.c"].decode())


def test_a_table_that_is_added_counts(fill, cortex_m4):
    graph = parse(
        """
        graph(%x: f32[1x64x64]) {
          const %t: f32[64x64]
          %y: f32[1x64x64] = add(%x, %t)
          return y: %y
        }""",
        fill=fill,
    )
    (node,) = emit(graph, OUTPUT, cortex_m4).prediction.nodes
    assert node.constant_bytes == 4 * 64 * 64


def test_kernels_of_less_memory_are_tried_before_a_target_is_refused(fill):
    graph, target = parse(CONV, fill=fill), load_target("cortex-m0plus")
    roomy = lower(graph, OUTPUT, target)
    assert not roomy.notes
    small = target.model_copy(update={"ram": roomy.plan.arena_bytes - 4})
    found = lower(graph, OUTPUT, small)
    assert found.plan.arena_bytes <= small.ram < roomy.plan.arena_bytes
    assert not check(graph, OUTPUT, small)
    (note,) = emit(graph, OUTPUT, small).notes
    way = "(.* some rows at a time|kernels of less arena|; )+: an arena of"
    assert re.fullmatch(way + r" [\d,]+ B in place of [\d,]+ B, for [\d,]+ more .*", note)


def test_the_least_arena_is_what_a_refusal_names(fill):
    graph, target = parse(CONV, fill=fill), load_target("cortex-m0plus")
    tiny = target.model_copy(update={"ram": 100})
    least = lower(graph, OUTPUT, tiny)
    assert least.plan.arena_bytes == 3 * 8 * 16  # the rows under a window
    (problem,) = check(graph, OUTPUT, tiny)
    assert problem.code == "C707" and f"needs {least.plan.arena_bytes:,} bytes" in problem.message
