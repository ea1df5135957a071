"""Machine code of the compiled step: made by Numba once for a machine, stored, and read back without Numba.

On the way text → tokens → model → training → generation → people this is why `quill generate` starts at once: to import
Numba and let it look at its own parts takes most of a second, and to compile takes many; to read an object file takes
milliseconds. It lies in the user's cache folder, under a name made of the sources, Numba and the processor, so that no
old or foreign code is ever run.

Reference: llvmlite's manual, "Execution engine".

Shapes: those of state.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from quill.engines.numba_step.workspace import Everything
from quill.files import cache_folder

NAME = "write"


class CompiledStep:
    """The compiled step: call it with the number of a thread and the address of a table; it frees Python's lock."""

    def __init__(self, code: bytes) -> None:
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())  # the code lives as long as it
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        # What Numba makes of a function: its result and an exception go to two places, then come the arguments.
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self._function = kind(self._engine.get_function_address(NAME))

    def __call__(self, thread: int, table: int) -> None:
        result, exception = ctypes.c_void_p(), ctypes.c_void_p()
        status = self._function(ctypes.byref(result), ctypes.byref(exception), thread, table)
        assert status == 0, f"the compiled step ended with status {status}, though it raises nothing"


def table_of(arguments: tuple) -> np.ndarray:
    """Return what `Table` reads: numbers as 64 bits, arrays as their address and lengths, in the order of fields.

    Whoever calls keeps the arrays alive while the table is in use.
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


def load_step(kind: str, example: Everything, on_status: Callable[[], None]) -> CompiledStep:
    """Return the step for arguments of these types.

    `kind` names the types. `on_status` is called before something takes many seconds.
    """
    file = code_folder() / f"{kind}.o"
    code = _read(file)
    if code is None:
        on_status()
        code = _compile(example)
        _store(file, code)
    return CompiledStep(code)


@cache
def code_folder() -> Path:
    """Return the folder of machine code that these very sources give on this processor."""
    what = [version("numba"), llvm.get_process_triple(), llvm.get_host_cpu_name(), _features()]
    sources = [source.read_bytes() for source in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(b"\0".join([*(word.encode() for word in what), *sources]))
    return cache_folder() / "compiled" / digest.hexdigest()[:16]


def _features() -> str:
    return llvm.get_host_cpu_features().flatten()


def _read(file: Path) -> bytes | None:
    """Return stored code; None where there is none, or where it is damaged."""
    try:
        digest, _, code = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    return code if hashlib.sha256(code).hexdigest().encode() == digest else None


def _store(file: Path, code: bytes) -> None:
    """Keep code for the next time; where that cannot be, it is compiled again then."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
        os.replace(draft, file)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def _compile(example: Everything) -> bytes:
    """Let Numba compile the step for arguments like these, and return it as an object file."""
    from numba import typeof, types

    from quill.engines.numba_step.sampling import OPTIONS, njit
    from quill.engines.numba_step.step import write
    from quill.engines.numba_step.struct_pointer import Table

    signature = types.void(types.int64, Table(typeof(example)))
    compiled = njit(signature, no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(write.py_func)
    (text,) = compiled.inspect_llvm().values()
    module = llvm.parse_assembly(text)
    functions = [function for function in module.functions if not function.is_declaration]
    (entry,) = [function for function in functions if "step5write" in function.name]
    for function in functions:
        function.linkage = "external" if function is entry else "internal"
    entry.name = NAME
    return _machine().emit_object(module)
