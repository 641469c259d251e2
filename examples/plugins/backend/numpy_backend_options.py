"""Options of the backend `numpy`; nothing here imports torch."""

from typing import Annotated

from pydantic import Field, StringConstraints

from fxpress.specs.extension import Section


class NumpyOptions(Section):
    """Writes a module of NumPy calls."""

    function: Annotated[str, StringConstraints(pattern="^[a-z_]+$")] = Field(
        default="forward", description="Name of the function that computes the outputs."
    )
