"""States in place: the module gives the results of a copying module, in the memory of its arguments."""

from __future__ import annotations

import pytest
import torch

from fxpress.backends.torch_module import TorchOptions, emit
from fxpress.ir import Graph, UnsupportedError, parse, run

STEP = """
graph(%rows: f32[2x4], %at: i64[2], %cache: f32[5x4]) {
  %new: f32[5x4] = index_copy{axis=0}(%cache, %at, %rows)
  %y: f32[5x4] = relu(%new)
  return y: %y, cache_out: %new
}
"""


def graph(text: str = STEP) -> Graph:
    return parse(text)


def test_a_state_in_place_has_the_memory_of_its_input() -> None:
    rows, at, cache = torch.randn(2, 4), torch.tensor([3, -5]), torch.randn(5, 4)
    expected = run(graph(), [rows, at, cache])
    artifact = emit(graph(), TorchOptions(in_place={"cache": "cache_out"}))
    assert "The call writes to cache," in artifact.source
    given = cache.clone()
    y, state = artifact.build()(rows, at, given)
    assert state is given
    torch.testing.assert_close([y, state], expected, rtol=0, atol=0)


def test_a_state_is_copied_unless_it_is_asked_for() -> None:
    cache = torch.zeros(5, 4)
    _, state = emit(graph()).build()(torch.ones(2, 4), torch.tensor([0, 1]), cache)
    assert not cache.any() and state.any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STEP.replace("relu(%new)", "relu(%cache)"), "is not its only use"),
        (STEP.replace("cache_out: %new", "cache_out: %y"), "is not an index_copy"),
    ],
)
def test_a_state_that_cannot_be_in_place_is_refused(text: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=f"state cache cannot be in place: .*{words}"):
        emit(graph(text), TorchOptions(in_place={"cache": "cache_out"}))
