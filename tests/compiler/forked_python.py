"""Python programs in processes of their own that start with the libraries loaded: forks of a server that imported them.

A new interpreter takes seconds to import torch. What the project itself imports, and reads of the environment, is as
in a new process: the server has imported libraries alone.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

_LIBRARIES = ["torch", "torch.export", "torch._decomp", "torch._meta_registrations"]
_LIBRARIES += [
    "torch.fx.experimental.symbolic_shapes",
    "torch.ao.quantization.fx._decomposed",
    "safetensors.torch",
]
_LIBRARIES += ["scipy.optimize", "scipy.sparse.csgraph", "scipy.special", "sympy", "networkx"]
_LIBRARIES += ["pydantic", "yaml", "jinja2", "pycparser", "unicorn", "capstone"]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(_LIBRARIES)


def run_python(
    *words: str, folder: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in a folder, where `words` are -m MODULE or SCRIPT, and arguments."""
    with TemporaryDirectory() as written:
        process = _SERVER.Process(target=_run, args=(words, folder, dict(environment), Path(written)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        assert process.exitcode is not None
        texts = [(Path(written) / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _run(words: Sequence[str], folder: Path, environment: Mapping[str, str], written: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(written / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    is_module = words[0] == "-m"
    added = [str(folder), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*added, *(path for path in sys.path if path not in added)]
    sys.argv[:] = words[is_module:]
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(folder / words[0]), run_name="__main__")
