"""The `quill` command as a whole: its help, its start-up imports and its error messages."""

from __future__ import annotations

import errno
import subprocess
import sys
from types import SimpleNamespace

import pytest

from quill.cli import main as front_door
from quill.cli.main import COMMANDS, main


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)


def test_help_and_arguments_need_no_heavy_import():
    heavy = ("torch", "numpy", "matplotlib", "rich", "safetensors")
    code = f"""
import sys
before = set(sys.modules)  # what the environment loads at its start
import quill, quill.cli.main as front
front.main(["--help"])
assert not {{"inspect", "bz2", "yaml", "quill.cli.arguments"}} & (set(sys.modules) - before)
front.main(["train", "--help"]), front.main(["generate", "--help"]), front.main(["trian"]), front.main(["train", "--x"])
print([name for name in {heavy} if name in sys.modules])
"""
    done = run_python(code)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_a_closed_pipe_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "quill", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(quill, argv):
    code, out, _ = quill(*argv)
    assert code == 0
    assert all(f"quill {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(quill, command):
    code, out, error = quill(command, "--help")
    assert (code, error) == (0, "")
    assert out.startswith(f"usage: quill {command} ")
    assert front_door.load_command(command).run.__doc__


@pytest.mark.parametrize("argv", [["help", "info"], ["info", "help"], ["info", "--help"], ["info", "-h"]])
def test_help_of_a_command_is_found_as_in_other_programs(quill, argv):  # U11
    code, out, error = quill(*argv)
    assert (code, error) == (0, "") and out.startswith("usage: quill info ")


def test_a_word_after_generate_is_the_prompt(quill, refused, trained):  # U11
    flags = ["generate", f"--out_dir={trained.out}", "--device=cpu", "--seed=1", "--max_new_tokens=9"]
    assert quill(*flags, "KING")[1] == quill(*flags, "--prompt=KING")[1]
    assert "put quotes around a prompt with spaces in it" in refused(*flags, "KING", "RICHARD")


def test_help_has_the_docstring_of_every_field(quill):
    out = " ".join(quill("train", "--help")[1].split())
    assert "--n_embd=384 width of the residual stream, divisible by n_head" in out
    assert "--learning_rate=0.001 highest learning rate, reached after the warm-up" in out
    assert "vocab_size" not in out


def test_version_is_the_package_version(quill):
    import quill as package

    assert quill("--version")[:2] == (0, f"quill {package.__version__}\n")


def test_an_unknown_command_names_the_nearest(refused):
    assert "unknown command 'trian' (did you mean 'train'?)" in refused("trian")
    assert "unknown command '--fast'" in refused("--fast")


@pytest.mark.parametrize("argv", [["--debug", "train", "--n_embd=x"], ["train", "--n_embd=x", "--debug"]])
def test_debug_shows_the_traceback_at_any_position(argv):
    with pytest.raises(ValueError, match="n_embd"):
        main(argv)


def command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr(front_door, "load_command", lambda name: SimpleNamespace(add_arguments=lambda p: None, run=run))


def test_a_bug_keeps_its_traceback(monkeypatch):
    command_that_raises(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["info"])
    command_that_raises(monkeypatch, OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["info"])


def test_an_interrupted_command_says_so_in_one_line(quill, monkeypatch):
    command_that_raises(monkeypatch, KeyboardInterrupt())
    assert quill("info") == (130, "", "quill info: interrupted\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left on device", "--out_dir"]),
        (OSError(errno.ENOSPC, "No space left on device", "out/x.bin"), ["'out/x.bin'", "No space left on device"]),
        (PermissionError(errno.EACCES, "Permission denied", "out/x.bin"), ["'out/x.bin'", "Permission denied"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), ["'a/b'", "Not a directory"]),
    ],
)
def test_a_file_that_cannot_be_written_is_named_in_one_line(refused, monkeypatch, error, words):
    command_that_raises(monkeypatch, error)
    line = refused("info")
    assert all(word in line for word in words)
