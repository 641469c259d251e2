"""Loading of the user's model: its source file, its weights, example inputs. Nothing that is loaded is trusted."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..ir import Params
from ..ir.element_type import all_finite
from ..ir.tensor_files import INDEX_SUFFIX, open_tensors
from ..passes.masks import is_additive_mask
from ..specs import FileSource, ModuleSource
from ..specs.errors import near_miss, nearest
from ..specs.root_error import expect
from ..specs.section import is_file, why_no_file
from .arguments import plain
from .errors import Problem, UserError, counted, first_line, listed, shorten, shortened
from .frontend.sources import user_line
from .isolation import USER_CODE_RAISES

_PART = 1 << 22
"""Number of elements checked together, so that temporaries stay small."""


def load_source(
    source: FileSource | ModuleSource,
    arguments: Mapping[str, Any],  # Any: the user's keywords
    *,
    folder: Path,
) -> nn.Module:
    """The module named by `file.py:Attribute` or `package.module:Attribute`, in evaluation mode.

    A class or a function is called with `arguments`. Packages are searched in `folder` first. UserError if any part
    is missing or raises an error.
    """
    hint = 'for net.py:Net write FileSource(Path("net.py"), "Net") from fxpress.specs'
    expect(
        source, (FileSource, ModuleSource), "load_source(source)", "a `FileSource` or a `ModuleSource`", hint
    )
    found, place, attribute = find_source(source, folder=folder), str(source), source.attribute
    if not isinstance(found, nn.Module):
        if not callable(found):
            fact = f"{attribute} is a {type(found).__name__}"
            raise _problem("M103", place, fact, "name a class, a function or a module")
        remedy = "give its arguments in `model.args`, or `--arg` of `fxpress init`"
        found = call_source(found, arguments, place, remedy=remedy)
    if not isinstance(found, nn.Module):
        fact = f"{attribute} gives a {type(found).__name__}"
        raise _problem("M103", place, fact, "it must return a torch.nn.Module")
    return found.eval()


def find_source(source: FileSource | ModuleSource, *, folder: Path) -> object:
    """Object named `file.py:Attribute` or `package.module:Attribute`; packages are searched in `folder` first."""
    place, attribute = str(source), source.attribute
    module = _import_file(source.path, place) if isinstance(source, FileSource) else _import(source, folder)
    found: Any = module  # Any: any content of the user's file
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            raise _problem("M102", place, f"no attribute {part!r}", near_miss(part, names))
        found = getattr(found, part)
    return found


def call_source(
    factory: Callable[..., object],
    arguments: Mapping[str, Any],  # Any: the user's keywords
    place: str,
    *,
    remedy: str,
) -> object:
    """The result of the user's class or function; UserError with the user's line, or with `remedy` for wrong arguments.

    Torch's random generator starts from seed 0, so that a model without a weights file is always the same.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return factory(**arguments)
    except USER_CODE_RAISES as err:
        advice = _see(err)
        if isinstance(err, TypeError) and not advice:  # no line of the user was run
            advice = _takes(factory, arguments, remedy)
        raise _problem("M101", place, f"calling it raises {first_line(err)}", advice) from err


def _takes(factory: Callable[..., object], given: Collection[str], remedy: str) -> str:
    """The parameters of a class or a function, with the nearest one to each unknown argument."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # of a builtin
        return remedy
    known = list(signature.parameters)
    near = [nearest(name, known) for name in given if name not in known]
    meant = "".join(f'did you mean "{name}"? ' for name in near if name)
    return f"{meant}it takes {plain(signature)}: {remedy}"


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads the tensors of a .safetensors or weights-only .pt file into `model`; every name and shape must fit.

    For tied parameters the file may contain one, as `safetensors.torch.save_model` writes it, or all with equal
    values.
    """
    tensors = read_tensors(path)
    own = {name: t for name, t in model.state_dict().items()}
    check_forms(own, type(model).__name__)
    ties = _ties(own)
    _refuse_prefix(tensors.keys(), own.keys(), path)
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    optional |= {name for names in ties if not tensors.keys().isdisjoint(names) for name in names}
    problems, advice = list[Problem](), "check that the file belongs to this model"
    if lacking := sorted(own.keys() - tensors.keys() - optional):
        shape = f"the model has {lacking[0]} with shape {tuple(own[lacking[0]].shape)}"
        problems.append(Problem("M112", str(path), f"lacks {counted(lacking)}", shape))
    if unexpected := sorted(tensors.keys() - own.keys()):
        fact = f"unexpected key{'s' * (len(unexpected) > 1)} {listed(unexpected)} (not in the model)"
        problems.append(Problem("M113", str(path), fact, advice))
    problems += [
        Problem(
            "M114",
            str(path),
            f"{name} is {tuple(tensors[name].shape)}; the model has {tuple(own[name].shape)}",
        )
        for name in tensors.keys() & own.keys()
        if tensors[name].shape != own[name].shape
    ]
    problems += [
        Problem(
            "M114", str(path), f"{name} is complex; the model has {own[name].dtype}", "store real numbers"
        )
        for name in tensors.keys() & own.keys()
        if tensors[name].is_complex() and not own[name].is_complex()
    ]
    problems += [
        Problem(
            "M118", str(path), f"{first} and {other} differ; the model has one tensor for both", "untie them"
        )
        for names in ties
        for first, other in pairwise(name for name in names if name in tensors)
        if not torch.equal(tensors[first], tensors[other])
    ]
    if problems:
        raise UserError(shortened(sorted(problems, key=lambda problem: (problem.code, problem.message))))
    model.load_state_dict(tensors, strict=False)


def _refuse_prefix(given: Set[str], own: Set[str], path: Path) -> None:
    """UserError if all names of a file have an additional prefix, or lack the prefix of all names of the model."""
    before = _prefix(given, own)
    if before:
        maker = {"module.": ", as DataParallel adds it", "_orig_mod.": ", as torch.compile adds it"}.get(
            before, ""
        )
        fact = f"every name begins with {before!r}{maker}; the names of the model do not"
        advice = f"remove it: {{name.removeprefix({before!r}): t for name, t in state.items()}}"
        raise _problem("M113", str(path), fact, advice)
    before = _prefix(own, given)
    if before:
        fact = f"no name begins with {before!r}, as all names of the model do"
        raise _problem(
            "M112", str(path), fact, f"add it: {{{before!r} + name: t for name, t in state.items()}}"
        )


def _prefix(longer: Set[str], shorter: Set[str]) -> str:
    """The prefix that every name of `longer` has before a name of `shorter`; empty if there is no common one."""
    first = min(longer, default="")
    found = (first.removesuffix(name) for name in shorter if first.endswith(f".{name}"))
    return next(
        (p for p in found if all(n.startswith(p) and n.removeprefix(p) in shorter for n in longer)), ""
    )


def _ties(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names with the same elements of one storage."""
    groups = defaultdict[tuple[object, ...], list[str]](list)
    for name, tensor in tensors.items():
        if tensor.numel() and not tensor.is_meta:
            groups[tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype].append(name)
    return [names for names in groups.values() if len(names) > 1]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file, by name. Code in a pickle is never run; sizes are checked against the stored data."""
    if not is_file(path):
        raise _problem("M110", shorten(str(path)), why_no_file(path), "check `model.weights`")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.name.endswith(INDEX_SUFFIX):
            return dict(open_tensors(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as err:
        raise _problem(
            "M111", str(path), f"is not a valid safetensors file: {err}", "write it again"
        ) from err
    except pickle.UnpicklingError as err:
        raise _problem(
            "M111",
            str(path),
            "contains more than tensors, and is therefore not opened",
            "save a state_dict, or use safetensors",
        ) from err
    except MemoryError:
        raise
    except Exception as err:  # a damaged archive or pickle may raise any error
        raise _problem("M111", str(path), f"cannot be read: {first_line(err)}", "write it again") from err
    if not _is_state(loaded):
        fact, advice = "does not contain a mapping of names to tensors", _inner_advice(loaded)
        raise _problem("M111", str(path), fact, advice)
    odd = [(name, _oddity(tensor)) for name, tensor in loaded.items() if _oddity(tensor)]
    if odd:
        advice = "store dense tensors: .to_dense(), .dequantize(), or load before saving"
        raise UserError(
            shortened(Problem("M116", str(path), f"{name} is {what}", advice) for name, what in odd)
        )
    for name, tensor in loaded.items():
        stored = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > stored:
            raise _problem(
                "M115",
                str(path),
                f"{name} claims {tensor.numel():,} elements, but {stored:,} bytes are stored",
            )
    return dict(loaded)


def _is_state(loaded: object) -> TypeGuard[Mapping[str, Tensor]]:
    """True if the content of a file is a mapping of names to tensors."""
    return isinstance(loaded, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    )


def _inner_advice(loaded: object) -> str:
    """Advice on a checkpoint: save the mapping of tensors inside it, if it has one."""
    inner = (
        [repr(key) for key, value in loaded.items() if _is_state(value) and value]
        if isinstance(loaded, Mapping)
        else []
    )
    if not inner:
        return "save a state_dict"
    return f"save the mapping under {' or '.join(inner)}: torch.save(torch.load(FILE)[{inner[0]}], OTHER)"


def _oddity(tensor: Tensor) -> str:
    """Reason why a tensor is not a plain dense tensor in memory; empty if it is one."""
    if is_lazy(tensor):
        return "a lazy parameter, which has no shape yet"
    if tensor.is_meta:
        return "on the meta device and has no values"
    if tensor.is_quantized:
        return "quantized"
    return "" if tensor.layout is torch.strided else f"stored as {tensor.layout}"


def check_forms(tensors: Mapping[str, Tensor], place: str) -> None:
    """UserError for parameters of a model that are lazy, sparse or quantized."""
    odd = [(n, _oddity(t)) for n, t in tensors.items() if not t.is_meta and _oddity(t)]
    advice = "run the model once before it is used, or convert with .to_dense() or .dequantize()"
    if odd:
        raise UserError([Problem("M117", place, f"{name} is {what}", advice) for name, what in odd])


def check_weights(model: nn.Module, place: str, params: Params = Params()) -> list[str]:  # noqa: B008  # immutable
    """Notes on unusual weights; UserError for weights that cannot be compiled: not finite, or on the meta device.

    `params` has tensors of the meta device by name. Minus infinity is allowed as a mask value: in buffers, and in
    parameters whose other elements are all zero.
    """
    problems, denormal = [], dict[str, int]()
    parameters = dict(model.named_parameters())
    tensors = [*parameters.items(), *model.named_buffers()]
    check_forms(dict(tensors), place)
    for name, own in tensors:
        tensor = params.get(name, own)
        if tensor.is_meta:
            problems.append(
                Problem("M120", place, f"{name} is on the meta device and has no values", "load weights")
            )
        elif tensor.is_floating_point() and not _is_usable(tensor, is_buffer=name not in parameters):
            problems.append(
                Problem("M121", place, f"{name} contains NaN or infinity", "train or load it again")
            )
        elif tensor.is_floating_point() and (count := _denormals(tensor)):
            denormal[name] = count
    if problems:
        raise UserError(problems)
    if not denormal:
        return []
    first, rest = next(iter(denormal)), len(denormal) - 1
    holders = f"{first} and {rest} other tensors contain" if rest else f"{first} holds"
    return [f"{holders} {sum(denormal.values())} denormal numbers, which are kept"]


def _is_usable(tensor: Tensor, *, is_buffer: bool) -> bool:
    if all_finite(tensor):
        return True
    may_be_mask = is_buffer or is_additive_mask(tensor)
    return may_be_mask and bool((torch.isfinite(tensor) | (tensor == -torch.inf)).all())


def example_input(shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    """Input for tracing without data: normal random floats; ones and zeros for integers and booleans.

    Integers may be indices, lengths or masks: each dimension has ones, so that no sequence is empty and no mask hides
    everything, and some zeros. Of two adjacent booleans one is true, since masks have either meaning.
    """
    if dtype is torch.bool:
        return (torch.arange(prod(shape)) % 2 == 1).reshape(shape)
    if not dtype.is_floating_point:
        return (torch.arange(prod(shape)) % 3 != 2).reshape(shape).to(dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def _denormals(tensor: Tensor) -> int:
    """Number of denormal numbers in float32, the usual compute type; denormals of half precision are not counted."""
    tiny = torch.finfo(torch.float64 if tensor.dtype is torch.float64 else torch.float32).tiny
    small = (part for part in tensor.reshape(-1).split(_PART) if bool((part.abs() < tiny).any()))
    return sum(int(((part != 0) & (part.abs() < tiny)).sum()) for part in small)


def _import_file(path: Path, place: str) -> ModuleType:
    if not is_file(path):
        fact = why_no_file(path) if os.path.exists(path) else f"file not found: {path.name} in {path.parent}"
        raise _problem("M100", place, fact, "check the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _on_path(path.parent), _registered(module):
            spec.loader.exec_module(module)
    except USER_CODE_RAISES as err:
        raise _problem("M101", place, f"importing it raises {first_line(err)}", _see(err)) from err
    return module


@contextmanager
def _registered(module: ModuleType) -> Iterator[None]:
    """The module in `sys.modules` while it is executed: dataclasses look there. It hides no other of its name."""
    if module.__name__ in sys.modules:
        yield
        return
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules.pop(module.__name__, None)


def _import(source: ModuleSource, folder: Path) -> ModuleType:
    try:
        with _on_path(folder):
            return importlib.import_module(source.module)
    except ModuleNotFoundError as err:
        raise _problem(
            "M100", str(source), f"cannot be imported: {err}", "install it, or check the name"
        ) from err
    except USER_CODE_RAISES as err:
        raise _problem("M101", str(source), f"importing it raises {first_line(err)}", _see(err)) from err


def _see(err: BaseException) -> str:
    """The user's line in which an error was raised, as advice."""
    line = user_line(err)
    return f"see {line}" if line else ""


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _problem(code: str, place: str, fact: str, advice: str = "") -> UserError:
    return UserError(Problem(code, place, fact, advice))
