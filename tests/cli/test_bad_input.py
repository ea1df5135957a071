"""Every mistake in the book gets one line that says what is wrong and what to do, exit code 2, and changes nothing."""

from __future__ import annotations

import errno
import shutil
import socket

import pytest


@pytest.fixture
def texts(here):
    """Texts that cannot be trained on, beside my.txt which can."""
    (here / "empty.txt").write_bytes(b"")
    (here / "binary.bin").write_bytes(bytes(range(256)) * 8)
    (here / "latin.txt").write_bytes("Köln ".encode("latin-1") * 400)
    (here / "short.txt").write_text("to be or not", encoding="utf-8")
    (here / "out-file").write_text("a file where a folder should be", encoding="utf-8")
    return here


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nembd=3"], ["--nembd", "--n_embd"]),
        (["--n_embd=wide"], ["n_embd='wide'", "a whole number"]),
        (["--n_embd=9", "--n_head=2"], ["n_embd=9", "n_head=2", "divisible"]),
        (["--n_layer=-1"], ["n_layer=-1", "1 or more"]),
        (["--batch_size=0"], ["batch_size=0", "1 or more"]),
        (["--dropout=1.5"], ["dropout=1.5", "less than 1"]),
        (["--learning_rate=-1"], ["learning_rate=-1"]),
        (["--log_interval=10000000000"], ["log_interval=10000000000"]),  # U22
        (["--log_interval=10**10"], ["log_interval='10**10'", "a whole number"]),
        ([f"--seed={2**70}"], [f"seed={2**70}"]),
        ([f"--n_embd={10**18}"], [f"n_embd={10**18}"]),
        ([f"--n_embd={10**400}"], ["n_embd=<a whole number of about 401 digits>"]),
        (["--batch_size=2000000000"], ["batch_size=2000000000"]),  # T8
        (["--learning_rate=1e999"], ["learning_rate=inf"]),
        (["--max_iters=-5"], ["max_iters=-5"]),
        (["--dataset="], ["dataset"]),
        (["--dataset=mx.txt"], ["mx.txt", "my.txt"]),
        (["--dataset=shakespear"], ["shakespear", "'shakespeare'"]),
        (["--dataset=empty.txt"], ["empty.txt", "empty"]),
        (["--dataset=binary.bin"], ["binary.bin", "(tokenizer=byte)"]),
        (["--dataset=latin.txt"], ["latin.txt", "UTF-8", "(tokenizer=byte)"]),
        (["--device=cuda:77"], ["cuda:77"]),
        (["--device=gpu"], ["'gpu'"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_train_refuses_bad_input_in_one_line(refused, texts, argv, words, tiny):
    line = refused("train", *tiny, "--dataset=my.txt", *argv)
    assert all(word in line for word in words), line


def test_a_text_shorter_than_a_window_is_refused_with_the_numbers(quill, texts, tiny):
    code, out, error = quill("train", *tiny, "--dataset=short.txt")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "block_size=8" in error and "2 tokens" in error
    assert not (texts / "out").exists()


@pytest.mark.parametrize(("length", "longest"), [(20, 1), (75, 7)])
def test_the_advice_for_a_tiny_text_can_be_followed(length, longest, quill, here, tiny, changed):  # U9, U10
    (here / "tiny.txt").write_text("abcde" * (length // 5), encoding="utf-8")
    code, _, error = quill("train", "tiny.txt", *tiny)
    assert code == 2 and f"the validation split of tiny.txt has {longest + 1} tokens" in error
    advice = f"block_size={longest}"
    assert f"use {advice} or less" in error
    assert quill("train", "tiny.txt", *changed([*tiny, f"--{advice}"]))[0] == 0


def test_an_out_dir_that_is_a_file_is_refused(refused, texts, tiny):
    for out_dir in ("out-file", "out-file/below"):
        assert "out-file is a file" in refused("train", *tiny, "--dataset=my.txt", f"--out_dir={out_dir}")
    assert "out-file is a file" in refused("demo", "--out_dir=out-file")


def test_training_without_network_or_text_says_where_it_looked(refused, here, monkeypatch, tiny):
    def no_network(*args: object, **kwargs: object):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    line = refused("train", *tiny, "--dataset=shakespeare")
    assert "QUILL_DATA_DIR" in line and "use dataset=pydoc" in line


def test_a_full_disk_is_named_in_one_line(quill, here, monkeypatch, tiny):
    from quill.runs import session

    def full(*args: object):
        raise OSError(errno.ENOSPC, "No space left on device", "out/.config.yaml.draft")

    monkeypatch.setattr(session, "write_config", full)
    code, _, error = quill("train", *tiny, "--dataset=my.txt")
    assert code == 2 and error.count("\n") == 1 and "No space left on device" in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prompt="], ["prompt", "empty"]),
        (["--prompt=K€NG"], ["'€'", "position 1", "(unknown=skip)"]),
        (["--prompt=€☃", "--unknown=skip"], ["no character"]),
        (["--prompt=K", "--prompt_file=my.txt"], ["--prompt_file"]),
        (["--prompt_file=missing.txt"], ["missing.txt"]),
        (["--prompt_file=empty.txt"], ["empty.txt"]),
        (["--prompt=K", "--temperature=-1"], ["temperature=-1"]),
        (["--prompt=K", "--temperature=nan"], ["temperature"]),
        (["--prompt=K", "--temperature=hot"], ["temperature='hot'", "a number"]),
        (["--prompt=K", "--top_k=0"], ["top_k=0"]),
        (["--prompt=K", "--top_p=2"], ["top_p=2"]),
        (["--prompt=K", "--min_p=-1"], ["min_p=-1"]),
        (["--prompt=K", "--num_samples=0"], ["num_samples=0"]),
        (["--prompt=K", "--max_new_tokens=-1"], ["max_new_tokens=-1"]),
        (["--prompt=K", "--stop="], ["stop"]),
        (["--prompt=K", "--seed=-1"], ["seed=-1"]),
        (["--prompt=K", "--checkpoint=newest"], ["checkpoint='newest'", "'best' or 'last'"]),
        (["--prompt=K", "--out_dir=nowhere"], ["nowhere"]),
        (["--promt=K"], ["--promt", "--prompt"]),
    ],
)
def test_generate_refuses_bad_input_in_one_line(refused, texts, trained, argv, words):
    line = refused("generate", f"--out_dir={trained.out}", "--device=cpu", *argv)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("command", ["generate", "evaluate", "info"])
def test_the_error_without_any_run_says_how_to_train_one(refused, here, command):
    assert "quill train" in refused(command, *(["--prompt=K"] if command == "generate" else []))


@pytest.mark.parametrize("command", ["generate", "evaluate", "info", "train"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_is_refused(refused, here, trained, command, damage):
    out = here / "out"
    shutil.copytree(trained.out, out)
    (weights,) = out.glob("checkpoints/*/model.safetensors")
    raw = bytearray(weights.read_bytes())
    if damage == "missing":
        weights.unlink()
    else:
        raw[-3] ^= 1
        weights.write_bytes(raw if damage == "altered" else raw[: len(raw) // 2])
    flags = {"generate": ["--prompt=K", f"--out_dir={out}"], "train": ["--resume=True", "--max_iters=9"]}
    line = refused(command, *flags.get(command, [str(out)]))
    assert "safetensors" in line or "no checkpoint" in line
