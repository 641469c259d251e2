"""Environments with the packages that a benchmark compares with; they share torch with the interpreter that runs it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def interpreter(folder: Path, *install: str) -> Path:
    """The interpreter of the environment in `folder`; created with `pip install` of these packages if it does not
    exist.
    """
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    venv.create(folder, with_pip=True)
    own = sysconfig.get_paths()["purelib"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "shared.pth").write_text(
        f"import site; site.addsitedir({own!r})\n"
    )
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *install], check=True)
    (folder / "complete").touch()
    return python
