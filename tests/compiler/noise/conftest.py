"""Networks with planted noise, compiled for a Cortex-M4."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from fxpress.compiler import Compiled, compile_model

Compile = Callable[..., Compiled]

SPEC = """\
fxpress: 1
model: {{source: unused.py:Net, inputs: {{x: {{shape: {shape}}}}}}}
data:
  calibration: {{file: data.npz}}
target: {{name: cortex-m4f}}
passes:
  - pass: clean
  - pass: fuse
  - pass: quantize
outputs:
  c: {{name: net}}
"""


@pytest.fixture
def compile_on(tmp_path: Path) -> Compile:
    """Compile a module with its calibration data; keywords are options of `quantize`, or paths of settings."""

    def run(model: nn.Module, x: Tensor, **options: object) -> Compiled:
        np.savez(tmp_path / "data.npz", x=x.numpy())
        (tmp_path / "unused.py").write_text("")
        (tmp_path / "net.yaml").write_text(SPEC.format(shape=[1, *x.shape[1:]]))
        paths = {name: name if "." in name else f"passes[2].{name}" for name in options}
        overrides = [f"{paths[name]}={value}" for name, value in options.items()]
        return compile_model(tmp_path / "net.yaml", model=model.eval(), overrides=overrides)

    return run
