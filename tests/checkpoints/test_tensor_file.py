"""Our safetensors files are the library's, and what is not such a file is refused in one line before it is used."""

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from quill.checkpoints.manifest import sha256_of
from quill.checkpoints.tensor_file import TORCH_NAMES, TensorFile, write_tensor_file
from quill.errors import CheckpointError

DTYPES = [getattr(torch, name) for name in TORCH_NAMES]
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=6), st.tuples(st.sampled_from(DTYPES), shapes), max_size=6
)


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )


@given(tensors)
def test_the_safetensors_library_reads_the_tensors_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, described: dict
) -> None:
    file = tmp_path_factory.mktemp("written") / "x.safetensors"
    described.pop("__metadata__", None)
    written = {name: filled(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(described.items())}
    assert write_tensor_file(file, written, {"a": "ü"}) == sha256_of(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["quill"]) == {"a": "ü"}
        read = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert read.keys() == written.keys()
    assert all(read[name].dtype == t.dtype and torch.equal(read[name], t) for name, t in written.items())


@given(tensors)
def test_files_of_the_safetensors_library_are_read(tmp_path_factory: pytest.TempPathFactory, described: dict) -> None:
    file = tmp_path_factory.mktemp("read") / "x.safetensors"
    described.pop("__metadata__", None)
    written = {name: filled(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(described.items())}
    safetensors.torch.save_file(written, file, {"quill": '{"a": 1}'})
    with TensorFile(file) as opened:
        arrays, digest = opened.read()
    assert (opened.metadata, digest) == ({"a": 1}, sha256_of(file))
    assert arrays.keys() == written.keys()
    for name, tensor in written.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16
        assert np.array_equal(arrays[name], expected.numpy()) and arrays[name].dtype == expected.numpy().dtype


def test_other_users_may_read_a_written_file(tmp_path: Path) -> None:  # R18
    before = os.umask(0o022)
    try:
        write_tensor_file(tmp_path / "x.safetensors", {"x": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o644


GOOD: dict[str, Any] = {
    "__metadata__": {"quill": "{}"},
    "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "y": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
}
DEEP = "[" * 100_000 + "]" * 100_000


def file_with(folder: Path, header: object, data: bytes = b"\1" * 16, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def x_is(**changes: object) -> dict:
    return GOOD | {"x": GOOD["x"] | changes}


def test_the_malformed_files_of_these_tests_differ_from_a_valid_one(tmp_path: Path) -> None:
    with TensorFile(file_with(tmp_path, GOOD)) as opened:
        assert opened.tensors.keys() == {"x", "y"} == opened.read()[0].keys()


HOSTILE = {
    "not JSON": b"{" * 16,
    "deep JSON": b'{"__metadata__": {"quill": "{}"}, "x": ' + DEEP.encode() + b"}",
    "a number too long": b'{"x": ' + b"9" * 5000 + b"}",
    "a list": [],
    "null": None,
    "no metadata": {name: GOOD[name] for name in "xy"},
    "metadata that is a list": GOOD | {"__metadata__": []},
    "metadata that is a number": GOOD | {"__metadata__": 1},
    "metadata without ours": GOOD | {"__metadata__": {"format": "pt"}},
    "our metadata as an object": GOOD | {"__metadata__": {"quill": {}}},
    "our metadata is not JSON": GOOD | {"__metadata__": {"quill": "{"}},
    "our metadata is a list": GOOD | {"__metadata__": {"quill": "[]"}},
    "our metadata is null": GOOD | {"__metadata__": {"quill": "null"}},
    "our metadata is a number": GOOD | {"__metadata__": {"quill": "7"}},
    "our metadata is deep": GOOD | {"__metadata__": {"quill": DEEP}},
    "an unknown type": x_is(dtype="F4"),
    "a type that is none": x_is(dtype=None),
    "a shape that is none": x_is(shape=None),
    "a shape with text": x_is(shape=["2"]),
    "a shape with True": x_is(shape=[2, True]),
    "a negative shape": x_is(shape=[-2, -1]),
    "an enormous shape": x_is(shape=[2**62, 2**62]),
    "a shape of a hundred sizes": x_is(shape=[2] + [1] * 99),
    "another size": x_is(shape=[3]),
    "offsets backwards": x_is(data_offsets=[8, 0]),
    "negative offsets": x_is(data_offsets=[-8, 0]),
    "offsets beyond the end": x_is(data_offsets=[800, 808]),
    "offsets that overlap": x_is(data_offsets=[4, 12]),
    "offsets with fractions": x_is(data_offsets=[0.0, 8.0]),
    "three offsets": x_is(data_offsets=[0, 8, 8]),
    "an unknown entry": x_is(color="red"),
    "a tensor that is a list": GOOD | {"x": []},
    "a gap": {name: GOOD[name] for name in ("__metadata__", "y")},
    "bytes left over": {name: GOOD[name] for name in ("__metadata__", "x")},
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_does_not_describe_its_file_is_refused(header: object, tmp_path: Path) -> None:  # R7
    with pytest.raises(CheckpointError, match=r"x\.safetensors") as caught:
        TensorFile(file_with(tmp_path, header))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [0, 1, 10_000, 2**26 + 1, 2**63, 2**64 - 1])
def test_a_length_of_the_header_beyond_the_file_is_refused(length: int, tmp_path: Path) -> None:  # R7
    with pytest.raises(CheckpointError, match="its header is not whole"):
        TensorFile(file_with(tmp_path, GOOD, length=length))


def test_a_path_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:  # R17
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="pipe is not a file"):
            TensorFile(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a file"):
        TensorFile(tmp_path)
