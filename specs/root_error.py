"""The root of the errors that fxpress raises, and the error of wrong arguments.

They lie here, in the one module of `specs` that `ir` knows.
"""

__all__ = ["ArgumentError", "FxpressError", "expect", "message_of"]

_LONGEST = 60


class FxpressError(Exception):
    """Base of every exception that fxpress raises for a model, spec, graph, tool or argument that it cannot use.

    `code` is an entry of docs/errors.md, with which the text ends; it is empty where `problems` have their own.
    """

    code: str = ""

    @property
    def message(self) -> str:
        """The text without the code."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" if self.code else self.message


class ArgumentError(FxpressError, TypeError):
    """An argument of a Python function that is of the wrong type, missing, unknown, or excludes another one."""

    code = "A101"

    def __init__(self, place: str, fact: str, hint: str = "") -> None:
        super().__init__(place, fact, hint)

    @property
    def message(self) -> str:
        """Place, fact and what to do."""
        place, fact, hint = self.args
        return f"{place}: {fact}{f'; {hint}' if hint else ''}"


def message_of(err: BaseException) -> str:
    """The text of an error, of ours without its code."""
    return err.message if isinstance(err, FxpressError) else str(err)


def expect(value: object, kinds: type | tuple[type, ...], place: str, what: str, hint: str = "") -> None:
    """ArgumentError unless the value is of one of these classes, which the message calls `what`."""
    if not isinstance(value, kinds):
        raise ArgumentError(place, f"expects {what}, got {shown(value)}", hint)


def shown(value: object) -> str:
    """A wrong argument for a message: what is short as it is written, of anything else its class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= _LONGEST else f"a text of {len(value)} characters"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
