"""Read and write safetensors files: a JSON header, then the tensors' bytes.

    8 bytes                          length N of the header, little-endian
    N bytes                          JSON: {"__metadata__": {…}, name: {"dtype", "shape", "data_offsets"}, …}
    the rest of the file             tensors without gaps, at their offsets

The format is documented by the safetensors library, which reads these files, and whose files are read here (a test
compares both). The library is not used, so that the header is checked before anything else is read, bfloat16 needs no
PyTorch, and the SHA-256 is computed from the same bytes that are used. Nothing in such a file can run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.checkpoints.schema import parse_json
from quill.errors import CheckpointError
from quill.validation import show

if TYPE_CHECKING:
    from torch import Tensor

MOST_HEADER_BYTES = 1 << 26
MOST_DIMENSIONS = 8

# BF16 is the upper half of a float32, and NumPy has no type for it.
NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
TORCH_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in the header; `start` and `end` are byte offsets after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """An open safetensors file whose header was read and agrees with the file's length.

    `tensors` describes each tensor, `metadata` is the JSON object under the key "quill". A file of another kind is a
    CheckpointError. Use it as a context manager.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            state = "is not a file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {state}: give a run directory or a model.safetensors")
        try:
            self._file: io.BufferedReader = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._header = self._read_header()
            self.tensors, self.metadata = _parse_header(self._header, path, self._file_size - 8 - len(self._header))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self) -> tuple[dict[str, np.ndarray], str]:
        """Return all tensors as arrays, bfloat16 as float32, and the SHA-256 of the whole file."""
        digest = hashlib.sha256(len(self._header).to_bytes(8, "little") + self._header)
        arrays: dict[str, np.ndarray] = {}
        self._file.seek(8 + len(self._header))
        for name, info in sorted(self.tensors.items(), key=lambda item: item[1].start):
            array = np.empty(info.shape, NUMPY_TYPES[info.dtype])
            if array.nbytes:
                raw = array.reshape(-1).view(np.uint8).data
                if self._file.readinto(raw) != array.nbytes:
                    raise _truncated(self.path, "it became shorter while it was read")
                digest.update(raw)
            if info.dtype == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = array
        return {name: arrays[name] for name in self.tensors}, digest.hexdigest()

    def _read_header(self) -> bytes:
        self._file_size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if self._file_size < 8 or not 2 <= length <= min(self._file_size - 8, MOST_HEADER_BYTES):
            raise _truncated(self.path, "its header is not whole")
        return self._file.read(length)


def _parse_header(header: bytes, path: Path, data_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    try:
        entries = parse_json(header)
    except ValueError as error:
        raise _truncated(path, f"its header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise _truncated(path, "its header is not a JSON object")
    about = entries.pop("__metadata__", None)
    tensors = {name: _tensor_info(name, entry, path) for name, entry in entries.items()}
    position = 0
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != position:
            raise _truncated(path, "its tensors overlap or leave gaps")
        position = info.end
    if position != data_bytes:
        raise _truncated(path, f"its tensors take {position:,} bytes and it has {data_bytes:,}")
    text = about.get("quill") if isinstance(about, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(f"{path} was not written by Quill: its header has no 'quill' entry")
    try:
        metadata = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its 'quill' entry is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} is damaged: its 'quill' entry is not a JSON object")
    return tensors, metadata


def _tensor_info(name: str, entry: object, path: Path) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*sizes], "data_offsets": [int(start), int(end)], **rest} if not rest:
            pass
        case _:
            raise _truncated(path, f"{show(name)} has no type, shape and offsets")
    if dtype not in NUMPY_TYPES:
        raise CheckpointError(f"{path} has {show(name)} of type {show(dtype)}, which Quill does not read")
    if len(sizes) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise _truncated(path, f"{show(name)} has an impossible shape")
    if not 0 <= start <= end or end - start != math.prod(sizes) * np.dtype(NUMPY_TYPES[dtype]).itemsize:
        raise _truncated(path, f"the size of {show(name)} is not that of its shape")
    return TensorInfo(dtype, tuple(sizes), start, end)


def _truncated(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or not a safetensors file ({reason}): use another checkpoint")


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write a safetensors file durably, with `metadata` as JSON under "quill", and return its SHA-256."""
    import torch

    def dtype_of(tensor: Tensor) -> str:
        return TORCH_NAMES[str(tensor.dtype).removeprefix("torch.")]

    # Larger types first, so that every tensor starts at a multiple of its type's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "quill": json.dumps(metadata, allow_nan=False)}}
    position = 0
    for name in names:
        end = position + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": dtype_of(tensors[name]), "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in (len(header).to_bytes(8, "little"), header):
            file.write(piece)
            digest.update(piece)
        for name in names:
            raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(raw)
            digest.update(raw)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
