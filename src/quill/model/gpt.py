"""A GPT, from token numbers to the scores of the next token. Read it from top to bottom.

    tokens ─→ token embedding + position embedding ─→ n_layer blocks ─→ LayerNorm ─→ scores for every token

Each block reads the residual stream, lets every token look at the tokens before it (attention), thinks about what
it saw (feed-forward), and adds both results back. This is GPT-2 (Radford et al. 2019) in the founding size.

Names end in the shape of what they hold:
    B batch    T time (new tokens)    S time (all tokens that can be attended to)    D width (n_embd)
    H heads    E size of a head (D / H)    F hidden width (4 D)    V vocabulary
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quill.errors import ConfigError
from quill.model.cache import KVCache
from quill.model.config import GPTConfig


class Attention(nn.Module):
    """Causal self-attention with several heads (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

        weights = softmax(Q Kᵀ / √E + mask)        output = weights · V

    Each token asks a question (query); every earlier token offers a key to match it and a value to pass on.
    The mask is -∞ wherever a token would look at one that comes after it.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # three maps in one
        self.output = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        heads_BHTE = self.attend(*self.project(x_BTD, cache))
        return self.output_dropout(self.output(heads_BHTE.transpose(1, 2).flatten(2)))

    def attend(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        """Return heads_BHTE by one fused call, which need not store the T × S weights (Dao et al. 2022)."""
        T, S = q_BHTE.size(2), k_BHSE.size(2)
        # is_causal means the first T of T tokens; behind a cache the T new tokens are the last of S.
        return F.scaled_dot_product_attention(
            q_BHTE,
            k_BHSE,
            v_BHSE,
            attn_mask=causal_mask(T, S, q_BHTE.device) if 1 < T < S else None,
            is_causal=1 < T == S,
            dropout_p=self.dropout if self.training else 0.0,
        )

    def attention_weights(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return weights_BHTS, how much token t attends to token s: the same formula written out, to look at."""
        q_BHTE, k_BHSE, _ = self.project(x_BTD, cache)
        scores_BHTS = q_BHTE @ k_BHSE.mT / math.sqrt(q_BHTE.size(-1))
        mask_TS = causal_mask(scores_BHTS.size(-2), scores_BHTS.size(-1), x_BTD.device)
        return scores_BHTS.masked_fill(~mask_TS, float("-inf")).softmax(dim=-1)

    def project(self, x_BTD: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q_BHTE of the new tokens, and k_BHSE and v_BHSE of all that can be seen, the cached ones first."""
        B, T, _ = x_BTD.shape
        q_BHTE, k_BHTE, v_BHTE = self.query_key_value(x_BTD).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        if cache is None:
            return q_BHTE, k_BHTE, v_BHTE
        return q_BHTE, *cache.append(self.layer, k_BHTE, v_BHTE)


class FeedForward(nn.Module):
    """The same small network for every position: D → 4 D → D (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.hidden = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()  # GELU: Hendrycks & Gimpel 2016
        self.output = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = self.activation(self.hidden(x_BTD))
        return self.output_dropout(self.output(hidden_BTF))


class Block(nn.Module):
    """Communicate, then compute; normalise before each and add after it (pre-norm: Xiong et al. 2020, figure 1b)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cache)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class GPT(nn.Module):
    """The whole model: tokens_BT (whole numbers below V) to logits_BTV, the scores of each token's successor.

    With a cache, tokens_BT continue the text that the cache holds. More than `block_size` tokens in all is a
    ConfigError. The model knows no loss, no optimizer and no device but that of its weights.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.bias and not config.tie_weights)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight  # one matrix, both ways: Press & Wolf 2017
        self.initialize()

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        start, T = (cache.length if cache is not None else 0), tokens_BT.size(1)
        if start + T > self.config.block_size:
            limit = self.config.block_size
            raise ConfigError(f"{start + T} tokens do not fit the model's context of block_size={limit}")
        positions_T = torch.arange(start, start + T, device=tokens_BT.device)
        x_BTD = self.embedding_dropout(self.token_embedding(tokens_BT) + self.position_embedding(positions_T))
        for block in self.blocks:
            x_BTD = block(x_BTD, cache)
        if cache is not None:
            cache.advance(T)
        return self.head(self.final_norm(x_BTD))

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all weights from N(0, 0.02), and those that end in the residual stream from N(0, 0.02 / √(2 n_layer)).

        2 n_layer branches add up in the stream; the smaller start keeps its size independent of depth (Radford et
        al. 2019, section 2.3). Every token is then about equally likely: the first loss is ln V.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith(("attention.output.weight", "feed_forward.output.weight")):
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                parameter.normal_(std=0.02)

    def count_parameters(self, positions: bool = True) -> int:
        """Return the number of weights, shared ones once; without `positions`, the position embedding left out."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if positions else total - self.position_embedding.weight.numel()


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """Return mask_TS, True where one of the T last of S tokens may look: at itself and at all before it."""
    queries_T1 = torch.arange(S - T, S, device=device)[:, None]
    keys_S = torch.arange(S, device=device)
    return keys_S <= queries_T1
