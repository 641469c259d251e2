"""Backends of other packages: loaded when a spec or a run uses them; their errors are reported with their name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..backends.base import Backend, Runnable
from ..specs.plugins import BACKENDS, PluginError
from ..specs.root_error import FxpressError
from .errors import Problem, UserError, first_line, is_out_of_memory
from .isolation import USER_CODE_RAISES


def find_backend(name: str) -> Backend[Any]:  # Any: each backend has its own options
    """The backend that a package adds; UserError if it cannot be used."""
    try:
        return cast(
            Backend[Any], BACKENDS.load(name)
        )  # attributes of the package are checked when they are called
    except PluginError as err:
        advice = "repair or remove the package"
        raise UserError(Problem("B600", f"outputs.{name}", err.message, advice)) from err


def run_backend(name: str, folder: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of one call of the files of a backend; UserError if the backend cannot run them."""
    backend = find_backend(name)
    if not isinstance(backend, Runnable):
        fact = f"the backend {name} has no function `run`"
        raise UserError(Problem("R405", f"on {name}", fact, "run it by other means"))
    with raised_by_package(name):
        return list(backend.run(folder, inputs))


@contextmanager
def raised_by_package(name: str) -> Iterator[None]:
    """Converts errors in the code of a backend to UserError."""
    try:
        yield
    except FxpressError:
        raise
    except USER_CODE_RAISES as err:
        if is_out_of_memory(err):
            raise
        fact, advice = f"raises {first_line(err)}", "report it to the package that provides this backend"
        raise UserError(Problem("B601", f"outputs.{name}", fact, advice)) from err
