"""The observer `sigmas`: mean plus and minus `width` standard deviations, within the range of the data."""

from sigmas_options import Sigmas

from fxpress.passes.calibration import Range, Statistics


def choose(statistics: Statistics, options: Sigmas, *, levels: int) -> Range:
    """The range; the number of levels has no effect on it."""
    mean, deviation = float(statistics.sample.mean()), float(statistics.sample.std(unbiased=False))
    reach = options.width * deviation
    return Range(max(statistics.low, mean - reach), min(statistics.high, mean + reach))
