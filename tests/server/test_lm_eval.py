"""EleutherAI's lm-evaluation-harness scores the tiny model through the server, and gets the score that we compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_client import start_server

from quill.generation.language_model import LanguageModel, load

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]

QUESTIONS = [  # no question ends in a space: lm-eval would count it with the answer
    ("KING RICHARD", [" III:", " xqz;", " of the"], 0),
    ("First Citi", ["zen:", "zQn!", "es of"], 0),
    ("To be, or not to", [" be", " we", " zz"], 0),
    ("my lord, I", [" wjll", " will", " dqst"], 1),
    ("What is the", [" matter", " mqtter", " king's own"], 0),
    ("ROMEO", [":\n", ";\n", "\n:"], 0),
    ("the world", [" is", " iz", " qw"], 2),  # the wrong answer, so that the score is not 1
    ("O, she doth teach the", [" torches", " txrches", " to"], 0),
]
TASK = """
task: quill_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with start_server("tiny", "--device=cpu") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def own() -> list[list[float]]:
    """The log-likelihood of each answer, by the plain PyTorch model."""
    model = load("tiny", device="cpu", engine="torch")
    return [[log_likelihood(model, question, answer) for answer in answers] for question, answers, _ in QUESTIONS]


def log_likelihood(model: LanguageModel, question: str, answer: str) -> float:
    tokens_T = torch.from_numpy(model.tokenizer.encode(question + answer).astype(np.int64))
    with torch.no_grad():
        logprobs_TV = model.model(tokens_T[None, :-1])[0].log_softmax(-1)
    picked_T = logprobs_TV.gather(1, tokens_T[1:, None])[:, 0]
    return float(picked_T[len(question) - 1 :].sum())  # a token is a character


def evaluate(model: str, arguments: str, folder: Path) -> tuple[float, list[list[float]]]:
    """Return the accuracy that lm-eval reports, and the log-likelihoods that it was told."""
    data = folder / "words.jsonl"
    lines = [json.dumps({"question": q, "choices": answers, "gold": gold}) for q, answers, gold in QUESTIONS]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "words.yaml").write_text(TASK.format(file=json.dumps(str(data))), encoding="utf-8")
    words = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments]
    words += ["--tasks", "quill_words", "--include_path", str(folder), "--output_path", str(folder / "out")]
    words += ["--log_samples", "--batch_size", "1"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "PYTHONUTF8": "1"}
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **offline}, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (result,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    found: list[dict[str, Any]] = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    found.sort(key=lambda sample: int(sample["doc_id"]))
    accuracy = json.loads(result.read_text(encoding="utf-8"))["results"]["quill_words"]["acc,none"]
    return accuracy, [[float(answer[0][0]) for answer in sample["resps"]] for sample in found]


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("local-completions", "model=tiny,base_url={address}v1/completions,tokenizer_backend=remote,num_concurrent=1"),
        ("gguf", "base_url={base}"),
    ],
)
def test_lm_eval_gets_the_score_that_the_model_has(
    model: str, arguments: str, address: str, own: list[list[float]], tmp_path: Path
) -> None:
    filled = arguments.format(address=address, base=address.rstrip("/"))
    accuracy, told = evaluate(model, filled, tmp_path)
    assert [pytest.approx(each, abs=1e-3) for each in own] == told
    right = [int(np.argmax(each)) == gold for each, (_, _, gold) in zip(own, QUESTIONS, strict=True)]
    assert accuracy == sum(right) / len(right) and 0 < accuracy < 1
