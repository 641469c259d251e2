"""Random torch modules as users write them: the Python source of an `nn.Module`, and the shapes of its inputs.

A module grows in steps like the graphs of `graphs.py`: each step adds a statement to `forward`, and if needed a layer
to `__init__`. A statement runs on small tensors as soon as it is written, and one that torch refuses is removed.
Steps are plain numbers and independent of each other, so failing modules shrink well.
"""

from __future__ import annotations

import itertools
import linecache
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from warnings import catch_warnings, simplefilter

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from .growth import DIGITS, Step

Statement = Callable[["Draft", str, Step], None]

_STATEMENTS: dict[str, Statement] = {}
STATEMENTS: Mapping[str, Statement] = MappingProxyType(_STATEMENTS)
"""The kinds of statements by which a module may grow."""

_PLAIN_SHAPES = (
    (1, 4),
    (1, 3, 6),
    (1, 2, 6, 5),
    (1, 7),
    (1, 8, 9),
    (1, 4, 7, 7),
    (1, 6, 1),
    (1, 1, 3, 8),
)
_SHAPES = (*_PLAIN_SHAPES * 4, (1, 2, 3, 4, 5))  # the last shape is refused for C
_VOCABULARY = 11
_MAX_NUMEL = 2048
_MAX_OUTPUTS = 4
_DICTIONARY = 3  # index among the forms of the return value
_HEADER = "import math\n\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
_serials = itertools.count()


@dataclass(frozen=True)
class ModuleSource:
    """The source of a class `Net`, and name, shape and element type of each argument of its `forward`.

    `states` has the output that each state continues, if any: such a module returns a dictionary.
    """

    source: str
    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    seed: int = 0
    states: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """An instance in evaluation mode, its weights drawn from the seed."""
        name = f"<module {next(_serials)}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        scope: dict[str, object] = {"__name__": "module_source"}
        exec(compile(self.source, name, "exec"), scope)
        net = scope["Net"]
        assert isinstance(net, type)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            made: nn.Module = net()
        return made.eval()

    def samples(self, count: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Arrays [count, ...] for each input: normally distributed floats, pixels, or integers below the vocabulary."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        return {
            name: _sample((count, *shape[1:]), dtype, generator)
            for name, (shape, dtype) in self.inputs.items()
        }


@dataclass(frozen=True)
class RandomModule(ModuleSource):
    """A module that was made from a plan."""

    plan: ModulePlan = field(kw_only=True)

    def simpler(self) -> Iterator[RandomModule]:
        """Modules of smaller plans: one step less, or a choice closer to the first."""
        for plan in self.plan.simpler():
            made = plan.module()
            if made.source != self.source:
                yield made


def module_source(forward: Sequence[str], inputs: Mapping[str, object], *, init: Sequence[str] = ()) -> str:
    """Python source of a class `Net` with these statements in `__init__` and in `forward`."""
    indent = "\n        "
    return (
        f"{_HEADER}\n\nclass Net(nn.Module):\n    def __init__(self):{indent}"
        f"{indent.join(('super().__init__()', *init))}\n\n"
        f"    def forward(self, {', '.join(inputs)}):{indent}{indent.join(forward)}\n"
    )


@dataclass(frozen=True)
class ModulePlan:
    """Numbers that decide a module."""

    seed: int
    shapes: tuple[tuple[int, ...], ...]
    tokens: bool
    steps: tuple[Step, ...]
    extra_outputs: tuple[int, ...] = ()
    returns: int = 0

    def module(self) -> RandomModule:
        """The module; steps that do not fit are skipped."""
        draft = Draft(self.seed)
        for index, shape in enumerate(self.shapes):
            draft.input(f"x{index}", shape)
        if self.tokens:
            draft.input("ids", (1, 5), torch.int64)
        for step in self.steps:
            draft.grow(step)
        source = draft.source(self.extra_outputs, self.returns)
        return RandomModule(source, dict(draft.inputs), self.seed, draft.states, plan=self)

    def simpler(self) -> Iterator[ModulePlan]:
        """Plans that are smaller by one step, input, output or choice."""
        for index, step in enumerate(self.steps):
            yield replace(self, steps=self.steps[:index] + self.steps[index + 1 :])
            if step.back:
                yield self._with(index, replace(step, back=0))
        for index in range(len(self.shapes) if len(self.shapes) + self.tokens > 1 else 0):
            yield replace(self, shapes=self.shapes[:index] + self.shapes[index + 1 :])
        if self.tokens and self.shapes:
            yield replace(self, tokens=False)
        for index in range(len(self.extra_outputs)):
            yield replace(self, extra_outputs=self.extra_outputs[:index] + self.extra_outputs[index + 1 :])
        if self.returns:
            yield replace(self, returns=0)
        for index, step in enumerate(self.steps):
            for place, digit in enumerate(step.digits):
                if digit:
                    digits = (*step.digits[:place], 0, *step.digits[place + 1 :])
                    yield self._with(index, replace(step, digits=digits))

    def _with(self, index: int, step: Step) -> ModulePlan:
        return replace(self, steps=(*self.steps[:index], step, *self.steps[index + 1 :]))


def modules(*, statements: Collection[str] | None = None, max_steps: int = 7) -> SearchStrategy[RandomModule]:
    """Random modules of these statements, by default all of STATEMENTS; shrinks to few and plain statements.

    They have one to three inputs and up to four outputs, branches and joins, layers that are called twice, tied
    weights, statements in place, slices, masks, attention, recurrent layers, pixels, and states in addition to those.
    """
    digits = st.tuples(*(st.integers(0, 11) for _ in range(DIGITS)))
    kinds = tuple(sorted(STATEMENTS if statements is None else statements))
    step = st.builds(Step, st.sampled_from(kinds), st.sampled_from(_BACK), st.integers(0, 5), digits)
    return st.builds(
        ModulePlan,
        st.integers(0, 2**16),
        st.lists(st.sampled_from(_SHAPES), min_size=1, max_size=2).map(tuple),
        st.sampled_from((False, False, False, True)),
        st.lists(step, max_size=max_steps).map(tuple),
        st.lists(st.integers(0, max_steps), max_size=2).map(tuple),
        st.integers(0, 3),
    ).map(ModulePlan.module)


def random_module(seed: int, *, max_steps: int = 9) -> RandomModule:
    """The random module of a seed; `modules` draws from the same modules."""
    rng, kinds = Random(seed), tuple(sorted(STATEMENTS))
    steps = tuple(
        Step(rng.choice(kinds), rng.choice(_BACK), rng.randrange(6), tuple(rng.choices(range(12), k=DIGITS)))
        for _ in range(rng.randint(1, max_steps))
    )
    shapes = tuple(rng.choices(_SHAPES, k=rng.choice((1, 1, 1, 2))))
    outputs = tuple(rng.choices(range(max_steps), k=rng.choice((0, 0, 0, 1, 2))))
    return ModulePlan(seed, shapes, rng.random() < 0.15, steps, outputs, rng.randrange(4)).module()


_BACK = (0, 0, 0, 0, 0, 1, 2, 3)  # usually the value just computed, so that chains grow


class Draft:
    """A module during its construction: statements so far, and the tensors that they compute."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._module = nn.Module().eval()
        self._init: list[str] = []
        self._body: list[str] = []
        self._read: set[str] = set()
        self._numbers = itertools.count()
        self._continued: dict[str, str] = {}
        self.inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.layers: list[str] = []
        self.values: dict[str, Tensor] = {}

    def grow(self, step: Step) -> None:
        """Takes one step, or none if torch refuses it or the result is empty, huge or not finite."""
        before = self._init[:], self._body[:], self._read.copy(), self.layers[:]
        inputs, continued = dict(self.inputs), dict(self._continued)
        tensors = {name: tensor.clone() for name, tensor in self.values.items()}
        names = [name for name, tensor in self.values.items() if tensor.is_floating_point()] or [*self.values]
        try:
            with torch.random.fork_rng(devices=()), torch.no_grad(), catch_warnings():
                simplefilter("ignore")
                STATEMENTS[step.op](self, names[-1 - step.back % len(names)], step)
            fits = all(self._fits(tensor) for tensor in self.values.values())
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NameError, AssertionError):
            fits = False
        if not fits:
            self._init, self._body, self._read, self.layers = before
            self.inputs, self._continued, self.values = inputs, continued, tensors

    @staticmethod
    def _fits(tensor: Tensor) -> bool:
        finite = bool(tensor.isfinite().all()) if tensor.is_floating_point() else True
        return 0 < tensor.numel() <= _MAX_NUMEL and finite and tensor.ndim <= 5

    def input(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> str:
        """Adds an argument of `forward`; returns its name."""
        self.inputs[name] = shape, dtype
        self.values[name] = _sample(shape, dtype, self._generator)
        return name

    def state(self, shape: tuple[int, ...]) -> str:
        """Adds an argument of `forward` that will continue an output; returns its name."""
        return self.input(f"h{next(self._numbers)}", shape)

    def continue_state(self, name: str, value: str) -> None:
        """Declares that the argument `name` is the output `value` of the previous call."""
        if self.values[name].shape != self.values[value].shape:
            raise ValueError(f"{name} and {value} differ in shape")
        self._continued[name] = value

    @property
    def states(self) -> dict[str, str]:
        """The output that each state continues."""
        return {name: f"{value}_out" for name, value in self._continued.items()}

    def layer(self, expression: str) -> str:
        """Assigns `expression` to a new attribute in `__init__`; returns `self.NAME`."""
        name = f"self.m{next(self._numbers)}"
        self.prepare(f"{name} = {expression}")
        self.layers.append(name)
        return name

    def parameter(self, expression: str) -> str:
        """Assigns `expression`, which cannot be called, to a new attribute in `__init__`; returns `self.NAME`."""
        name = f"self.p{next(self._numbers)}"
        self.prepare(f"{name} = {expression}")
        return name

    def prepare(self, statement: str) -> None:
        """Adds a statement to `__init__`."""
        exec(statement, self._scope())
        self._module.eval()
        self._init.append(statement)

    def let(self, expression: str) -> str:
        """Assigns `expression` to a new name in `forward`; later steps can read a tensor there."""
        name = f"v{next(self._numbers)}"
        self.run(f"{name} = {expression}", name)
        return name

    def run(self, statement: str, *names: str) -> None:
        """Adds a statement to `forward` that assigns `names`."""
        scope = self._scope() | self.values
        exec(statement, scope)
        made = {name: scope[name] for name in names}
        for name, value in made.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} is not a tensor")
            self.values[name] = value
        self._read |= {name for name in self.values if name not in names and _mentions(statement, name)}
        self._body.append(statement)

    def partner(self, x: str, step: Step) -> str:
        """A value of the shape of `x`, perhaps `x` itself."""
        same = [
            n
            for n, t in self.values.items()
            if t.shape == self.values[x].shape and t.dtype == self.values[x].dtype
        ]
        return same[-1 - step.partner % len(same)]

    def source(self, extra_outputs: Sequence[int], returns: int) -> str:
        """The class: its outputs are the values without readers, and those selected by `extra_outputs`, counted from
        the end.
        """
        names = [*self.values]
        wanted = {names[-1 - back % len(names)] for back in extra_outputs}
        found = [n for n in names if n in wanted or (n not in self._read and n not in self.inputs)]
        outputs = (found or names[-1:])[-_MAX_OUTPUTS:]
        outputs += [value for value in self._continued.values() if value not in outputs]
        body = [*self._body, f"return {_returned(outputs, _DICTIONARY if self._continued else returns)}"]
        return module_source(body, self.inputs, init=self._init)

    def _scope(self) -> dict[str, object]:
        return {"torch": torch, "nn": nn, "F": F, "math": math, "self": self._module}


def statement(*names: str) -> Callable[[Statement], Statement]:
    """Function decorator: the function writes a statement of each named kind about a value, or raises if none fits."""

    def register(function: Statement) -> Statement:
        for name in names:
            if name in _STATEMENTS:
                raise ValueError(f"statement {name!r} is registered twice")
            _STATEMENTS[name] = function
        return function

    return register


def _returned(outputs: Sequence[str], returns: int) -> str:
    if len(outputs) == 1 and returns != _DICTIONARY:
        return outputs[0]
    if returns == _DICTIONARY:
        return "{" + ", ".join(f'"{name}_out": {name}' for name in outputs) + "}"
    return ("[{}]" if returns == 2 else "({},)" if len(outputs) == 1 else "({})").format(", ".join(outputs))


def _mentions(statement: str, name: str) -> bool:
    words = "".join(c if c.isalnum() or c == "_" else " " for c in statement)
    return name in words.split()


def _sample(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    if dtype is torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    return torch.randint(0, _VOCABULARY, shape, generator=generator).to(dtype)
