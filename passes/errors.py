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
    """A pass, or an option of one, that `args` name first, lacks the data that they name next."""

    code = "P606"

    def __init__(self, what: str, *needs: str) -> None:
        super().__init__(what, *needs)

    @property
    def message(self) -> str:
        """Message: the pass, the data that it needs, and the place where they are given."""
        what, *needs = self.args
        given = ", ".join(f"{need}=..." for need in needs)
        return (
            f"{what} needs {' and '.join(needs)}; give context=Context({given}), in a spec `data.calibration`"
        )


class OrderError(PassError):
    """A pass is called with a quantized graph that it cannot work on, for the reason that `fact` gives."""

    def __init__(self, code: str, fact: str) -> None:
        super().__init__(code, fact)
        self.code = code

    @property
    def message(self) -> str:
        """The fact and what to do."""
        return f"{self.args[1]}; give it the graph from before `quantize`"


class CalibrationError(PassError):
    """The calibration data do not serve: none, the wrong shape, not finite."""

    code = "D107"


class InfeasibleError(PassError):
    """No choice meets the budget; the message says by how much it is missed."""
