"""Upper bound of the stack that an emitted function takes: its own frame and the deepest of the kernels that it calls.

Functions of kernels are not inlined, so that their frames do not add up. `benchmarks/kernel_stack.py --write` measures
them, template by template; a margin stands for shapes that the measured ones do not cover.
"""

from __future__ import annotations

from types import MappingProxyType

from .program import Program
from .stack import LIBRARY_STACK_BYTES
from .target import Machine

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
        "attention/attention.c.j2": (288, 296),
        "binary/binary.c.j2": (248, 248),
        "binary/sum_dsp.c.j2": (32, 88),
        "choice/arg_extremum.c.j2": (20, 136),
        "choice/elementwise.c.j2": (112, 144),
        "choice/put.c.j2": (16, 128),
        "choice/take.c.j2": (16, 32),
        "conv/conv_blocked.c.j2": (160, 392),
        "conv/conv_dsp.c.j2": (168, 352),
        "conv/conv_float.c.j2": (136, 200),
        "conv/conv_integer.c.j2": (104, 128),
        "conv/conv_transpose.c.j2": (136, 240),
        "conv/depthwise_float.c.j2": (72, 192),
        "conv/depthwise_integer.c.j2": (216, 240),
        "conv/pointwise_blocked.c.j2": (128, 312),
        "conv/pointwise_dsp.c.j2": (128, 336),
        "depthwise/depthwise_blocked.c.j2": (104, 392),
        "depthwise/depthwise_dsp.c.j2": (232, 432),
        "gather/embedding.c.j2": (20, 56),
        "gather/fill.c.j2": (32, 40),
        "gather/gather.c.j2": (80, 80),
        "linear/linear_blocked.c.j2": (0, 152),
        "linear/linear_dsp.c.j2": (56, 112),
        "matmul/grouped_matmul.c.j2": (128, 256),
        "matmul/matmul.c.j2": (56, 168),
        "movement/copy.c.j2": (56, 56),
        "movement/copy_runs.c.j2": (32, 64),
        "norm/affine.c.j2": (20, 136),
        "norm/integer.c.j2": (152, 224),
        "norm/statistics.c.j2": (288, 296),
        "pool/adaptive.c.j2": (64, 184),
        "pool/avg_pool_dsp.c.j2": (36, 96),
        "pool/avg_pool_float.c.j2": (80, 192),
        "pool/avg_pool_integer.c.j2": (88, 136),
        "pool/max_pool.c.j2": (96, 224),
        "pool/max_pool_dsp.c.j2": (28, 104),
        "products/conv.c.j2": (144, 168),
        "products/linear.c.j2": (144, 144),
        "quantize/convert.c.j2": (8, 136),
        "recurrent/recurrent.c.j2": (384, 384),
        "reduce/reduce.c.j2": (32, 128),
        "resize/linear.c.j2": (104, 216),
        "softmax/log_softmax_float.c.j2": (240, 240),
        "softmax/masked_float.c.j2": (280, 280),
        "softmax/masked_integer.c.j2": (64, 184),
        "softmax/softmax_float.c.j2": (232, 240),
        "softmax/softmax_integer.c.j2": (36, 160),
        "sort/sort.c.j2": (80, 192),
        "unary/prelu.c.j2": (32, 152),
        "unary/table.c.j2": (8, 8),
        "unary/unary.c.j2": (232, 232),
        "winograd/winograd_dsp.c.j2": (216, 400),
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
