"""Emitted C computes the bytes of the integer interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fxpress.backends.c.emit import emit
from fxpress.ir import parse, verify
from fxpress.specs.outputs import COutput

NET = """
graph(%x: f32[1x3x8x8]) {
  const %w: i8[4x3x3x3]<scale=(0.01, 0.02, 0.03, 0.015), zero=0, axis=0>
  const %b: i32[4]<scale=(0.0005, 0.001, 0.0015, 0.00075), zero=0, axis=0>
  const %w2: i8[4x4x1x1]<scale=0.01, zero=0>
  const %w3: i8[10x64]<scale=0.01, zero=0>
  %q: i8[1x3x8x8]<scale=0.05, zero=-3> = quantize(%x)
  %c: i8[1x4x8x8]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%q, %w, %b)
  %d: i8[1x4x8x8]<scale=0.05, zero=4> = conv(%c, %w2, none, %c)
  %s: i8[1x4x8x8]<scale=0.1, zero=5> = add(%d, %c)
  %p: i8[1x4x4x4]<scale=0.1, zero=5> = max_pool(%s)
  %r: i8[1x4x4x4]<scale=0.1, zero=-5> = sigmoid(%p)
  %f: i8[1x64]<scale=0.1, zero=-5> = reshape{shape=(-1, 64)}(%r)
  %l: i8[1x10]<scale=0.03, zero=1> = linear(%f, %w3)   # "head", "net.py:12 */ evil(); /*"
  %y: f32[1x10] = dequantize(%l)
  return y: %y
}"""


def test_a_small_network_computes_the_bytes_of_the_interpreter(assert_equal_to_interpreter, fill):
    graph = verify(parse(NET, fill=fill))
    assert_equal_to_interpreter(graph)


def test_float_input_and_output_keep_the_conversions(assert_equal_to_interpreter, fill):
    graph = verify(parse(NET, fill=fill))
    artifact = assert_equal_to_interpreter(graph, options=COutput(name="net", io="float"))
    assert b"int net_run(const float *x, float *y, void *arena);" in artifact.files["net.h"]


def test_the_users_names_stay_inside_comments(fill, host):
    source = emit(verify(parse(NET, fill=fill)), COutput(name="net"), host).files["net.c"].decode()
    assert "net.py:12 *. evil(); /." in source
    assert "*/ evil" not in source


def test_equal_input_gives_equal_bytes(fill, host):
    first, second = (emit(parse(NET, fill=fill), COutput(name="net"), host) for _ in range(2))
    assert first.files == second.files


def test_every_function_finds_the_helpers_that_it_calls(operator_cases, fill, host, cortex_m4):
    for name, text in operator_cases.items():
        for target in (host, cortex_m4):
            source = emit(parse(text, fill=fill), COutput(name="net"), target).files["net.c"].decode()
            called = set(re.findall(r"\b(fxp_\w+)\(", source))
            defined = set(
                re.findall(r"(?:^FXP_\w+ (?:struct )?\w+ |DEFINE_LANES\()(fxp_\w+)", source, re.MULTILINE)
            )
            assert called <= defined, f"{name}: {sorted(called - defined)}"


def test_a_source_has_no_helper_that_it_does_not_use(operator_cases, fill, host, cortex_m4):
    for name, text in operator_cases.items():
        for target in (host, cortex_m4):
            source = emit(parse(text, fill=fill), COutput(name="net"), target).files["net.c"].decode()
            words = Counter(re.findall(r"\w+", re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)))
            macros = set(re.findall(r"^#define (FXP_\w+)", source, re.MULTILINE))
            others = set(re.findall(r"\b(fxp_\w+)", source))
            unused = {word for word in macros | others if words[word] < 2}
            assert not unused, f"{name} on {target.name}: {sorted(unused)}"


def test_images_are_taken_channels_last_or_as_planes(assert_equal_to_interpreter, fill):
    graph = parse(
        """graph(%x: i8[1x3x4x5]<scale=0.1, zero=0>) {
          const %w: i8[2x3x3x3]<scale=0.01, zero=0>
          %y: i8[1x2x2x3]<scale=0.1, zero=0> = conv(%x, %w)
          return y: %y
        }""",
        fill=fill,
    )
    assert_equal_to_interpreter(graph)
    artifact = assert_equal_to_interpreter(
        graph, options=COutput(name="planes", layouts={"x": "nchw", "y": "nchw"})
    )
    header = artifact.files["planes.h"].decode()
    assert "input x: int8_t [1, 3, 4, 5]" in header
    assert "output y: int8_t [1, 2, 2, 3]" in header


@pytest.mark.slow
def test_the_hash_seed_changes_no_byte(tmp_path):
    script = (
        "import hashlib, runpy, sys; c = runpy.run_path(sys.argv[1]); d = c['DSP'];"
        "a = c['emit'](c['joined'](c['cases']()), c['COutput'](name='net'), d);"
        "print(hashlib.sha256(b''.join(a.files.values())).hexdigest())"
    )
    conftest = str(Path(__file__).parent / "conftest.py")
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, conftest],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
