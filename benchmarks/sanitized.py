"""Emitted C run under the address and undefined-behaviour sanitizers, on samples read from a pipe.

Inputs, outputs and the regions of RAM are allocated one by one at their exact size: each access outside one is found.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fxpress.backends.c.tools import SANITIZERS, find_compiler, link_program
from fxpress.compiler import Interface

_DRIVER = """\
#include <stdio.h>
#include <stdlib.h>
#include "{name}.h"

int main(void)
{{
    {allocations}
    while ({reads}) {{
        if ({name}_run({arguments}) != 0)
            return 1;
        {writes}
    }}
    {releases}
    return 0;
}}
"""


def run_sanitized(
    sources: Sequence[Path], interface: Interface, samples: Sequence[Sequence[bytes]], folder: Path
) -> list[list[bytes]]:
    """The output buffers for each sample's input buffers; raises CalledProcessError if a sanitizer reports an error."""
    driver = folder / "driver.c"
    driver.write_text(_driver(interface))
    flags = ("-O1", "-g", f"-I{sources[0].parent}", *SANITIZERS)
    program = link_program(find_compiler("gcc"), [driver, *sources], folder / "driver", flags=flags)
    stream = b"".join(buffer for sample in samples for buffer in sample)
    done = subprocess.run([program], input=stream, capture_output=True, check=True).stdout
    sizes = [port.c_bytes for port in interface.outputs]
    rows, position = [], 0
    for _ in samples:
        row = []
        for size in sizes:
            row.append(done[position : position + size])
            position += size
        rows.append(row)
    assert position == len(done)
    return rows


def _driver(interface: Interface) -> str:
    inputs = [(f"x{i}", port.c_bytes) for i, port in enumerate(interface.inputs)]
    outputs = [(f"y{i}", port.c_bytes) for i, port in enumerate(interface.outputs)]
    regions = [(name, max(size, 1)) for name, size in interface.regions.items()]
    buffers = inputs + outputs + regions
    return _DRIVER.format(
        name=interface.c_name,
        allocations="\n    ".join(f"void *{name} = malloc({size});" for name, size in buffers),
        reads=" && ".join(f"fread({name}, {size}, 1, stdin) == 1" for name, size in inputs),
        arguments=", ".join(name for name, _ in buffers),
        writes="\n        ".join(f"fwrite({name}, {size}, 1, stdout);" for name, size in outputs),
        releases="\n    ".join(f"free({name});" for name, _ in buffers),
    )
