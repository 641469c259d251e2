"""The C of every operator gives the results of the interpreter: integers exactly, floats within rounding."""

from __future__ import annotations

import pytest

from fxpress.backends.c.kernels import kernels
from fxpress.ir import OPERATORS, parse
from fxpress.specs.outputs import COutput

REFUSED = {"torch_call", "fake_quantize_per_token"}


def test_every_operator_equals_the_interpreter(operators, assert_equal_to_interpreter):
    assert_equal_to_interpreter(operators)


def test_every_operator_equals_the_interpreter_without_undefined_behaviour(
    operators, assert_equal_to_interpreter
):
    flags = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    assert_equal_to_interpreter(operators, flags=flags, seeds=1)


def test_every_operator_equals_the_interpreter_as_the_dsp_kernels_compute_it(
    operators, cortex_m4, assert_equal_to_interpreter
):
    assert_equal_to_interpreter(operators, target=cortex_m4)


def test_every_operator_equals_the_interpreter_with_its_ports_in_the_arena(
    operators, assert_equal_to_interpreter
):
    assert_equal_to_interpreter(operators, options=COutput(name="net", buffers="arena"), seeds=1)


def test_every_operator_has_a_kernel_or_a_named_reason_for_having_none():
    assert OPERATORS.keys() - kernels().keys() == REFUSED


def test_every_operator_with_a_kernel_is_tried(operator_cases):
    tried = {node.op.name for text in operator_cases.values() for node in parse(text).nodes}
    assert tried == OPERATORS.keys() - REFUSED


def test_a_wrong_kernel_is_found(fill, monkeypatch, assert_equal_to_interpreter):
    graph = parse(
        """graph(%x: i8[1x16]<scale=0.05, zero=-3>) {
          const %w: i8[4x16]<scale=0.01, zero=0>
          %y: i8[1x4]<scale=0.07, zero=6> = linear(%x, %w)
          return y: %y
        }""",
        fill=fill,
    )
    assert_equal_to_interpreter(graph)
    folded = "fxpress.backends.c.kernels.portable.products.folded_bias"
    monkeypatch.setattr(folded, lambda site, weight: (weight.sum(axis=1)).astype("int32"))
    with pytest.raises(AssertionError, match="step 0"):
        assert_equal_to_interpreter(graph)
