"""Weights with a codebook of integers."""

import pytest
import torch

from fxpress.ir import (
    VerifyError,
    coded_weights,
    decode_codebooks,
    encode_codebooks,
    parse,
    run_integer,
    verify,
)

CODES = """graph(%x: i8[1x2]<scale=0.1, zero=0>) {
  const %w: u8[2x2]<scale=0.1, zero=0, bits=2, levels=LEVELS>
  %y: i8[1x2]<scale=0.1, zero=0> = linear(%x, %w)
  return output: %y
}"""


def test_arithmetic_on_codes_that_are_no_integers_is_refused() -> None:
    params = {"w": torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)}
    graph = verify(parse(CODES.replace("LEVELS", "(-3, 5)"), params=params))
    assert run_integer(graph, [torch.tensor([[1, 2]])])[0].tolist() == [[1, 0]]
    with pytest.raises(VerifyError, match="dequantize it"):
        verify(parse(CODES.replace("LEVELS", "(-3.5, 5.0)"), params=params))


def test_weights_that_something_else_reads_are_codes_for_all() -> None:
    params = {"w": torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)}
    text = CODES.replace("LEVELS", "(-3, 5)")
    graph = verify(parse(text, params=params))
    shown = parse(text.replace("output: %y", "output: %y, weight: %w"), params=params)
    assert coded_weights(graph) == {"w"} and coded_weights(shown) == frozenset()
    with pytest.raises(VerifyError, match="dequantize it"):
        verify(shown)
    plain = decode_codebooks(graph)
    assert plain.params["w"].tolist() == [[-3, 5], [5, -3]]
    assert encode_codebooks(plain, ["w"]) == graph
