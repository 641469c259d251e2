"""Upper bound of the stack that an emitted function takes: its own frame and the deepest of the kernels that it calls.

Functions of kernels are not inlined, so that their frames do not add up. `benchmarks/kernel_stack.py --write` measures
them, template by template; a margin stands for shapes that the measured ones do not cover.
"""

from __future__ import annotations

from types import MappingProxyType

from ..target import Machine
from ..tools.stack import LIBRARY_STACK_BYTES
from .program import Program

_RUN_STACK_BYTES = 40  # the frame of the function itself, without arguments that are passed on the stack
_DECODER_STACK_BYTES = 120  # of include/huffman.h
_MARGIN = 8  # one part in so many of what a kernel takes
_UNMEASURED = (1024, 1024)  # a template that the table does not have yet
_ALIGNMENT = 8  # of the stack pointer, by the Arm procedure call standard

# Bytes of the deepest function of a template, with what it calls: on cores with DSP instructions and floating-point
# hardware, and on any core.
KERNEL_STACK_BYTES = MappingProxyType(
    {
        # begin
        "portable/attention.c.j2": (288, 296),
        "portable/binary.c.j2": (248, 248),
        "dsp/sum.c.j2": (32, 88),
        "portable/arg_extremum.c.j2": (20, 136),
        "portable/elementwise.c.j2": (112, 144),
        "portable/put.c.j2": (16, 128),
        "portable/take.c.j2": (16, 32),
        "blocked/conv.c.j2": (160, 392),
        "dsp/conv.c.j2": (168, 352),
        "portable/conv_float.c.j2": (136, 200),
        "portable/conv_integer.c.j2": (104, 128),
        "portable/conv_transpose.c.j2": (136, 240),
        "portable/depthwise_float.c.j2": (72, 192),
        "portable/depthwise_integer.c.j2": (216, 240),
        "blocked/pointwise.c.j2": (128, 312),
        "dsp/pointwise.c.j2": (128, 336),
        "blocked/depthwise.c.j2": (104, 392),
        "dsp/depthwise.c.j2": (232, 432),
        "portable/embedding.c.j2": (20, 56),
        "portable/fill.c.j2": (32, 40),
        "portable/gather.c.j2": (80, 80),
        "blocked/linear.c.j2": (0, 152),
        "dsp/linear.c.j2": (56, 112),
        "portable/grouped_matmul.c.j2": (128, 256),
        "portable/matmul.c.j2": (56, 168),
        "portable/copy.c.j2": (56, 56),
        "portable/copy_runs.c.j2": (32, 64),
        "portable/norm_affine.c.j2": (20, 136),
        "portable/norm_integer.c.j2": (152, 224),
        "portable/norm_statistics.c.j2": (288, 296),
        "portable/adaptive_pool.c.j2": (64, 184),
        "dsp/avg_pool.c.j2": (36, 96),
        "portable/avg_pool_float.c.j2": (80, 192),
        "portable/avg_pool_integer.c.j2": (88, 136),
        "portable/max_pool.c.j2": (96, 224),
        "dsp/max_pool.c.j2": (28, 104),
        "portable/products_conv.c.j2": (144, 168),
        "portable/products_linear.c.j2": (144, 144),
        "portable/convert.c.j2": (8, 136),
        "portable/recurrent.c.j2": (384, 384),
        "portable/reduce.c.j2": (32, 128),
        "portable/resize.c.j2": (104, 216),
        "portable/log_softmax_float.c.j2": (240, 240),
        "portable/masked_float.c.j2": (280, 280),
        "portable/masked_integer.c.j2": (64, 184),
        "portable/softmax_float.c.j2": (232, 240),
        "portable/softmax_integer.c.j2": (36, 160),
        "portable/sort.c.j2": (80, 192),
        "portable/prelu.c.j2": (32, 152),
        "portable/table.c.j2": (8, 8),
        "portable/unary.c.j2": (232, 232),
        "dsp/winograd.c.j2": (216, 400),
        # end
    }
)


def stack_bytes(program: Program, machine: Machine) -> int:
    """Most bytes of stack that the emitted function takes, built with optimization for such a machine."""
    calls = [call for step in program.steps for call in step.implementation.calls]
    fast = machine.dsp and (machine.fpu or not uses_float(program))
    kernels = [
        KERNEL_STACK_BYTES.get(call.function.template, _UNMEASURED)[0 if fast else 1] for call in calls
    ]
    decoder = _DECODER_STACK_BYTES if any(step.implementation.coded for step in program.steps) else 0
    deepest = max([*kernels, decoder, *LIBRARY_STACK_BYTES.values()])
    passed = max(
        (len(call.reads) + len(call.writes) + len(call.constants) + call.scratch for call in calls), default=0
    )
    arguments = 4 * max(passed - 4, 0)
    return -(-(_RUN_STACK_BYTES + arguments + deepest + deepest // _MARGIN) // _ALIGNMENT) * _ALIGNMENT


def uses_float(program: Program) -> bool:
    """Whether a step reads or writes reals, which a core without hardware for them computes by functions."""
    stored = [s for step in program.steps for s in (*step.operands, *step.results) if s is not None]
    return any(s.value.type.dtype.is_floating for s in stored)
