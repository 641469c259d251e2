"""Causal language models of Hugging Face with static caches, as a function without side effects.

    input_ids [1, s], position [1], keys_0 [1, heads, length, size], values_0, ...
        ->  logits [1, s, vocabulary], keys_0, values_0, ...

New keys and values are copied to the positions of their tokens (`index_copy`), and transformers itself masks positions
after a query's. The classes fit transformers' interface of caches, in which each layer of a cache is an object.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ir import DType, Graph, run
from ..ir.ops.quantize import SMALLEST_ROW
from ..specs import FolderSource, Input, Loaded, Spec
from ..specs.model import Cache
from ..specs.model_folder import GENERATION_FILE, POSITION, TOKEN_IDS, TOKENIZER_FILE
from .data import Samples
from .errors import Problem, UserError, first_line
from .interface import Generation
from .isolation import USER_CODE_RAISES
from .model_folder import completed_config, read_beside, read_tokenizer

LOGITS = "logits"
_PROBED, _PROBED_TYPE = 3, torch.bfloat16  # tokens and type of the call that finds shapes of keys and values
_RAISED, _HIGH = 8.0, 16.0  # two codes in a byte: offset that makes them positive, factor of the second
_COMPARED = 8  # samples on which caches of few bits are compared with floats
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
_REMEDY = "remove `cache`: each call then takes all tokens"


@dataclass(frozen=True)
class CacheTensor:
    """One cache, keys or values of a layer: its name, shape and element type."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def add_caches(model: nn.Module, source: FolderSource, options: Cache) -> tuple[CacheTensor, ...]:
    """Adds a forward with caches to a model of transformers, and returns the caches.

    UserError for a model without support of static caches, or with fewer positions than the caches.
    """
    config: Any = model.config  # Any: transformers is untyped
    _check(model, config, source, options)
    _keep_frequencies(model)
    caches = _found(model, source, options)
    cache_class = importlib.import_module("transformers.cache_utils").Cache
    layer_class, each = _fitted(_Layer), 1 if options.bits is None else 2
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters

    def forward(self: nn.Module, input_ids: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        parts = [caches[i : i + each] for i in range(0, len(caches), each)]
        layers = [layer_class(position, *part) for part in zip(parts[::2], parts[1::2], strict=True)]
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
        return found.logits, *(tensor for layer in layers for tensor in (*layer.keys, *layer.values))

    model.forward = MethodType(forward, model)  # for this model only
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
        "inputs": {**{name: model.inputs[name] for name in (TOKEN_IDS, POSITION)}, **inputs},
        "outputs": (LOGITS, *names),
        "state": {name: name for name in names},
    }
    spec = loaded.spec.model_copy(update={"model": model.model_copy(update=changed)})
    return replace(loaded, spec=spec)


def cache_divergence(stored: Graph, floats: Graph, samples: Samples) -> str:
    """Note on the mean divergence KL(floats || stored) of the tokens of the first samples, in nats."""
    total, count, calls = 0.0, 0, min(_COMPARED, samples.calls(stored.inputs))
    with torch.no_grad():
        for index in range(calls):
            ids = samples.call(stored.inputs, index)[0]
            p, q = (run(g, _from_start(g, ids))[0].double().log_softmax(-1) for g in (floats, stored))
            total += float(functional.kl_div(q, p, reduction="sum", log_target=True))
            count += ids.numel()
    width = f"{_width(stored)} bits"
    return f"caches of {width}: divergence {total / count:.3g} nats from float ones, mean of {count:,} tokens"


def _from_start(graph: Graph, ids: Tensor) -> list[Tensor]:
    """Inputs of a text that begins with empty caches."""
    return [ids, *(torch.zeros(v.type.shape, dtype=v.type.dtype.torch) for v in graph.inputs[1:])]


def _width(graph: Graph) -> int:
    """Bit width of the caches of a graph with codes."""
    return 8 if any(value.type.dtype is DType.I8 for value in graph.inputs) else 4


def generation_of(spec: Spec) -> Generation | None:
    """Length of the caches, and the tokens that end a text, according to the files of the folder."""
    source, options = spec.model.source, spec.model.cache
    if options is None or not isinstance(source, FolderSource):
        return None
    path = source.path / GENERATION_FILE
    named = read_beside(path).get("eos_token_id") if path.is_file() else None
    if named is None:
        named = completed_config(source).get_text_config().eos_token_id
    found = named if isinstance(named, list) else [named]
    return Generation(length=options.length, stop_tokens=tuple(i for i in found if isinstance(i, int)))


def prompt_notes(spec: Spec) -> list[str]:
    """A note if prompts must be token ids."""
    if spec.model.cache is None or tokenizer_files(spec):
        return []
    return [f"the folder has no {TOKENIZER_FILE}: `fxpress run` takes prompts as token ids"]


def tokenizer_files(spec: Spec) -> dict[str, bytes]:
    """Tokenizer of the folder, for the output directory; empty if it has none. UserError for a damaged one."""
    source = spec.model.source
    assert isinstance(source, FolderSource)
    path = source.path / TOKENIZER_FILE
    if not path.is_file():
        return {}
    read_tokenizer(path)
    return {TOKENIZER_FILE: path.read_bytes()}


class _Layer:
    """Cache of a layer whose tensors are replaced, not written to: keys and values as tensors, or as codes and
    scales.
    """

    is_compileable = True
    is_sliding = False
    is_initialized = True

    def __init__(self, position: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.position, self.keys, self.values = position, tuple(keys), tuple(values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: the tensors exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, including those of the new tokens."""
        positions = self.position + torch.arange(key_states.shape[2])
        self.keys, keys = _updated(self.keys, positions, key_states)
        self.values, values = _updated(self.values, positions, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the position of the first."""
        return self.keys[0].shape[2], 0

    def get_seq_length(self) -> Tensor:
        """Position of the first new token."""
        return self.position

    def get_max_length(self) -> int:
        """Number of positions."""
        return self.keys[0].shape[2]


def _updated(cache: tuple[Tensor, ...], positions: Tensor, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """A cache with new rows [1, heads, s, size] at these positions, and the reals of all its rows."""
    if len(cache) == 1:
        (whole,) = cache
        whole = whole.index_copy(2, positions, rows)
        return (whole,), whole
    bits = 8 if cache[0].dtype is torch.int8 else 4
    new = zip(cache, quantized(rows, bits), strict=True)
    codes, scales = (old.index_copy(2, positions, part) for old, part in new)
    return (codes, scales), dequantized(codes, scales).to(rows.dtype)


def quantized(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and float32 scales [..., 1] of rows along the last dimension: max|x| / (2^(bits-1) - 1) for each row.

    Codes are int8, or pairs of 4-bit codes plus 8 in a uint8, with the first half of a row in the low bits. Halves
    are rounded to even; a row whose largest magnitude is below 1e-30 becomes zeros.
    """
    largest = float(2 ** (bits - 1) - 1)
    wide = rows.float()
    most = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(most >= SMALLEST_ROW, largest / most, 0.0)
    codes = torch.round(wide * inverse)
    if bits == 8:
        return codes.to(torch.int8), most / largest
    low, high = (codes + _RAISED).chunk(2, -1)
    return (low + high * _HIGH).to(torch.uint8), most / largest


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 reals of codes and scales."""
    if codes.dtype is torch.int8:
        return codes.float() * scales
    pairs = codes.float()
    high = torch.floor(pairs / _HIGH)
    return (torch.cat((pairs - high * _HIGH, high), -1) - _RAISED) * scales


class _Probe(_Layer):
    """An empty cache that records the keys and values of a layer."""

    def __init__(self) -> None:
        self.given: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values."""
        self.given = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Sizes of an empty cache."""
        return query_length, 0

    def get_seq_length(self) -> Any:  # Any: a number here
        """Position 0: no earlier token."""
        return 0


def _fitted(own: type[_Layer]) -> Any:  # Any: a class of transformers, too
    """The class, derived from transformers' base class of cache layers, as its caches require."""
    base: Any = importlib.import_module("transformers.cache_utils").CacheLayerMixin
    return type(own.__name__, (own, base), {})


def _check(model: nn.Module, config: Any, source: FolderSource, options: Cache) -> None:  # Any: untyped
    """UserError unless transformers reports that the model generates with static caches of this length."""
    name, kind = type(model).__name__, type(model)
    if config.is_encoder_decoder:
        raise _problem(source, f"{name} is an encoder-decoder, `cache` is for decoders", _REMEDY)
    can_generate = getattr(kind, "can_generate", None)
    if can_generate is None or not can_generate() or not getattr(config, "is_causal", True):
        raise _problem(source, f"{name} is not a causal language model", _REMEDY)
    if not getattr(kind, "_can_compile_fullgraph", False):
        raise _problem(source, f"{name} of transformers does not work with static caches", _REMEDY)
    text = config.get_text_config()
    limit = min((n for key in _LIMITS if isinstance(n := getattr(text, key, None), int)), default=None)
    if limit is not None and options.length > limit:
        fact = f"`cache.length` is {options.length}, but the model has {limit} positions"
        raise _problem(source, fact, f"lower it to {limit}")
    for rotary in _rotary_parameters(text):
        turn = rotary.get("original_max_position_embeddings")
        if rotary["rope_type"] == "longrope" and isinstance(turn, int) and options.length > turn:
            fact = (
                f"rotary frequencies of type longrope change after {turn} positions, and cached keys do not"
            )
            raise _problem(source, fact, f"lower `cache.length` to {turn}, or remove `cache`")


def _rotary_parameters(config: Any) -> list[Mapping[str, Any]]:  # Any: untyped
    """Parameters of rotary embeddings; some models have different ones for each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    each = [found] if "rope_type" in found else found.values()
    return [
        parameters for parameters in each if isinstance(parameters, Mapping) and "rope_type" in parameters
    ]


def _keep_frequencies(model: nn.Module) -> None:
    """Fixes rotary frequencies of type `dynamic` at their values for the positions of the model, which caches do not
    exceed.
    """
    modules: Iterable[Any] = model.modules()  # Any: attributes of transformers
    for module in modules:
        if getattr(module, "rope_type", None) == "dynamic":
            module.rope_type = "default"  # queried in each call


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
    if not cache.layers or not all(layer.given for layer in cache.layers):
        raise _problem(source, f"{made.__name__} has layers without their own keys and values", _REMEDY)
    own = next(model.parameters()).dtype
    odd = {x.shape[3] for layer in cache.layers for x in layer.given if x.shape[3] % 2}
    if options.bits == 4 and odd:
        fact = f"heads of {min(odd)} elements cannot be stored as pairs of 4 bits"
        raise _problem(source, fact, "set `bits: 8`")
    found = [
        tensor
        for index, layer in enumerate(cache.layers)
        for kind, rows in zip(("key", "value"), layer.given, strict=True)
        for tensor in _tensors(f"{kind}s_{index}", f"{kind}_scales_{index}", rows, own, options)
    ]
    return tuple(found)


def _tensors(name: str, scales: str, rows: Tensor, own: torch.dtype, options: Cache) -> list[CacheTensor]:
    """Tensors that store such rows of each position, in a model of type `own`."""
    shape = (1, rows.shape[1], options.length)
    if options.bits is None:
        dtype = own if rows.dtype is _PROBED_TYPE else rows.dtype
        return [CacheTensor(name, (*shape, rows.shape[3]), dtype)]
    size, dtype = (rows.shape[3], torch.int8) if options.bits == 8 else (rows.shape[3] // 2, torch.uint8)
    return [CacheTensor(name, (*shape, size), dtype), CacheTensor(scales, (*shape, 1), torch.float32)]


def _problem(source: FolderSource, fact: str, advice: str) -> UserError:
    return UserError(Problem("M136", str(source), fact, advice))
