"""Constants in a binary file apart from the code: contents, checks, and networks that read them."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from fxpress.backends.c import check, emit
from fxpress.backends.c.emit import CArtifact
from fxpress.backends.c.tools.simulated_network import SimulatedNetwork
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    WARNINGS,
    compile_objects,
    find_compiler,
    link_program,
    link_shared,
)
from fxpress.ir import Graph, parse, run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

NET = """graph(%x: i8[1x3x8x8]<scale=0.1, zero=2>) {
  const %w: i8[8x3x3x3]<scale=0.02, zero=0>
  const %b: i32[8]<scale=0.002, zero=0>
  const %v: i8[10x512]<scale=0.02, zero=0>
  %a: i8[1x8x8x8]<scale=0.2, zero=-5> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w, %b)
  %t: i8[1x8x8x8]<scale=0.0078125, zero=0> = tanh(%a)
  %r: i8[1x512]<scale=0.0078125, zero=0> = reshape{shape=(-1, 512)}(%t)
  %y: i8[1x10]<scale=0.05, zero=0> = linear(%r, %v)
  return y: %y
}"""
BINARY = COutput(name="net", weights_file="binary")
Fill = Callable[..., torch.Tensor]
Status = Callable[[bytes], int]


def offset_by(fill: Fill, step: int) -> Fill:
    """Other constants of the same types, as after another training."""
    return lambda value: (fill(value).to(torch.int64) // step).to(value.type.dtype.torch)


def artifact_of(graph: Graph, target: Target, options: COutput = BINARY, seeds: int = 2) -> CArtifact:
    generator = torch.Generator().manual_seed(0)
    vectors = [
        [torch.randint(-128, 128, v.type.shape, generator=generator).to(torch.int8) for v in graph.inputs]
        for _ in range(seeds)
    ]
    return emit(graph, options, target, vectors=vectors)


def checked(artifact: CArtifact, folder: Path) -> Status:
    """NAME_check_weights on the first bytes of an aligned buffer."""
    flags = ("-O1", *WARNINGS)
    library = link_shared(find_compiler("gcc"), artifact.write(folder), folder / "net.so", flags=flags)
    function = ctypes.CDLL(str(library)).net_check_weights
    alignment = int(artifact.macros["NET_WEIGHTS_ALIGNMENT"])

    def status(data: bytes) -> int:
        room = np.zeros(len(data) + alignment, np.uint8)
        at = -room.ctypes.data % alignment
        room[at : at + len(data)] = np.frombuffer(data, np.uint8)
        return int(function(ctypes.c_void_p(room.ctypes.data + at), ctypes.c_size_t(len(data))))

    return status


@pytest.mark.parametrize("machine", ["host", "cortex_m4"])
def test_the_file_is_described_by_its_first_words_and_ends_with_its_crc(machine, fill, request):
    artifact = artifact_of(parse(NET, fill=fill), request.getfixturevalue(machine))
    contents = artifact.files["net_weights.bin"]
    magic, version, size, digest = struct.unpack_from("<4sIQQ", contents)
    assert (magic, version, size) == (b"FXPW", 1, len(contents))
    assert artifact.macros["NET_WEIGHTS_BYTES"] == str(size)
    assert artifact.macros["NET_WEIGHTS_DIGEST"] == f"{digest:#018x}ull"
    assert crc32(contents[:-4]) == int.from_bytes(contents[-4:], "little")
    alignment = int(artifact.macros["NET_WEIGHTS_ALIGNMENT"])
    assert alignment == (64 if machine == "host" else 8)
    for array in artifact.source.arrays:
        assert array.offset is not None and array.offset >= 24 and array.offset % alignment == 0
        assert contents[array.offset :].startswith(array.data.tobytes())


def test_every_damage_of_the_file_is_found(fill, host, cortex_m4, tmp_path):
    artifact = artifact_of(parse(NET, fill=fill), cortex_m4)
    contents, status = artifact.files["net_weights.bin"], checked(artifact, tmp_path)
    assert status(contents) == status(contents + bytes(100)) == 0
    for size in (0, 1, 23, 24, 100, len(contents) - 1):
        assert status(contents[:size]) == 4, size
    for position in [*range(32), 500, len(contents) - 5, len(contents) - 1]:
        for bit in range(8):
            damaged = bytearray(contents)
            damaged[position] ^= 1 << bit
            assert status(bytes(damaged)) == (3 if position < 8 or 16 <= position < 24 else 5), position
    assert status(bytes(len(contents))) == 3
    assert status(b"\xff" * len(contents)) == 3  # erased flash


def test_null_and_unaligned_addresses_and_other_files_are_refused(fill, cortex_m4, tmp_path):
    artifact = artifact_of(parse(NET, fill=fill), cortex_m4)
    artifact.write(tmp_path)
    checked(artifact, tmp_path)
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    contents = artifact.files["net_weights.bin"]
    room = np.zeros(len(contents) + 16, np.uint8)
    at = -room.ctypes.data % 8
    size = ctypes.c_size_t(len(contents))
    assert library.net_check_weights(None, size) == 1
    x, y, arena = np.zeros(192, np.int8), np.zeros(10, np.int8), np.zeros(artifact.plan.arena_bytes // 8 + 1)
    for shift, wanted in ((0, 0), (1, 2), (4, 2)):
        room[at + shift : at + shift + len(contents)] = np.frombuffer(contents, np.uint8)
        address = ctypes.c_void_p(room.ctypes.data + at + shift)
        assert library.net_check_weights(address, size) == wanted
        given = (x.ctypes.data, y.ctypes.data, address.value, arena.ctypes.data)
        assert library.net_run(*map(ctypes.c_void_p, given)) == wanted
    assert library.net_run(*map(ctypes.c_void_p, (given[0], given[1], None, given[3]))) == 1
    other = artifact_of(parse(NET.replace("zero=-5", "zero=-6"), fill=fill), cortex_m4)
    room[at : at + len(contents)] = np.frombuffer(other.files["net_weights.bin"], np.uint8)
    given = (x.ctypes.data, y.ctypes.data, room.ctypes.data + at, arena.ctypes.data)
    assert library.net_run(*map(ctypes.c_void_p, given)) == 3
    assert library.net_check_weights(ctypes.c_void_p(given[2]), size) == 3


def test_other_weights_fit_the_same_code_and_other_scales_do_not(fill, cortex_m4):
    first = artifact_of(parse(NET, fill=fill), cortex_m4)
    trained = artifact_of(parse(NET, fill=offset_by(fill, 3)), cortex_m4)
    assert first.files["net.c"] == trained.files["net.c"] and first.files["net.h"] == trained.files["net.h"]
    assert first.files["net_weights.bin"] != trained.files["net_weights.bin"]
    digest = first.macros["NET_WEIGHTS_DIGEST"]
    elsewhere = parse(NET.replace("tanh(%a)", "tanh(%a)   # from net.py"), fill=fill)
    assert artifact_of(elsewhere, cortex_m4).macros["NET_WEIGHTS_DIGEST"] == digest
    for text in (
        NET.replace("scale=0.05, zero=0> = linear", "scale=0.06, zero=0> = linear"),
        NET.replace("tanh", "gelu"),
    ):
        assert artifact_of(parse(text, fill=fill), cortex_m4).macros["NET_WEIGHTS_DIGEST"] != digest


@pytest.mark.parametrize("weights", ["plain", "huffman"])
@pytest.mark.parametrize("cpu", ["cortex-m4f", "cortex-m0plus"])
def test_a_core_computes_the_bytes_of_the_integer_graph_from_the_file(weights, cpu, fill, draw, tmp_path):
    target = load_target(cpu)
    if shutil.which(target.toolchain.commands[0]) is None:
        pytest.skip(f"{target.toolchain.commands[0]} is not installed")
    graph = parse(NET, fill=offset_by(fill, 40))
    artifact = emit(graph, BINARY.model_copy(update={"weights": weights}), target)
    assert ("fxp_decode(" in artifact.files["net.c"].decode()) == (weights == "huffman")
    network = SimulatedNetwork.of(artifact, tmp_path, target)
    for seed in range(2):
        x = draw(graph.inputs[0], seed)
        assert torch.equal(network.run([x])[0], run_integer(graph, [x])[0])


def test_c_for_a_computer_runs_on_a_core_with_its_file(fill, draw, host, tmp_path):
    """Its file begins at a multiple of 64 bytes."""
    graph = parse(NET, fill=fill)
    artifact = emit(graph, BINARY, host)
    assert artifact.macros["NET_WEIGHTS_ALIGNMENT"] == "64"
    x = draw(graph.inputs[0], 0)
    found = SimulatedNetwork.of(artifact, tmp_path, load_target("cortex-m4f")).run([x])[0]
    assert torch.equal(found, run_integer(graph, [x])[0])


def test_constants_are_not_linked(fill, cortex_m4):
    graph = parse(NET, fill=fill)
    linked, apart = (
        emit(graph, COutput(name="net", weights_file=form), cortex_m4) for form in ("c", "binary")
    )
    assert linked.constant_bytes == apart.constant_bytes > 5000
    saved = linked.prediction.flash_bytes - apart.prediction.flash_bytes
    assert 0 < linked.constant_bytes - saved < 500  # the check
    small = cortex_m4.model_copy(update={"flash": 6000})
    assert [p.code for p in check(graph, COutput(), small)] == ["C708"]
    assert not check(graph, BINARY, small)


def test_every_operator_reads_its_constants_from_the_file(operators, assert_equal_to_interpreter, cortex_m4):
    assert_equal_to_interpreter(operators, options=BINARY, target=cortex_m4, seeds=1, flags=("-O1",))


def test_the_self_test_checks_the_file_under_sanitizers(fill, cortex_m4, tmp_path):
    artifact = artifact_of(parse(NET, fill=fill), cortex_m4)
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    flags = ("-O1", "-DNET_TEST_MAIN", *WARNINGS, *SANITIZERS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "test", flags=flags)

    def run() -> tuple[int, str]:
        done = subprocess.run([program], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert run() == (0, "net: 0 of 2 outputs differ\n")
    file = tmp_path / "net_weights.bin"
    contents = file.read_bytes()
    file.write_bytes(contents[:-1])
    assert run() == (2, "net: no weights file, or another one\n")
    damaged = bytearray(contents[:-4])
    damaged[24:] = bytes(len(damaged) - 24)
    file.write_bytes(bytes(damaged) + crc32(damaged).to_bytes(4, "little"))
    assert run()[0] == 1  # a whole file of wrong weights: the vectors find it


@pytest.mark.parametrize("name", ["clang", "cortex-m0plus", "riscv32"])
def test_the_check_compiles_everywhere_without_a_warning(name, fill, cortex_m4, host, tmp_path, compiler):
    artifact = artifact_of(parse(NET, fill=fill), host)
    compile_objects(compiler(name), artifact.write(tmp_path), tmp_path, flags=("-O2", *WARNINGS))
