"""A model with weights of its own, by an edit of model/gpt.py or model/modern.py alone, works in every command."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quill
from quill.checkpoints.run_folder import load_checkpoint, save_checkpoint
from quill.errors import CheckpointError
from quill.model import gpt, modern
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.tokenizers.char import CharTokenizer

CLASSIC = GPTConfig(vocab_size=3, block_size=4, n_layer=2, n_head=1, n_embd=4)
MODERN = ModernConfig(vocab_size=3, block_size=4, n_layer=2, n_head=1, n_embd=4, ngram=2)
TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))

# A gate beside the hidden layer, a matrix, and a gain, a number: neither is known outside the model's own file.
CLASS = "class FeedForward(nn.Module):"
FORWARD = "    def forward(self, x_BTD: Tensor) -> Tensor:\n"
WEIGHTS = """\
        self.gate = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.gain = nn.Parameter(torch.tensor(0.5))

"""
HIDDEN = "self.activation(self.hidden(x_BTD))"
GATED = f"self.gain * self.gate(x_BTD) * {HIDDEN}"


def edit(source: str) -> str:
    """Return the source of a model with a gate in its feed-forward network."""
    before, feed_forward = source.split(CLASS)
    assert FORWARD in feed_forward and HIDDEN in feed_forward
    return before + CLASS + feed_forward.replace(FORWARD, WEIGHTS + FORWARD, 1).replace(HIDDEN, GATED)


@pytest.mark.long
@pytest.mark.parametrize("module", ["gpt", "modern"])
def test_a_model_with_new_weights_trains_resumes_generates_and_is_inspected(module: str, tmp_path: Path) -> None:  # U0
    package = tmp_path / "src" / "quill"
    shutil.copytree(Path(quill.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "model" / f"{module}.py"
    file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "quill", *command]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sizes = ["--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=8", "--batch_size=4", "--sample_tokens=8"]
    steps = ["--max_iters=4", "--eval_interval=2", "--eval_iters=2", "--warmup_iters=1", "--device=cpu"]
    run("train", "my.txt", *sizes, *steps, f"--architecture={'classic' if module == 'gpt' else 'modern'}")
    run("train", "--resume=True", "--max_iters=6")
    prompt = ["--prompt=KING", "--max_new_tokens=20", "--seed=1"]
    texts = [run("generate", *prompt, f"--engine={engine}") for engine in ("auto", "torch")]
    assert texts[0] == texts[1] and len(texts[0]) > 20
    kind = GPTConfig if module == "gpt" else ModernConfig
    unedited = build_model(kind(len(set(TEXT)), block_size=8, n_layer=1, n_head=2, n_embd=8))
    assert f"{unedited.count_parameters() + 8 * 32 + 1:,} (" in run("info")
    assert re.search(r"\d\.\d", run("evaluate"))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.feed_forward\.ga.* is only in one of them"):
        load_checkpoint(tmp_path / "out")


def save(out: Path, model: Model) -> None:
    save_checkpoint(
        out, model, CharTokenizer("abc"), step=1, val_loss=None, best=True, training_tensors={}, training_metadata={}
    )


class Gated(nn.Module):
    """A feed-forward network with a gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_embd)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.gain * torch.sigmoid(self.gate(x_BTD)) * x_BTD


@pytest.mark.parametrize(("module", "config"), [(gpt, CLASSIC), (modern, MODERN)], ids=["classic", "modern"])
def test_a_block_that_replaces_one_of_ours_is_saved_and_loaded(
    module, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FeedForward", Gated)
        torch.manual_seed(0)
        model = build_model(config)
        gains = [parameter.item() for name, parameter in model.named_parameters() if name.endswith("gain")]
        assert gains == [0.5, 0.5], "weights of one's own begin as their module says"
        save(tmp_path, model)
        before = torch.get_rng_state()
        loaded = load_checkpoint(tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        for (name, p), (_, q) in zip(model.named_parameters(), loaded.model.named_parameters(), strict=True):
            assert torch.equal(p, q), name
    with pytest.raises(CheckpointError, match=r"blocks\.0\.feed_forward"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_the_unedited_model_does_not_fit_the_edited_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, build_model(CLASSIC))
    monkeypatch.setattr(gpt, "FeedForward", Gated)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.feed_forward\.\w+.* is only in one of them"):
        load_checkpoint(tmp_path).model  # noqa: B018
