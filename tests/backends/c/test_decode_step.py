"""A step of a decoder in C: caches as states that are updated in place, results of a whole sequence."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxpress.backends.c import CArtifact, emit
from fxpress.backends.c.tools.toolchain import WARNINGS, find_compiler, link_shared
from fxpress.compiler import capture
from fxpress.compiler.frontend.decompose import for_c
from fxpress.ir import Graph, UnsupportedError, parse, run
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

Update = Literal["index_copy", "index_put", "where"]
WIDTH, HEADS, CACHED_HEADS, HEAD, TOKENS, CONTEXT, LAYERS = 32, 4, 2, 8, 50, 20, 2
STATES = {f"caches_{i}": f"output_{i + 1}" for i in range(2 * LAYERS)}
IN_PLACE = COutput(name="net", weights_file="binary", states="in_place", self_test=0)
BUILDS = {
    "native": (["gcc", "-O2", "-march=native"], []),
    "avx2": (["gcc", "-O1", "-mavx2", "-mfma", "-mf16c"], []),
    "plain": (["gcc", "-O1"], []),
    "neon": (
        ["aarch64-linux-gnu-gcc", "-O1", "-march=armv8.2-a+dotprod", "-static"],
        ["qemu-aarch64", "-cpu", "max"],
    ),
}
MAIN = """
#include <stdio.h>
#include "net.h"

static union { unsigned char bytes[NET_STATE_BYTES]; } state __attribute__((aligned(64)));
static unsigned char weights[NET_WEIGHTS_BYTES] __attribute__((aligned(64)));
static uint64_t arena[NET_ARENA_BYTES / 8 + 1];
static float logits[NET_OUTPUT_0_SIZE];

int main(int count, char **arguments)
{
    FILE *const file = count > 1 ? fopen(arguments[1], "rb") : NULL;
    if (file == NULL || net_check_weights(weights, fread(weights, 1, sizeof weights, file)) != 0) {
        return 2;
    }
    for (int64_t position = 0; position < 12; position++) {
        const int64_t token = position * 7 % 50;
        if (net_step(&token, &position, state.bytes, logits, weights, arena) != 0) {
            return 1;
        }
        for (int i = 0; i < NET_OUTPUT_0_SIZE; i++) {
            printf("%a ", (double)logits[i]);
        }
    }
    return 0;
}
"""


class Layer(nn.Module):
    def __init__(self, update: Update) -> None:
        super().__init__()
        self.update = update
        self.norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k = nn.Linear(WIDTH, CACHED_HEADS * HEAD, bias=False)
        self.v = nn.Linear(WIDTH, CACHED_HEADS * HEAD, bias=False)
        self.o = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, 48, bias=False), nn.Linear(WIDTH, 48, bias=False)
        self.down = nn.Linear(48, WIDTH, bias=True)

    def written(self, cache: Tensor, at: Tensor, rows: Tensor) -> Tensor:
        if self.update == "index_copy":
            return cache.index_copy(2, at, rows)
        if self.update == "where":
            return torch.where((torch.arange(CONTEXT) == at)[:, None], rows, cache)
        cache = cache.clone()
        cache[:, :, at] = rows
        return cache

    def forward(
        self, x: Tensor, turn: Sequence[Tensor], at: Tensor, mask: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        h, count = self.norm(x), x.shape[1]

        def heads(y: Tensor, number: int) -> Tensor:
            return y.view(1, count, number, HEAD).transpose(1, 2)

        def rotated(y: Tensor) -> Tensor:
            low, high = y.chunk(2, -1)
            return y * turn[0] + torch.cat((-high, low), -1) * turn[1]

        q, k, v = (
            rotated(heads(self.q(h), HEADS)),
            rotated(heads(self.k(h), CACHED_HEADS)),
            heads(self.v(h), CACHED_HEADS),
        )
        keys, values = self.written(caches[0], at, k), self.written(caches[1], at, v)
        repeats = HEADS // CACHED_HEADS
        y = functional.scaled_dot_product_attention(
            q, keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1), attn_mask=mask
        )
        x = x + self.o(y.transpose(1, 2).reshape(1, count, -1))
        h = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h)), keys, values


class Decoder(nn.Module):
    def __init__(self, update: Update = "index_copy", *, adds_mask: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.adds_mask = adds_mask
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(Layer(update) for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        angles = torch.outer(torch.arange(CONTEXT), 100.0 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("angles", torch.cat((angles, angles), -1))

    def forward(self, token: Tensor, at: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        angles = self.get_buffer("angles")
        mask: Tensor = torch.arange(CONTEXT) <= at[:, None]
        if self.adds_mask:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        x, new = self.embed(token), list[Tensor]()
        for layer, *pair in zip(self.layers, caches[::2], caches[1::2], strict=True):
            x, *written = layer(x, (angles.cos()[at], angles.sin()[at]), at, mask, *pair)
            new += written
        return (self.head(self.norm(x)), *new)


def inputs(count: int) -> tuple[Tensor, ...]:
    caches = [torch.zeros(1, CACHED_HEADS, CONTEXT, HEAD) for _ in range(2 * LAYERS)]
    return (torch.arange(count)[None] * 7 % TOKENS, torch.arange(count), *caches)


def graph_of(model: nn.Module, count: int, **options: object) -> Graph:
    graph = for_c(capture(model.eval(), inputs(count)).graph)
    return weight_only(graph, WeightOnlyOptions.model_validate(options)).graph


class Stepper:
    """The emitted function with its memory."""

    def __init__(self, artifact: CArtifact, folder: Path) -> None:
        library = link_shared(
            find_compiler("gcc"), artifact.write(folder), folder / "net.so", flags=("-O1", *WARNINGS)
        )
        self.call = ctypes.CDLL(str(library)).net_step
        state, arena = (int(artifact.macros[f"NET_{name}_BYTES"]) for name in ("STATE", "ARENA"))
        contents = artifact.files["net_weights.bin"]
        self.state, self.arena, self.weights = map(self.aligned, (state, arena, len(contents)))
        self.weights[:] = np.frombuffer(contents, np.uint8)
        self.logits = np.zeros(TOKENS, np.float32)

    @staticmethod
    def aligned(size: int) -> np.ndarray:
        room = np.zeros(size + 64, np.uint8)
        start = -room.ctypes.data % 64
        return room[start : start + size]

    def __call__(self, token: int, position: int) -> Tensor:
        given = (np.array([token]), np.array([position]), self.state, self.logits, self.weights, self.arena)
        assert self.call(*(ctypes.c_void_p(array.ctypes.data) for array in given)) == 0
        return torch.from_numpy(self.logits.copy())


@pytest.mark.parametrize(
    ("update", "adds_mask"), [("index_copy", False), ("index_put", True), ("where", False)]
)
def test_steps_give_the_logits_of_the_whole_sequence(
    update: Update, adds_mask: bool, host: Target, tmp_path: Path
) -> None:
    model, options = (
        Decoder(update, adds_mask=adds_mask),
        {"weights": "int8", "group_size": 8, "activations": "float32"},
    )
    whole = graph_of(Decoder(adds_mask=adds_mask), 18, **options)
    expected = run(whole, inputs(18))[0][0]
    artifact = emit(graph_of(model, 1, **options), IN_PLACE, host, states=STATES)
    step = Stepper(artifact, tmp_path)
    found = torch.stack([step(position * 7 % TOKENS, position) for position in range(18)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert artifact.plan.state_bytes == 4 * 2 * LAYERS * CACHED_HEADS * CONTEXT * HEAD
    assert not artifact.plan.returned, "a cache is copied"
    assert artifact.plan.arena_bytes < 4 * CACHED_HEADS * CONTEXT * HEAD, "the arena has room for a cache"


def test_rounded_activations_give_the_logits_of_the_interpreter(host: Target, tmp_path: Path) -> None:
    options = {"weights": "int4", "group_size": 8}
    graph = graph_of(Decoder(), 1, **options)
    step = Stepper(emit(graph, IN_PLACE, host, states=STATES), tmp_path)
    given = list(inputs(1))
    for position in range(18):
        given[:2] = torch.tensor([[position * 7 % TOKENS]]), torch.tensor([position])
        logits, *given[2:] = run(graph, given)
        error = step(position * 7 % TOKENS, position) - logits[0, 0]
        assert error.norm() < 0.02 * logits.norm()  # some activations are rounded to the other side


def test_every_instruction_set_decodes_the_same_bits(host: Target, tmp_path: Path) -> None:
    graph = graph_of(Decoder(), 1, weights="int4", group_size=8)
    sources = emit(graph, IN_PLACE, host, states=STATES).write(tmp_path)
    (tmp_path / "main.c").write_text(MAIN)
    results = {}
    for name, (command, emulator) in BUILDS.items():
        if all(map(shutil.which, [command[0], *emulator[:1]])):
            program = tmp_path / name
            subprocess.run(
                [
                    *command,
                    "-std=c99",
                    "-pedantic",
                    "-Wall",
                    "-Werror",
                    *sources,
                    tmp_path / "main.c",
                    "-o",
                    program,
                    "-lm",
                ],
                check=True,
            )
            done = subprocess.run(
                [*emulator, program, tmp_path / "net_weights.bin"], check=True, capture_output=True
            )
            results[name] = done.stdout
    assert len(results) > 2 and len(set(results.values())) == 1, list(results)


@pytest.mark.parametrize(
    "text",
    [
        # a state that is read after its new value is made, and one that moves along
        """
graph(%x: f32[4], %a: f32[4], %b: f32[4]) {
  %n: f32[4] = add(%x, %a)
  %y: f32[4] = mul(%n, %a)
  return y: %y, a: %n, b: %a
}""",
        # a row replaced while the old rows are still needed
        """
graph(%x: f32[4], %a: f32[4], %b: f32[4]) {
  const %i: i64[1]
  %s: f32[1] = slice{stop=1}(%x)
  %n: f32[4] = index_copy(%a, %i, %s)
  %m: f32[4] = mul(%n, %a)
  %y: f32[4] = add(%m, %b)
  return y: %y, a: %n, b: %x
}""",
    ],
)
def test_states_that_cannot_be_overwritten_are_copied(text: str, host: Target, tmp_path: Path) -> None:
    graph = parse(text, fill=lambda value: torch.tensor([1]))
    artifact = emit(
        graph, COutput(name="net", states="in_place", self_test=0), host, states={"a": "a", "b": "b"}
    )
    library = link_shared(
        find_compiler("gcc"), artifact.write(tmp_path), tmp_path / "net.so", flags=("-O1", *WARNINGS)
    )
    function, state = ctypes.CDLL(str(library)).net_step, Stepper.aligned(artifact.plan.state_bytes)
    floats, held = state.view(np.float32), [torch.arange(4.0) + 1, -torch.arange(4.0)]
    places = [int(artifact.macros[f"NET_{name}_OFFSET"]) // 4 for name in "AB"]
    for at, value in zip(places, held, strict=True):
        floats[at : at + 4] = value
    arena, y = np.zeros(32), np.zeros(4, np.float32)
    for seed in range(3):
        x = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        given = (x.numpy(), state, y, arena)
        assert function(*(ctypes.c_void_p(array.ctypes.data) for array in given)) == 0
        wanted, *held = run(graph, [x, *held])
        torch.testing.assert_close(torch.from_numpy(y), wanted)
        for at, value in zip(places, held, strict=True):
            torch.testing.assert_close(torch.from_numpy(floats[at : at + 4].copy()), value)


def test_large_states_have_no_self_test(host: Target) -> None:
    graph = parse(
        """
graph(%x: f32[1], %a: f32[300000]) {
  %n: f32[300000] = add(%x, %a)
  %y: f32[1] = slice{stop=1}(%n)
  return y: %y, a: %n
}"""
    )
    artifact = emit(graph, COutput(name="net", states="in_place"), host, states={"a": "a"})
    assert "net_test.c" not in artifact.files
    assert any("no self-test" in note for note in artifact.notes)


def test_states_that_exchange_their_values_are_refused(host: Target) -> None:
    graph = parse(
        "graph(%x: f32[4], %a: f32[4], %b: f32[4]) {\n %y: f32[4] = add(%x, %a)\n return y: %y, a: %b, b: %a\n}"
    )
    with pytest.raises(UnsupportedError, match="take each other's values"):
        emit(graph, COutput(name="net", states="in_place"), host, states={"a": "a", "b": "b"})
