"""A network in a local Hugging Face folder: the files that are read, and the inputs of a model of token ids."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
PREFIX = "hf:"
TOKEN_IDS, POSITION = "input_ids", "position"
"""Inputs of a model with caches: the token ids of a block, and the position of the first token."""
TOKENS = "tokens"
"""Dimension of a block of tokens."""
_LENGTH = 128
"""Sequence length of token ids if the spec names no inputs; shorter if the model has fewer positions."""
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation_config.json"
_COPIED = (
    TOKENIZER_FILE,
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    GENERATION_FILE,
)


@dataclass(frozen=True)
class FolderSource:
    """A network in a folder of Hugging Face files: `hf:models/llama`."""

    path: Path

    @property
    def attribute(self) -> str:
        """Name of the folder, which reports show as the name of the network."""
        return self.path.name

    def __str__(self) -> str:
        return f"{PREFIX}{self.path}"

    @property
    def weights(self) -> Path:
        """Index file of the shards, or the single safetensors file; the folder itself if neither has its usual name."""
        return next((self.path / name for name in _WEIGHTS if (self.path / name).is_file()), self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """Existing files that a compilation reads or copies: configuration, weights, tokenizer."""
        if not self.path.is_dir():
            return ()
        named = (CONFIG_FILE, *_WEIGHTS, *_COPIED)
        found = {path for name in named if (path := self.path / name).is_file()}
        return tuple(sorted(found | set(self.path.glob("*.safetensors"))))


def read_config(folder: Path) -> Mapping[str, Any]:  # Any: any JSON
    """Content of config.json; ValueError or OSError if it cannot be read."""
    return read_json(folder / CONFIG_FILE)


def read_json(path: Path) -> Mapping[str, Any]:  # Any: any JSON
    """The object in a JSON file; ValueError or OSError if the file has none."""
    try:
        content = json.loads(path.read_bytes())
    except RecursionError as err:
        raise ValueError("it is nested too deeply") from err
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def default_inputs(folder: Path) -> dict[str, dict[str, object]]:
    """Inputs of a model of token ids, in the form of a spec; empty if config.json has no vocabulary size.

    A folder that cannot be read gives the inputs of a decoder; its problem is reported when the model is loaded.
    """
    config = _config_or_empty(folder)
    if not isinstance(config.get("vocab_size"), int):
        return {}
    ids = {"shape": (1, _tokens(config)), "dtype": "int64"}
    names = (TOKEN_IDS, "decoder_input_ids") if config.get("is_encoder_decoder") else (TOKEN_IDS,)
    return {name: dict(ids) for name in names}


def cached_inputs(folder: Path, length: int) -> dict[str, dict[str, object]]:
    """Inputs, without the caches, of a model with caches of `length` positions, in the form of a spec."""
    tokens = min(_tokens(_config_or_empty(folder)), length - 1)
    ids: dict[str, object] = {"shape": (1, tokens), "dtype": "int64", "dynamic": {1: TOKENS}}
    return {TOKEN_IDS: ids, POSITION: {"shape": (1,), "dtype": "int64", "batch": None}}


def _config_or_empty(folder: Path) -> Mapping[str, Any]:  # Any: as in the file
    try:
        return read_config(folder)
    except (OSError, ValueError):
        return {"vocab_size": 0}


def _tokens(config: Mapping[str, Any]) -> int:  # Any: as in the file
    """Length of the example: 128 tokens, or the number of positions of the model if that is smaller."""
    limits = (config.get(name) for name in _POSITIONS)
    return min([_LENGTH, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])
