"""The emitted text of a small network, kept to be read: `golden/net.c` and its companions.

After an intended change, write the files anew and read the difference: python tests/backends/c/golden/rewrite.py
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def emitted():
    """The files as they are emitted now."""
    return runpy.run_path(str(GOLDEN / "rewrite.py"))["emitted"]().files


@pytest.mark.parametrize("file", ["ring.h", "ring.c", "ring_test.c"])
def test_the_text_of_a_network_with_a_state_in_place_is_the_one_that_was_read(file):
    files = runpy.run_path(str(GOLDEN / "rewrite.py"))["emitted_ring"]().files
    assert files[file].decode() == (GOLDEN / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["net.h", "net.c", "net_weights.c", "net_test.c", "CMakeLists.txt"])
def test_the_emitted_text_is_the_one_that_was_read(file, emitted):
    assert emitted[file].decode() == (GOLDEN / file).read_text(encoding="utf-8")
