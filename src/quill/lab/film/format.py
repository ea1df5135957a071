"""film.safetensors: the frames of a film on disk, written whole or not at all, and checked when they are read.

The tensors are the arrays of all frames, stacked. The metadata hold the format, the step and the known losses of each
frame, the tokenizer, and a SHA-256 of all of it.

Shapes: F frames, L layers, H heads, T tokens of the probe text, N = T (T + 1) / 2 pairs of a token and one that it may
attend to, U = T - 1 tokens that are predicted, R = L + 1 readings (after the embedding and after each block), G
generated tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quill.checkpoints.schema import FINITE, OBJECT, SHA256, STEP, Rule, check_record, one_of, optional
from quill.checkpoints.tensor_file import TensorFile, write_tensor_file
from quill.errors import CheckpointError, QuillError
from quill.files import draft_of, sync_folder
from quill.model.config import ModelConfig
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import tokenizer_from_json

NAME = "film.safetensors"
FORMAT = "quill film 1"
MOST_FRAMES = 28
MOST_BYTES = 5_000_000
"""Largest size of a film; the probe text is as long as it allows."""
MOST_TOKENS = 96
"""Longest probe text."""
SAMPLE_TOKENS = 32
HEADER_BYTES = 64_000
"""Bytes of the file that are kept free for its header."""

TYPES = {
    "attention_LHN": "uint8", "best_RT": "int32", "probability_RT": "float16", "loss_RU": "float16",
    "kl_RT": "float16", "induction_LH": "float16", "sample_G": "int32",
}  # fmt: skip
"""The arrays of a frame; a name ends in the shape."""


@dataclass(frozen=True)
class Evaluation:
    """The losses of a run that are known at a moment: those of its last evaluation, if there was one."""

    step: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True)
class Frame:
    """What a model computes for the probe text after `step` finished steps."""

    step: int
    evaluation: Evaluation
    attention_LHN: np.ndarray
    """255 · √weight of every head, rounded: the lower triangle, row by row"""
    best_RT: np.ndarray
    """id of the next token that the model would write if it stopped after a reading (logit lens)"""
    probability_RT: np.ndarray
    """its probability"""
    loss_RU: np.ndarray
    """-ln p of the token that follows in the text, in nats"""
    kl_RT: np.ndarray
    """KL divergence of the model's own prediction from that of a reading, in nats"""
    induction_LH: np.ndarray
    """how much each head attends to tokens after earlier occurrences: 0 as uniform attention, 1 only there"""
    sample_G: np.ndarray
    """tokens that the model generates"""


@dataclass(frozen=True)
class Frames:
    """A film as it is stored."""

    tokens_T: np.ndarray
    """the probe text"""
    tokenizer: Tokenizer
    frames: tuple[Frame, ...]

    @property
    def steps(self) -> list[int]:
        """The step of each frame."""
        return [frame.step for frame in self.frames]


def probe_length(config: ModelConfig, available: int) -> int:
    """Return how many tokens the probe text may have, so that `MOST_FRAMES` frames fit `MOST_BYTES`."""
    pairs, readings, free = config.n_layer * config.n_head, config.n_layer + 1, (MOST_BYTES - HEADER_BYTES)
    free = free // MOST_FRAMES - 4 * SAMPLE_TOKENS - 2 * pairs
    longest = min(MOST_TOKENS, config.block_size, available)
    while longest and pairs * longest * (longest + 1) // 2 + 10 * readings * longest > free:
        longest -= 1
    return longest


def write_film(file: Path, film: Frames) -> None:
    """Write a film, whole or not at all. What the system refuses is an OSError."""
    from torch import from_numpy

    arrays = {name: np.stack([getattr(frame, name) for frame in film.frames]) for name in TYPES}
    arrays["tokens_T"] = film.tokens_T.astype(np.int32)
    about = {
        "format": FORMAT,
        "steps": film.steps,
        "evaluations": [list(vars(frame.evaluation).values()) for frame in film.frames],
        "tokenizer": film.tokenizer.to_json(),
    }
    tensors = {name: from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    draft = draft_of(file)
    try:
        write_tensor_file(draft, tensors, about | {"sha256": digest_of(arrays, about)})
        os.replace(draft, file)
        sync_folder(file.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def digest_of(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """Return the SHA-256 of arrays and metadata."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].shape} {arrays[name].dtype}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_film(file: Path) -> Frames:
    """Return the film in a file; CheckpointError if it is missing, damaged or something else."""
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: train with film=True, and the run keeps a film")
    with TensorFile(file) as opened:
        if opened.metadata.get("format") != FORMAT:
            raise CheckpointError(f"{file} is no film, or of a newer Quill: name a run with a film")
        about = check_record(opened.metadata, RULES, file)
        sizes = check_shapes(file, {name: (info.dtype, info.shape) for name, info in opened.tensors.items()})
        arrays, _ = opened.read()
    if about.pop("sha256") != digest_of(arrays, about):
        raise damaged(file, "its contents do not have its SHA-256")
    steps, evaluations = about["steps"], about["evaluations"]
    if len(steps) != sizes["F"] or len(evaluations) != sizes["F"]:
        raise damaged(file, f"it has {sizes['F']} frames, {len(steps)} steps and {len(evaluations)} evaluations")
    try:
        tokenizer = tokenizer_from_json(about["tokenizer"])
    except QuillError as error:
        raise damaged(file, "it has no tokenizer") from error
    check_values(file, arrays, tokenizer.vocab_size)
    frames = tuple(
        Frame(step, Evaluation(*evaluation), **{name: arrays[name][i] for name in TYPES})
        for i, (step, evaluation) in enumerate(zip(steps, evaluations, strict=True))
    )
    return Frames(arrays["tokens_T"], tokenizer, frames)


def _are_steps(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_FRAMES or not all(map(STEP.accepts, value)):
        return False
    return all(before < after for before, after in itertools.pairwise(value))


def _are_evaluations(value: Any) -> bool:
    rules = (optional(STEP), optional(FINITE), optional(FINITE))
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 3 and all(r.accepts(v) for r, v in zip(rules, each, strict=True))
        for each in value
    )


RULES = {
    "format": one_of(FORMAT),
    "steps": Rule(_are_steps, f"a list of 1 to {MOST_FRAMES} rising steps"),
    "evaluations": Rule(_are_evaluations, "a list of steps with two losses"),
    "tokenizer": OBJECT,
    "sha256": SHA256,
}


def check_shapes(file: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, int]:
    """Return the size of each dimension; CheckpointError where names, types or shapes are not those of a film."""
    names = {"uint8": "U8", "int32": "I32", "float16": "F16"}
    expected = {name: (names[kind], "F" + name.split("_")[1]) for name, kind in TYPES.items()}
    expected["tokens_T"] = (names["int32"], "T")
    if tensors.keys() != expected.keys():
        raise damaged(file, "its tensors are not those of a film")
    sizes: dict[str, int] = {}
    for name, (kind, letters) in expected.items():
        dtype, shape = tensors[name]
        if dtype != kind or len(shape) != len(letters):
            raise damaged(file, f"{name} has another type or shape")
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size or size < 1:
                raise damaged(file, f"{name} has another shape than the other tensors")
    T, L = sizes["T"], sizes["L"]
    if (sizes["N"], sizes["U"], sizes["R"]) != (T * (T + 1) // 2, T - 1, L + 1) or T > MOST_TOKENS:
        raise damaged(file, "its sizes do not fit one another")
    return sizes


def check_values(file: Path, arrays: Mapping[str, np.ndarray], vocab_size: int) -> None:
    """Raise CheckpointError for a value that cannot be: an unknown token, a negative loss, a NaN."""
    for name in ("best_RT", "sample_G", "tokens_T"):
        if arrays[name].min() < 0 or arrays[name].max() >= vocab_size:
            raise damaged(file, f"{name} has tokens outside the vocabulary")
    for name, most in (("probability_RT", 1.0), ("loss_RU", np.inf), ("kl_RT", np.inf)):
        array = arrays[name]
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > most:
            raise damaged(file, f"{name} has impossible values")
    if not (np.abs(arrays["induction_LH"]) <= 100).all():
        raise damaged(file, "induction_LH has impossible values")


def damaged(file: Path, reason: str) -> CheckpointError:
    """Return the error of a film that cannot be read."""
    return CheckpointError(f"{file} is damaged: {reason}; the next run with film=True writes a new one")
