"""Kernel interface: implementations of an operator in C, offered per node, registered by operator name.

    @kernel("conv")
    def portable(site: Site) -> Offers: ...

A kernel returns one or several offers for the site, or the reason why it has none. The cost of an offer depends only
on types, and on the zeros that a kernel skips; weights are packed when the selected offer is built. Python computes
everything: shapes, integers, packed constants; the template of a kernel only writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ....ir import DType, Encoding, Graph, Node, TensorType, Value
from ....ir.errors import UnsupportedError
from ....specs.plugins import KERNELS, PluginError
from ....specs.root_error import message_of
from ..plan.image import TABLE_BYTES, Image
from ..plan.layout import Layout
from ..target import Machine
from ..write.literal import array_type, c_type

Operand = str | int
"""An operand of a node: its name, or its position if the operator has any number of operands."""

AnyArray = npt.NDArray[Any]  # Any: int8 to float32, as each constant needs


@dataclass(frozen=True, slots=True)
class Work:
    """Work of a kernel, in instructions of a Cortex-M4 with float unit, and its bytes of code.

    `products` are the multiply-accumulates, or other innermost operations, `loops` the start and operands of the
    innermost loops, `results` the work for each result after them. The cost of each on a core, in instructions and in
    cycles, is measured: see `costs`. The bytes of code compare kernels of a node; those of a whole program are
    estimated from its text (`code_size`).
    """

    products: float = 0.0
    loops: float = 0.0
    results: float = 0.0
    code_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.loops + other.loops,
            self.results + other.results,
            self.code_bytes + other.code_bytes,
        )


def aligned(size: int) -> int:
    """Bytes of an array of `size` bytes, aligned to 4."""
    return -(-size // 4) * 4


# Roles under which kernels pack the weights of a layer, separately or with biases and multipliers between them, and the
# places of nonzero weights.
WEIGHT_ROLES = frozenset({"weights", "constants", "block_places", "block_counts"})


@dataclass(frozen=True, eq=False)
class Constant:
    """An array that a function reads; `role` is its name in the C. If there is an `image`, flash has the image
    instead.
    """

    role: str
    data: AnyArray
    image: Image | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the array, aligned to 4."""
        return aligned(self.data.nbytes)

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash, aligned to 4."""
        return self.bytes if self.image is None else self.image.bytes


@dataclass(frozen=True)
class Function:
    """A C function that `template` writes. Functions with equal keys differ only in their names, and are emitted once.

    `variant` distinguishes functions of a template whose work has different costs: the operator of an element, loops
    that the compiler unrolls. `sources` are files of `packed_linear` that define the called functions.
    """

    template: str
    key: Hashable
    render: Callable[[str], str]
    headers: tuple[str, ...] = ()
    uses_math: bool = False
    variant: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """One call: pointers to operands, to results, to constants and to scratch memory, in this order.

    `places` is the operand whose bytes the call copies to its position in the result: if the operand can be stored
    there from the beginning, `at` bytes into the result, the call is omitted. `function` has some numbers in its text
    that follow from scales and zero points; `general`, if there is one, takes them as arguments, `numbers`, after the
    constants.
    """

    function: Function
    reads: tuple[int, ...]
    writes: tuple[int, ...] = (0,)
    constants: tuple[Constant, ...] = ()
    scratch: bool = False
    places: int | None = None
    at: int = 0
    general: Function | None = None
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Offer:
    """Computation of a node by a kernel: layouts of operands and results, cost, and `build`, which makes its calls.

    `reads` has None for an operand that is absent or packed into the constants. The cost of the `work` is that of the
    first of `templates`, which has one for each call, and of its `variant`. `constants` are the bytes of the arrays
    that `build` packs, by role. `overwrites` are the operands whose memory the result may take, if nothing needs them
    afterwards; `follows` those over which it may be written while they are read, if they begin at least that many
    bytes after the start of the result. `views` has, for each result of a node that moves nothing, its byte offset in
    operand 0. `scratch_bytes` is the working memory of the calls. `limitation` is the reason why the core's special
    instructions are not used, if they could be for other values. `coded` are constants that are decoded into working
    memory before the calls; `replaced_bytes` are the bytes of weights in place of which the kernel itself reads codes.
    A kernel that computes some rows of its result together, `rows_together`, is slower on fewer.
    """

    kernel: str
    reads: tuple[Layout | None, ...]
    writes: tuple[Layout, ...]
    work: Work
    templates: tuple[str, ...] = ()
    build: Callable[[], tuple[Call, ...]] = tuple
    constants: Mapping[str, int] = field(default_factory=dict)
    scratch_bytes: int = 0
    overwrites: tuple[int, ...] = ()
    follows: Mapping[int, int] = field(default_factory=dict)
    views: tuple[int, ...] | None = None
    limitation: str = ""
    coded: tuple[Constant, ...] = ()
    replaced_bytes: int = 0
    variant: str = ""
    rows_together: int = 1

    @staticmethod
    def of_calls(
        kernel: str,
        reads: tuple[Layout | None, ...],
        writes: tuple[Layout, ...],
        work: Work,
        *calls: Call,
        overwrites: tuple[int, ...] = (),
    ) -> Offer:
        """The offer of calls whose constants, if any, are packed."""
        templates = tuple(call.function.template for call in calls)
        sizes = {c.role: c.data.nbytes for call in calls for c in call.constants}
        variant = next((call.function.variant for call in calls), "")
        return Offer(
            kernel,
            reads,
            writes,
            work,
            templates,
            lambda: calls,
            sizes,
            overwrites=overwrites,
            variant=variant,
        )

    @property
    def constant_bytes(self) -> int:
        """Bytes of flash of the constants, with each array aligned to 4."""
        return sum(map(aligned, self.constants.values()))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constants that are weights."""
        return sum(aligned(size) for role, size in self.constants.items() if role in WEIGHT_ROLES)

    @property
    def images(self) -> tuple[Image, ...]:
        """Huffman images that are decoded before the calls."""
        return tuple(constant.image for constant in self.coded if constant.image is not None)

    @property
    def decoded_at(self) -> int:
        """Bytes of working memory before the decoded constants: the calls' scratch, or the decoder's before them."""
        return max(aligned(self.scratch_bytes), TABLE_BYTES) if self.coded else self.scratch_bytes

    @property
    def working_bytes(self) -> int:
        """Bytes of working memory: scratch and decoded constants."""
        return self.decoded_at + sum(c.bytes for c in self.coded)


Offers = Offer | tuple[Offer, ...] | str


@dataclass(frozen=True)
class Site:
    """A node in its context: the graph's constants, the layouts in which its operands are available, the machine.

    The layout of a constant or absent operand is None. Operands are given by name, or by position if an operator has
    any number of them. In one run the node is called `calls` times, each time for other rows of a value. `coded`: flash
    is to hold the weights as codes.
    """

    node: Node
    graph: Graph
    layouts: tuple[Layout | None, ...]
    machine: Machine
    calls: int = 1
    coded: bool = False

    def type(self, operand: Operand) -> TensorType:
        """Type of an operand that is present."""
        return self._value(operand).type

    def has(self, operand: Operand) -> bool:
        """True if the operator has such an operand, and it is present."""
        if isinstance(operand, str):
            return self.node.optional(operand) is not None
        return operand < len(self.node.inputs) and self.node.inputs[operand] is not None

    def index(self, operand: Operand) -> int:
        """Position of an operand."""
        return operand if isinstance(operand, int) else self.node.op.position(operand)

    def _value(self, operand: Operand) -> Value:
        value = self.node.inputs[self.index(operand)]
        assert value is not None
        return value

    @property
    def output(self) -> TensorType:
        """Type of the result of a node that has one."""
        return self.node.output.type

    @property
    def is_integer(self) -> bool:
        """True if the node computes on integers that represent reals, and its results are such integers."""
        return self.node.operands[0].type.is_quantized and self.node.outputs[0].type.is_quantized

    def reads(self, layouts: Mapping[str, Layout] | Mapping[int, Layout]) -> tuple[Layout | None, ...]:
        """The `reads` of an offer that reads these operands through pointers."""
        read = {self.index(operand): layout for operand, layout in layouts.items()}
        return tuple(read.get(index) for index in range(len(self.node.inputs)))

    def at_hand(self, operand: Operand) -> Layout | None:
        """Layout in which an operand is available."""
        return self.layouts[self.index(operand)]

    def is_constant(self, operand: Operand) -> bool:
        """True if an operand that is present is a constant of the graph."""
        return self.graph.is_constant(self._value(operand))

    @property
    def weight_uses(self) -> int:
        """Number of nodes of this operator that read the weights."""
        return weight_uses(self.graph, self.node)

    @property
    def weights_refusal(self) -> str:
        """Reason why kernels cannot pack the weights and the bias, or empty."""
        if not self.is_constant("weight") or (self.has("bias") and not self.is_constant("bias")):
            return "weights and bias must be constants"
        if self.is_integer and self.type("weight").dtype not in (DType.I8, DType.I16):
            return "weights of more than 16 bits"
        return ""

    def layer_operands(self, layouts: tuple[Layout, Layout]) -> Mapping[str, Layout]:
        """Operands of a layer at run time: its input, and a residual in the layout of the result."""
        return {"x": layouts[0]} | ({"residual": layouts[1]} if self.has("residual") else {})

    @property
    def overwritten_residual(self) -> tuple[int, ...]:
        """The residual, if the result may take its memory: present, and of the same element type."""
        fits = self.has("residual") and self.type("residual").dtype is self.output.dtype
        return (self.index("residual"),) if fits else ()

    def array(self, operand: Operand) -> AnyArray:
        """The tensor of a constant operand."""
        return self.graph.tensor(self._value(operand)).detach().cpu().contiguous().numpy()

    def array_bytes(self, operand: Operand) -> int:
        """Bytes of `array`, which is not read."""
        return self.type(operand).numel * self.type(operand).dtype.bytes

    def quantization(self, operand: Operand) -> Encoding:
        """Encoding of an operand that has one."""
        found = self.type(operand).quantization
        assert found is not None
        return found

    @property
    def output_quantization(self) -> Encoding:
        """Encoding of a result that has one."""
        assert self.output.quantization is not None
        return self.output.quantization


def form(node: Node) -> str:
    """Elements on which a node computes: the type of its first operand, or the bits of its weights below 8: `i4`."""
    first = next(iter(node.operands), node.outputs[0]).type
    weights = node.optional("weight")
    packed = first.is_quantized and weights is not None and weights.type.quantization
    return f"i{packed.bits}" if packed and packed.bits < 8 else first.dtype.value


def weight_uses(graph: Graph, node: Node) -> int:
    """Number of nodes that pack the same constant weights as a node; 1 if it has none."""
    weights = node.optional("weight")
    if weights is None or not graph.is_constant(weights):
        return 1
    users = (user for user in graph.users[weights.name] if user.op.name == node.op.name)
    return sum(user.operand("weight") == weights for user in users)


KernelFunction = Callable[[Site], Offers]
_KERNELS: dict[str, list[KernelFunction]] = {}


def kernel(*operators: str) -> Callable[[KernelFunction], KernelFunction]:
    """Function decorator: registers the function as a kernel of these operators."""

    def register(function: KernelFunction) -> KernelFunction:
        for name in operators:
            _KERNELS.setdefault(name, []).append(function)
        return function

    return register


@cache
def _kernels_of_package(operator: str) -> tuple[KernelFunction, ...]:
    """The kernel that a package adds for an operator; one that cannot be used gives the reason at each site."""
    if operator not in KERNELS.names():
        return ()
    try:
        found: Any = KERNELS.load(operator)  # Any: any object of the package
    except PluginError as err:
        reason = err.message
        return (lambda _: reason,)

    def raised(err: Exception) -> str:
        return f'the kernel of a package for "{operator}" raises {type(err).__name__}: {message_of(err)}'

    def built(made: Offer) -> tuple[Call, ...]:
        try:
            return made.build()
        except Exception as err:
            raise UnsupportedError(raised(err)) from err

    def guarded(site: Site) -> Offers:
        try:
            made: Offers = found(site)
        except Exception as err:
            return raised(err)
        if isinstance(made, str):
            return made
        several = made if isinstance(made, tuple) else (made,)
        return tuple(replace(one, build=partial(built, one)) for one in several)

    return (guarded,)


def kernels_of(operator: str) -> tuple[KernelFunction, ...]:
    """The kernels of an operator: those of fxpress in the order of registration, then that of a package."""
    return (*_KERNELS.get(operator, ()), *_kernels_of_package(operator))


def kernels() -> Mapping[str, tuple[KernelFunction, ...]]:
    """The kernels of each operator, in the order of registration."""
    return {name: tuple(found) for name, found in _KERNELS.items()}


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


def template(
    path: str,
    context: Hashable,
    parameters: str,
    *,
    headers: tuple[str, ...] = ("arithmetic.h",),
    uses_math: bool = False,
    variant: str = "",
    sources: tuple[str, ...] = (),
) -> Function:
    """The function that a template writes; the template sees `name`, the C `parameters`, and the frozen context as
    `k`.
    """

    def render(name: str) -> str:
        return _ENVIRONMENT.get_template(path).render(k=context, name=name, parameters=parameters)

    return Function(path, (path, context, parameters), render, headers, uses_math, variant, sources)


def offer(
    site: Site,
    path: str,
    context: Hashable,
    work: Work,
    *,
    reads: Mapping[str, Layout],
    writes: tuple[Layout, ...],
    kernel: str = "",
    operands: Mapping[str, Operand] = MappingProxyType({}),
    results: tuple[str, ...] = ("y",),
    constants: Mapping[str, int] = MappingProxyType({}),
    pack: Callable[[], Iterable[AnyArray]] = tuple,
    tables: Mapping[str, AnyArray] = MappingProxyType({}),
    scratch: str = "",
    scratch_bytes: int = 0,
    overwrites: tuple[int, ...] = (),
    follows: Mapping[int, int] = MappingProxyType({}),
    limitation: str = "",
    uses_math: bool = False,
    variant: str = "",
    sources: tuple[str, ...] = (),
    headers: tuple[str, ...] = (),
) -> Offer:
    """The offer of one call of a template's function.

    `reads` and `results` give operands and results their names in the C; `operands` has the operator's name for those
    with another one. `pack` makes the arrays of `constants`, in this order; `tables` are arrays that follow them.
    `scratch` is the C type of the working memory, `sources` are files that define called functions, `headers` replace
    the usual headers for integers and reals.
    """
    sizes = {**constants, **{role: table.nbytes for role, table in tables.items()}}
    named = {name: operands.get(name, name) for name in reads}

    def build() -> tuple[Call, ...]:
        arrays = packed(sizes, [*pack(), *tables.values()])
        made = call(
            site,
            path,
            context,
            named,
            results,
            arrays,
            scratch=scratch,
            uses_math=uses_math,
            sources=sources,
            headers=headers,
        )
        return (made,)

    return Offer(
        kernel or f"{site.node.op.name}_portable",
        site.reads({site.index(named[name]): layout for name, layout in reads.items()}),
        writes,
        work,
        (path,),
        build,
        sizes,
        scratch_bytes,
        overwrites,
        follows,
        limitation=limitation,
        variant=variant,
    )


def layer_offer(
    site: Site,
    kernel: str,
    function: Function,
    work: Work,
    layouts: tuple[Layout, Layout],
    constants: Mapping[str, int],
    pack: Callable[[], Iterable[AnyArray]],
    *,
    scratch_bytes: int = 0,
    overwrites: tuple[int, ...] = (),
    follows: Mapping[int, int] = MappingProxyType({}),
    general: Callable[[], Function] | None = None,
    numbers: tuple[int, ...] = (),
) -> Offer:
    """The layer as one call of a function; the result may take the residual's memory."""
    operands = site.layer_operands(layouts)
    reads = tuple(map(site.index, operands))

    def build() -> tuple[Call, ...]:
        made = Call(function, reads, constants=packed(constants, pack()), scratch=scratch_bytes > 0)
        return (made if general is None else replace(made, general=general(), numbers=numbers),)

    return Offer(
        kernel,
        site.reads(operands),
        layouts[1:],
        work,
        (function.template,),
        build,
        constants,
        scratch_bytes,
        overwrites or site.overwritten_residual,
        follows,
        variant=function.variant,
    )


def packed(constants: Mapping[str, int], arrays: Iterable[AnyArray]) -> tuple[Constant, ...]:
    """The arrays with the roles of `constants`, which has their bytes."""
    found = tuple(Constant(role, data) for role, data in zip(constants, arrays, strict=True))
    assert {c.role: c.data.nbytes for c in found} == dict(constants)
    return found


def call(
    site: Site,
    path: str,
    context: Hashable,
    reads: Mapping[str, Operand],
    results: tuple[str, ...] = ("y",),
    constants: tuple[Constant, ...] = (),
    *,
    scratch: str = "",
    uses_math: bool = False,
    sources: tuple[str, ...] = (),
    headers: tuple[str, ...] = (),
) -> Call:
    """A call of a template's function; `reads` and `results` give operands and results their names in the C."""
    headers = headers or (("arithmetic.h",) if site.is_integer else ("real.h", "vector.h"))
    pointers = [f"const {c_type(site.type(i).dtype)} *{name}" for name, i in reads.items()]
    pointers += [
        f"{c_type(v.type.dtype)} *{name}" for v, name in zip(site.node.outputs, results, strict=True)
    ]
    pointers += [f"const {array_type(c.data)} *{c.role}" for c in constants]
    pointers += [f"{scratch} *scratch"] if scratch else []
    function = template(
        path, context, ", ".join(pointers), headers=headers, uses_math=uses_math, sources=sources
    )
    written = tuple(range(len(results)))
    return Call(function, tuple(map(site.index, reads.values())), written, constants, scratch=bool(scratch))


def is_float(type: TensorType) -> bool:
    """True if a value is plain float32."""
    return type.dtype is DType.F32 and not type.is_quantized
