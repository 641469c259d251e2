"""The backends, each a package: `c` and `torch_module`; and the errors of what they drive."""

from .errors import BackendError, BuildError, Problem, SimulationError, StackError, ToolMissingError

__all__ = ["BackendError", "BuildError", "Problem", "SimulationError", "StackError", "ToolMissingError"]
