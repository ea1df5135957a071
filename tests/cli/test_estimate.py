"""`quill estimate` tells what a run would cost and writes nothing; training out of memory tells what would help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Training with so little address space left that a large batch cannot fit.
LIMITED = """
import resource, sys, psutil, torch
import quill.training.loop
from quill.cli.main import main
torch.nn.Linear(1, 1)(torch.zeros(1, 1)).sum().backward()
held = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (held + 800_000_000,) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def quick_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time few steps and search no largest batch: tests/planning tests both."""
    monkeypatch.setattr("quill.planning.timing.QUICK_SECONDS", 0.01)
    monkeypatch.setattr("quill.planning.estimate.largest_batch_size", lambda run, overhead, available: 1000)


def test_the_table_of_an_estimate_has_parameters_memory_and_time(quill, here, tiny):
    before = sorted(here.rglob("*"))
    code, out, error = quill("estimate", "my.txt", *tiny)
    assert (code, error) == (0, "") and sorted(here.rglob("*")) == before
    lines = {name: value for name, value in (re.split(" {2,}", line, maxsplit=1) for line in out.splitlines())}
    assert {"parameters", "weights", "optimizer state", "activations", "peak memory"} <= lines.keys()
    assert {"largest micro-batch", "arithmetic", "speed", "time of a step", "time of the run"} <= lines.keys()
    assert lines["peak memory"].endswith(" available") and "allocator overhead" in lines
    assert "without positions" in lines["parameters"] and "tokens/s on cpu" in lines["speed"]
    assert lines["vocabulary"] == "32 tokens"


def test_the_json_of_an_estimate_is_one_object_with_the_same_figures(quill, here, tiny):
    code, out, _ = quill("estimate", "my.txt", *tiny, "--json", "--gradient_accumulation_steps=3")
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert found["fits"] is True and found["vocab_size"] == 32 and found["tokens_per_step"] == 3 * 4 * 8
    assert found["peak_bytes"] > found["weights_bytes"] > 0 and found["run_seconds"] > 0


def test_prepared_tokens_tell_the_vocabulary_when_the_text_is_gone(quill, here, tiny):
    assert quill("prepare", "my.txt")[0] == 0
    (here / "my.txt").unlink()
    _, out, _ = quill("estimate", "my.txt", *tiny, "--json")
    assert json.loads(out)["vocab_size"] == 32


def test_a_corpus_that_is_not_here_yet_is_assumed_and_said_so(quill, here, tiny):
    _, out, _ = quill("estimate", "--dataset=shakespeare", *tiny, "--json")
    assert json.loads(out)["vocab_size"] == 65 and "vocab_size=65 assumed" in json.loads(out)["note"]
    _, out, _ = quill("estimate", "--dataset=shakespeare", "--tokenizer=byte", *tiny, "--json")
    assert json.loads(out)["vocab_size"] == 256


def test_several_texts_are_estimated_as_one(quill, here, tiny):  # U1
    (here / "other.txt").write_text("éüö" * 50, encoding="utf-8")
    _, out, _ = quill("estimate", "my.txt", "other.txt", *tiny, "--json")
    assert json.loads(out)["vocab_size"] == 35 and json.loads(out)["note"].startswith("my.txt and 1 more, ")


def test_long_phases_of_an_estimate_are_named(quill, here, tiny, monkeypatch):  # U16
    from quill.tracking import phase_display

    monkeypatch.setattr(phase_display, "SECONDS_BETWEEN_LINES", 0.0)
    _, out, error = quill("estimate", "my.txt", *tiny, "--json")
    assert out.count("\n") == 1
    assert "tracing the memory of a step, 10%\nquill: measuring a few steps, 40%" in error


def test_a_text_that_does_not_exist_is_refused(refused, here, tiny):
    assert "nowhere.txt" in refused("estimate", "nowhere.txt", *tiny)


def test_impossible_values_are_refused(refused, here):
    assert "n_embd=10" in refused("estimate", "my.txt", "--n_embd=10", "--n_head=3")


def test_an_estimate_of_a_run_that_does_not_fit_has_advice(quill, here, tiny, monkeypatch):
    monkeypatch.setattr("quill.planning.estimate.memory_limit", lambda device: 1000)
    code, out, _ = quill("estimate", "my.txt", *tiny)
    assert code == 0 and "it does not fit: batch_size=4 needs" in out and "not measured" in out


@pytest.mark.long
def test_training_that_runs_out_of_memory_ends_in_one_line_and_its_advice_works(here: Path, environment):
    pytest.importorskip("resource", reason="this system cannot limit a process's memory")
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux holds a process to its limit on address space")
    shape = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64", "--dropout=0.0", "--device=cpu"]
    steps = ["--sample_tokens=0", "--max_iters=1", "--eval_iters=1", "--dataset=my.txt", "--out_dir=out"]

    def train(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, "train", *shape, *steps, *flags]
        return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)

    ended = train("--batch_size=1024")
    said = ended.stderr.strip().splitlines()
    assert ended.returncode == 2, ended.stderr
    assert len(said) == 1 and "memory ran out: batch_size=1024 needs about " in said[0]
    assert "Traceback" not in ended.stdout + ended.stderr
    advice = re.search(r"; ((?:--\w+=\w+ )+)needs", said[0])
    assert advice, said[0]
    assert train("--overwrite=True", *advice[1].split()).returncode == 0


SMALL = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64", "--vocab_size=300", "--batch_size=64"]


def test_a_gpu_that_is_not_here_is_planned_for_by_its_name(quill, here, monkeypatch):
    monkeypatch.setattr("quill.planning.timing.measure_step", None)  # to measure would fail
    code, out, error = quill("estimate", "--device=h100", "--world_size=8", *SMALL)
    assert (code, error) == (0, "") and list(here.glob("out*")) == []
    lines = [re.split(" {2,}", line, maxsplit=1) for line in out.splitlines()]
    table = dict(lines)
    assert table["device"].startswith("NVIDIA H100 SXM: 80.0 GB, 989 TFLOP/s (dense bfloat16)")
    assert table["micro-batch"] == "8 × 64 tokens in each process" and "datasheet" in table["source"]
    for name in (
        "weights",
        "gradients",
        "optimizer state",
        "activations",
        "logits at the peak",
        "peak memory",
        "sent in a step",
    ):
        assert re.match(r"\d", table[name]), name
    for name in ("on 1 GPU", "on 8 GPUs", "on 64 GPUs"):
        assert re.search(r"utilisation \d+%.* --batch_size=64 --gradient_accumulation_steps=1$", table[name]), name
    assert [value for name, value in lines if name == "assumed"] and "H200" in out


def test_the_json_of_a_plan_has_its_table_of_gpus(quill, here):
    _, out, _ = quill("estimate", "--device=a100", "--json", "--parallel=fsdp", "--world_size=4", *SMALL)
    found = json.loads(out)
    assert out.count("\n") == 1 and found["vocab_size"] == 300 and found["gpu"]["memory"] == 80e9
    assert set(found["expected"]) == {"1", "8", "64"} and found["fits"] is True
    process = found["process"]
    assert found["sent_bytes"] == process["sent_gradients"] + process["sent_weights"] > 0
    assert process["weights"] == -(-4 * found["parameters"] // 4)


def test_several_processes_on_this_machine_are_planned_for_without_times(quill, here, tiny):
    code, out, _ = quill("estimate", "my.txt", *tiny, "--world_size=2")
    assert code == 0 and "2 × 8 tokens in each process" in out and "in each process\nsent in a step" in out
    assert "time" not in out and "vocabulary               32 tokens" in out


def test_a_plan_that_does_not_fit_says_so(quill, here):
    code, out, _ = quill("estimate", "--device=l4", *SMALL, "--n_embd=4096", "--n_layer=8")
    assert code == 0 and "in each process: does not fit" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device=h10"], "did you mean 'h100'"),
        (["--device=h100", "--world_size=7"], "use 63 or 70"),
        (["--world_size=0"], "world_size=0"),
        (["--device=h100", "--vocab_size=0"], "vocab_size=0"),
    ],
)
def test_plans_that_are_impossible_are_refused_in_one_line(refused, here, flags, words):
    assert words in refused(
        "estimate", *SMALL[: 5 - ("--vocab_size=0" in flags)], "--batch_size=64", *flags[:1], *flags[1:]
    )
