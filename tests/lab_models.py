"""Small models of both architectures for the instruments of the lab."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quill.lab.subject import ModelAndTokenizer as Subject
from quill.lab.subject import attention_of
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.tokenizers.char import CharTokenizer

CLASSIC = GPTConfig(vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.1)
MODERN = ModernConfig(vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.1, ngram=3, ngram_rows=97)
CONFIGS: dict[str, ModelConfig] = {
    "classic": CLASSIC,
    "classic with biases and an untied head": replace(CLASSIC, bias=True, tie_weights=False),
    "modern": MODERN,
    "modern with shared keys and no cap": replace(MODERN, n_kv_head=1, logit_softcap=0.0),
    "modern without n-grams": replace(MODERN, ngram=1),
}
LETTERS = "abcdefghij\n"

one_of_each_architecture_in_core = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[] if config in (CLASSIC, MODERN) else [pytest.mark.long])
        for name, config in CONFIGS.items()
    ],
)
"""The variants of `config` for a test of pictures: the core suite draws one of each architecture."""

__all__ = [
    "CLASSIC", "CONFIGS", "LETTERS", "MODERN", "Subject", "induction_subject", "one_of_each_architecture_in_core",
]  # fmt: skip


def induction_subject(vocabulary: str = LETTERS, block_size: int = 32) -> Subject:
    """Return a classic model with weights set by hand, whose head 1.0 is an induction head (Olsson et al. 2022).

    The residual stream has a part each for the token, its position, the token before, and the prediction. Head 0.0
    copies the token before into its part. Head 1.0 compares the token with the tokens before and copies what it finds
    into the prediction. Heads 0.1 and 1.1 attend equally to all tokens, and write nothing.
    """
    V, T = len(vocabulary), block_size
    size = max(T, V, (3 * V + T + 1) // 2)
    width = 2 * size
    config = GPTConfig(V, block_size=T, n_layer=2, n_head=2, n_embd=width, dropout=0.0, tie_weights=False)
    model, sharp = build_model(config), 40.0
    token, position, before, answer = slice(0, V), slice(V, V + T), slice(V + T, 2 * V + T), slice(2 * V + T, 3 * V + T)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.token_embedding.weight[:, token] = torch.eye(V)
        model.get_parameter("position_embedding.weight")[:, position] = torch.eye(T)
        first, second = (attention_of(model, layer) for layer in (0, 1))
        q, k, v = (slice(i * width, i * width + size) for i in range(3))  # the rows of head 0
        projection = first.get_parameter("query_key_value.weight")
        projection[q][: T - 1, position] = sharp * torch.eye(T)[1:]  # position t asks for t - 1
        projection[k][:T, position] = torch.eye(T)
        projection[v][:V, token] = torch.eye(V)
        first.get_parameter("output.weight")[before, :V] = torch.eye(V)
        projection = second.get_parameter("query_key_value.weight")
        projection[q][:V, token] = sharp * torch.eye(V)
        projection[k][:V, before] = torch.eye(V)
        projection[v][:V, token] = torch.eye(V)
        second.get_parameter("output.weight")[answer, :V] = torch.eye(V)
        model.head.weight[:, answer] = 10 * torch.eye(V)
    return Subject(model, CharTokenizer.from_text(vocabulary))
