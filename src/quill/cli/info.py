"""`quill info`: what is in a run or a checkpoint, and whether its files are what was written.

It reads everything it tells about: sizes and shapes from the weights, the rest from the header beside them.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from quill.cli.arguments import Parser
from quill.errors import CheckpointError

ALTERED = "ALTERED"


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill info` takes."""
    parser.take_bare_word("path")
    parser.add_argument(
        "--path",
        type=str,
        help="a run, a checkpoint folder or a .safetensors file; without it the newest run here",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what is known; CheckpointError when the model itself cannot be read."""
    from quill.checkpoints.run_folder import find_checkpoint, load_checkpoint, newest_run

    path = Path(arguments.path) if arguments.path else newest_run()
    is_run = (path / "checkpoints").is_dir()
    files = file_lines(path)
    checkpoint = load_checkpoint(path)
    config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
    shape = ", ".join(f"{f.name}={getattr(config, f.name)}" for f in fields(config) if f.name != "vocab_size")
    everything = checkpoint.model.count_parameters()
    without = checkpoint.model.count_parameters(positions=False)
    lines = [
        ("checkpoint", str(checkpoint.path)),
        ("model", f"{checkpoint.metadata.get('architecture', 'gpt')}: {shape}"),
        ("parameters", f"{everything:,} ({without:,} without positions)"),
        ("tokenizer", describe_tokenizer(tokenizer)),
        ("step", f"{checkpoint.step:,}"),
    ]
    if checkpoint.val_loss is not None:
        lines.append(
            (
                "loss",
                f"{checkpoint.val_loss:.4f} on validation, when it was saved (quill evaluate measures again)",
            )
        )
    if is_run:
        for which in ("best", "last"):
            lines.append((which, find_checkpoint(path, which).name))
    print(*(f"{name:<12}{text}" for name, text in lines), sep="\n")
    print("files", *files, sep="\n  ")
    if altered := sum(ALTERED in line for line in files):
        raise CheckpointError(f"{path}: {altered} of these files changed after it was written: do not trust it")
    return 0


def describe_tokenizer(tokenizer) -> str:
    """Return the tokenizer in words, with its vocabulary where that is short."""
    if tokenizer.kind == "byte":
        return "byte: 256 tokens, any text in any language"
    characters = tokenizer.to_json().get("characters", "")
    shown = "".join(characters[:100]) + ("…" if len(characters) > 100 else "")
    return f"{tokenizer.kind}: {tokenizer.vocab_size} tokens, {shown!r}"


def file_lines(path: Path) -> list[str]:
    """Return a line for each file of the run or checkpoint: its size, and whether its SHA-256 is the manifest's."""
    from quill.checkpoints.manifest import read_manifest, sha256_of

    root = path if path.is_dir() else path.parent
    found = sorted(file for file in root.rglob("*") if file.is_file()) if path.is_dir() else [path]
    lines = []
    for file in found:
        expected = read_manifest(file.parent).get(file.name)
        state = (
            ""
            if expected is None
            else "SHA-256 agrees"
            if sha256_of(file) == expected
            else f"{ALTERED}: SHA-256 differs"
        )
        lines.append(f"{format_bytes(file.stat().st_size):>10}  {file.relative_to(root).as_posix()}  {state}".rstrip())
    return lines


def format_bytes(size: int) -> str:
    """Return a size as people say it: 812 B, 3.2 MB."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} B"
