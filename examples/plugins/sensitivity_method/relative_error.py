"""The sensitivity method `relative_error`: squared rounding error of a layer's weights over their squared norm."""

from collections.abc import Sequence

from fxpress.passes.sensitivity import Score, Study


def relative_error(study: Study, bits: Sequence[int]) -> list[Score]:
    """A score for each layer and width, without standard errors, because no samples are measured."""
    scores = []
    for block in study.blocks:
        norm = sum(float(study.graph.params[name].double().square().sum()) for name in block.sites)
        for width in bits:
            errors = block.weight_errors(study.graph, width, study.rounding)
            error = sum(float(tensor.double().square().sum()) for tensor in errors.values())
            scores.append(Score(block.layer, "weight", width, error / norm if norm else 0.0, 0.0))
    return scores
