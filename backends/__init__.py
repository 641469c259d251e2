"""The backends, each a package: `c` and `torch_module`; their protocol, and the errors of the tools that they run.

Names of the protocol are loaded on first use: errors and problems must be available without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import BackendError, BuildError, Problem, SimulationError, StackError, ToolMissingError

if TYPE_CHECKING:
    from .base import Artifact, Backend, Runnable

__all__ = [
    "Artifact",
    "Backend",
    "BackendError",
    "BuildError",
    "Problem",
    "Runnable",
    "SimulationError",
    "StackError",
    "ToolMissingError",
]


def __getattr__(name: str) -> object:
    if name not in ("Artifact", "Backend", "Runnable"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".base", __name__), name)
