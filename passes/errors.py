"""Errors of the passes."""

from __future__ import annotations

from ..specs.root_error import FxpressError


class PassError(FxpressError):
    """Base class of errors in a pass that the user can fix."""

    code = "P601"


class UnknownPassError(PassError):
    """No pass has this name."""

    code = "P600"


class MissingNeedError(PassError):
    """A pass, or one of its options (the first of `args`), lacks data (the others)."""

    code = "P606"

    def __init__(self, what: str, *needs: str) -> None:
        super().__init__(what, *needs)

    @property
    def message(self) -> str:
        """The pass, the data that it needs, and where to define them."""
        what, *needs = self.args
        given = ", ".join(f"{need}=..." for need in needs)
        return (
            f"{what} needs {' and '.join(needs)}; give context=Context({given}), in a spec `data.calibration`"
        )


class OrderError(PassError):
    """A pass is called with a quantized graph that it does not support; `fact` is the reason."""

    def __init__(self, code: str, fact: str) -> None:
        super().__init__(code, fact)
        self.code = code

    @property
    def message(self) -> str:
        """The fact and the remedy."""
        return f"{self.args[1]}; pass it the graph from before `quantize`"


class CalibrationError(PassError):
    """The calibration data cannot be used: missing, of the wrong shape, or not finite."""

    code = "D107"


class InfeasibleError(PassError):
    """No choice meets the budget; the message has the difference."""
