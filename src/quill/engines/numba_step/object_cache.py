"""Machine code of the compiled step: compiled by Numba once for a machine, stored, and loaded without Numba.

Importing Numba takes most of a second and compiling takes many; loading an object file takes milliseconds. The file is
in the user's cache folder. Its name is a digest of the sources, Numba's version and the processor, so outdated or
foreign code is never run, and a checksum excludes damaged code.

Source: llvmlite's manual, "Execution engine".
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from quill.engines.numba_step.workspace import KernelArgs
from quill.files import cache_folder, write_atomically

ENTRY = "decode_steps"


class CompiledStep:
    """The compiled step, called with the number of a thread and the address of its arguments. It releases the GIL."""

    def __init__(self, code: bytes) -> None:
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())  # owns the code
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        # Numba's calling convention: pointers for the result and an exception, then the arguments.
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self._function = kind(self._engine.get_function_address(ENTRY))

    def __call__(self, thread: int, address: int) -> None:
        result, exception = ctypes.c_void_p(), ctypes.c_void_p()
        status = self._function(ctypes.byref(result), ctypes.byref(exception), thread, address)
        assert status == 0, f"the compiled step ended with status {status}, though it raises nothing"


def words_of(arguments: tuple) -> np.ndarray:
    """Return the memory of a `StructPointer`: numbers as 64 bits, arrays as address and lengths, in field order.

    The caller keeps the arrays alive while the words are in use.
    """
    return np.array(list(_words(arguments)), np.int64)


def _words(value) -> Iterator[int]:
    if isinstance(value, tuple):
        for each in value:
            yield from _words(each)
    elif isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        yield value.ctypes.data
        yield from value.shape
    else:
        yield int(np.float64(value).view(np.int64)) if isinstance(value, float) else int(value)


def load_step(kind: str, example: KernelArgs, before_compiling: Callable[[], None]) -> CompiledStep:
    """Return the compiled step for arguments of these types; `kind` is its name in the cache."""
    file = code_folder() / f"{kind}.o"
    code = _read(file)
    if code is None:
        before_compiling()
        code = _compile(example)
        with contextlib.suppress(OSError):  # if it cannot be stored, it is compiled again the next time
            write_atomically(file, hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
    return CompiledStep(code)


@cache
def code_folder() -> Path:
    """Return the folder for the machine code of these sources on this processor."""
    what = [version("numba"), llvm.get_process_triple(), llvm.get_host_cpu_name(), _features()]
    sources = [source.read_bytes() for source in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(b"\0".join([*(word.encode() for word in what), *sources]))
    return cache_folder() / "compiled" / digest.hexdigest()[:16]


def _features() -> str:
    return llvm.get_host_cpu_features().flatten()


def _read(file: Path) -> bytes | None:
    """Return stored code, or None if there is none or it is damaged."""
    try:
        digest, _, code = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    return code if hashlib.sha256(code).hexdigest().encode() == digest else None


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def _compile(example: KernelArgs) -> bytes:
    """Compile the step with Numba for arguments of these types, and return an object file."""
    from numba import typeof, types

    from quill.engines.numba_step.sampling import OPTIONS, njit
    from quill.engines.numba_step.step import decode_steps
    from quill.engines.numba_step.struct_pointer import StructPointer

    signature = types.void(types.int64, StructPointer(typeof(example)))
    compiled = njit(signature, **OPTIONS)(decode_steps.py_func)
    (text,) = compiled.inspect_llvm().values()
    module = llvm.parse_assembly(text)
    functions = [function for function in module.functions if not function.is_declaration]
    (entry,) = [function for function in functions if f"step{len(ENTRY)}{ENTRY}" in function.name]
    for function in functions:
        function.linkage = "external" if function is entry else "internal"
    entry.name = ENTRY
    return _machine().emit_object(module)
