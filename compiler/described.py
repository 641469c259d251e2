"""A compilation described in Python: a module or a graph, example inputs, data in memory, passes, target, outputs.

It becomes the text of a spec, which is read and checked like a file: messages show its lines, and it can be written
with the weights and the data, and compiled again from there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ..ir import Graph, Value
from ..ir.sizes import dimensions_of
from ..passes import Pass
from ..specs import (
    Calibration,
    Evaluation,
    FolderSource,
    Input,
    Loaded,
    ModuleSource,
    Outputs,
    PassOptions,
    Target,
    TargetChoice,
    parse_spec,
)
from ..specs.model import MEMORY
from ..specs.root_error import ArgumentError, expect
from ..specs.write import yaml_text
from .arrays import LABELS, ArrayLike, Arrays, SampleArrays
from .errors import Problem, UserError
from .loading import find_source
from .output import check_file, write_file

SPEC, WEIGHTS = "spec.yaml", "weights.safetensors"
_INPUTS, _EXAMPLES = "compile_model(inputs=...)", "give example inputs with the shapes that `forward` takes"
_ORIGINS = ("file", "source")
_IMPORTING: list[Path] = []
"""Folders whose spec is being imported; a script imported for its class must not write that spec again."""

Inputs: TypeAlias = "ArrayLike | Input | Sequence[ArrayLike | Input] | Mapping[str, ArrayLike | Input]"
"""Example inputs with the shapes that `forward` takes: one alone, several in the order of its arguments, or by name."""
DataOf: TypeAlias = "SampleArrays | str | Path | Mapping[str, Any] | Calibration | Evaluation"
"""Arrays in memory, an npz file, a function `file.py:name`, or a section of a spec; any: keys of a spec."""
Step: TypeAlias = "str | PassOptions | Mapping[str, Any]"
"""A pass: its name, its options, or its section of a spec; any: keys of a spec."""
Machine: TypeAlias = "str | Path | TargetChoice | Mapping[str, Any]"
"""A target: its name, a target file, or the section of a spec; any: keys of a spec."""
Written: TypeAlias = "str | Sequence[str] | Outputs | Mapping[str, Any]"
"""Outputs: names of backends, or the section of a spec; any: keys of a spec."""


@dataclass(frozen=True)
class Described:
    """A spec that describes `model` and its data; `arrays` has the arrays of `data.calibration` and
    `data.evaluation`.
    """

    loaded: Loaded
    model: nn.Module | Graph
    arrays: Mapping[str, Arrays]

    def write(self, folder: Path) -> Path:
        """Writes the spec with weights and data to `folder`, and returns its path; UserError if the spec cannot find
        the model.

        The spec names the class or function of the model, which must be importable without arguments.
        """
        if isinstance(self.model, Graph):
            raise UserError(
                Problem(
                    "O313", str(folder), "a spec describes a torch module, not a graph", "give the module"
                )
            )
        if _IMPORTING:
            fact = "importing the class runs this script again, which writes the spec again"
            raise UserError(
                Problem(
                    "O313",
                    str(folder),
                    fact,
                    'put this below `if __name__ == "__main__":`',
                )
            )
        _IMPORTING.append(folder)
        try:
            source = self.loaded.spec.model.source
            assert not isinstance(source, FolderSource)  # the source of the given module
            find_source(source, folder=folder)
        finally:
            _IMPORTING.pop()
        folder.mkdir(parents=True, exist_ok=True)
        check_file(folder / SPEC)
        save_model(self.model, str(folder / WEIGHTS))
        for name, arrays in self.arrays.items():
            write_file(folder / f"{name}.npz", arrays.to_npz())
        write_file(folder / SPEC, self._moved(folder.absolute()).encode())
        return folder / SPEC

    def _moved(self, folder: Path) -> str:
        """The text of the spec, with the weights and the data in memory saved as files of `folder`."""
        spec = self.loaded.spec
        model = spec.model.model_copy(update={"weights": folder / WEIGHTS})
        data = spec.data.model_copy(
            update={name: _in_file(getattr(spec.data, name), folder / f"{name}.npz") for name in self.arrays}
        )
        return spec.model_copy(update={"model": model, "data": data}).to_yaml(folder=folder)


def _in_file(data: Calibration | Evaluation, path: Path) -> Calibration | Evaluation:
    """The data section with its arrays in a file."""
    kept = {name: getattr(data, name) for name in data.model_fields_set - {"source"}}
    return type(data)(**kept, file=path)


def describe(
    model: nn.Module | Graph,
    *,
    inputs: Inputs | None = None,
    calibration: DataOf | None = None,
    evaluation: DataOf | None = None,
    passes: Sequence[Step] = (),
    target: Machine = "host",
    outputs: Written = "torch",
    origin: str | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    dimensions: Mapping[str, Mapping[str, int]] | None = None,
    overrides: Sequence[str] = (),
) -> Described:
    """The spec of a model, its data, passes and outputs; SpecError for values that a spec cannot hold."""
    described = _graph_inputs(model, inputs) if isinstance(model, Graph) else _inputs(model, inputs)
    described = _with_dynamic(described, dynamic or {})
    _check_arguments(passes, target, outputs, origin)
    steps = [passes] if isinstance(passes, str) else passes
    data, arrays = dict[str, object](), dict[str, Arrays]()
    for key, given in (("calibration", calibration), ("evaluation", evaluation)):
        if given is not None:
            data[key], in_memory = _data(key, given, list(described))
            arrays |= {} if in_memory is None else {key: in_memory}
    ranges = _ranges(model) if isinstance(model, Graph) else dict(dimensions or {})
    values = {
        "fxpress": 1,
        "model": {
            "source": origin or _source(model),
            "inputs": described,
            **({"dimensions": ranges} if ranges else {}),
        },
        "data": data,
        "target": {"name": str(target)} if isinstance(target, str | Path) else target,
        "passes": [{"pass": step} if isinstance(step, str) else step for step in steps],
        "outputs": _outputs(outputs),
    }
    text = yaml_text({key: value for key, value in values.items() if value})
    loaded = parse_spec(f"{text}\n", Path.cwd() / SPEC, overrides)
    if origin is not None:
        loaded.check_source()
    return Described(loaded, model, arrays)


def _check_arguments(passes: object, target: object, outputs: object, origin: object) -> None:
    """ArgumentError for arguments that cannot be part of a spec."""
    call, hint = "compile_model(passes=...)", 'for example ["fuse", {"pass": "quantize", "observer": "mse"}]'
    expect(passes, (str, list, tuple), call, "a list of passes", hint)
    assert isinstance(passes, Sequence)
    for index, step in enumerate([passes] if isinstance(passes, str) else passes):
        hint = f'write "{step.name}"' if isinstance(step, Pass) else hint
        place = f"compile_model(passes=...), pass {index}"
        expect(step, (str, PassOptions, Mapping), place, "a name, options or a mapping", hint)
    hint = f'write "{target.name}"' if isinstance(target, Target) else "`fxpress targets` lists the names"
    what = "a name, the path of a target file, a `TargetChoice` or a mapping"
    expect(target, (str, Path, TargetChoice, Mapping), "compile_model(target=...)", what, hint)
    call, hint = "compile_model(outputs=...)", 'for example "c" or {"c": {"name": "digits"}}'
    expect(
        outputs, (str, list, tuple, Outputs, Mapping), call, "names of outputs, `Outputs` or a mapping", hint
    )
    if isinstance(outputs, list | tuple):
        for name in outputs:
            expect(name, str, call, "names of outputs", hint)
    if origin is not None:
        expect(origin, str, "compile_model(origin=...)", "a text such as `nets.py:make`")


def _graph_inputs(graph: Graph, given: Inputs | None) -> dict[str, Input]:
    if given is not None:
        raise ArgumentError(_INPUTS, "a graph has its own inputs", "remove it; it is for modules")
    return {value.name: _graph_input(value) for value in graph.inputs}


def _graph_input(value: Value) -> Input:
    given = _described(tuple(map(int, value.type.shape)), value.type.real().dtype.torch)
    dynamic = {axis: name for axis, size in enumerate(value.type.shape) for name in dimensions_of(size)}
    return given.model_copy(update={"dynamic": dynamic}) if dynamic else given


def _ranges(graph: Graph) -> dict[str, dict[str, int]]:
    """The allowed sizes of a graph's dimensions, in the form of a spec."""
    return {
        d.name: {"min": d.low} | ({} if d.high is None else {"max": d.high})
        for d in graph.dimensions.values()
    }


def _with_dynamic(described: dict[str, Input], dynamic: Mapping[str, Mapping[int, str]]) -> dict[str, Input]:
    """The inputs with their dynamic dimensions; ArgumentError for an unknown input."""
    call = "compile_model(dynamic=...)"
    expect(dynamic, Mapping, call, "dimensions by input", 'for example {"image": {0: "batch"}}')
    for name, axes in dynamic.items():
        if name not in described:
            raise ArgumentError(call, f"there is no input {name}", f"there are {', '.join(described)}")
        expect(axes, Mapping, f"{call}, {name}", "names by position", 'for example {0: "batch"}')
        described = {**described, name: described[name].model_copy(update={"dynamic": dict(axes)})}
    return described


def _inputs(model: nn.Module, given: Inputs | None) -> dict[str, Input]:
    """The inputs of a module by name, each with shape and type."""
    if given is None:
        raise ArgumentError(_INPUTS, "is missing", _EXAMPLES)
    if isinstance(given, Mapping):
        return {str(name): _input(example) for name, example in given.items()}
    expect(given, (Tensor, np.ndarray, Input, list, tuple), _INPUTS, "tensors or arrays", _EXAMPLES)
    examples = [given] if isinstance(given, Tensor | np.ndarray | Input) else list(given)
    arguments = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names += [f"input_{i}" for i in range(len(names), len(examples))]
    return dict(zip(names, map(_input, examples), strict=False))


def _input(example: ArrayLike | Input) -> Input:
    hint = "write a shape as Input(shape=(1, 3, 32, 32)), from fxpress.specs"
    expect(example, (Tensor, np.ndarray, Input), _INPUTS, "tensors or arrays", hint)
    return example if isinstance(example, Input) else _described(example.shape, example.dtype)


def _described(shape: Sequence[int], dtype: torch.dtype | np.dtype[Any]) -> Input:  # Any: any element type
    name = str(dtype).removeprefix("torch.")
    named = {} if name == "float32" else {"dtype": name}
    return Input.model_validate({"shape": tuple(shape), **named})


def _data(key: str, given: DataOf, inputs: Sequence[str]) -> tuple[object, Arrays | None]:
    """Spec section of a data set, and its arrays if they are in memory."""
    if isinstance(given, str | Path):
        return {"file" if str(given).endswith(".npz") else "source": str(given)}, None
    if isinstance(given, Calibration | Evaluation):
        return given, None
    if isinstance(given, Mapping) and any(isinstance(given.get(name), str | Path) for name in _ORIGINS):
        return given, None
    origin = ModuleSource(MEMORY, key)
    arrays = Arrays.of(given, inputs, place=str(origin), call=f"compile_model({key}=...)")
    labels = {"labels": LABELS} if LABELS in arrays.by_name.keys() - inputs else {}
    return {"source": str(origin), **labels}, arrays


def _outputs(given: Written) -> object:
    if isinstance(given, Outputs | Mapping):
        return given
    names = [given] if isinstance(given, str) else given
    return {name: {} for name in names}


def _source(model: nn.Module | Graph) -> str:
    """Source of a model's class in a spec: its file, or its module if that is part of a package."""
    if isinstance(model, Graph):
        return "fxpress.ir:Graph"
    kind = type(model)
    attribute = kind.__qualname__.replace("<locals>.", "")
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None or module.__package__:
        return f"{kind.__module__}:{attribute}"
    return f"{file}:{attribute}"
