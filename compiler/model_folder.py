"""Networks in local Hugging Face folders: the class that config.json names, without weights, and lazy tensors for them.

`transformers` is imported when a folder is read. The network is built in uninitialized memory, so that computed
buffers have their values; its parameters are then moved to the meta device, and capture reads each from the folder's
safetensors files.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..ir import Entry, IRError, Params, open_tensors
from ..ir.quiet import quiet
from ..ir.tensor_files import INDEX_FILE
from ..specs import FolderSource
from ..specs.model_folder import CONFIG_FILE, PREFIX, read_config, read_json
from .checkpoint_tensors import CheckpointTensor, checkpoint_tensors
from .errors import Problem, UserError, counted, first_line, listed, shortened
from .isolation import USER_CODE_RAISES

EXTRA = "pip install 'fxpress[hf]'"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_LEFT_OUT = (
    "tensors are read from the folder one at a time: model and trace are not compared, noise is measured on one call "
    "and changes against it are not tried, and graph.safetensors is not written"
)


@dataclass(frozen=True)
class LoadedModel:
    """A network, and the elements of its parameters on the meta device by the names of its state dict."""

    module: nn.Module
    params: Params
    notes: tuple[str, ...] = ()


def load_folder(source: FolderSource, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """The network of a folder in evaluation mode, with `dtype` as compute type, by default that of config.json.

    UserError if transformers is not installed, if the folder lacks a file or a tensor, or if the network is defined
    by Python code in the folder, which is not run.
    """
    config, place = _config(source), str(source)
    transformers = _transformers(place)
    architecture = _architecture(config, transformers, place)
    stored = _tensors(source)
    model = _built(architecture, source, dtype or _stored_dtype(config, stored))
    params, notes = _bound(model, stored, place)
    if config.get("auto_map"):
        notes = (*notes, f"code of the folder is not run: {architecture.__name__} of transformers computes")
    return LoadedModel(model, params, (*notes, _LEFT_OUT))


def _config(source: FolderSource) -> Mapping[str, Any]:  # Any: any JSON
    try:
        config = read_config(source.path)
    except (OSError, ValueError) as err:
        fact = f"{CONFIG_FILE} cannot be read: {first_line(err)}"
        advice = "name a folder with config.json and safetensors files, as written by `save_pretrained`"
        raise _problem("M130", str(source), fact, advice) from err
    described = config.get("quantization_config")
    if isinstance(described, Mapping):
        fact = f"its weights are quantized already ({described.get('quant_method', 'unnamed method')})"
        raise _problem("M133", str(source), fact, "name the folder of the unquantized model")
    return config


def _transformers(place: str) -> ModuleType:
    try:
        found = importlib.import_module("transformers")
        importlib.import_module("transformers.initialization")
    except ImportError as err:
        fact = f"needs transformers 5 or later: {first_line(err)}"
        raise _problem("M131", place, fact, EXTRA) from err
    return found


def _architecture(
    config: Mapping[str, Any],  # Any: as in the file
    transformers: ModuleType,
    place: str,
) -> type[nn.Module]:
    """The class that config.json names first; UserError if transformers has no such class."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        advice = 'add it, for example `"architectures": ["LlamaForCausalLM"]`'
        raise _problem("M132", place, f"{CONFIG_FILE} has no `architectures`", advice)
    found = getattr(transformers, str(names[0]), None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    code = config.get("auto_map")
    if isinstance(code, Mapping) and code:
        fact = f"{names[0]} is defined by code of the folder ({', '.join(sorted(map(str, code.values())))})"
        advice = "code of a folder is not run (trust_remote_code); write a class that loads it, and name that class"
        raise _problem("M132", place, fact, advice)
    fact = f"transformers {transformers.__version__} has no class {names[0]}"
    raise _problem("M132", place, fact, "correct `architectures`, or install the version that has it")


def _tensors(source: FolderSource) -> Params:
    """The folder's tensors, unread; UserError for missing or damaged files."""
    advice = "copy the folder again; all shards that its index names are needed"
    if missing := _missing_shards(source):
        fact = f"there is no {INDEX_FILE}, and of {missing[0]} shards {missing[1]} is missing"
        raise _problem("M134", str(source), fact, advice)
    try:
        return open_tensors(source.weights)
    except FileNotFoundError as err:
        other = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in source.path.glob(pattern)
        )
        if other and source.weights == source.path:
            advice = f"convert {other[0]}: AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)"
        raise _problem("M134", str(source), str(err), advice) from err
    except (IRError, SafetensorError, OSError) as err:
        raise _problem("M134", str(source), first_line(err), advice) from err


def _missing_shards(source: FolderSource) -> tuple[int, str] | None:
    """Number of shards and the first missing one, by their names; None if there is another weights file."""
    shards = [] if source.weights != source.path else [*source.path.glob("*.safetensors")]
    named = next((match for path in shards if (match := _SHARD.fullmatch(path.name))), None)
    if named is None:
        return None
    count, present = int(named["count"]), {path.name for path in shards}
    names = (f"{named['stem']}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count))
    return next(((count, name) for name in names if name not in present), None)


def _stored_dtype(config: Mapping[str, Any], stored: Params) -> torch.dtype:  # Any: as in the file
    """The element type that config.json names, or that of the largest tensor."""
    named = getattr(torch, str(config.get("dtype", config.get("torch_dtype"))), None)
    if isinstance(named, torch.dtype):
        return named
    floats = [entry for entry in stored.entries.values() if entry.dtype.is_floating_point]
    return max(floats, key=lambda entry: torch.Size(entry.shape).numel()).dtype if floats else torch.float32


def completed_config(source: FolderSource) -> Any:  # Any: transformers is optional, and not seen by mypy
    """The configuration of a folder's model, an object of transformers, which completes config.json."""
    config_class: Any = _transformers(str(source)).AutoConfig  # Any: as above
    with quiet():
        return config_class.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)


def read_beside(path: Path) -> Mapping[str, Any]:  # Any: any JSON
    """The object in another JSON file of the folder; UserError if there is none."""
    try:
        return read_json(path)
    except (OSError, ValueError) as err:
        raise damaged(path.parent, path.name, err) from err


def read_tokenizer(path: Path) -> str:
    """Content of a tokenizer.json, parsed by the tokenizers package; UserError for a damaged one."""
    try:
        content: str = importlib.import_module("tokenizers").Tokenizer.from_file(str(path)).to_str()
    except USER_CODE_RAISES as err:
        raise damaged(path.parent, path.name, err) from err
    return content


def damaged(folder: Path, name: str, err: BaseException) -> UserError:
    """The error for other files of the folder than config.json and weights."""
    advice = "copy the folder again, or remove the file if no tokenizer is needed"
    return _problem("M137", f"{PREFIX}{folder}", f"{name} cannot be read: {first_line(err)}", advice)


def _built(architecture: type[nn.Module], source: FolderSource, dtype: torch.dtype) -> nn.Module:
    """The network, with uninitialized parameters."""
    made: Any = architecture  # Any: transformers is optional, and not seen by mypy
    initialization = importlib.import_module("transformers.initialization")
    try:
        with quiet(), initialization.no_init_weights():
            config = completed_config(source)
            config.use_cache = False
            model: nn.Module = made._from_config(config, dtype=dtype)
        made.tie_weights(model)
    except USER_CODE_RAISES as err:
        reason = first_line(err.__cause__ or err)  # validators of transformers wrap the error with the reason
        fact = f"transformers cannot build {architecture.__name__} from {CONFIG_FILE}: {reason}"
        raise _problem("M132", str(source), fact, "correct the file") from err
    return model.eval()


def _bound(model: nn.Module, stored: Params, place: str) -> tuple[Params, tuple[str, ...]]:
    """Entries for the parameters of a model, which are moved to the meta device, and for persistent buffers."""
    state = model.state_dict(keep_vars=True)
    made, problems = checkpoint_tensors(model, state, stored, place)
    ties = dict[int, list[str]]()
    for name, tensor in state.items():
        ties.setdefault(id(tensor), []).append(name)
    found, lacking, casts = dict[str, Entry](), list[str](), dict[str, int]()
    for names in ties.values():
        tensor = state[names[0]]
        own = [name for name in names if name in made]
        if not own:
            lacking += [names[0]] if isinstance(tensor, nn.Parameter) else []
            continue
        entry = made[own[0]].entry
        problems += _unfit(own[0], entry, tensor, place)
        problems += _different([made[name] for name in own], place)
        if entry.dtype is not tensor.dtype:
            text = f"{_plain(entry.dtype)} as {_plain(tensor.dtype)}"
            casts[text] = casts.get(text, 0) + 1
        found[names[0]] = entry
    if lacking:
        advice = "check that `architectures` fits the files"
        problems.append(Problem("M112", place, f"lacks {counted(lacking)}", advice))
    if problems:
        raise UserError(shortened(problems))
    _to_meta(model, {id(state[name]) for name in found})
    notes = [
        f"{count} tensor{'s' * (count > 1)} of the folder are read from {text}"
        for text, count in casts.items()
    ]
    used = {source for tensor in made.values() for source in tensor.sources}
    ignored = [p for p in (getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    unused = [n for n in sorted(stored.keys() - used) if not any(re.search(p, n) for p in ignored)]
    if unused:
        notes.append(f"tensors of the folder that are not in the model: {listed(unused)}")
    return Params(found), tuple(notes)


def _unfit(name: str, entry: Entry, tensor: Tensor, place: str) -> Iterator[Problem]:
    if tuple(entry.shape) != tuple(tensor.shape):
        fact = f"{name} is {tuple(entry.shape)}; the model has {tuple(tensor.shape)}"
        yield Problem("M114", place, fact, f"check that {CONFIG_FILE} belongs to the files")
    if entry.dtype.is_floating_point != tensor.dtype.is_floating_point:
        fact = f"{name} is stored as {_plain(entry.dtype)}; the model has {_plain(tensor.dtype)}"
        yield Problem("M135", place, fact, "name the folder of the unquantized model")


def _different(tensors: list[CheckpointTensor], place: str) -> Iterator[Problem]:
    """Problems of tied tensors that are stored more than once with different elements."""
    names = [", ".join(tensor.sources) for tensor in tensors]
    entries = [Params({"": tensor.entry}) for tensor in tensors]
    for name, entry in zip(names[1:], entries[1:], strict=True):
        if name != names[0] and not torch.equal(entries[0][""], entry[""]):
            fact = f"{names[0]} and {name} differ; the model has one tensor for both"
            yield Problem("M118", place, fact, "set `tie_word_embeddings` to false in config.json")


def _to_meta(model: nn.Module, chosen: set[int]) -> None:
    """Replaces tensors of a model by tensors on the meta device; tied ones stay tied."""
    moved = dict[int, Tensor]()
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (
            module._parameters,
            module._buffers,
        )  # Any: tensors of two kinds
        for held in holders:
            for name, tensor in held.items():
                if tensor is None or id(tensor) not in chosen:
                    continue
                if id(tensor) not in moved:
                    meta = tensor.detach().to("meta")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if is_parameter else meta
                held[name] = moved[id(tensor)]


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _problem(code: str, place: str, fact: str, advice: str) -> UserError:
    return UserError(Problem(code, place, fact, advice))
