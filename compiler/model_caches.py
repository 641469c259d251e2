"""Causal language models of Hugging Face with static caches, as a function without side effects.

    input_ids [1, s], position [1], keys_0 [1, heads, length, size], values_0, ...
        ->  logits [1, s, vocabulary], keys_0, values_0, ...

New keys and values are copied to the positions of their tokens (`index_copy`), and transformers itself masks positions
after a query's. The classes fit transformers' interface of caches, in which each layer of a cache is an object.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..specs import FolderSource, Input, Loaded, Spec
from ..specs.model import Cache
from ..specs.model_folder import GENERATION_FILE, TOKENIZER_FILE
from .errors import Problem, UserError, first_line
from .interface import Generation
from .isolation import USER_CODE_RAISES
from .model_folder import completed_config

LOGITS = "logits"
_PROBED, _PROBED_TYPE = 3, torch.bfloat16  # tokens, and weights, by which shapes of keys and values are found
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
_REMEDY = "leave `cache` out: each call then takes all tokens"


@dataclass(frozen=True)
class CacheTensor:
    """One cache, keys or values of a layer: its name, shape and element type."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def add_caches(model: nn.Module, source: FolderSource, options: Cache) -> tuple[CacheTensor, ...]:
    """Give a model of transformers the forward with caches, and return what these are.

    UserError for a model that keeps no static caches, or has fewer positions than they.
    """
    config: Any = model.config  # Any: transformers is untyped
    _check(model, config, source, options)
    _keep_frequencies(model)
    caches = _found(model, source, options)
    cache_class = importlib.import_module("transformers.cache_utils").Cache
    layer_class = _fitted(_Layer)
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters

    def forward(self: nn.Module, input_ids: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        layers = [layer_class(position, *pair) for pair in zip(caches[::2], caches[1::2], strict=True)]
        positions = position + torch.arange(input_ids.shape[1])
        call = {"position_ids": positions[None]} if takes_positions else {}
        found = type(self).forward(
            self,
            input_ids=input_ids,
            attention_mask=torch.ones(1, options.length, dtype=torch.int64),  # no position is padding
            past_key_values=cache_class(layers=layers),
            use_cache=True,
            **call,
        )
        return found.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values))

    model.forward = MethodType(forward, model)  # of this model alone
    return caches


def with_caches(loaded: Loaded, caches: Sequence[CacheTensor]) -> Loaded:
    """The spec with the caches as inputs, outputs and states."""
    names = [cache.name for cache in caches]
    inputs = {
        cache.name: Input(shape=cache.shape, dtype=str(cache.dtype).removeprefix("torch."), batch=None)
        for cache in caches
    }
    model = loaded.spec.model
    changed: Mapping[str, object] = {
        "inputs": {**model.inputs, **inputs},
        "outputs": (LOGITS, *names),
        "state": {name: name for name in names},
    }
    spec = loaded.spec.model_copy(update={"model": model.model_copy(update=changed)})
    return replace(loaded, spec=spec)


def generation_of(spec: Spec) -> Generation | None:
    """Length of the caches, and the tokens that end a text as the files of the folder name them."""
    source, options = spec.model.source, spec.model.cache
    if options is None or not isinstance(source, FolderSource):
        return None
    path = source.path / GENERATION_FILE
    named = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
    if named is None:
        named = completed_config(source).get_text_config().eos_token_id
    found = named if isinstance(named, list) else [named]
    return Generation(length=options.length, stop_tokens=tuple(i for i in found if isinstance(i, int)))


def prompt_notes(spec: Spec) -> list[str]:
    """A note where prompts have to be token ids."""
    if spec.model.cache is None or tokenizer_files(spec):
        return []
    return [f"the folder has no {TOKENIZER_FILE}: `fxpress run` takes prompts as token ids"]


def tokenizer_files(spec: Spec) -> dict[str, bytes]:
    """The tokenizer of the folder, for the output directory; none where it has none."""
    source = spec.model.source
    assert isinstance(source, FolderSource)
    path = source.path / TOKENIZER_FILE
    return {TOKENIZER_FILE: path.read_bytes()} if path.is_file() else {}


class _Layer:
    """The cache of a layer whose tensors are replaced, not written to."""

    is_compileable = True
    is_sliding = False
    is_initialized = True

    def __init__(self, position: Tensor, keys: Tensor, values: Tensor) -> None:
        self.position, self.keys, self.values = position, keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: there are tensors from the start."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, with those of the new tokens in place."""
        positions = self.position + torch.arange(key_states.shape[2])
        self.keys = self.keys.index_copy(2, positions, key_states)
        self.values = self.values.index_copy(2, positions, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the position of the first."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Tensor:
        """Position of the first new token."""
        return self.position

    def get_max_length(self) -> int:
        """Number of positions."""
        return self.keys.shape[2]


class _Probe(_Layer):
    """A cache without tokens, which keeps what a layer gives it."""

    def __init__(self) -> None:
        self.is_filled = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values."""
        self.keys, self.values, self.is_filled = key_states, value_states, True
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As of an empty cache."""
        return query_length, 0

    def get_seq_length(self) -> Any:  # Any: a number here
        """No token."""
        return 0


def _fitted(own: type[_Layer]) -> Any:  # Any: a class of transformers, too
    """The class with transformers' base class of layers, which its caches ask for."""
    base: Any = importlib.import_module("transformers.cache_utils").CacheLayerMixin
    return type(own.__name__, (own, base), {})


def _check(model: nn.Module, config: Any, source: FolderSource, options: Cache) -> None:  # Any: untyped
    """UserError unless transformers says that the model generates with static caches of this length."""
    name, kind = type(model).__name__, type(model)
    if config.is_encoder_decoder:
        raise _problem(source, f"{name} is an encoder-decoder, `cache` is for decoders", _REMEDY)
    can_generate = getattr(kind, "can_generate", None)
    if can_generate is None or not can_generate() or not getattr(config, "is_causal", True):
        raise _problem(source, f"{name} is no causal language model", _REMEDY)
    if not getattr(kind, "_can_compile_fullgraph", False):
        raise _problem(source, f"{name} of transformers does not work with static caches", _REMEDY)
    text = config.get_text_config()
    limit = min((n for key in _LIMITS if isinstance(n := getattr(text, key, None), int)), default=None)
    if limit is not None and options.length > limit:
        fact = f"`cache.length` is {options.length}, and the model has {limit} positions"
        raise _problem(source, fact, f"lower it to {limit}")
    for rotary in _rotary_parameters(text):
        turn = rotary.get("original_max_position_embeddings")
        if rotary["rope_type"] == "longrope" and isinstance(turn, int) and options.length > turn:
            fact = (
                f"rotary frequencies of type longrope change after {turn} positions, and cached keys do not"
            )
            raise _problem(source, fact, f"lower `cache.length` to {turn}, or leave `cache` out")


def _rotary_parameters(config: Any) -> list[Mapping[str, Any]]:  # Any: untyped
    """Parameters of rotary embeddings; some models have others for each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    each = [found] if "rope_type" in found else found.values()
    return [
        parameters for parameters in each if isinstance(parameters, Mapping) and "rope_type" in parameters
    ]


def _keep_frequencies(model: nn.Module) -> None:
    """Rotary frequencies of type `dynamic` as they are up to the positions of the model, which caches do not exceed."""
    modules: Iterable[Any] = model.modules()  # Any: attributes of transformers
    for module in modules:
        if getattr(module, "rope_type", None) == "dynamic":
            module.rope_type = "default"  # asked for in each call


def _found(model: nn.Module, source: FolderSource, options: Cache) -> tuple[CacheTensor, ...]:
    """The caches of a model, found by a call of the same model without elements."""
    cache_class = importlib.import_module("transformers.cache_utils").Cache
    cache: Any = cache_class(layer_class_to_replicate=_fitted(_Probe))  # Any: untyped
    made: Any = type(model)  # Any: untyped
    try:
        with torch.device("meta"), torch.no_grad():
            probe = made._from_config(model.config, dtype=_PROBED_TYPE).eval()
            _keep_frequencies(probe)
            ids = torch.zeros(1, _PROBED, dtype=torch.int64)
            made.forward(probe, input_ids=ids, past_key_values=cache, use_cache=True)
    except USER_CODE_RAISES as err:
        fact = f"{made.__name__} does not run with static caches of keys and values: {first_line(err)}"
        raise _problem(source, fact, _REMEDY) from err
    if not cache.layers or not all(layer.is_filled for layer in cache.layers):
        raise _problem(
            source, f"{made.__name__} has layers that keep no keys and values of their own", _REMEDY
        )
    own = next(model.parameters()).dtype
    return tuple(
        CacheTensor(
            f"{kind}_{index}",
            (1, tensor.shape[1], options.length, tensor.shape[3]),
            own if tensor.dtype is _PROBED_TYPE else tensor.dtype,
        )
        for index, layer in enumerate(cache.layers)
        for kind, tensor in (("keys", layer.keys), ("values", layer.values))
    )


def _problem(source: FolderSource, fact: str, advice: str) -> UserError:
    return UserError(Problem("M136", str(source), fact, advice))
