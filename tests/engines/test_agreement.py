"""U0: an edited model is never written with by the formulas of the unedited one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quill
from quill.checkpoints.run_folder import save_checkpoint
from quill.engines import agreement
from quill.engines.agreement import IMPLEMENTED, code_of, difference, source_fingerprint
from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import make_engine
from quill.engines.numba_engine import NumbaEngine
from quill.engines.torch_engine import TorchEngine
from quill.errors import ConfigError
from quill.generation.generate_tokens import generate_tokens
from quill.model import gpt, modern
from quill.model.build import Model, build_model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.tokenizers.byte import ByteTokenizer

CLASSIC = GPTConfig(vocab_size=256, block_size=64, n_layer=2, n_head=2, n_embd=32)
MODERN = ModernConfig(vocab_size=256, block_size=64, n_layer=2, n_head=2, n_embd=32, ngram_rows=97)
CONFIGS = [pytest.param(CLASSIC, id="classic"), pytest.param(MODERN, id="modern")]


def random_model(config: ModelConfig, kind: Callable[..., Model] = build_model) -> Any:
    """A model whose every weight matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for name, parameter in model.named_parameters():
            parameter.data.normal_(mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model


def save(out_dir: Path, model: Model) -> None:
    unused: dict[str, Any] = {"val_loss": None, "training_tensors": {}, "training_metadata": {}}
    save_checkpoint(out_dir, model, ByteTokenizer(), step=1, best=True, **unused)


def test_the_engines_implement_the_present_source_of_the_model() -> None:
    assert source_fingerprint() == IMPLEMENTED, (
        "The source of the model has changed. Let engines/numba_step/ and engines/static_model.py compute the same,"
        " run tests/engines, and only then"
        f' set IMPLEMENTED = "{source_fingerprint()}" in src/quill/engines/agreement.py.'
    )


def test_the_fingerprint_depends_on_code_and_not_on_comments() -> None:
    source = 'def f(x):\n    """Double."""\n    y = "# no comment"  # but this\n\n    return 2 * x\n'
    assert code_of(source) == 'def f(x):\n    y = "# no comment"\n    return 2 * x'
    assert code_of(source.replace("Double", "Twice").replace("but this", 'a """')) == code_of(source)
    for old, new in (("2 *", "3 *"), ("# no", "no"), ("    return", "return"), ("x):", "x, y):")):
        assert code_of(source.replace(old, new)) != code_of(source)


def test_the_fingerprint_depends_on_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "rotary_frequencies", lambda size: [1.0] * size)
    assert source_fingerprint() != IMPLEMENTED


# ── objects that were edited ──


@pytest.mark.parametrize("config", CONFIGS)
def test_an_unedited_model_gets_the_fast_engine_without_a_message(config: ModelConfig) -> None:
    said: list[str] = []
    assert isinstance(make_engine(random_model(config), on_status=said.append), NumbaEngine)
    assert not [sentence for sentence in said if "compiling" not in sentence]
    assert difference(random_model(config), CudaEngine(random_model(config)).static_logits) == ""


class Gated(nn.Module):
    """A feed-forward network with a gate: a new weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = gpt.FeedForward(config) if isinstance(config, GPTConfig) else modern.FeedForward(config)
        self.gate = nn.Parameter(torch.full((config.n_embd,), 0.5))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.inner(x_BTD) * self.gate.sigmoid()


class Scaled(gpt.GPT):
    """A subclass with another forward pass."""

    def forward(self, tokens_BT: Tensor, cache: Any = None) -> Tensor:
        return 1.01 * super().forward(tokens_BT, cache)


def with_another_activation(config: ModelConfig) -> Any:
    model = random_model(config)
    for block in model.blocks:
        block.feed_forward.activation = nn.SiLU()
    return model


def with_a_gate(config: ModelConfig) -> Any:
    def build(config: ModelConfig) -> Any:
        model: Any = build_model(config)
        for block in model.blocks:
            block.feed_forward = Gated(config)
        return model

    return random_model(config, build)


def with_a_patched_forward(config: ModelConfig) -> Any:
    model = random_model(config)
    forward = model.blocks[1].feed_forward.forward
    model.blocks[1].feed_forward.forward = lambda x_BTD: 0.9 * forward(x_BTD)
    return model


def with_a_window_of_attention(config: ModelConfig) -> Any:
    """Each token sees 40 tokens: no short text shows it."""
    model = random_model(config)
    for block in model.blocks:
        attend = block.attention.attend

        def last_40(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, attend: Any = attend) -> Tensor:
            T, S = q_BHTE.size(2), k_BHSE.size(2)
            return torch.cat(
                [
                    attend(q_BHTE[:, :, t : t + 1], *(x[:, :, max(0, S - T + t - 39) : S - T + t + 1] for x in kv))
                    for kv in [(k_BHSE, v_BHSE)]
                    for t in range(T)
                ],
                dim=2,
            )

        block.attention.attend = last_40
    return model


EDITS = [with_another_activation, with_a_gate, with_a_patched_forward, with_a_window_of_attention]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("edited", EDITS)
def test_an_edited_model_generates_with_its_own_formula_and_one_line_says_so(
    edited: Callable[[ModelConfig], Any], config: ModelConfig
) -> None:
    model, said = edited(config), []
    engine = make_engine(model, on_status=said.append)
    assert isinstance(engine, TorchEngine) and len(list(generate_tokens(engine, [1, 2], max_new_tokens=70))) == 70
    said = [sentence for sentence in said if "compiling" not in sentence]
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("generating with PyTorch, which is slower: the model was edited")
    with pytest.raises(ConfigError, match="engine='numba' cannot be used: the model was edited"):
        make_engine(model, "numba")
    with pytest.raises(ConfigError, match="quantization='int8' cannot be used: the model was edited"):
        make_engine(model, quantization="int8")


def test_a_subclass_and_an_unknown_configuration_are_edited_models() -> None:
    class LargerConfig(GPTConfig):
        """A configuration of somebody's own."""

    assert isinstance(make_engine(random_model(CLASSIC, Scaled)), TorchEngine)
    assert isinstance(
        make_engine(random_model(LargerConfig(vocab_size=256, block_size=64, n_layer=2, n_head=2, n_embd=32), gpt.GPT)),
        TorchEngine,
    )


def test_a_class_that_was_patched_before_loading_is_an_edited_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, random_model(CLASSIC))
    forward = gpt.FeedForward.forward
    monkeypatch.setattr(gpt.FeedForward, "forward", lambda self, x_BTD: 0.5 * forward(self, x_BTD))
    text = quill.load(tmp_path, device="cpu").generate("a", max_new_tokens=50, seed=1)
    assert text == quill.load(tmp_path, device="cpu", engine="torch").generate("a", max_new_tokens=50, seed=1)


def test_an_edited_cache_that_rolls_differently_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = random_model(MODERN), make_engine(random_model(MODERN), "numba")
    monkeypatch.setattr(agreement, "IMPLEMENTED", "other source")
    assert difference(model, engine.logits) == ""
    entries = KVCache.entries

    def one_further(cache: KVCache, T: int) -> tuple[slice, slice]:
        new, seen = entries(cache, T)
        return (new, seen) if cache.length < cache.capacity else (new, slice(seen.start + 1, seen.stop))

    monkeypatch.setattr(KVCache, "entries", one_further)
    assert "differ" in difference(model, engine.logits)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_static_model_of_an_edited_model_is_refused(config: ModelConfig) -> None:
    for edited in (with_another_activation, with_a_patched_forward, with_a_window_of_attention):
        model = edited(config)
        assert "differ" in difference(model, CudaEngine(model).static_logits)
    with pytest.raises(Exception, match=r"does not know its weight blocks\.0\.feed_forward"):
        CudaEngine(with_a_gate(config))


@pytest.mark.parametrize("config", CONFIGS)
def test_comparing_leaves_the_static_model_as_it_was(config: ModelConfig) -> None:
    model = random_model(config)
    engine, fresh = CudaEngine(model, slots=2), CudaEngine(model, slots=2)
    assert difference(model, engine.static_logits) == ""
    texts = [list(generate_tokens(each, [1, 2], max_new_tokens=90, num_samples=2)) for each in (engine, fresh)]
    assert texts[0] == texts[1]


# ── source that was edited ──

WRITE = """
import json, quill, sys
for engine in sys.argv[2:]:
    said = []
    model = quill.load(sys.argv[1], device="cpu", engine=engine, on_status=said.append)
    text = model.generate("a", max_new_tokens=60, seed=1)
    said = [line for line in said if "compiling" not in line]
    print(json.dumps([text, said, "torch" in sys.modules]))
"""

SOURCE_EDITS = {
    "an activation": ("gpt", "nn.GELU()", "nn.SiLU()"),
    "a factor": ("modern", "skip * x0_BTD", "2 * skip * x0_BTD"),
    "a constant": ("config", "QK_GAIN = 1.2", "QK_GAIN = 1.5"),
}


def edited_package(folder: Path, *edits: tuple[str, str, str]) -> Path:
    """Copy the package, edit modules of its model, and return the folder to import it from."""
    shutil.copytree(Path(quill.__file__).parent, folder / "quill", ignore=shutil.ignore_patterns("__pycache__"))
    for module, old, new in edits:
        file = folder / "quill" / "model" / f"{module}.py"
        source = file.read_text(encoding="utf-8")
        assert source.count(old) == 1
        file.write_text(source.replace(old, new), encoding="utf-8")
    return folder


def python(source: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize(
    "edit", ["an activation", *(pytest.param(e, marks=pytest.mark.long) for e in ("a factor", "a constant"))]
)
def test_a_checkpoint_generates_with_the_present_source_of_the_model(edit: str, tmp_path: Path) -> None:
    out, config = tmp_path / "out", CLASSIC if SOURCE_EDITS[edit][0] == "gpt" else MODERN
    save(out, random_model(config))

    def write(source: Path, *engines: str) -> list[tuple[str, list[str], bool]]:
        return [json.loads(line) for line in python(source, "-c", WRITE, out, *engines).stdout.splitlines()]

    ((unedited, said, imported),) = write(Path(quill.__file__).parent.parent, "auto")
    assert said == [] and not imported  # fast, and started without PyTorch
    package = edited_package(tmp_path / "src", SOURCE_EDITS[edit])
    (text, said, _), (reference, _, _) = write(package, "auto", "torch")
    assert text == reference != unedited
    if edit != "a constant":  # which the fast engine reads too
        assert len(said) == 1 and said[0].startswith("generating with PyTorch, which is slower: the model was edited")


COMMANDS = """
import json, sys
from quill.cli.main import main
for argv in json.loads(sys.argv[1]):
    assert main(argv) == 0
    print("====")
    print("====", file=sys.stderr)
"""
GATE = [
    (
        "gpt",
        "self.output_dropout = nn.Dropout(config.dropout)\n\n    def forward(self, x_BTD: Tensor) -> Tensor:\n",
        "self.output_dropout = nn.Dropout(config.dropout)\n"
        "        self.gate = nn.Linear(config.n_embd, 4 * config.n_embd)\n\n"
        "    def forward(self, x_BTD: Tensor) -> Tensor:\n",
    ),
    ("gpt", "self.activation(self.hidden(x_BTD))", "self.activation(self.hidden(x_BTD)) * self.gate(x_BTD)"),
]


@pytest.mark.long
@pytest.mark.parametrize("edits", [[SOURCE_EDITS["an activation"]], GATE], ids=["another activation", "a new weight"])
def test_a_run_trained_with_an_edited_source_generates_with_that_source(
    edits: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    package = edited_package(tmp_path / "src", *edits)
    (tmp_path / "my.txt").write_text("now is the winter of our discontent\n" * 60, encoding="utf-8")
    places = [f"--dataset={tmp_path / 'my.txt'}", f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}"]
    size = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--device=cpu"]
    steps = ["--max_iters=20", "--eval_interval=20", "--eval_iters=2", "--warmup_iters=2", "--sample_tokens=0"]
    write = ["generate", places[2], "--prompt=now", "--max_new_tokens=60", "--seed=1", "--device=cpu"]
    commands = [["train", *places, *size, *steps], write, [*write, "--engine=torch"]]
    result = python(package, "-c", COMMANDS, json.dumps(commands))
    (_, text, reference, _), (_, notes, reference_notes, _) = (
        stream.split("====\n") for stream in (result.stdout, result.stderr)
    )
    assert text == reference != "" and "the model was edited" in notes
    assert "the model was edited" not in reference_notes
