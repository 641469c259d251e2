"""The compiler: capture from torch, pipeline, report, command line.

Names are loaded on first use: `fxpress check` and `--help` must start without torch, which takes seconds to import.
`__version__` is the version of fxpress; `fxpress` itself is a namespace package, without names of its own.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..specs.root_error import ArgumentError, FxpressError

if TYPE_CHECKING:
    from .cli import main
    from .compilation import Compiled, compile_model
    from .data import Samples, correct_answers, run_samples, snr_db
    from .errors import Problem, UserError
    from .execution import Counts, Execution
    from .frontend.capture import CaptureError, capture
    from .frontend.captured import Captured, as_callable
    from .frontend.decompose import for_c
    from .interface import Interface
    from .loading import load_source
    from .network import CompiledNetwork, load_compiled
    from .pipeline import open_session, run_passes
    from .progress import Progress
    from .report import Report
    from .session import Session, Stage
    from .table import text_table

    __version__: str

__all__ = [
    "ArgumentError",
    "CaptureError",
    "Captured",
    "Compiled",
    "CompiledNetwork",
    "Counts",
    "Execution",
    "FxpressError",
    "Interface",
    "Problem",
    "Progress",
    "Report",
    "Samples",
    "Session",
    "Stage",
    "UserError",
    "__version__",
    "as_callable",
    "capture",
    "compile_model",
    "correct_answers",
    "for_c",
    "load_compiled",
    "load_source",
    "main",
    "open_session",
    "run_passes",
    "run_samples",
    "snr_db",
    "text_table",
]

_HOMES = {
    "main": ".cli",
    "Samples": ".data",
    "run_samples": ".data",
    "correct_answers": ".data",
    "snr_db": ".data",
    "Execution": ".execution",
    "Counts": ".execution",
    "Interface": ".interface",
    "Progress": ".progress",
    "text_table": ".table",
    "load_source": ".loading",
    "as_callable": ".frontend.captured",
    "Captured": ".frontend.captured",
    "CaptureError": ".frontend.capture",
    "capture": ".frontend.capture",
    "for_c": ".frontend.decompose",
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
