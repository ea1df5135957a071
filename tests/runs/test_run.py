"""quill.run is what `quill train` calls: the same folder, and nothing of an earlier run is lost."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import quill
from quill.checkpoints.lock import lock_run
from quill.checkpoints.run_folder import find_checkpoint, holds_run
from quill.cli.main import main
from quill.data.dataset import prepare_dataset
from quill.errors import CheckpointError, ConfigError, CorpusError, TrainingError
from quill.files import cache_folder
from quill.planning import limits
from quill.runs import session
from quill.runs.replacing import ASIDE
from quill.runs.resume import ADDED
from quill.runs.settings import RunSettings, check_settings, default_settings, resolve_settings
from quill.tracking.jsonl import read_events
from quill.training.config import TrainConfig
from quill.training.context import resolve_context

start: Any = quill.run
TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "dropout": 0.0, "batch_size": 4, "max_iters": 6,
    "eval_interval": 3, "eval_iters": 2, "log_interval": 2, "sample_tokens": 12, "warmup_iters": 2, "device": "cpu",
    "progress": False,
}  # fmt: skip
TIMES = ("seconds", "tokens_per_second")


def without_times(file: Path) -> Any:
    """Return the contents of a file of a run; of metrics without the times, of the plot only that it is one."""
    if file.name == "metrics.jsonl":
        events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [{name: value for name, value in event.items() if name not in TIMES} for event in events]
    if file.name == "index.json":  # it holds the SHA-256 of the metrics, times included
        index = json.loads(file.read_text(encoding="utf-8"))
        return {name: value for name, value in index.items() if name not in ("metrics", "sha256")}
    return file.suffix if file.suffix == ".png" else file.read_bytes()


def folder_of(out_dir: Path) -> dict[str, Any]:
    return {str(f.relative_to(out_dir)): without_times(f) for f in sorted(out_dir.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param(
            {"film": True, "architecture": "modern", "optimizer": "muon", "lr_schedule": "wsd", "cooldown": 0.5},
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_run_from_python_leaves_the_folder_that_the_command_leaves(here, loss_plots, more):  # D2
    settings = TINY | more
    start(dataset="my.txt", **settings)
    first = folder_of(here / "out")
    (here / "out").rename(here / "from-python")
    flags = [f"--{name}={value}" for name, value in settings.items() if name != "progress"]
    if more:  # a process of its own
        command = [sys.executable, "-m", "quill", "train", "my.txt", *flags]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert main(["train", "my.txt", *flags]) == 0
    assert folder_of(here / "out") == first
    assert set(first) >= {"config.yaml", "metrics.jsonl", "samples.txt", "loss.png"}


def test_a_run_says_how_it_ended_and_loads_its_model(here):
    run = start(dataset="my.txt", **TINY)
    assert (run.reason, run.step, run.out_dir) == ("finished", 6, Path("out"))
    assert run.checkpoint == find_checkpoint("out", "last") and run.best_val_loss is not None
    assert run.settings["n_embd"] == 8 and run.settings["dataset"] == "my.txt"
    assert run.load().generate("KING", max_new_tokens=5, seed=1) == quill.load("out").generate(
        "KING", max_new_tokens=5, seed=1
    )


def test_progress_trackers_and_a_callback_receive_the_events_and_a_callback_ends_the_run(here):
    progress, one, other, seen = [], [], [], []

    def callback(event: dict) -> str | None:
        seen.append(event)
        return "good enough" if event["step"] >= 3 else None

    settings = TINY | {"progress": progress.append}
    run = start(dataset="my.txt", tracker=[one.append, other.append], callback=callback, **settings)
    assert (run.reason, run.step) == ("good enough", 4)
    assert one[0]["event"] == "start" and one[-1]["event"] == "end" and one == other
    assert [e for e in progress if e["event"] != "status"] == one
    assert [e["step"] for e in seen] == [0, 3, 4] and all(e["event"] == "evaluation" for e in seen)
    with pytest.raises(ConfigError, match="callable"):
        start(dataset="my.txt", tracker=3, **TINY)


def test_a_warmup_that_outlasts_the_run_is_said_once(here):  # T10
    seen: list[dict] = []
    start(dataset="my.txt", **(TINY | {"warmup_iters": 6, "progress": seen.append}))
    said = [event["message"] for event in seen if "warmup_iters=6" in event.get("message", "")]
    assert len(said) == 1 and "learning rate" in said[0]


def test_a_text_itself_can_be_trained_on(here):  # U13
    text = (here / "my.txt").read_text(encoding="utf-8")
    from_text = start(text=text, out_dir="a", **TINY)
    from_file = start(dataset="my.txt", out_dir="b", **TINY)
    assert from_text.val_loss == from_file.val_loss
    with pytest.raises(CorpusError, match="text=") as caught:
        start(dataset=text, out_dir="c", **TINY)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"muon_learning_rate": 0.1}, "does nothing with optimizer=adamw"),
        ({"ngram_learning_rate": 0.1}, "does nothing with optimizer=adamw"),
        ({"optimizer": "muon", "ngram_learning_rate": 0.1}, "does nothing without n-gram tables"),
        ({"cooldown": 0.1}, "does nothing with lr_schedule=cosine"),
        ({"architecture": "modern", "ngram": 1, "ngram_rows": 7}, "does nothing with ngram=1"),
        ({"architecture": "modern", "ngram": 1, "ngram_dropout": 0.5}, "does nothing with ngram=1"),
        ({"vocab": "extend"}, "does nothing without init_from"),
        ({"ngram": 3}, "belongs to the modern model"),
        ({"architecture": "modern", "bias": True}, "belongs to the classic model"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(settings, words):  # D4
    with pytest.raises(ConfigError, match=words):
        resolve_settings(settings)


def test_a_setting_that_has_its_effect_is_accepted():  # D4
    resolve_settings({"optimizer": "muon", "muon_learning_rate": 0.1, "architecture": "modern"})
    resolve_settings({"lr_schedule": "wsd", "cooldown": 0.1})
    for architecture in ("classic", "modern"):
        stored = default_settings(architecture)
        assert resolve_settings({}, stored) == stored  # a run's own file names every setting


@pytest.mark.parametrize(
    "settings",
    [
        {"block_size": 100_000},
        {"n_embd": 6 * 10**17},
        {"n_layer": 10**9},
        {"architecture": "modern", "ngram_rows": 10**9, "ngram": 4},
        {"batch_size": 2 * 10**9},
        {"batch_size": 10**8},
        {"gradient_accumulation_steps": 10**7},
    ],
    ids=str,
)
def test_a_size_that_cannot_fit_is_refused_before_the_first_tensor(here, settings):  # U22, T8
    text = "".join(chr(97 + i % 26) for i in range(1_200_000))
    with pytest.raises(ConfigError) as caught:
        start(text=text, device="cpu", progress=False, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert any(character.isdigit() for character in str(caught.value))
    assert not (here / "out").exists()


@pytest.mark.parametrize("settings", [{"log_interval": 10**10}, {"seed": 2**70}, {"sample_tokens": 10**7}], ids=str)
def test_a_number_beyond_its_bounds_is_refused_with_them(here, settings):  # U22
    with pytest.raises(ConfigError, match=next(iter(settings))):
        start(dataset="my.txt", progress=False, **settings)


def test_a_run_of_more_than_an_hour_on_a_cpu_says_so_before_its_first_step(here, monkeypatch):  # U2
    monkeypatch.setattr(limits, "LONG_RUN", 1e-9)
    monkeypatch.setattr(limits, "flops_per_second", lambda device: 1e3)
    events: list[dict[str, Any]] = []
    start(dataset="my.txt", **(TINY | {"max_iters": 1, "sample_tokens": 0, "progress": events.append}))
    told = [event["event"] for event in events if event["event"] != "status"]
    assert told[:2] == ["start", "warning"]
    message = next(event["message"] for event in events if event["event"] == "warning")
    assert "on this CPU" in message and "--minutes=5" in message and "--config=laptop" in message


def test_a_long_log_interval_takes_no_memory(here):  # U22
    assert start(dataset="my.txt", **(TINY | {"log_interval": 10**9, "eval_interval": 10**9})).reason == "finished"


HOLDER = """
import sys
from quill.checkpoints.lock import lock_run
with lock_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_in_one_folder_is_refused_with_the_process_id_of_the_first(here):  # R5
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use: process {process.pid}"):
            start(dataset="my.txt", **TINY)
        process.kill()  # the lock ends with its process
    assert start(dataset="my.txt", **TINY).reason == "finished"


def test_a_finished_run_that_was_killed_before_its_end_event_is_finished_when_it_is_resumed(here):  # R2
    start(dataset="my.txt", **TINY)
    metrics = here / "out" / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if '"end"' not in line), encoding="utf-8")
    (here / "out" / "loss.png").unlink()
    (here / "out" / "checkpoints" / "step-000001").mkdir()
    (here / "out" / "checkpoints" / "step-000001" / "model.safetensors").write_bytes(b"left by a crash")
    run = start(resume=True, progress=False)
    assert (run.reason, run.step) == ("finished", 6)
    assert read_events(metrics)[-1]["event"] == "end" and (here / "out" / "loss.png").is_file()
    assert not (here / "out" / "checkpoints" / "step-000001").exists()


def test_a_folder_that_a_kill_left_before_the_first_checkpoint_can_be_trained_in_again(here):  # R3, R15
    start(dataset="my.txt", **TINY)
    for file in ("last", "best"):
        (here / "out" / file).unlink()
    shutil.rmtree(here / "out" / "checkpoints")
    with pytest.raises(CheckpointError, match="no run to resume"):
        start(resume=True, progress=False)
    (here / "out" / ".config.yaml.0123abcd.draft").write_text("half", encoding="utf-8")
    (here / "out" / "checkpoints" / ".step-000003.0123abcd.draft").mkdir(parents=True)
    assert start(dataset="my.txt", **TINY).reason == "finished"
    assert not [*(here / "out").rglob("*.draft")]


def test_overwriting_deletes_the_earlier_run_only_once_the_new_one_has_a_checkpoint(here, monkeypatch):  # R15, T6
    start(dataset="my.txt", **TINY)
    before = folder_of(here / "out")

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the machine caught fire")

    with monkeypatch.context() as patch:
        patch.setattr("quill.training.loop.save_checkpoint", fail)
        with pytest.raises(RuntimeError, match="fire"):
            start(dataset="my.txt", overwrite=True, **(TINY | {"n_embd": 16}))
    assert folder_of(here / "out") == before
    assert start(dataset="my.txt", overwrite=True, **(TINY | {"n_embd": 16})).reason == "finished"
    assert yaml.safe_load((here / "out" / "config.yaml").read_text(encoding="utf-8"))["n_embd"] == 16
    assert not (here / "out" / ASIDE).exists()


KILLED = """
import os, quill
from quill.training import loop
loop.save_checkpoint = lambda *arguments, **options: os._exit(9)
quill.run(dataset="my.txt", overwrite=True, progress=False, **{settings})
"""


# That a crash at any point is survived, without training: test_replacing.py.
@pytest.mark.long
def test_the_earlier_run_is_restored_if_a_run_is_killed_while_it_overwrites(here):  # R15
    start(dataset="my.txt", **TINY)
    before = folder_of(here / "out")
    settings = {name: value for name, value in TINY.items() if name != "progress"} | {"n_embd": 16}
    code = textwrap.dedent(KILLED).replace("{settings}", repr(settings))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (here / "out" / ASIDE).is_dir()
    run = start(resume=True, max_iters=6, progress=False)
    assert run.step == 6 and run.settings["n_embd"] == 8
    after = folder_of(here / "out")
    assert after["config.yaml"] == before["config.yaml"] and set(after) == set(before)


@pytest.mark.parametrize("name", ["config.yaml", "samples.txt", "loss.png", "film.safetensors", "tensorboard"])
def test_files_of_the_users_under_a_runs_names_are_neither_replaced_nor_deleted(here, name):  # T6
    (here / "out").mkdir()
    (here / "out" / name).write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=f"holds {name}, which no run of Quill wrote"):
            start(dataset="my.txt", overwrite=overwrite, **TINY)
    assert (here / "out" / name).read_text(encoding="utf-8") == "mine"


def test_a_runs_configuration_that_was_cut_at_any_line_end_is_refused(here, trained):  # U22, R10
    shutil.copytree(trained.out, here / "out")
    config = here / "out" / "config.yaml"
    whole = config.read_text(encoding="utf-8")
    names = [f"{name}:" for name in yaml.safe_load(whole) if name not in ADDED]
    ends = [m.end() for m in re.finditer("\n", whole)]
    cuts = [end for end in ends if any(f"\n{name}" in whole[end - 1 :] for name in names)]
    assert len(cuts) > 35
    for end in cuts:
        config.write_text(whole[:end], encoding="utf-8")
        with pytest.raises(CheckpointError, match="not complete"):
            start(resume=True, max_iters=8, progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 5), ("batch_size", 3), ("data_order", "shuffled"), ("beta1", 0.5), ("n_embd", 16)]
)
def test_a_recipe_that_was_edited_in_config_yaml_is_refused_when_the_run_is_resumed(here, name, value):  # R13
    start(dataset="my.txt", **TINY)
    config = here / "out" / "config.yaml"
    stored = yaml.safe_load(config.read_text(encoding="utf-8")) | {name: value}
    config.write_text(yaml.safe_dump(stored, sort_keys=False), encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError), match=name):
        start(resume=True, max_iters=8, progress=False)


def test_a_run_is_resumed_from_another_folder_where_the_text_is_the_same_and_refused_where_it_is_not(here):  # R13, T2
    start(dataset="my.txt", **TINY)
    (here / "elsewhere").mkdir()
    (here / "out").rename(here / "elsewhere" / "moved")
    text = (here / "my.txt").read_text(encoding="utf-8")
    (here / "same.txt").write_text(text, encoding="utf-8")
    half = len(text) // 2
    (here / "halves.txt").write_text(text[half:] + text[:half], encoding="utf-8")
    again = {"resume": True, "out_dir": "elsewhere/moved", "max_iters": 8, "progress": False}
    with pytest.raises(ConfigError, match="the text is not the one"):
        start(dataset="halves.txt", **again)
    assert start(dataset="same.txt", **again).step == 8


def test_a_run_that_diverged_can_be_resumed_from_its_best_checkpoint(here):  # R11
    start(dataset="my.txt", **(TINY | {"max_iters": 3}))
    with pytest.raises(quill.QuillError, match=r"finite|diverged"):
        start(resume=True, max_iters=20, learning_rate=1e38, min_lr=0.0, grad_clip=0.0, progress=False)
    run = start(resume="best", max_iters=8, learning_rate=1e-3, progress=False)
    assert run.step == 8 and run.val_loss is not None and math.isfinite(run.val_loss)


@pytest.mark.parametrize("steps", [1, 6])
def test_weights_that_are_not_finite_are_never_saved(here, steps):  # R11
    broken = TINY | {"max_iters": steps, "eval_interval": 1, "learning_rate": 1e38, "warmup_iters": 0, "grad_clip": 0.0}
    with pytest.raises(quill.QuillError):
        start(dataset="my.txt", **(broken | {"sample_tokens": 0}))
    assert not (here / "out" / "last").exists() or all(
        p.isfinite().all() for p in quill.load("out", device="cpu").model.parameters()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": "1"}, {"minutes": True}, {"minutes": [1]}, {"config": 5}, {"config": b"debug"}, {"resume": "last"},
        {"resume": [1]}, {"overwrite": "out"}, {"out_dir": 5}, {"out_dir": b"out"}, {"data_dir": None},
        {"init_from": 5}, {"n_layer": "one"}, {"dropout": [0.1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_name(here, wrong):  # W14
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}=") as caught:
        start(**{"dataset": "my.txt", **wrong})
    assert "\n" not in str(caught.value) and [p.name for p in here.iterdir()] == ["my.txt"]


def test_numpy_numbers_are_accepted_as_settings(here):  # W14
    given = {"n_layer": np.int64(1), "dropout": np.float32(0.5), "learning_rate": np.float64(1e-3), "max_iters": 5}
    checked = check_settings(given)
    assert checked == {"n_layer": 1, "dropout": 0.5, "learning_rate": 1e-3, "max_iters": 5}
    assert {type(value) for value in checked.values()} == {int, float}
    with pytest.raises(ConfigError, match=r"^tensorboard="):
        check_settings({"tensorboard": np.int64(1)})


def test_a_home_folder_is_meant_by_a_tilde_and_a_folder_may_begin_with_one(here, monkeypatch):  # T8
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("USERPROFILE", str(here / "home"))
    (here / "my.yaml").write_text("out_dir: ~/run-of-file\n", encoding="utf-8")
    assert start(dataset="my.txt", config=here / "my.yaml", **TINY).out_dir == here / "home" / "run-of-file"
    assert start(dataset="my.txt", out_dir="~nobody-of-this-name", **TINY).out_dir.is_dir()
    assert resolve_context("~nobody-of-this-name", device="cpu").out_dir == Path("~nobody-of-this-name")
    for variable in ("QUILL_CACHE_DIR", "QUILL_DATA_DIR"):
        monkeypatch.setenv(variable, "~/cache")
    assert cache_folder() == here / "home" / "cache"
    (here / "home" / "cache").mkdir()
    (here / "home" / "cache" / "tinyshakespeare.txt").write_text("changed", encoding="utf-8")
    with pytest.raises(CorpusError, match="is not Tiny Shakespeare"):
        start(dataset="shakespeare", **TINY)
    start(dataset="my.txt", out_dir="~/run", data_dir="~/data", **TINY)
    assert (here / "home" / "run" / "config.yaml").is_file() and (here / "home" / "data").is_dir()
    assert not (here / "~").exists()


def test_measuring_the_machine_writes_nothing_into_the_current_folder(here, monkeypatch):  # D5, T9
    seen: list[set[str]] = []
    probe = session.resolve

    def watch(run: RunSettings, *group: Any) -> Any:
        seen.append({p.name for p in here.iterdir()})
        return probe(run, *group)

    monkeypatch.setattr(session, "resolve", watch)
    here.chmod(0o755)
    quick = {name: value for name, value in TINY.items() if name in ("device", "progress", "n_embd", "sample_tokens")}
    start(dataset="my.txt", minutes=0.01, n_layer=1, n_head=1, batch_size=2, block_size=8, **quick)
    assert {p.name for p in here.iterdir()} == {"my.txt", "data", "out"}
    with lock_run(here / "out"):
        pass


def test_every_setting_is_read_somewhere():  # D3
    sources = {
        file: file.read_text(encoding="utf-8")
        for file in Path(quill.__file__).parent.rglob("*.py")
        if file.name not in ("config.py", "settings.py")
    }
    fields = {field.name for config in (TrainConfig, RunSettings) for field in dataclasses.fields(config)}
    unread = {
        name
        for name in fields
        if not any(re.search(rf"(\.{name}\b|\[\"{name}\"\])", source) for source in sources.values())
    }
    assert not unread


@pytest.mark.parametrize(
    "how", [{}, {"resume": True}, {"resume": "best"}, {"overwrite": True}, {"minutes": 1}], ids=str
)
def test_a_folder_in_use_is_refused_before_anything_else_is_done(here, trained, how):  # R5
    shutil.copytree(trained.out, here / "out")
    before = folder_of(here / "out")
    settings = {} if "resume" in how else TINY | {"dataset": "missing.txt"}
    with (
        lock_run(here / "out"),
        pytest.raises(ConfigError, match=f"in use: process {os.getpid()} is training there"),
    ):
        start(**how, **(settings | {"progress": False}))
    assert folder_of(here / "out") == before


def test_a_run_that_is_killed_while_it_draws_its_last_picture_is_finished_when_it_is_resumed(
    here, loss_plots, monkeypatch
):  # R2
    class Killed(BaseException):
        pass

    def draw(events: list) -> bytes:
        if events[-1]["event"] == "end":
            raise Killed
        return b"an earlier picture"

    with monkeypatch.context() as patch:
        patch.setattr("quill.tracking.loss_plot.draw_losses", draw)
        with pytest.raises(Killed):
            start(dataset="my.txt", **TINY)
    assert (here / "out" / "loss.png").read_bytes() == b"an earlier picture"
    assert start(resume=True, progress=False).reason == "finished"
    assert (here / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert read_events(here / "out" / "metrics.jsonl")[-1]["event"] == "end"


def test_a_disk_that_is_full_from_the_start_is_one_error_that_names_a_file(here, monkeypatch):  # R3, R4, R18
    """The disk is full at the first, second, … write, until the run comes to its first save."""
    prepare_dataset("my.txt")
    fsync, named = os.fsync, []
    while not any("checkpoint takes" in message for message in named):
        left = iter(range(len(named)))

        def write(descriptor: int, left: Any = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", write)
            with pytest.raises(quill.QuillError, match="No space left on device") as caught:
                start(dataset="my.txt", **TINY)
        named.append(str(caught.value))
        assert "out/" in named[-1].replace("\\", "/") and "--resume" not in named[-1]
        assert not holds_run(here / "out") and not [*here.rglob("*.draft")]
    assert "config.yaml cannot be written" in named[0] and len(named) > 4
    assert start(dataset="my.txt", **TINY).reason == "finished"


def test_metrics_that_were_changed_since_the_last_save_are_a_warning_when_the_run_is_resumed(here, trained):  # R10
    shutil.copytree(trained.out, here / "out")
    metrics, events = here / "out" / "metrics.jsonl", []
    whole = metrics.read_bytes()
    resume = {"resume": True, "data_dir": str(trained.folder / "data")}
    start(**resume, max_iters=7, progress=events.append)
    assert not [e for e in events if e["event"] == "warning"]
    events.clear()
    metrics.write_bytes(metrics.read_bytes().replace(b'"train_loss": ', b'"train_loss":  ', 1))
    start(**resume, max_iters=8, progress=events.append)
    assert metrics.read_bytes() != whole
    assert ["metrics.jsonl was changed or cut" in e["message"] for e in events if e["event"] == "warning"] == [True]


@pytest.mark.parametrize("sample_tokens", [0, 12])
def test_the_error_of_a_diverged_run_names_its_learning_rate_and_not_its_files(here, sample_tokens):  # R11
    broken = {"max_iters": 1, "eval_interval": 1, "learning_rate": 1e38, "warmup_iters": 0, "grad_clip": 0.0}
    with pytest.raises(TrainingError, match=r"^the validation loss became nan at step 1: .*lower learning_rate"):
        start(dataset="my.txt", **(TINY | broken | {"sample_tokens": sample_tokens}))
    assert not holds_run(here / "out")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted as on Linux")
def test_runs_leave_no_file_open_and_no_thread(here, trained):  # R9
    shutil.copytree(trained.out, here / "out")
    counts = []
    for steps in (7, 8, 9):
        data_dir = str(trained.folder / "data")
        start(resume=True, max_iters=steps, data_dir=data_dir, progress=False).load().logits("KING")
        gc.collect()
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert counts[1] == counts[2]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_every_file_of_a_run_may_be_read_by_those_who_may_read_one_of_them(trained):  # R18
    files = [path for path in trained.out.rglob("*") if path.is_file()]
    assert len(files) > 8 and len({path.stat().st_mode for path in files}) == 1
