"""A modern GPT: gpt.py with improvements published since 2019. Read it from top to bottom.

    tokens ─→ token + n-gram embeddings ─→ RMSNorm ─→ n_layer blocks ─→ RMSNorm ─→ capped logits over the vocabulary

Differences from the classic model, each with its source below: n-gram embeddings, rotary positions, RMSNorm without
weights, normalised queries and keys, shared key/value heads, ReLU², no biases, output projections that start at zero,
an untied head, and capped logits. Measurements of each, and of what was left out, are in docs/log.md.

Names end in the shape of what they hold:
    B batch    T time (new tokens)    S time (all tokens that can be attended to)    D width (n_embd)
    H heads    K heads of keys and values    E size of a head (D / H)    F hidden width (4 D)    V vocabulary
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quill.errors import ConfigError
from quill.model.cache import KVCache, refuse_targets
from quill.model.config import QK_GAIN, ModernConfig
from quill.model.gpt import causal_mask
from quill.model.rotary import rotary_frequencies


class NGramEmbedding(nn.Module):
    """Embeddings of the last two, three, … tokens together, from hashed tables.

        row = (token_t + (V+1) token_t-1 + (V+1)² token_t-2 + …) mod ngram_rows

    Small models spend much of their arithmetic on short patterns, which here cost a lookup and an addition. N-grams
    with the same remainder share a row. Huang et al. 2025, "Over-Tokenized Transformer", section 3.
    """

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.vocab_size, self.rows = config.vocab_size, config.ngram_rows
        self.tables = nn.ModuleList(nn.Embedding(rows, config.n_embd) for rows in config.ngram_sizes)
        self.dropout = nn.Dropout(config.ngram_dropout)

    def forward(self, x_BTD: Tensor, tokens_BS: Tensor) -> Tensor:
        """Return x_BTD plus the n-gram embeddings of its T tokens, which are the last of tokens_BS."""
        T = x_BTD.size(1)
        key_BT = tokens_BS[:, -T:]
        for back, table in enumerate(self.tables, start=1):
            before_BS = F.pad(tokens_BS, (back, 0), value=self.vocab_size)[:, : tokens_BS.size(1)]  # V: before the text
            factor = pow(self.vocab_size + 1, back, self.rows)  # same remainder, no overflow
            key_BT = (key_BT + before_BS[:, -T:] * factor) % self.rows
            x_BTD = x_BTD + self.dropout(table(key_BT))
        return x_BTD


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε), without weights (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),), eps=1e-6)


class Rotary(nn.Module):
    """Rotary position embedding: pair i of a head is rotated by position · ROPE_BASE^(-i / (pairs - 1)) radians.

        (x₁, x₂) → (x₁ cos - x₂ sin, x₂ cos + x₁ sin)

    The product of a rotated query and a rotated key depends only on their distance (Su et al. 2021, "RoFormer", section
    3.2.2), so positions have no limit. A table holds the angles of the trained context; beyond it they are computed.
    """

    def __init__(self, block_size: int, size: int):
        super().__init__()
        self.frequencies_E = torch.tensor(rotary_frequencies(size), dtype=torch.float64, device="cpu")
        angles_SE = self.angles(0, block_size)
        self.cosines_SE: Tensor
        self.sines_SE: Tensor
        self.register_buffer("cosines_SE", angles_SE.cos().float(), persistent=False)
        self.register_buffer("sines_SE", angles_SE.sin().float(), persistent=False)

    def forward(self, x_BTHE: Tensor, start: int) -> Tensor:
        """Rotate vectors whose first position is `start`."""
        T = x_BTHE.size(1)
        cosines_TE, sines_TE = self.cosines_SE[start : start + T], self.sines_SE[start : start + T]
        if start + T > len(self.cosines_SE):
            angles_TE = self.angles(start, T)
            cosines_TE, sines_TE = angles_TE.cos(), angles_TE.sin()
        cosines_T1E, sines_T1E = cosines_TE[:, None].to(x_BTHE), sines_TE[:, None].to(x_BTHE)
        first, second = x_BTHE[..., 0::2], x_BTHE[..., 1::2]
        rotated = (first * cosines_T1E - second * sines_T1E, second * cosines_T1E + first * sines_T1E)
        return torch.stack(rotated, dim=-1).flatten(-2)

    def angles(self, start: int, T: int) -> Tensor:
        """Return angles_TE of T positions from `start` on, in float64: float32 angles near 10⁶ are multiples of 1/16.

        They are computed on the CPU, because not every accelerator has float64.
        """
        return torch.arange(start, start + T, dtype=torch.float64, device="cpu")[:, None] * self.frequencies_E


class Attention(nn.Module):
    """Causal self-attention as in gpt.py, with three changes.

    Positions are rotary. Queries and keys are normalised, which bounds the scores (Henry et al. 2020, "Query-Key
    Normalization"). Several query heads may share a key and a value head, which makes the cache smaller (Ainslie et al.
    2023, "GQA").
    """

    def __init__(self, config: ModernConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.n_kv_head = config.kv_heads
        self.dropout = config.dropout
        size = config.n_embd // config.n_head
        self.scale = QK_GAIN**2 / math.sqrt(size)
        self.query_key_value = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * size, bias=False)
        self.query_key_norm = RMSNorm()
        self.rotary = Rotary(config.block_size, size)
        self.output = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        heads_BHTE = self.attend(*self.project(x_BTD, cache))
        return self.output_dropout(self.output(heads_BHTE.transpose(1, 2).flatten(2)))

    def attend(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        """Return heads_BHTE by one fused call, which need not store the T × S weights (Dao et al. 2022)."""
        T, S = q_BHTE.size(2), k_BHSE.size(2)
        return F.scaled_dot_product_attention(
            q_BHTE,
            k_BHSE,
            v_BHSE,
            attn_mask=causal_mask(T, S, q_BHTE.device) if 1 < T < S else None,
            is_causal=1 < T == S,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )

    def attention_weights(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return weights_BHTS, how much token t attends to token s, by the formula written out, for inspection."""
        q_BHTE, k_BHSE, _ = self.project(x_BTD, cache)
        scores_BHTS = q_BHTE @ k_BHSE.mT * self.scale
        mask_TS = causal_mask(scores_BHTS.size(-2), scores_BHTS.size(-1), x_BTD.device)
        return scores_BHTS.masked_fill(~mask_TS, float("-inf")).softmax(dim=-1)

    def project(self, x_BTD: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q_BHTE of the new tokens, and k_BHSE and v_BHSE of all tokens attended to."""
        B, T, _ = x_BTD.shape
        H, K = self.n_head, self.n_kv_head
        qk_BTHE, v_BTKE = self.query_key_value(x_BTD).view(B, T, H + 2 * K, -1).split([H + K, K], dim=2)
        qk_BTHE = self.rotary(self.query_key_norm(qk_BTHE), start=cache.length if cache is not None else 0)
        q_BHTE, k_BKSE = qk_BTHE.transpose(1, 2).split([H, K], dim=1)
        v_BKSE = v_BTKE.transpose(1, 2)
        if cache is not None:
            k_BKSE, v_BKSE = cache.append(self.layer, k_BKSE, v_BKSE)
        if H == K:
            return q_BHTE, k_BKSE, v_BKSE
        return q_BHTE, k_BKSE.repeat_interleave(H // K, dim=1), v_BKSE.repeat_interleave(H // K, dim=1)


class ReLUSquared(nn.Module):
    """y = max(0, x)² (So et al. 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class FeedForward(nn.Module):
    """A network of one hidden layer, applied to each position: D → 4 D → D."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.hidden = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.activation = ReLUSquared()
        self.output = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output_dropout(self.output(self.activation(self.hidden(x_BTD))))


class Block(nn.Module):
    """Attention, then feed-forward, each on normalised input and added to it."""

    def __init__(self, config: ModernConfig, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm()
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm()
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cache)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class ModernGPT(nn.Module):
    """The whole model: tokens_BT (ids below V) to logits_BTV, which score every token as the next one.

    With a cache, tokens_BT continue the sequences in the cache. Beyond `block_size` tokens the model takes one token at
    a time, which attends to the last `rolling_window`; several at once are a ConfigError. Loss and optimizer are not
    part of the model.
    """

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.ngram_embedding = NGramEmbedding(config)
        self.embedding_norm = RMSNorm()
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.embedding_skip = nn.Parameter(torch.full((config.n_layer,), 0.1))  # weight of x₀ in each block's input
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = RMSNorm()
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.initialize()

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        refuse_targets(cache)
        length, limit = tokens_BT.size(1), self.config.block_size
        if cache is None and length > limit:
            raise ConfigError(f"{length} tokens do not fit the model's context of block_size={limit}")
        tokens_BS = cache.append_tokens(tokens_BT) if cache is not None else tokens_BT
        x_BTD = self.ngram_embedding(self.token_embedding(tokens_BT), tokens_BS)
        x_BTD = x0_BTD = self.embedding_dropout(self.embedding_norm(x_BTD))
        for block, skip in zip(self.blocks, self.embedding_skip, strict=True):
            x_BTD = block(x_BTD + skip * x0_BTD, cache)  # x0_lambdas in modded-nanogpt
        if cache is not None:
            cache.advance(length)
        logits_BTV = self.head(self.final_norm(x_BTD))
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV  # Gemma Team 2024, "Gemma 2", section 2

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw token embeddings from N(0, 1) and linear weights from U(-√(3/D), √(3/D)), D being their input's width.

        N-gram embeddings, output projections and the head start at 0. So blocks add nothing at first, all tokens are
        equally likely, and the first loss is ln V (Yang et al. 2022, "Tensor Programs V", appendix D.2). Other weights
        stay as their modules made them.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            if name.startswith("ngram_embedding") or name.endswith(("output", "head")):
                module.weight.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_()
            else:
                bound = math.sqrt(3 / module.in_features)
                module.weight.uniform_(-bound, bound)

    def count_parameters(self, positions: bool = True) -> int:
        """Return the number of weights. Rotary positions have none, so `positions` changes nothing."""
        return sum(parameter.numel() for parameter in self.parameters())
