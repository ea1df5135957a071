"""Commands in processes of their own, as people start them: in a terminal, in a pipe, and ended by Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from quill.cli.main import main

QUILL = [sys.executable, "-m", "quill"]
unix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither pseudo-terminals nor a SIGINT for one process")


@pytest.mark.long
@unix
def test_a_terminal_shows_a_live_picture_and_is_restored(here, tiny, environment):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    process = subprocess.Popen(
        [*QUILL, "train", "my.txt", *tiny], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(ours)
    text = shown.decode()
    assert process.wait() == 0, text
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex(
        "\x1b[?25l"
    )  # the cursor is hidden, then back
    assert "\x1b[1A" in text  # drawn over in place
    assert "step 6/6" in text and any(0x2800 < ord(c) <= 0x28FF for c in text)
    assert "finished at step 6" in text[text.rindex("\x1b[?25h") :]


ACKNOWLEDGED = "quill: stopping after this step; press Ctrl-C again to leave at once"


# In the core suite: test_train.py for Ctrl-C and the printed command, tests/test_process.py for each signal.
@pytest.mark.long
@unix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("signals")
def test_a_signal_saves_the_run_and_the_printed_command_resumes_it(here, tiny, environment, capsys, number):
    flags = [flag for flag in tiny if not flag.startswith(("--max_iters", "--log_interval", "--eval_interval"))]
    process = subprocess.Popen(
        [*QUILL, "train", "my.txt", *flags, "--max_iters=1000000", "--log_interval=1", "--eval_interval=1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"step +\d+ of 1000000   loss", line):
            process.send_signal(number)
            break
    rest, error = process.communicate()
    assert (process.returncode, error) == (128 + number, f"{ACKNOWLEDGED}\n"), rest + error
    stopped = int(re.search(r"interrupted at step (\d+)", rest)[1])  # type: ignore[index]
    go_on = re.search(r"resume with: quill (.+)", rest)
    assert go_on is not None and "--resume=True" in go_on[1]
    assert main([*go_on[1].split(), f"--max_iters={stopped + 2}"]) == 0
    assert f"finished at step {stopped + 2}" in capsys.readouterr().out
