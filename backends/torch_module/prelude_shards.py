"""Prelude of emitted modules with weights in several files; the source is copied into the emitted file."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


def load_shards(module: torch.nn.Module, index: str | Path) -> None:
    """Loads weights from the safetensors files that an index file lists, one file at a time.

    FileNotFoundError for a missing file. ValueError for a damaged one, for a tensor of the index that its file or the
    module lacks or has in another shape, and for one of the module that the index does not list; tied tensors need
    one name.
    """
    index = Path(index)
    files: dict[str, list[str]] = {}
    try:
        for name, file in json.loads(index.read_text())["weight_map"].items():
            files.setdefault(file, []).append(name)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{index} is damaged: it has no weight_map of tensors to files") from error
    state = module.state_dict(keep_vars=True)
    named = {name for names in files.values() for name in names}
    for name in sorted(named - state.keys()):
        raise ValueError(f"{index} lists {name}, which is not in the module")
    held = {id(state[name]) for name in named}
    for name, tensor in state.items():
        if id(tensor) not in held:
            raise ValueError(f"{index} does not list {name}, a tensor of the module")
    for file, names in files.items():
        path = index.with_name(file)
        if not path.is_file():
            raise FileNotFoundError(f"file not found: {path}, listed in {index.name}")
        try:
            with safe_open(path, framework="pt") as opened:
                for name in sorted(set(names).difference(opened.keys())):
                    raise ValueError(f"{path} does not contain {name}, which {index.name} lists there")
                tensors = {name: opened.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        for name, tensor in tensors.items():
            if tensor.shape != state[name].shape:
                sizes = f"{list(tensor.shape)}; the module takes {list(state[name].shape)}"
                raise ValueError(f"{path}: {name} has shape {sizes}")
        module.load_state_dict(tensors, strict=False)
