"""Small models of both architectures for the instruments of the lab."""

from __future__ import annotations

from dataclasses import replace

from quill.lab.subject import ModelAndTokenizer as Subject
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

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

__all__ = ["CLASSIC", "CONFIGS", "LETTERS", "MODERN", "Subject"]
