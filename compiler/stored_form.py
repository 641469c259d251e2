"""Files of other programs for stored weights: tensors that none of them can hold are refused by name.

Each takes integers of 4 and 8 bits without zero points from the graph, and all other tensors from the folder of the
model, so that no pass may have changed these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..ir import CodedNumbers, Graph, Value
from ..passes.clean import is_unmoved
from ..specs import FolderSource
from ..specs.options import CleanOptions, WeightOnlyOptions
from .errors import NAMES_SHOWN, Problem, counted
from .session import Session

WEIGHT_SUFFIX = ".weight"
_BITS = (4, 8)
_ROUNDINGS = ("nearest", "gptq")


KEEP_FLOAT = "keep it unchanged: `layers: {layers}`"
"""Advice to store a weight as it is; `{layers}` is the entry of its layer."""


@dataclass(frozen=True)
class Unfit:
    """A reason why a file format cannot hold a tensor. `{layers}` in the advice becomes the layer's entry in a spec."""

    name: str
    fact: str
    advice: str


@dataclass(frozen=True)
class StoredForm:
    """A form of file: the code of its problems, and its key in a spec."""

    code: str
    place: str

    def problems(self, unfit: Iterable[Unfit]) -> list[Problem]:
        """One problem for each fact, with its tensors."""
        groups = dict[tuple[str, str], list[str]]()
        for one in unfit:
            groups.setdefault((one.fact, one.advice), []).append(one.name)
        found = []
        for (fact, advice), names in groups.items():
            layers = ", ".join(f"{name.removesuffix(WEIGHT_SUFFIX)}: float32" for name in names[:NAMES_SHOWN])
            entries = f"{{{layers}{', ...' if len(names) > NAMES_SHOWN else ''}}}"
            said = fact if len(names) == 1 else f"each {fact}"
            place = f"{self.place}, {counted(names)}"
            found.append(Problem(self.code, place, said, advice.replace("{layers}", entries)))
        return found

    def foreign(self, session: Session) -> Iterator[Problem]:
        """Problems of sources without a folder, and of passes after which tensors other than stored weights have
        changed.
        """
        if not isinstance(session.spec.model.source, FolderSource) or session.own_model:
            advice = "write `source: hf:PATH`, or `outputs: torch`"
            yield Problem(self.code, self.place, "the model is not from a folder", advice)
        names = [step.pass_name() for step in session.spec.passes]
        if WeightOnlyOptions.pass_name() not in names:
            yield Problem(self.code, self.place, "no pass stores weights as integers", "add `weight_only`")
        for index, step in enumerate(session.spec.passes):
            place = f"passes[{index}] ({step.pass_name()})"
            if isinstance(step, WeightOnlyOptions) and step.rounding.kind not in _ROUNDINGS:
                fact = f"rounding {step.rounding.kind} changes other tensors, too, or needs zero points"
                yield Problem(self.code, place, f"{self.place}: {fact}", f"use {' or '.join(_ROUNDINGS)}")
            if not isinstance(step, WeightOnlyOptions | CleanOptions):
                fact = "this pass changes tensors that are copied from the source folder"
                advice = "remove it, or write `outputs: torch`"
                yield Problem(self.code, place, f"{self.place}: {fact}", advice)

    def unfit(self, captured: Graph, graph: Graph, value: Value) -> Iterator[Unfit]:
        """Reasons why no such file can hold a stored weight."""
        encoding = value.type.quantization
        assert encoding is not None
        if not is_unmoved(captured, graph, value.name) or not value.name.endswith(WEIGHT_SUFFIX):
            fact = "is not a tensor of the folder, but moved or computed from one"
            advice = "name its layer in `layers` of weight_only, with `float32`, or write `outputs: torch`"
            yield Unfit(value.name, fact, advice)
        if encoding.levels is not None or encoding.bits not in _BITS:
            what = "codes of a table" if encoding.levels is not None else f"{encoding.bits} bits"
            fact = f"has {what}; the convention supports {' and '.join(map(str, _BITS))}"
            yield Unfit(value.name, fact, "use int4 or int8")
        elif isinstance(encoding.scale, CodedNumbers):
            fact = f"has scales that are stored as codes (`{encoding.scale.form}`)"
            yield Unfit(value.name, fact, "use `scales: float16`")
        if not encoding.is_symmetric:
            yield Unfit(value.name, "has zero points", f"use rounding {' or '.join(_ROUNDINGS)}")
