"""Public names of the compiler: a submodule of the same name never takes their place."""

import pkgutil
from importlib import import_module
from types import ModuleType

from fxpress import compiler


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    for module in pkgutil.iter_modules(compiler.__path__):
        import_module(f"fxpress.compiler.{module.name}")
    assert not [name for name in compiler.__all__ if isinstance(getattr(compiler, name), ModuleType)]
