"""The compiler: capture from torch, pipeline, report, command line.

Names are loaded on first use: `fxpress check` and `--help` must start without torch, which takes seconds to import.
`__version__` is the version of fxpress; `fxpress` itself is a namespace package, which holds no names.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..errors import FxpressError

if TYPE_CHECKING:
    from .compilation import Compiled, compile_model
    from .errors import Problem, UserError
    from .frontend.capture import CaptureError, capture
    from .network import CompiledNetwork, load_compiled
    from .pipeline import open_session, run_passes
    from .report import Report
    from .session import Session, Stage

    __version__: str

__all__ = [
    "CaptureError",
    "Compiled",
    "CompiledNetwork",
    "FxpressError",
    "Problem",
    "Report",
    "Session",
    "Stage",
    "UserError",
    "__version__",
    "capture",
    "compile_model",
    "load_compiled",
    "open_session",
    "run_passes",
]

_HOMES = {
    "CaptureError": ".frontend.capture",
    "capture": ".frontend.capture",
    "Problem": ".errors",
    "UserError": ".errors",
    "Compiled": ".compilation",
    "compile_model": ".compilation",
    "CompiledNetwork": ".network",
    "load_compiled": ".network",
    "open_session": ".pipeline",
    "run_passes": ".pipeline",
    "Report": ".report",
    "Session": ".session",
    "Stage": ".session",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("fxpress")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
