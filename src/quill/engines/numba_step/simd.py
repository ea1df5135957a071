"""Functions that Numba cannot express in Python: vectors of 16 numbers, and threads that wait for each other.

Every function here generates a few lines of LLVM's intermediate language. LLVM splits the vectors if a processor has
shorter ones. The order of additions is fixed here, so a result does not depend on the number of rows.

Sources: LLVM Language Reference Manual, sections "Vector Type", "llvm.fma" and "Atomic Memory Ordering Constraints";
futex(2).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from quill.engines.numba_step.workspace import LANES, PANEL

F32, I32, I8, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.IntType(64)
FEATURES = llvm.get_host_cpu_features()
HAS_AVX512 = bool(FEATURES.get("avx512f"))
HAS_VNNI = bool(FEATURES.get("avx512vnni"))
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None  # its number
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # FUTEX_PRIVATE_FLAG included: the threads of one process


def intrinsic(function: Callable[..., Any]) -> Any:
    """Return a function for compiled code from one that generates LLVM code; callers leave out `typing`."""
    return numba_intrinsic(function)


def _data(context, builder, signature, arguments, index):
    """Return the pointer to an array argument's first element."""
    return context.make_array(signature.args[index])(context, builder, value=arguments[index]).data


def _load(builder, pointer, at, vector):
    """Load a vector from any address."""
    address = builder.bitcast(builder.gep(pointer, [at]), vector.as_pointer())
    return builder.load(address, align=1)


def _store(builder, value, pointer, at):
    address = builder.bitcast(builder.gep(pointer, [at]), value.type.as_pointer())
    builder.store(value, address, align=1)


def _broadcast(builder, value):
    """Return a vector whose every lane is this value."""
    vector = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    )


def _add_product(builder, total, value, weights):
    """Return total + value · weights, rounded once, in each of 16 lanes."""
    kind = ir.FunctionType(total.type, [total.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [value, weights, total])


def _add_dot4(builder, total, codes, weights):
    """Return total + the sums of four products of unsigned codes and signed weights, in each of 16 lanes."""
    if HAS_VNNI:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(total.type, [total.type] * 3), "llvm.x86.avx512.vpdpbusd.512"
        )
        return builder.call(function, [total, codes, weights])
    for byte in range(4):
        left = ir.Constant(total.type, [24 - 8 * byte] * LANES)
        right = ir.Constant(total.type, [24] * LANES)
        code = builder.lshr(builder.shl(codes, left), right)
        weight = builder.ashr(builder.shl(weights, left), right)
        total = builder.add(total, builder.mul(code, weight))
    return total


def _product(rows):
    """Return the product of a panel of weights with this many rows of inputs."""

    @intrinsic
    def product(typing, outputs, output_at, weights, weight_at, inputs, input_at, stride, depth):
        """Compute outputs[r, j] = sum over k of inputs[r, k] * weights[k, j], for 64 columns j, in the order of k.

        For float32 weights k counts numbers; for int8 weights it counts groups of four, and outputs are int32.
        """
        whole = weights.dtype == types.int8

        def generate(context, builder, signature, arguments):
            element = I32 if whole else F32
            vector = ir.VectorType(element, LANES)
            output, weight, data = (_data(context, builder, signature, arguments, i) for i in (0, 2, 4))
            output_at, weight_at, input_at, stride, depth = (arguments[i] for i in (1, 3, 5, 6, 7))
            if whole:
                weight, data = (builder.bitcast(p, I32.as_pointer()) for p in (weight, data))
                weight_at, input_at, stride = (builder.ashr(x, I64(2)) for x in (weight_at, input_at, stride))
            zero = ir.Constant(vector, [0] * LANES)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(PANEL // LANES)] for _ in range(rows)]
            with cgutils.for_range(builder, depth, intp=I64) as loop:
                at = builder.add(weight_at, builder.mul(loop.index, I64(PANEL)))
                columns = [
                    _load(builder, weight, builder.add(at, I64(v * LANES)), vector) for v in range(PANEL // LANES)
                ]
                for row in range(rows):
                    address = builder.add(builder.add(input_at, builder.mul(stride, I64(row))), loop.index)
                    value = builder.load(builder.gep(data, [address]), align=1)
                    value = _broadcast(builder, value)
                    for total, column in zip(sums[row], columns, strict=True):
                        step = _add_dot4 if whole else _add_product
                        builder.store(step(builder, builder.load(total), value, column), total)
            for row in range(rows):
                for v, total in enumerate(sums[row]):
                    at = builder.add(output_at, I64(row * PANEL + v * LANES))
                    _store(builder, builder.load(total), output, at)
            return context.get_dummy_value()

        n = types.int64
        return types.void(outputs, n, weights, n, inputs, n, n, n), generate

    return product


product_1, product_2, product_4, product_6 = map(_product, (1, 2, 4, 6))


def _reduction(kind):
    @intrinsic
    def reduce(typing, values, at, count):
        def generate(context, builder, signature, arguments):
            data = _data(context, builder, signature, arguments, 0)
            at, count = arguments[1:]
            vector = ir.VectorType(F32, LANES)
            start = float("-inf") if kind == "maximum" else 0.0
            state = cgutils.alloca_once_value(builder, ir.Constant(vector, [start] * LANES))
            rounds = builder.sdiv(count, I64(LANES))

            def join(old, new):
                if kind == "maximum":
                    return builder.select(builder.fcmp_ordered(">", new, old), new, old)
                return builder.fadd(old, new)

            with cgutils.for_range(builder, rounds, intp=I64) as loop:
                address = builder.add(at, builder.mul(loop.index, I64(LANES)))
                new = _load(builder, data, address, vector)
                if kind == "squares":
                    new = builder.fmul(new, new)
                builder.store(join(builder.load(state), new), state)
            lanes, nothing = builder.load(state), ir.Constant(vector, ir.Undefined)
            for half in (8, 4, 2, 1):  # lane i and lane i + half
                order = ir.Constant(ir.VectorType(I32, LANES), [(lane + half) % LANES for lane in range(LANES)])
                lanes = join(lanes, builder.shuffle_vector(lanes, nothing, order))
            return builder.extract_element(lanes, I32(0))

        return types.float32(values, types.int64, types.int64), generate

    return reduce


total, total_of_squares, maximum = map(_reduction, ("total", "squares", "maximum"))


@intrinsic
def power_of_two(typing, exponent):
    """Return 2 to the power of a whole number from -126 to 127, which is given as float32."""

    def generate(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], I32)
        return builder.bitcast(builder.shl(builder.add(whole, I32(127)), I32(23)), F32)

    return types.float32(types.float32), generate


@intrinsic
def add_to_counter(typing, counters, at, amount):
    """Add to a counter that all threads see, and return its new value."""

    def generate(context, builder, signature, arguments):
        pointer = builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])
        return builder.add(builder.atomic_rmw("add", pointer, arguments[2], "seq_cst"), arguments[2])

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def read_counter(typing, counters, at):
    """Return a counter that other threads change."""

    def generate(context, builder, signature, arguments):
        pointer = builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(counters, types.int64), generate


@intrinsic
def pause(typing):
    """Hint to the core that this thread spins, so that it saves power and runs its other hardware thread."""

    def generate(context, builder, signature, arguments):
        if "sse2" in FEATURES:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def sleep_while_equal(typing, counters, at, value):
    """Sleep while a counter has this value, until `wake_sleepers`; may return early. futex(2) on Linux."""

    def generate(context, builder, signature, arguments):
        if FUTEX is None:
            _call_system(builder, "SwitchToThread" if sys.platform == "win32" else "sched_yield", [])
            _call_system(builder, "Sleep" if sys.platform == "win32" else "usleep", [I32(1)])
        else:
            pointer = builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])
            _futex(builder, pointer, FUTEX_WAIT, builder.trunc(arguments[2], I32))
        return context.get_dummy_value()

    return types.void(counters, types.int64, types.int64), generate


@intrinsic
def wake_sleepers(typing, counters, at):
    """Wake all threads that sleep at a counter."""

    def generate(context, builder, signature, arguments):
        if FUTEX is not None:
            pointer = builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])
            _futex(builder, pointer, FUTEX_WAKE, I32(2**31 - 1))
        return context.get_dummy_value()

    return types.void(counters, types.int64), generate


def _futex(builder, pointer, operation, value):
    # It compares 32 bits, the low half of a counter: both processors are little-endian.
    kind = ir.FunctionType(I64, [I64], var_arg=True)
    syscall = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    nothing = ir.Constant(I8.as_pointer(), None)
    builder.call(syscall, [I64(FUTEX), pointer, I32(operation), value, nothing, nothing, I32(0)])


def _call_system(builder, name, arguments):
    kind = ir.FunctionType(I32, [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
