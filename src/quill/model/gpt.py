"""A GPT: token ids in, next-token logits out. Read it from top to bottom.

    tokens ─→ token embedding + position embedding ─→ n_layer blocks ─→ LayerNorm ─→ logits over the vocabulary

Each block reads the residual stream, lets every token attend to the tokens before it (attention), transforms each
position by itself (feed-forward), and adds both results to the stream. This is GPT-2 (Radford et al. 2019).

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
from quill.model.cache import KVCache, refuse_targets
from quill.model.config import GPTConfig


class Attention(nn.Module):
    """Causal self-attention with several heads (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

        weights = softmax(Q Kᵀ / √E + mask)        output = weights · V

    The query of a token is compared with the key of every token up to it, and their values are averaged accordingly.
    The mask is -∞ where a token would attend to a later one.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # three projections in one
        self.output = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        heads_BHTE = self.attend(*self.project(x_BTD, cache))
        return self.output_dropout(self.output(heads_BHTE.transpose(1, 2).flatten(2)))

    def attend(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        """Return heads_BHTE by one fused call, which need not store the T × S weights (Dao et al. 2022)."""
        T, S = q_BHTE.size(2), k_BHSE.size(2)
        # is_causal aligns the mask to the first key; with a cache, the T new tokens are the last of S.
        return F.scaled_dot_product_attention(
            q_BHTE,
            k_BHSE,
            v_BHSE,
            attn_mask=causal_mask(T, S, q_BHTE.device) if 1 < T < S else None,
            is_causal=1 < T == S,
            dropout_p=self.dropout if self.training else 0.0,
        )

    def attention_weights(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return weights_BHTS, how much token t attends to token s, by the formula written out, for inspection."""
        q_BHTE, k_BHSE, _ = self.project(x_BTD, cache)
        scores_BHTS = q_BHTE @ k_BHSE.mT / math.sqrt(q_BHTE.size(-1))
        mask_TS = causal_mask(scores_BHTS.size(-2), scores_BHTS.size(-1), x_BTD.device)
        return scores_BHTS.masked_fill(~mask_TS, float("-inf")).softmax(dim=-1)

    def project(self, x_BTD: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q_BHTE of the new tokens, and k_BHSE and v_BHSE of all tokens, the cached ones first."""
        B, T, _ = x_BTD.shape
        q_BHTE, k_BHTE, v_BHTE = self.query_key_value(x_BTD).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        if cache is None:
            return q_BHTE, k_BHTE, v_BHTE
        return q_BHTE, *cache.append(self.layer, k_BHTE, v_BHTE)


class FeedForward(nn.Module):
    """A network of one hidden layer, applied to each position: D → 4 D → D (Vaswani et al. 2017, section 3.3)."""

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
    """Attention, then feed-forward, each normalised before and added after (pre-norm: Xiong et al. 2020, figure 1b)."""

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
    """The whole model: tokens_BT (ids below V) to logits_BTV, which score every token as the next one.

    With a cache, tokens_BT continue the sequences in the cache. More than `block_size` tokens in all are a ConfigError.
    Loss and optimizer are not part of the model.
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
            self.head.weight = self.token_embedding.weight  # one matrix for both: Press & Wolf 2017
        self.initialize()

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        refuse_targets(cache)
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
        """Draw linear and embedding weights from N(0, 0.02), or N(0, 0.02 / √(2 n_layer)) where a branch ends.

        The outputs of 2 n_layer branches add up in the residual stream; with smaller weights its size does not depend
        on depth (Radford et al. 2019, section 2.3). All tokens are about equally likely, so the first loss is ln V.
        Other weights, such as those of norms, stay as their modules made them.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not (name == "head" and self.config.tie_weights):
                ends_branch = name.endswith(("attention.output", "feed_forward.output"))
                module.weight.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if ends_branch else 0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()

    def count_parameters(self, positions: bool = True) -> int:
        """Return the number of weights, shared ones once; `positions=False` leaves out the position embedding."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if positions else total - self.position_embedding.weight.numel()


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """Return mask_TS for the last T of S tokens, True where a token may attend: at itself and all before it."""
    queries_T1 = torch.arange(S - T, S, device=device)[:, None]
    keys_S = torch.arange(S, device=device)
    return keys_S <= queries_T1
