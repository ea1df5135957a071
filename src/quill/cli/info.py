"""`quill info`: what is in a run or a checkpoint, and whether its files are unaltered."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from quill.cli.arguments import Parser
from quill.errors import CheckpointError
from quill.files import is_draft
from quill.units import format_bytes

ALTERED = "ALTERED"


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill info` to the parser."""
    parser.take_bare_word("path")
    parser.add_argument(
        "--path",
        type=str,
        help="a run, a checkpoint folder, a .safetensors file, or tiny; by default the newest run in this folder",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the contents; CheckpointError if the model cannot be read or a file was altered."""
    from quill.checkpoints.named import find_model
    from quill.checkpoints.run_folder import find_checkpoint, load_checkpoint
    from quill.model.config import architecture_of

    path = find_model(arguments.path or None)
    is_run = (path / "checkpoints").is_dir()
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    shape = ", ".join(f"{f.name}={getattr(config, f.name)}" for f in fields(config) if f.name != "vocab_size")
    everything = checkpoint.model.count_parameters()
    without = checkpoint.model.count_parameters(positions=False)
    lines = [
        ("checkpoint", str(checkpoint.path)),
        ("model", f"{architecture_of(config)}: {shape}"),
        ("parameters", f"{everything:,} ({without:,} without positions)"),
        ("tokenizer", describe_tokenizer(checkpoint.tokenizer)),
        ("step", f"{checkpoint.step:,}"),
    ]
    if checkpoint.val_loss is not None:
        loss = (
            f"{checkpoint.val_loss:.4f} on validation text when it was saved (quill evaluate measures the whole split)"
        )
        lines.append(("loss", loss))
    if is_run:
        lines += [(which, find_checkpoint(path, which).name) for which in ("best", "last")]
    print(*(f"{name:<12}{text}" for name, text in lines), sep="\n")
    files = list(file_lines(path))
    print("files", *files, sep="\n  ")
    if altered := sum(ALTERED in line for line in files):
        raise CheckpointError(
            f"{path}: {altered} of these files were changed after they were written: do not trust them"
        )
    return 0


def describe_tokenizer(tokenizer) -> str:
    """Return the tokenizer in words, with its vocabulary where that is short."""
    if tokenizer.kind == "byte":
        return "byte: 256 tokens, any text in any language"
    characters = tokenizer.to_json().get("characters", "")
    shown = "".join(characters[:100]) + ("…" if len(characters) > 100 else "")
    return f"{tokenizer.kind}: {tokenizer.vocab_size} tokens, {shown!r}"


def file_lines(path: Path) -> Iterator[str]:
    """Yield a line for each file of the run or checkpoint: its size, and whether its SHA-256 is the manifest's.

    A run in training replaces its files: those that are deleted meanwhile are left out.
    """
    from quill.checkpoints.manifest import read_manifest, sha256_of

    root = path if path.is_dir() else path.parent
    for file in sorted(files_below(path)):
        with contextlib.suppress(FileNotFoundError):
            size = file.stat().st_size
            state = ""
            try:
                if expected := read_manifest(file.parent).get(file.name):
                    state = "SHA-256 agrees" if sha256_of(file) == expected else f"{ALTERED}: SHA-256 differs"
            except CheckpointError as error:
                state = f"{ALTERED}: {error}" if file.parent.exists() else ""
            except PermissionError as error:
                state = f"cannot be read: {error.strerror}"
            yield f"{format_bytes(size):>10}  {file.relative_to(root).as_posix()}  {state}".rstrip()


def files_below(path: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, without drafts; a folder that cannot be read is skipped."""
    if path.is_file():
        yield path
        return
    with contextlib.suppress(OSError):
        for entry in path.iterdir():
            if not is_draft(Path(entry.name)):
                yield from files_below(entry)
