"""Root class of the errors that fxpress raises, and the error for wrong arguments.

They are defined in this module because it is the only module of `specs` that `ir` imports.
"""

__all__ = ["ArgumentError", "FxpressError", "expect", "message_of"]

_LONGEST = 60


class FxpressError(Exception):
    """Base of every exception that fxpress raises for an invalid model, spec, graph, tool or argument.

    `code` is an entry of docs/errors.md, and is the end of the text; it is empty if `problems` have codes of their
    own.
    """

    code: str = ""

    @property
    def message(self) -> str:
        """The text without the code."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" if self.code else self.message


class ArgumentError(FxpressError, TypeError):
    """An argument of a Python function that has the wrong type, is missing or unknown, or excludes another argument."""

    code = "A101"

    def __init__(self, place: str, fact: str, hint: str = "") -> None:
        super().__init__(place, fact, hint)

    @property
    def message(self) -> str:
        """Place, fact and remedy."""
        place, fact, hint = self.args
        return f"{place}: {fact}{f'; {hint}' if hint else ''}"


def message_of(err: BaseException) -> str:
    """The text of an error, without the code for errors of fxpress."""
    return err.message if isinstance(err, FxpressError) else str(err)


def expect(value: object, kinds: type | tuple[type, ...], place: str, what: str, hint: str = "") -> None:
    """Raises ArgumentError unless the value is an instance of `kinds`; the message describes them as `what`."""
    if not isinstance(value, kinds):
        raise ArgumentError(place, f"expects {what}, got {shown(value)}", hint)


def shown(value: object) -> str:
    """Description of a wrong argument for messages: short values as written, all others by their class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= _LONGEST else f"a text of {len(value)} characters"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
