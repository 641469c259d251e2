"""The sample project, and its outputs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_project import write_project
from torch import Tensor

from fxpress.compiler import Compiled, compile_model
from fxpress.compiler.execution import execute

OutputsOn = Callable[..., list[Tensor]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with net.py, net.safetensors, data.npz and net.yaml."""
    return write_project(tmp_path)


@pytest.fixture(scope="session")
def compiled_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its output directory `out`, C and torch module; for reading only."""
    folder = write_project(tmp_path_factory.mktemp("compiled"))
    compile_model(folder / "net.yaml", overrides=["outputs.torch={form: qdq}"]).write(folder / "out")
    return folder


@pytest.fixture
def outputs_on(tmp_path: Path) -> OutputsOn:
    """First outputs of a compiled network on its evaluation samples, or else those for calibration, place by place."""

    def run(compiled: Compiled, *places: str, count: int | None = None) -> list[Tensor]:
        compiled.write(tmp_path / "out")
        samples = compiled.session.evaluation or compiled.session.calibration
        assert samples is not None
        return [execute(tmp_path / "out", samples.first(count), on=on).outputs[0] for on in places]

    return run
