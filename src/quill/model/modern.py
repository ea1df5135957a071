"""A modern GPT: the same machine as gpt.py, with what the field has learned since 2019. Read it from top to bottom.

    tokens ─→ token + n-gram embeddings ─→ RMSNorm ─→ n_layer blocks ─→ RMSNorm ─→ capped scores for every token

What differs from the classic one, each with its source where it stands: a table of what the last few tokens mean
together, rotary positions, RMSNorm without weights, normalised queries and keys, shared key/value heads, ReLU², no
biases, output projections that start at zero, a head of its own, and capped logits. What each is worth, and what was
left out: docs/log.md.

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
from quill.model.cache import KVCache
from quill.model.config import SHARPNESS, ModernConfig
from quill.model.gpt import causal_mask
from quill.model.rotary import rotary_frequencies


class NGramEmbedding(nn.Module):
    """What the last two, three, … tokens mean together: a row of a table, looked up instead of computed.

        row = (token_t + (V+1) token_t-1 + (V+1)² token_t-2 + …) mod ngram_rows

    Small models spend most of their arithmetic on such short patterns; here they cost one addition. Rows are shared
    by runs that fall on the same number. Huang et al. 2025, "Over-Tokenized Transformer", section 3.
    """

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.vocab_size, self.rows = config.vocab_size, config.ngram_rows
        self.tables = nn.ModuleList(nn.Embedding(rows, config.n_embd) for rows in config.ngram_sizes)
        self.dropout = nn.Dropout(config.ngram_dropout)

    def forward(self, x_BTD: Tensor, tokens_BS: Tensor) -> Tensor:
        """Return x_BTD with the rows of its T tokens added, the last of the S tokens seen so far."""
        T = x_BTD.size(1)
        key_BT = tokens_BS[:, -T:]
        for back, table in enumerate(self.tables, start=1):
            before_BS = F.pad(tokens_BS, (back, 0), value=self.vocab_size)[:, : tokens_BS.size(1)]  # V: nothing yet
            factor = pow(self.vocab_size + 1, back, self.rows)  # the remainder is the same, and no number grows large
            key_BT = (key_BT + before_BS[:, -T:] * factor) % self.rows
            x_BTD = x_BTD + self.dropout(table(key_BT))
        return x_BTD


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε): vectors of one length, without a mean to subtract or weights (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),), eps=1e-6)


class Rotary(nn.Module):
    """Positions as angles: pair i of a head is turned by position · SLOWEST^(-i / (pairs - 1)) radians.

        (x₁, x₂) → (x₁ cos - x₂ sin, x₂ cos + x₁ sin)

    The product of a turned query and a turned key then depends on how far apart they are (Su et al. 2021, "RoFormer",
    section 3.2.2). So they may go on for as long as a text does: a table holds the angles of the trained context, and
    beyond it they are computed.
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
        """Turn vectors at the positions from `start` on."""
        T = x_BTHE.size(1)
        cosines_TE, sines_TE = self.cosines_SE[start : start + T], self.sines_SE[start : start + T]
        if start + T > len(self.cosines_SE):
            angles_TE = self.angles(start, T)
            cosines_TE, sines_TE = angles_TE.cos(), angles_TE.sin()
        cosines_T1E, sines_T1E = cosines_TE[:, None].to(x_BTHE), sines_TE[:, None].to(x_BTHE)
        first, second = x_BTHE[..., 0::2], x_BTHE[..., 1::2]
        turned = (first * cosines_T1E - second * sines_T1E, second * cosines_T1E + first * sines_T1E)
        return torch.stack(turned, dim=-1).flatten(-2)

    def angles(self, start: int, T: int) -> Tensor:
        """Return angles_TE of the positions from `start` on, in float64: near a million, float32 counts in sixteenths.

        They are computed on the CPU, because not every accelerator has float64.
        """
        return torch.arange(start, start + T, dtype=torch.float64, device="cpu")[:, None] * self.frequencies_E


class Attention(nn.Module):
    """Causal self-attention as in gpt.py, with three changes.

    Positions are angles. Queries and keys have unit length, so that scores cannot explode (Henry et al. 2020,
    "Query-Key Normalization"). Several queries may share a key and a value, which makes the cache smaller (Ainslie et
    al. 2023, "GQA").
    """

    def __init__(self, config: ModernConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head or config.n_head
        self.dropout = config.dropout
        size = config.n_embd // config.n_head
        self.scale = SHARPNESS**2 / math.sqrt(size)
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
        """Return weights_BHTS, how much token t attends to token s: the same formula written out, to look at."""
        q_BHTE, k_BHSE, _ = self.project(x_BTD, cache)
        scores_BHTS = q_BHTE @ k_BHSE.mT * self.scale
        mask_TS = causal_mask(scores_BHTS.size(-2), scores_BHTS.size(-1), x_BTD.device)
        return scores_BHTS.masked_fill(~mask_TS, float("-inf")).softmax(dim=-1)

    def project(self, x_BTD: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q_BHTE of the new tokens, and k_BHSE and v_BHSE of all that can be seen, the cached ones first."""
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
    """max(0, x)²: what is large counts all the more, and half of everything is exactly 0 (So et al. 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class FeedForward(nn.Module):
    """The same small network for every position: D → 4 D → D."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.hidden = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.activation = ReLUSquared()
        self.output = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output_dropout(self.output(self.activation(self.hidden(x_BTD))))


class Block(nn.Module):
    """Communicate, then compute; normalise before each and add after it."""

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
    """The whole model: tokens_BT (whole numbers below V) to logits_BTV, the scores of each token's successor.

    With a cache, tokens_BT continue the text that the cache holds; past `block_size` tokens in all one at a time, each
    seeing the last `rolling_window`. More than that at once is a ConfigError. The model knows no loss, no optimizer and
    no device but that of its weights.
    """

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.ngram_embedding = NGramEmbedding(config)
        self.embedding_norm = RMSNorm()
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.embedding_skip = nn.Parameter(torch.full((config.n_layer,), 0.1))  # how much each block sees x₀ again
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = RMSNorm()
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.initialize()

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        length, limit = tokens_BT.size(1), self.config.block_size
        if cache is None and length > limit:
            raise ConfigError(f"{length} tokens do not fit the model's context of block_size={limit}")
        tokens_BS = cache.append_tokens(tokens_BT) if cache is not None else tokens_BT
        x_BTD = self.ngram_embedding(self.token_embedding(tokens_BT), tokens_BS)
        x_BTD = x0_BTD = self.embedding_dropout(self.embedding_norm(x_BTD))
        for block, reminder in zip(self.blocks, self.embedding_skip, strict=True):
            x_BTD = block(x_BTD + reminder * x0_BTD, cache)  # an embedding skip, as in modded-nanogpt
        if cache is not None:
            cache.advance(length)
        logits_BTV = self.head(self.final_norm(x_BTD))
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV  # Gemma Team 2024, "Gemma 2", section 2

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw embeddings from N(0, 1) and maps from U(-√(3/D), √(3/D)); n-grams, and all that is added, start at 0.

        The first forward pass then only copies embeddings, every token is equally likely, and the first loss is ln V.
        Zero-initialised projections: Yang et al. 2022, "Tensor Programs V", appendix D.2.
        """
        for name, parameter in self.named_parameters():
            if name == "embedding_skip":
                parameter.fill_(0.1)
            elif name.endswith("output.weight") or name.startswith(("ngram_embedding", "head")):
                parameter.zero_()
            elif name.startswith("token_embedding"):
                parameter.normal_()
            else:
                bound = math.sqrt(3 / parameter.size(-1))
                parameter.uniform_(-bound, bound)

    def count_parameters(self, positions: bool = True) -> int:
        """Return the number of weights. Rotary positions have none, so `positions` makes no difference."""
        return sum(parameter.numel() for parameter in self.parameters())
