"""Options of `clean`: removal of dead code and no-ops."""

from typing import ClassVar, Literal, TypeAlias

from pydantic import Field

from .base import PassOptions

CleanRule: TypeAlias = Literal["constants", "no_ops", "movement", "duplicates", "norms"]


class CleanOptions(PassOptions):
    """Removes dead code and no-ops, folds constants, merges chains of reshapes and permutes."""

    repeatable: ClassVar[bool] = True
    before: ClassVar[tuple[str, ...]] = ("product_quantize",)
    why: ClassVar[str] = "folding of constants would undo lookups in codebooks"

    pass_: Literal["clean"] = Field(default="clean", alias="pass", description="The name of the pass.")
    disable: tuple[CleanRule, ...] = Field(
        default=(),
        description="Rules to switch off: `constants` (constant folding), `no_ops` (identity, x + 0, x * 1, ...), "
        "`movement` (chains of reshape and permute), `duplicates` (common subexpressions), `norms` (norms that are "
        "written out).",
    )
