"""Number of samples that run together in calibration."""

import pytest
import torch

from fxpress.ir import parse
from fxpress.passes.calibration.calibrate import batch_size, passes_batches


def test_samples_run_one_by_one_where_a_result_does_not_grow_with_them() -> None:
    graph = parse("""
graph(%x: f32[1x3]) {
  const %zero: f32[]
  %y: f32[1x3] = relu(%x)
  %e: f32[2x3] = expand{shape=(2, 3)}(%zero)
  return y: %y, e: %e
}""")
    samples = [(torch.randn(1, 3),) for _ in range(4)]
    assert not passes_batches(graph, samples[:2])
    assert batch_size(graph, samples) == 1


@pytest.mark.parametrize("descending", [True, False])
def test_samples_that_are_sorted_among_themselves_do_not_pass_in_whatever_order(descending: bool) -> None:
    graph = parse(
        f"""
graph(%x: f32[1]) {{
  %y: f32[1], %at: i64[1] = sort{{descending={descending}}}(%x)
  return output: %y
}}"""
    )
    assert not passes_batches(graph, [(torch.tensor([2.0]),), (torch.tensor([1.0]),)])
