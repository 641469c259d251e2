"""The compiler: capture from torch, pipeline, report, command line.

Names are loaded on first use: `fxpress check` and `--help` must start without torch, which takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import Problem, UserError
    from .frontend.capture import CaptureError, capture
    from .pipeline import Compiled, compile_model, open_session, run_passes
    from .report import Report
    from .session import Session, Stage

__all__ = [
    "CaptureError",
    "Compiled",
    "Problem",
    "Report",
    "Session",
    "Stage",
    "UserError",
    "capture",
    "compile_model",
    "open_session",
    "run_passes",
]

_HOMES = {
    "CaptureError": ".frontend.capture",
    "capture": ".frontend.capture",
    "Problem": ".errors",
    "UserError": ".errors",
    "Compiled": ".pipeline",
    "compile_model": ".pipeline",
    "open_session": ".pipeline",
    "run_passes": ".pipeline",
    "Report": ".report",
    "Session": ".session",
    "Stage": ".session",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
