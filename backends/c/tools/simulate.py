"""Functions of a bare image, called in process on a simulated core (Unicorn), with exact instruction counts.

    simulator = Simulator(link_image(compiler, objects, path, keep=["kws_run"]), target=load_target("cortex-m4f"))
    x, y = simulator.place(input_bytes), simulator.allocate(12)
    result = simulator.call("kws_run", x, y, simulator.allocate(16000))          # as fast as the simulator goes
    result.return_value, result.stack_bytes, simulator.read(y, 12)
    profile = simulator.profile("kws_run", x, y, arena)                           # the same call, counted
    profile.instructions, profile.cycles, profile.functions, profile.calls

    model = SimulatedModel(simulator, "kws_run", input_bytes=(490,), output_bytes=(12,), regions={"arena": 16000})
    (logits,) = model.run([input_bytes]); model.profile([input_bytes]).instructions

Every buffer ends at a guard page, constants are write-protected and address zero is unmapped, so an access outside of
the given buffers is a `SimulationError` with the function and the address. With `strict_alignment` so is a load or
store of several words, or of a float, at an address that is not a multiple of four: real cores fault there, simulated
ones do not, and the check takes about a second for a million accesses. The RAM of a `SimulatedModel` is poisoned
before every run. Counts are retired instructions: instructions that an IT block skips are included, as in QEMU.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....specs import Target
from ...errors import SimulationError, ToolMissingError
from ..plan.regions import STATE_BLOCK
from .elf import read_elf
from .profile import Profile, Run, account
from .timing import AVAILABLE, Decoder, RiscVDecoder, ThumbDecoder

try:
    import unicorn
    from unicorn import arm_const, riscv_const
except ImportError:  # the optional extra `sim`; Simulator has the installation hint
    unicorn = None

_PAGE = 4096
_RETURN = 0x0400_0000
_BUFFERS = 0x3000_0000
_STACK_TOP = 0x2F00_0000
_PAINT = 0xA5
_STATE_ALIGNMENT = 8
_WEIGHTS_ALIGNMENT = 64  # the largest alignment of a weights file


@dataclass(frozen=True, slots=True)
class CallResult:
    """Return value of a call (r0, signed), and the lowest stack address that it wrote."""

    return_value: int
    stack_bytes: int


@dataclass(frozen=True)
class _Core:
    """A core in the simulator: its instruction set, calling convention, and decoder.

    `marks_code`: bit 0 of a jump address is set.
    """

    engine: tuple[int, int, int]  # architecture, mode and model
    counter: int
    stack_pointer: int
    link: int
    arguments: tuple[int, ...]
    stack_alignment: int
    marks_code: bool
    decoder: Decoder

    @staticmethod
    def of(target: Target) -> _Core:
        """The core of a target; SimulationError if the simulator has no model of it."""
        if target.simulator is None:
            raise SimulationError(f"the target {target.name} has no simulator")
        is_riscv = target.isa.startswith("rv")
        constants, prefix = (riscv_const, "UC_RISCV_REG_") if is_riscv else (arm_const, "UC_ARM_REG_")
        model = getattr(constants, target.simulator, None)
        if model is None:
            raise SimulationError(f"the target {target.name} names an unknown simulator: {target.simulator}")

        def register(name: str) -> int:
            return int(getattr(constants, prefix + name))

        family = unicorn.UC_ARCH_RISCV if is_riscv else unicorn.UC_ARCH_ARM
        mode = unicorn.UC_MODE_RISCV32 if is_riscv else unicorn.UC_MODE_THUMB
        return _Core(
            engine=(family, mode, model),
            counter=register("PC"),
            stack_pointer=register("SP"),
            link=register("RA" if is_riscv else "LR"),
            arguments=tuple(register(f"A{i}") for i in range(8))
            if is_riscv
            else tuple(register(f"R{i}") for i in range(4)),
            stack_alignment=16 if is_riscv else 8,
            marks_code=not is_riscv,
            decoder=RiscVDecoder() if is_riscv else ThumbDecoder(target.timing),
        )


class Simulator:
    """A core with the image in its memory; its only state is in variables and buffers."""

    def __init__(
        self,
        image: Path,
        *,
        target: Target,
        stack_bytes: int = 65536,
        strict_alignment: bool = False,
    ) -> None:
        if unicorn is None or not AVAILABLE:
            raise ToolMissingError("the simulator needs two packages: pip install 'fxpress[sim]'")
        self._core = core = _Core.of(target)
        self._timing = target.timing
        self._elf = read_elf(image)
        self._engine = unicorn.Uc(*core.engine)
        self._stack_bytes = _pages(stack_bytes)
        self._next_buffer = _BUFFERS
        self._fault = ""
        self._bears: dict[int, bool] = {}
        self._map_image()
        self._engine.mem_map(_RETURN, _PAGE)
        self._engine.mem_map(_STACK_TOP - self._stack_bytes, self._stack_bytes)
        invalid = unicorn.UC_HOOK_MEM_INVALID
        self._engine.hook_add(invalid, self._on_invalid_access)
        self._engine.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        if strict_alignment:
            accesses = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
            self._engine.hook_add(accesses, self._on_access)

    def allocate(self, size: int, *, alignment: int = 16) -> int:
        """Address of a new poisoned buffer that ends at a guard page (up to its alignment)."""
        span = _pages(max(size, 1))
        address = self._next_buffer + (span - size) // alignment * alignment
        self._engine.mem_map(self._next_buffer, span)
        self._engine.mem_write(self._next_buffer, bytes([_PAINT]) * span)
        self._next_buffer += span + _PAGE
        return address

    def place(self, data: bytes, *, alignment: int = 16) -> int:
        """Address of a new buffer that contains `data`."""
        address = self.allocate(len(data), alignment=alignment)
        self.write(address, data)
        return address

    def write(self, address: int, data: bytes) -> None:
        """Writes `data` into memory."""
        self._engine.mem_write(address, data)

    def read(self, address: int, size: int) -> bytes:
        """The bytes at `address`."""
        return bytes(self._engine.mem_read(address, size))

    def call(self, function: str, *arguments: int, timeout_s: float = 300.0) -> CallResult:
        """Calls a function with integers or addresses as arguments."""
        engine = self._engine
        stack = _STACK_TOP - self._stack_bytes
        engine.mem_write(stack, bytes([_PAINT]) * self._stack_bytes)
        pointer = self._pass_arguments(arguments)
        self._fault = ""
        try:
            start = self._address(function) | self._core.marks_code
            engine.emu_start(start, _RETURN, timeout=int(timeout_s * 1e6))
        except unicorn.UcError as error:
            reason = self._fault or f"{error}, in {self._where()}"
            raise SimulationError(f"{function}: {reason}") from error
        if engine.reg_read(self._core.counter) & ~1 != _RETURN:
            reason = self._fault or f"no return within {timeout_s:g} s, in {self._where()}"
            raise SimulationError(f"{function}: {reason}")
        written = np.flatnonzero(np.frombuffer(engine.mem_read(stack, pointer - stack), np.uint8) != _PAINT)
        used = pointer - stack - int(written[0]) if written.size else 0
        value = engine.reg_read(self._core.arguments[0]) & 0xFFFF_FFFF
        return CallResult(value - (1 << 32) if value >> 31 else value, used)

    def profile(self, function: str, *arguments: int, timeout_s: float = 300.0) -> Profile:
        """Calls a function and counts every instruction; several times slower than `call`."""
        with self._traced() as trace:
            result = self.call(function, *arguments, timeout_s=timeout_s)
        run = Run(function, result.return_value, result.stack_bytes, np.frombuffer(trace, np.uint64))
        return account(run, self._elf, self._core.decoder, self._timing)

    def _map_image(self) -> None:
        spans: dict[int, bool] = {}
        for segment in self._elf.segments:
            last = segment.address + segment.size
            for page in range(segment.address // _PAGE * _PAGE, last, _PAGE):
                spans[page] = spans.get(page, False) or segment.writable
        for page, writable in spans.items():
            access = unicorn.UC_PROT_ALL if writable else unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
            self._engine.mem_map(page, _PAGE, access)
        for segment in self._elf.segments:
            self._engine.mem_write(segment.address, segment.data)

    def _address(self, function: str) -> int:
        try:
            return self._elf.address(function)
        except KeyError as error:
            raise SimulationError(f"the image has no function {function!r}") from error

    def _pass_arguments(self, arguments: Sequence[int]) -> int:
        """Sets the registers and stack of a call by the procedure call standard; returns the stack pointer."""
        registers, alignment = self._core.arguments, self._core.stack_alignment
        words = [argument & 0xFFFF_FFFF for argument in arguments]
        for register, word in zip(registers, words, strict=False):
            self._engine.reg_write(register, word)
        rest = b"".join(word.to_bytes(4, "little") for word in words[len(registers) :])
        pointer = _STACK_TOP - -(-len(rest) // alignment) * alignment
        self._engine.mem_write(pointer, rest)
        self._engine.reg_write(self._core.stack_pointer, pointer)
        self._engine.reg_write(self._core.link, _RETURN | self._core.marks_code)
        return pointer

    # Any: Unicorn's callbacks have no types; the engine is the first argument, the user's data the last.
    def _on_invalid_access(self, _: Any, access: int, address: int, size: int, value: int, __: Any) -> bool:
        kinds = {unicorn.UC_MEM_WRITE_UNMAPPED: "write", unicorn.UC_MEM_WRITE_PROT: "write to a constant"}
        kind = kinds.get(access, "read")
        self._fault = (
            f"{kind} of {size} bytes at {address:#010x}, outside of the given buffers, in {self._where()}"
        )
        return False

    def _on_access(self, engine: Any, access: int, address: int, size: int, value: int, __: Any) -> None:
        if not address & 3 or size < 4 or self._fault:
            return
        counter = engine.reg_read(self._core.counter) & ~1
        if counter not in self._bears:
            self._bears[counter] = self._core.decoder.bears_any_address(self._elf.code(counter, 4), counter)
        if not self._bears[counter]:
            self._fault = (
                f"several words or a float at {address:#010x}, not a multiple of four, in {self._where()}"
            )
            engine.emu_stop()

    def _on_exception(self, engine: Any, number: int, _: Any) -> None:
        self._fault = f"processor exception {number}, in {self._where()}"
        engine.emu_stop()

    def _where(self) -> str:
        address = self._engine.reg_read(self._core.counter) & ~1
        function = self._elf.function_at(address)
        return f"{function.name}+{address - (function.address & ~1):#x}" if function else f"{address:#010x}"

    @contextmanager
    def _traced(self) -> Iterator[array[int]]:
        """Records each executed block as address and size in one word; code translated earlier has no hook."""
        trace = array("Q")
        record = trace.append
        self._engine.ctl_flush_tb()
        hook = self._engine.hook_add(
            unicorn.UC_HOOK_BLOCK, lambda _, address, size, __: record(address << 32 | size)
        )
        try:
            yield trace
        finally:
            self._engine.hook_del(hook)
            self._engine.ctl_flush_tb()


class SimulatedModel:
    """An emitted `int NAME_run(inputs..., outputs..., regions of RAM...)` on a simulated core, run on bytes.

    With a weights file, whose contents are stored in the simulated memory, it takes their address before the regions.

    With states in place it is `int NAME_step(inputs..., state, outputs..., regions...)`; each run gets the states.
    """

    def __init__(
        self,
        simulator: Simulator,
        function: str,
        *,
        input_bytes: Sequence[int],
        output_bytes: Sequence[int],
        regions: Mapping[str, int],
        places: Sequence[tuple[str, int] | None] | None = None,
        state_bytes: int = 0,
        weights: bytes = b"",
        alignment: int = 16,
    ) -> None:
        """`regions` are the bytes of each region; `places` are the locations of inputs and outputs: a region, or
        `state`, and an offset in it.

        None is a buffer that the caller passes. `weights` are the contents of a weights file, if there is one.
        """
        self._simulator = simulator
        self._function = function
        sizes = [*input_bytes, *output_bytes]
        self._regions = {name: (simulator.allocate(size), size) for name, size in regions.items()}
        blocks = {name: address for name, (address, _) in self._regions.items()}
        if state_bytes:
            blocks[STATE_BLOCK] = simulator.allocate(state_bytes, alignment=_STATE_ALIGNMENT)
        places = places or [None] * len(sizes)
        buffers = [
            simulator.allocate(size, alignment=alignment) if place is None else blocks[place[0]] + place[1]
            for size, place in zip(sizes, places, strict=True)
        ]
        count = len(input_bytes)
        self._inputs = buffers[:count]
        self._outputs = list(zip(buffers[count:], output_bytes, strict=True))
        given = [buffer for buffer, place in zip(buffers, places, strict=True) if place is None]
        before = sum(place is None for place in places[:count])
        state = [blocks[STATE_BLOCK]] if state_bytes else []
        self._passed = [*given[:before], *state, *given[before:]]
        self._passed += [simulator.place(weights, alignment=_WEIGHTS_ALIGNMENT)] if weights else []
        self.stack_bytes = 0

    def run(self, inputs: Sequence[bytes]) -> list[bytes]:
        """The outputs for one set of inputs; `stack_bytes` keeps the deepest stack of all runs."""
        result = self._simulator.call(self._function, *self._prepare(inputs))
        self._check(result.return_value)
        self.stack_bytes = max(self.stack_bytes, result.stack_bytes)
        return [self._simulator.read(address, size) for address, size in self._outputs]

    def profile(self, inputs: Sequence[bytes]) -> Profile:
        """The counted run of one set of inputs."""
        profile = self._simulator.profile(self._function, *self._prepare(inputs))
        self._check(profile.return_value)
        return profile

    def _prepare(self, inputs: Sequence[bytes]) -> list[int]:
        for address, length in (*self._outputs, *self._regions.values()):
            self._simulator.write(address, bytes([_PAINT]) * length)
        for address, data in zip(self._inputs, inputs, strict=True):
            self._simulator.write(address, data)
        return [*self._passed, *(address if size else 0 for address, size in self._regions.values())]

    def _check(self, status: int) -> None:
        if status:
            raise SimulationError(f"{self._function}: returned {status}, not 0")


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
