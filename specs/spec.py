"""The whole spec."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from .data import Data
from .model import Model
from .options import Pass
from .outputs import Outputs
from .section import Section, fault
from .target import TargetChoice
from .write import section_values, yaml_text

VERSION = 1
"""Version of the spec language."""


def _version(value: Any) -> int:  # any: a value from a spec, checked here
    if isinstance(value, bool) or not isinstance(value, int):
        raise fault(
            "S203", "expects the version of the language, a whole number", hint=f"write `fxpress: {VERSION}`"
        )
    if value > VERSION:
        message = f"the spec is written in version {value} of the language, but this fxpress reads version {VERSION}"
        raise fault("S208", message, hint="install a newer fxpress")
    if value < VERSION:
        raise fault(
            "S208", f"version {value} of the language does not exist", hint=f"write `fxpress: {VERSION}`"
        )
    return value


class Spec(Section):
    """A compilation: model, data, target, passes and outputs."""

    fxpress: Annotated[int, BeforeValidator(_version), WithJsonSchema({"const": VERSION})] = Field(
        description="Version of the spec language."
    )
    extends: str | None = Field(
        default=None,
        description="Base spec: a path, or `preset/NAME`. Mappings are merged, lists and values replaced.",
        examples=["preset/int8-mcu", "base.yaml"],
    )
    model: Model = Field(description="The network.")
    data: Data = Field(default=Data(), description="Data files for calibration and evaluation.")
    target: TargetChoice = Field(default=TargetChoice(), description="The target machine.")
    passes: tuple[Pass, ...] = Field(default=(), description="The passes, in execution order.")
    outputs: Outputs = Field(description="Outputs to write.")

    @model_validator(mode="after")
    def _c_has_fixed_sizes(self) -> Self:
        if self.outputs.c is not None and self.model.dynamic:
            names = ", ".join(self.model.dynamic)
            hint = "remove `dynamic`, or `outputs.c`; compile once for each"
            raise fault(
                "S209", f"outputs.c: C has fixed sizes, but {names} has dynamic dimensions", hint=hint
            )
        return self

    def to_yaml(self, *, folder: Path | None = None) -> str:
        """An equivalent spec as YAML without `extends`; paths are relative to `folder`, or absolute without it."""
        values = section_values(self, folder)
        values.pop("extends", None)
        return f"{yaml_text(values)}\n"
