"""Values that the caller should not pass: indices outside of their tables, booleans that are neither 0 nor 1."""

import subprocess
from pathlib import Path

import torch

from fxpress.backends.c import emit
from fxpress.backends.c.tools.toolchain import SANITIZERS, WARNINGS, find_compiler, link_program
from fxpress.ir import parse
from fxpress.specs import COutput
from fxpress.specs.target import Target

TABLE = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
GRAPH = parse(
    """graph(%ids: i64[5], %flags: bool[4], %x: f32[4]) {
  const %table: f32[3x2]
  const %ones: f32[5]
  %rows: f32[5x2] = embedding(%ids, %table)
  %taken: f32[5x2] = take(%table, %ids)
  %zero: f32[4] = sub(%x, %x)
  %put: f32[4] = put(%x, %ids, %ones)
  %chosen: f32[4] = where(%flags, %x, %zero)
  return rows: %rows, taken: %taken, put: %put, chosen: %chosen
}""",
    params={"table": TABLE, "ones": torch.full((5,), 9.0)},
)
MAIN = """
#include <stdio.h>
#include "net.h"
static const int64_t ids[5] = {-1, 3, INT64_MAX, INT64_MIN, 1};
static const uint8_t flags[4] = {0, 1, 2, 255};
static const float x[4] = {1.0f, 2.0f, 3.0f, 4.0f};
static float rows[10], taken[10], put[4], chosen[4];
static uint64_t arena[NET_ARENA_BYTES / 8 + 1];
int main(void)
{
    const float *outputs[4] = {rows, taken, put, chosen};
    if (net_run(ids, flags, x, rows, taken, put, chosen, arena) != 0) {
        return 1;
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < (i < 2 ? 10 : 4); j++) {
            printf("%g ", (double)outputs[i][j]);
        }
        printf("\\n");
    }
    return 0;
}
"""


def test_nothing_outside_of_a_table_is_read_or_written(host: Target, tmp_path: Path) -> None:
    """The first or the last row is taken, -1 counts from the end in a lookup by dimension, and puts are left out."""
    sources = emit(GRAPH, COutput(name="net"), host, vectors=[]).write(tmp_path)
    (tmp_path / "main.c").write_text(MAIN)
    flags = ("-O1", *WARNINGS, *SANITIZERS)
    program = link_program(
        find_compiler("gcc"), [*sources, tmp_path / "main.c"], tmp_path / "main", flags=flags
    )
    shown = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    rows, taken, put, chosen = ([float(word) for word in line.split()] for line in shown.splitlines())
    first, second, last = TABLE.tolist()
    assert rows == [*first, *last, *last, *first, *second]
    assert taken == [*last, *last, *last, *first, *second]
    assert put == [1.0, 9.0, 3.0, 9.0]
    assert chosen == [0.0, 2.0, 3.0, 4.0]
