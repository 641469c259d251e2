"""The C backend is one of the protocol that packages implement."""

import inspect

from fxpress.backends import Backend, Runnable, c
from fxpress.specs import COutput

C: Backend[COutput] = c  # a type check of the protocol


def test_the_c_backend_has_the_functions_of_the_protocol() -> None:
    for name in ("check", "emit"):
        expected = list(inspect.signature(getattr(Backend, name)).parameters)[1:]
        assert list(inspect.signature(getattr(C, name)).parameters) == expected
    assert not isinstance(C, Runnable)
