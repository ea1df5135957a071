"""The loss of a split is the mean over its tokens, each scored once, whatever the batch size."""

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
def test_the_loss_of_a_split_equals_the_mean_computed_one_token_at_a_time(length: int, batch_size: int) -> None:
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


def test_evaluation_is_reproducible_and_changes_neither_mode_nor_random_numbers() -> None:
    tokens = np.random.default_rng(0).integers(0, 6, 500).astype(np.uint8)
    model = make(6).train()
    before = torch.get_rng_state()
    first, second = (evaluate_split(model, tokens, CharTokenizer.from_text("abcdef")) for _ in range(2))
    assert first == second and model.training and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("max_windows", "batches"), [(None, 9), (5, 1), (1000, 9)])
def test_progress_is_the_share_that_is_done_before_each_batch(max_windows: int | None, batches: int) -> None:  # U16
    tokens = np.random.default_rng(0).integers(0, 6, 500).astype(np.uint8)
    shares: list[float] = []
    tokenizer = CharTokenizer.from_text("abcdef")
    settings = {"batch_size": 8, "max_windows": max_windows}
    plain = evaluate_split(make(6), tokens, tokenizer, **settings)
    assert evaluate_split(make(6), tokens, tokenizer, on_progress=shares.append, **settings) == plain
    assert len(shares) == batches and shares[0] == 0.0 and shares == sorted(shares) and shares[-1] < 1
    assert shares == pytest.approx(
        [min(n * 64, 496) / plain.tokens for n in range(batches)]
    )  # 62 windows of 8, and 3 tokens


def test_an_evaluation_can_be_stopped_between_batches_and_leaves_the_mode_as_it_was() -> None:  # U16
    model, tokens = make(6).train(), np.zeros(500, np.uint8)

    def stop(share: float) -> None:
        assert not model.training
        if share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_split(model, tokens, CharTokenizer.from_text("abcdef"), batch_size=8, on_progress=stop)
    assert all(module.training for module in model.modules())


def test_a_loss_over_some_windows_is_labelled_as_an_estimate() -> None:
    tokens = np.random.default_rng(0).integers(0, 6, 500).astype(np.uint8)
    found = evaluate_split(make(6), tokens, CharTokenizer.from_text("abcdef"), max_windows=5)
    assert (found.tokens, found.whole_split) == (40, False)


def test_bits_are_counted_for_characters_not_for_bytes() -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode("é" * 32)  # two bytes each; the first of all is not scored
    found = evaluate_split(make(256), tokens, tokenizer)
    assert found.bits_per_character == pytest.approx(found.loss * 63 / math.log(2) / 31, rel=0.04)


def test_a_split_without_a_token_to_score_is_refused() -> None:
    with pytest.raises(CorpusError):
        evaluate_split(make(6), np.zeros(1, np.uint8), CharTokenizer.from_text("abcdef"))


def test_cross_entropy_is_minus_the_log_of_the_probability() -> None:
    logits_BTV = torch.tensor([[[0.0, math.log(3)]]])
    assert cross_entropy(logits_BTV, torch.tensor([[1]])).item() == pytest.approx(-math.log(3 / 4))
