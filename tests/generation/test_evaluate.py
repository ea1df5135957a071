"""The loss over a text: every token but the first is scored once, by the model that generates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quill.errors import ConfigError, CorpusError, TokenizerError
from quill.generation.language_model import LanguageModel
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

TEXT = "the quick brown fox jumps over the lazy dog\n" * 3
CHARACTERS = CharTokenizer.from_text(TEXT)


def tiny(engine: str = "torch", quantization: str | None = None) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(CHARACTERS.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.5)).eval()
        for parameter in gpt.parameters():
            parameter.data.mul_(8)
    return LanguageModel(gpt, CHARACTERS, engine=engine, quantization=quantization)  # type: ignore[arg-type]


def by_hand(model: LanguageModel, text: str) -> float:
    tokens = torch.tensor(model.tokenizer.encode(text))
    nats = []
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        nats += F.cross_entropy(model.logits(window[:-1]), window[1:], reduction="none").tolist()
    assert len(nats) == len(tokens) - 1
    return float(np.mean(nats))


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, len(TEXT)])
def test_every_token_but_the_first_is_scored_once(length: int, tmp_path: Path) -> None:
    model, text = tiny(), TEXT[:length]
    (tmp_path / "other.txt").write_text(text, encoding="utf-8")
    result = model.evaluate(text=text)
    assert result.tokens == length - 1 and result.whole_split
    assert result.loss == pytest.approx(by_hand(model, text), rel=1e-5)
    assert result.bits_per_character == pytest.approx(result.loss / math.log(2), rel=1e-5)
    assert model.evaluate(str(tmp_path / "other.txt")) == model.evaluate(tmp_path / "other.txt") == result


def test_the_size_of_a_batch_changes_no_result() -> None:
    model = tiny()
    assert model.evaluate(text=TEXT, batch_size=1).loss == pytest.approx(model.evaluate(text=TEXT).loss, rel=1e-6)


def test_evaluation_in_int8_uses_the_weights_of_generation_in_int8() -> None:
    exact, rounded = tiny("numba").evaluate(text=TEXT), (model := tiny("numba", "int8")).evaluate(text=TEXT)
    assert rounded.tokens == exact.tokens and rounded.loss != exact.loss
    [echo] = model.complete(TEXT[:16], max_new_tokens=0, logprobs=0, echo=True)
    nats = [-token.logprob for token in echo.tokens if token.logprob is not None]
    assert model.evaluate(text=TEXT[:16]).loss == pytest.approx(np.mean(nats), rel=1e-5)


def test_unknown_characters_are_named() -> None:
    with pytest.raises(TokenizerError, match=r"vocabulary lacks: 'é' \(2 times\), 'Z' \(1 times\)$"):
        tiny().evaluate(text="the é fox é Z")
    with pytest.raises(TokenizerError, match=r"and 16 more$") as caught:
        tiny().evaluate(text="ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "text"), [(None, None), ("x", "y"), (5, None), ({}, None), (None, 5), (None, b"x")])
def test_a_value_that_is_neither_a_path_nor_a_text_is_refused(path: object, text: object) -> None:
    # W14
    with pytest.raises(ConfigError):
        tiny().evaluate(path, text=text)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "2", True, None])
def test_an_invalid_batch_size_is_refused(batch_size: Any) -> None:
    # W14
    with pytest.raises(ConfigError, match=r"^batch_size="):
        tiny().evaluate(text=TEXT, batch_size=batch_size)
    assert tiny().evaluate(text=TEXT, batch_size=np.int64(3)).tokens == len(TEXT) - 1  # type: ignore[arg-type]


def test_a_text_given_as_a_path_is_cut_in_the_message() -> None:
    # U13
    for text in (TEXT * 300, "no such file.txt"):
        with pytest.raises(CorpusError) as caught:
            tiny().evaluate(text)
        assert len(str(caught.value)) < 900 and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "t"])
def test_a_text_without_a_token_to_score_is_refused(text: str) -> None:
    with pytest.raises(CorpusError, match="at least 2"):
        tiny().evaluate(text=text)


def test_bytes_are_counted_as_characters() -> None:
    with torch.random.fork_rng():
        model = LanguageModel(GPT(GPTConfig(256, block_size=8, n_layer=1, n_head=1, n_embd=8)).eval(), ByteTokenizer())
    result = model.evaluate(text="xééé")  # 6 bytes after the first, 3 characters
    assert result.tokens == 6
    assert result.bits_per_character == pytest.approx(result.loss / math.log(2) * 6 / 3, rel=1e-5)
