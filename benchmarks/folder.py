"""Peak memory and time to quantize a language model from a folder to a folder, and what the result computes.

    python benchmarks/folder.py                # 1.1 billion random weights in bfloat16, 2.2 GB, in build/folder
    python benchmarks/folder.py --layers 2     # fewer layers
    python benchmarks/folder.py --keep         # leave the files there

A Llama with the sizes of TinyLlama 1.1B is written as shards of random weights and compiled to 4 bits in groups of 32,
rounded to nearest, by the command `fxpress compile` in a process of its own, on two threads. Then the emitted module
computes the logits of 8 tokens, and so does a reference that reads the written codes matrix by matrix: it unpacks them
in numpy and follows the definition of the model in torch, without fxpress.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from fxpress.compiler import load_compiled, text_table
from fxpress.ir import LazyTensor, Params, write_tensors

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "folder"
RESULTS = ROOT / "benchmarks" / "results" / "folder.json"
WIDTH, HIDDEN, LAYERS, HEADS, PAIRS, TOKENS, LENGTH = 2048, 5632, 22, 32, 4, 32000, 8
SHARDS, GROUP, THETA, EPSILON = 5, 32, 10000.0, 1e-5
MOST_BYTES, MOST_SECONDS, MOST_ERROR = 1_200_000_000, 300.0, 0.05
SPEC = """fxpress: 1
model:
  source: hf:model
  inputs: {input_ids: {shape: [1, 8], dtype: int64}}
passes:
  - pass: clean
  - pass: weight_only
    weights: int4
    group_size: 32
    observer: minmax
outputs:
  torch: {}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--keep", action="store_true", help="leave the files in build/folder")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        weights, stored = write_model(FOLDER / "model", options.layers)
        figures = compiled() | {"weights": weights, "bytes_before": stored}
        written = FOLDER / "out" / "torch" / "model.safetensors"
        figures |= {
            "bytes_after": written.stat().st_size,
            "logits_error": logits_error(written, options.layers),
        }
    finally:
        if not options.keep:
            shutil.rmtree(FOLDER)
    rows = [
        (name, f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
        for name, value in figures.items()
    ]
    print(text_table(("figure", "value"), rows))
    if options.layers == LAYERS:
        RESULTS.write_text(
            json.dumps({"threads": 2, "networks": [{"name": "llama_1b", **figures}]}, indent=2) + "\n"
        )
    assert figures["peak_bytes"] <= MOST_BYTES, "peak memory"
    assert figures["cpu_seconds"] <= MOST_SECONDS, "CPU time"
    assert figures["logits_error"] <= MOST_ERROR, "logits"


def compiled() -> dict[str, float]:
    """Peak resident memory and seconds of `fxpress compile`."""
    (FOLDER / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "fxpress.compiler", "compile", str(FOLDER / "spec.yaml"), "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "TMPDIR": str(FOLDER)}
    start = time.perf_counter()
    process = subprocess.Popen([*command, str(FOLDER / "out")], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, "fxpress compile failed"
    return {
        "peak_bytes": usage.ru_maxrss * 1024,
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def write_model(folder: Path, layers: int) -> tuple[int, int]:
    """Write config.json and shards of random weights; their number and bytes."""
    folder.mkdir(exist_ok=True)
    shapes = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    narrow = WIDTH // HEADS * PAIRS
    for layer in range(layers):
        own = {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (narrow, WIDTH),
            "self_attn.v_proj": (narrow, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (HIDDEN, WIDTH),
            "mlp.up_proj": (HIDDEN, WIDTH),
            "mlp.down_proj": (WIDTH, HIDDEN),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    shapes["lm_head.weight"] = (TOKENS, WIDTH)
    norms = [
        f"model.layers.{i}.{n}_layernorm.weight" for i in range(layers) for n in ("input", "post_attention")
    ]
    entries = {
        name: LazyTensor(shape, torch.bfloat16, partial(random_weight, shape, seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }
    entries |= dict.fromkeys(
        [*norms, "model.norm.weight"],
        LazyTensor((WIDTH,), torch.bfloat16, lambda: torch.ones(WIDTH, dtype=torch.bfloat16)),
    )
    names, places = list(entries), dict[str, str]()
    for index in range(SHARDS):
        file = f"model-{index + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[index * len(names) // SHARDS : (index + 1) * len(names) // SHARDS]
        write_tensors(folder / file, Params({name: entries[name] for name in part}))
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": PAIRS,
        "vocab_size": TOKENS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": EPSILON,
        "rope_theta": THETA,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    params = Params(entries)
    return params.numel, params.bytes


def random_weight(shape: tuple[int, ...], seed: int) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.mul(weight, shape[-1] ** -0.5).to(torch.bfloat16)


def logits_error(file: Path, layers: int) -> float:
    """Root mean square of the difference of module and reference, relative to the reference."""
    tokens = torch.arange(LENGTH)[None] * 997 % TOKENS
    with torch.no_grad():
        found = load_compiled(FOLDER / "out").module(tokens).double()
        expected = reference(lambda name: unpacked(file, name), tokens, layers).double()
    return float((found - expected).norm() / expected.norm())


def unpacked(file: Path, name: str) -> Tensor:
    """The reals of a matrix of 4-bit codes: blocks of 16 rows, lines of 4 columns, two lines in the halves of bytes."""
    with safe_open(file, framework="pt") as opened:
        codes, scales = opened.get_tensor(f"{name}.codes").numpy(), opened.get_tensor(f"{name}.scale").float()
    blocks, groups, _ = codes.shape
    pairs = codes.reshape(blocks, groups, -1, 1, 16, 4)
    lines = np.concatenate([pairs & 15, pairs >> 4], axis=3).astype(np.float32) - 8
    rows = (
        lines.reshape(blocks, groups, -1, 16, 4).transpose(0, 3, 1, 2, 4).reshape(blocks, 16, groups, GROUP)
    )
    reals = torch.mul(torch.from_numpy(rows), scales.transpose(1, 2)[..., None])
    return reals.reshape(blocks * 16, groups * GROUP)


def reference(read: Callable[[str], Tensor], tokens: Tensor, layers: int) -> Tensor:
    """Logits [1, tokens, vocabulary]: Llama (Touvron et al., 2023) in bfloat16, inputs of products in int8 by token."""
    x = read("model.embed_tokens.weight")[tokens].bfloat16()
    size = WIDTH // HEADS
    angles = torch.arange(LENGTH)[:, None] * THETA ** (-torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(angles)] * 2, -1).bfloat16() for f in (torch.cos, torch.sin))

    def linear(name: str, y: Tensor) -> Tensor:
        wide = y.float()
        most = wide.abs().amax(-1, keepdim=True)
        rounded = torch.round(wide * (127 / most)) * (most / 127)
        return (rounded @ read(f"{name}.weight").T).bfloat16()

    def norm(y: Tensor) -> Tensor:
        wide = y.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).bfloat16()

    def heads(y: Tensor, turned: bool) -> Tensor:
        split = y.reshape(1, LENGTH, -1, size).transpose(1, 2)
        if not turned:
            return split
        halves = torch.cat([-split[..., size // 2 :], split[..., : size // 2]], -1)
        return split * cos + halves * sin

    for layer in range(layers):
        path = f"model.layers.{layer}"
        y = norm(x)
        q = heads(linear(f"{path}.self_attn.q_proj", y), True)
        k, v = (
            heads(linear(f"{path}.self_attn.k_proj", y), True),
            heads(linear(f"{path}.self_attn.v_proj", y), False),
        )
        k, v = (z.repeat_interleave(HEADS // PAIRS, 1) for z in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(f"{path}.self_attn.o_proj", mixed.transpose(1, 2).reshape(1, LENGTH, WIDTH))
        y = norm(x)
        gate = functional.silu(linear(f"{path}.mlp.gate_proj", y))
        x = x + linear(f"{path}.mlp.down_proj", gate * linear(f"{path}.mlp.up_proj", y))
    return linear("lm_head", norm(x))


if __name__ == "__main__":
    main()
