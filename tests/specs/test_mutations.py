"""Whatever is done to a spec, it is read or refused with problems: nothing else ever happens."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fxpress.specs import SpecError, check_spec

SPEC = """\
fxpress: 1
model: {source: "net.py:Net", args: {width: [1, 2.5, null]}, inputs: {x: {shape: [1, 3, 8, 8]}}}
data:
  calibration: &c {file: train.npz, inputs: {x: x}, samples: 1e1}
  evaluation: *c
  transform: {x: {layout: nhwc->nchw, scale: 0.5}}
target: {name: cortex-m4f, ram: 64 KiB}
passes:
  - {pass: fuse, keep: ["stem.*"]}
  - {pass: quantize, observer: {kind: percentile, coverage: 99 %}, layers: {"head.*": float32}}
outputs: {c: {name: net}, torch: {}}
"""
PIECES = [
    "\0",
    "\t",
    "[",
    "]",
    "{",
    "}",
    ":",
    "- ",
    "&a ",
    "*a",
    "!!x ",
    '"',
    "'",
    "#",
    "|",
    ">",
    "?",
    "%",
    "---",
    "...",
]
PIECES += [
    "null",
    "true",
    ".nan",
    "1e999",
    "-1",
    "0",
    "''",
    "extends: net.yaml",
    "é",
    "\ud7ff",
    "\U0001f600",
    "\x85",
    "\r",
    "<<: ",
]
PIECES += ["pass: ", "preset/", "../", "~", "\n", "\n  ", "*c", "99999999999999999999"]

edits = st.lists(
    st.tuples(st.integers(0, len(SPEC)), st.integers(0, 12), st.sampled_from(PIECES) | st.text(max_size=3)),
    min_size=1,
    max_size=6,
)


@given(
    edits,
    st.lists(
        st.text(max_size=12) | st.sampled_from(["passes[0].keep=[", "model=", "a=*a", "data.x=&a [*a]"]),
        max_size=2,
    ),
)
def test_an_edited_spec_is_read_or_refused(edits: list[tuple[int, int, str]], overrides: list[str]) -> None:
    text = SPEC
    for at, removed, piece in edits:
        text = text[:at] + piece + text[at + removed :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.yaml")
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        try:
            check_spec(path, overrides)
        except SpecError as err:
            assert err.problems
            assert all(problem.code and problem.message and str(problem) for problem in err.problems)
