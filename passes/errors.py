"""Errors of the passes."""

from __future__ import annotations

from ..specs.root_error import FxpressError


class PassError(FxpressError):
    """Base class of errors in a pass that the user can fix."""


class UnknownPassError(PassError):
    """No pass has this name."""


class MissingNeedError(PassError):
    """A pass needs something, such as calibration data, that the spec does not give."""


class CalibrationError(PassError):
    """The calibration data do not serve: none, the wrong shape, not finite."""


class InfeasibleError(PassError):
    """No choice meets the budget; the message says by how much it is missed."""
