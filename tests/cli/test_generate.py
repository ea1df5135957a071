"""`quill generate` prints the text and only the text, the same as from Python, wherever the prompt comes from."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

import quill as library
from quill.cli import generate
from quill.model.config import GPTConfig
from quill.model.gpt import GPT

LENGTH = "--max_new_tokens=20"


@pytest.fixture(scope="module")
def model(trained):
    model = library.load(trained.out, device="cpu")
    model.generate("K", max_new_tokens=1)  # compiles, or says that it does, here and not in a test
    return model


@pytest.fixture
def write(quill, trained, model, monkeypatch):
    """Run `quill generate` with this on its standard input (None: a terminal)."""

    def run(*argv: str, typed: str | None = None):
        terminal = io.StringIO(typed or "")
        monkeypatch.setattr(terminal, "isatty", lambda: typed is None, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
        return quill("generate", f"--out_dir={trained.out}", "--device=cpu", *argv)

    return run


def test_only_the_text_is_on_standard_output(write, model):
    code, out, notes = write("--prompt=KING", LENGTH, "--seed=5")
    expected = "KING" + model.generate("KING", max_new_tokens=20, seed=5, temperature=0.8)
    assert code == 0
    assert out == expected + ("" if expected.endswith("\n") else "\n")
    assert "step-000" in notes and notes.count("\n") == 1


def test_the_printed_seed_generates_the_same_text_again(write):
    _, first, notes = write("--prompt=KING", LENGTH)
    assert notes.endswith(" for the same text\n")
    seed = notes.split("; repeat with --seed=")[1].split()[0]
    assert write("--prompt=KING", LENGTH, f"--seed={seed}")[1] == first


def test_every_sampling_flag_reaches_the_model(write, model):
    flags = {"temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.01}
    flags |= {"presence_penalty": 0.4, "frequency_penalty": -0.1, "repetition_penalty": 1.1}
    _, out, _ = write("--prompt=KING", LENGTH, "--seed=2", *(f"--{name}={value}" for name, value in flags.items()))
    assert out.rstrip("\n") == ("KING" + model.generate("KING", max_new_tokens=20, seed=2, **flags)).rstrip("\n")


def test_every_engine_generates_the_same_text(write):
    texts = {write("--prompt=KING", LENGTH, "--seed=2", f"--engine={name}")[1] for name in ("auto", "torch", "numba")}
    assert len(texts) == 1


def test_int8_generates_a_text_and_the_torch_engine_refuses_it(write):
    code, out, _ = write("--prompt=KING", LENGTH, "--seed=2", "--quantization=int8")
    assert code == 0 and len(out.rstrip("\n")) > 10
    code, out, error = write("--prompt=KING", "--engine=torch", "--quantization=int8")
    assert (code, out) == (
        2,
        "",
    ) and "quantization='int8' cannot be used: the torch engine does not support it" in error


def test_the_flag_of_earlier_versions_works_with_advice(write):
    for old, new in (("--weights=int8", "--quantization=int8"), ("--weights=fp32", "--quantization=None")):
        code, out, notes = write("--prompt=KING", LENGTH, "--seed=2", old)
        assert (code, out) == write("--prompt=KING", LENGTH, "--seed=2", new)[:2]
        assert f"--weights is now called --quantization: use {new}\n" in notes


def test_the_engine_for_gpus_is_refused_on_a_cpu_with_advice(write):
    code, out, error = write("--prompt=KING", "--device=cpu", "--engine=cuda")
    assert (code, out) == (2, "") and error.count("\n") == 1
    assert "engine='cuda' cannot be used: the model is on 'cpu'" in error and "use device='cuda'" in error


def test_the_prompt_comes_from_a_file_or_standard_input_without_its_last_line_end(write, here):
    (here / "prompt.txt").write_bytes("\ufeffKING\r\n1:\r\n".encode())
    _, out, _ = write("--prompt_file=prompt.txt", LENGTH, "--seed=1")
    assert out.startswith("KING\n1:") and not out.startswith("KING\n1:\n")
    assert write(LENGTH, "--seed=1", typed="KING\n1:\n")[1] == out
    assert write(LENGTH, "--seed=1", "--prompt=KING\n1:", typed="ignored")[1] == out


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no endless device")
def test_a_prompt_without_an_end_is_refused(write, monkeypatch):
    # R17: /dev/zero was read until the memory was full
    code, out, error = write("--prompt_file=/dev/zero")
    assert (code, out) == (2, "") and "--prompt_file='/dev/zero' has more than 10,000,000 characters" in error
    monkeypatch.setattr(generate, "LONGEST_PROMPT", 5)
    assert "standard input has more than 5 characters" in write(typed="KING 1")[2]
    assert write(LENGTH, typed="KING ")[0] == 0


def test_without_a_prompt_the_text_begins_with_a_line_break(write):
    _, at_a_terminal, _ = write(LENGTH, "--seed=1")
    assert at_a_terminal.startswith("\n")
    assert write(LENGTH, "--seed=1", typed="")[1] == at_a_terminal


def test_several_samples_are_separated_and_the_first_is_the_single_one(write, model):
    _, out, _ = write("--prompt=KING", LENGTH, "--seed=5", "--num_samples=3")
    texts = model.generate("KING", num_samples=3, max_new_tokens=20, seed=5, temperature=0.8)
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("──── sample")] == [
        f"──── sample {n} of 3 ────" for n in (1, 2, 3)
    ]
    assert all(f"KING{text}" in out for text in texts)


def test_generation_ends_before_any_stop_text(write, model):
    whole = model.generate("KING", max_new_tokens=200, seed=5, temperature=0.8)
    stop = whole[10:12]
    _, out, _ = write("--prompt=KING", "--max_new_tokens=200", "--seed=5", f"--stop={stop}", "--stop=never there")
    assert out.rstrip("\n") == "KING" + whole[: whole.index(stop)].rstrip("\n")


def test_unknown_characters_are_dropped_when_asked(write):
    _, out, notes = write("--prompt=K€IN☃G", LENGTH, "--seed=1", "--unknown=skip")
    assert "'€' '☃'" in notes
    assert out == write("--prompt=KING", LENGTH, "--seed=1")[1]


def test_top_k_beyond_the_vocabulary_is_all_of_it(write):
    _, out, notes = write("--prompt=KING", LENGTH, "--seed=1", "--top_k=100000")
    assert "top_k=100000" in notes
    assert out == write("--prompt=KING", LENGTH, "--seed=1")[1]


def test_without_out_dir_the_newest_run_is_used(quill, trained, monkeypatch):
    monkeypatch.chdir(trained.folder)
    code, out, notes = quill("generate", "--prompt=KING", LENGTH)
    assert code == 0 and out.startswith("KING") and "out" in notes
    monkeypatch.chdir(trained.out)
    assert quill("generate", "--prompt=KING", LENGTH)[0] == 0


def test_control_characters_are_not_printed_to_a_terminal(monkeypatch):
    from quill.cli.generate import shown

    assert shown("\x1b[2Jä\n") == "\x1b[2Jä\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert shown("\x1b[2Jä\n\t") == "·[2Jä\n\t"


def test_a_stop_text_may_be_a_line_break_as_a_shell_types_it(write, model):
    # W16: the two characters could never match, and nothing said so
    whole = model.generate("KING", max_new_tokens=300, seed=5, temperature=0.8)
    line = whole[: whole.index("\n")]
    _, out, notes = write("--prompt=KING", "--max_new_tokens=300", "--seed=5", r"--stop=\n")
    assert out == f"KING{line}\n"
    assert r"--stop=\n is read as '\n'; \\ is a backslash" in notes


def test_a_stop_text_that_the_model_cannot_generate_is_named(write):
    # W16
    _, out, notes = write("--prompt=KING", LENGTH, "--seed=1", r"--stop=\\n", "--stop=€", "--stop=KI")
    assert out == write("--prompt=KING", LENGTH, "--seed=1")[1]
    assert r"--stop=\\n is read as '\\n'" in notes
    assert "--stop=€ never matches: the vocabulary lacks '€'" in notes
    assert notes.count("never matches") == 2


def test_a_prompt_beyond_the_context_is_cut_with_a_note(write):
    # W16
    _, out, notes = write("--prompt=KING KING KING", LENGTH, "--seed=1")
    assert out.startswith("KING KING KING")
    assert "the prompt has 14 tokens, and the model reads the last 8 of them" in notes


@pytest.fixture(scope="module")
def byte_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    config = GPTConfig(256, block_size=16, n_layer=1, n_head=2, n_embd=16)
    library.save(library.LanguageModel(GPT(config), library.ByteTokenizer()), folder / "m")
    return folder / "m"


def test_invalid_utf8_bytes_are_echoed_as_they_decode(byte_run):
    # W16: a prompt of invalid UTF-8 was echoed as "?"
    model, prompt = library.load(byte_run, device="cpu"), b"a\xff\xe6\xbc"
    done = subprocess.run(
        [sys.executable, "-m", "quill", "generate", f"--out_dir={byte_run}", "--device=cpu", LENGTH, "--seed=3"],
        input=prompt, capture_output=True, check=True,
    )  # fmt: skip
    text = prompt.decode("utf-8", "surrogateescape")
    expected = model.generate(text, max_new_tokens=20, seed=3, temperature=0.8, echo=True)
    assert expected.startswith("a\ufffd") and done.stdout.decode().removesuffix("\n") == expected.removesuffix("\n")


# In this process: the tests of very many rows and requests in tests/generation.
@pytest.mark.long
@pytest.mark.usefixtures("signals")
def test_ctrl_c_ends_a_hundred_thousand_samples(trained):
    # R16: leaving the queue took over 90 seconds
    command = ["generate", f"--out_dir={trained.out}", "--device=cpu", "--prompt=KING", "--num_samples=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "quill", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "KING" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, notes = process.communicate(timeout=300)  # ends a hang and measures nothing
    assert process.returncode == 130 and "interrupted" in notes and "Traceback" not in notes
