"""The quoted loss is the mean over the whole split, each token once, whatever the batch."""

import math

import numpy as np
import pytest
import torch

from quill.errors import CorpusError
from quill.evaluation.loss import cross_entropy
from quill.evaluation.split_loss import evaluate_split
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer


def make(vocab_size: int, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.5))
    torch.nn.init.normal_(model.token_embedding.weight)
    return model


@pytest.mark.parametrize("length", [2, 8, 9, 10, 61, 65])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_is_the_mean_over_windows_worked_out_one_token_at_a_time(length: int, batch_size: int) -> None:
    tokenizer = CharTokenizer.from_text("abcdef")
    tokens = np.random.default_rng(0).integers(0, 6, length).astype(np.uint8)
    model = make(6).eval()
    nats = []
    for target in range(1, length):
        start = (target - 1) // 8 * 8
        logits_V = model(torch.from_numpy(tokens[start:target].astype(np.int64))[None])[0, -1]
        nats.append(-logits_V.log_softmax(-1)[tokens[target]].item())
    found = evaluate_split(model, tokens, tokenizer, batch_size=batch_size)
    assert found.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found.bits_per_character == pytest.approx(found.loss / math.log(2))
    assert (found.tokens, found.whole_split) == (length - 1, True)


def test_it_repeats_exactly_and_leaves_the_model_as_it_was() -> None:
    tokens = np.random.default_rng(0).integers(0, 6, 500).astype(np.uint8)
    model = make(6).train()
    before = torch.get_rng_state()
    first, second = (evaluate_split(model, tokens, CharTokenizer.from_text("abcdef")) for _ in range(2))
    assert first == second and model.training and torch.equal(before, torch.get_rng_state())


def test_an_estimate_says_so() -> None:
    tokens = np.random.default_rng(0).integers(0, 6, 500).astype(np.uint8)
    found = evaluate_split(make(6), tokens, CharTokenizer.from_text("abcdef"), max_windows=5)
    assert (found.tokens, found.whole_split) == (40, False)


def test_bits_are_counted_for_characters_not_for_bytes() -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode("é" * 32)  # two bytes each; the first of all is not scored
    found = evaluate_split(make(256), tokens, tokenizer)
    assert found.bits_per_character == pytest.approx(found.loss * 63 / math.log(2) / 31, rel=0.04)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(CorpusError):
        evaluate_split(make(6), np.zeros(1, np.uint8), CharTokenizer.from_text("abcdef"))


def test_cross_entropy_is_minus_the_log_of_the_probability() -> None:
    logits_BTV = torch.tensor([[[0.0, math.log(3)]]])
    assert cross_entropy(logits_BTV, torch.tensor([[1]])).item() == pytest.approx(-math.log(3 / 4))
