"""Loss of a modern model past its context: windows that roll, or are recomputed now and then, or for every token.

    python benchmarks/past_the_context.py out-modern --tokens=40000

The first tokens of the validation split are one text; the losses of the tokens past the context are compared. Rolling
is computed by a mask over chunks of the whole text, as in tests/engines/test_past_the_context.py. So windows other than
`ModernConfig.rolling_window` can be measured, and windows that keep the first tokens ("attention sinks", Xiao et al.
2023, section 3.2: they stay at the far end of the window). Results: docs/log.md.

Shapes: T queries, S keys, H heads, E size of a head; one text.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from quill.checkpoints.run_folder import load_checkpoint
from quill.data.dataset import prepare_dataset
from quill.model.modern import Attention, Block, ModernGPT
from quill.model.rotary import rotary_frequencies

CHUNK = 1024  # tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run with a modern model")
    parser.add_argument("--dataset", default="shakespeare")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--tokens", type=int, default=40_000)
    options = parser.parse_args()
    model = load_checkpoint(options.run).model.eval().float()
    assert isinstance(model, ModernGPT), "a classic model cannot roll"
    dataset = prepare_dataset(options.dataset, data_dir=options.data_dir)
    text = torch.from_numpy(dataset.val[: options.tokens + 1].astype("int64"))
    W = model.config.block_size
    with torch.inference_mode():
        half = recomputed(model, text, W // 2)
        losses = {"half of it recomputed when it is full": half, "three quarters": recomputed(model, text, 3 * W // 4)}
        losses["all recomputed, some tokens"] = recomputed_for_each(model, text, every=max(4, W // 16))
        for eighths in (4, 5, 6, 7, 8, 12):
            losses[f"rolling, {eighths}/8 of the context"] = rolling(model, text, eighths * W // 8)
        for sinks in (1, 4):
            losses[f"rolling, 8/8, the first {sinks} kept"] = rolling(model, text, W, sinks)
    for name, loss_T in losses.items():
        both = ~(loss_T.isnan() | half.isnan())
        both[:W] = False
        against = (loss_T - half)[both]
        error = against.std() / math.sqrt(len(against))
        print(f"{name:40} {loss_T[both].mean():.4f}   {against.mean():+.4f} ± {error:.4f}   {len(against):,} tokens")
    return 0


def losses_of(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV, targets_T, reduction="none")


def recomputed(model: ModernGPT, text: Tensor, keep: int) -> Tensor:
    """Return loss_T where the last `keep` tokens are recomputed whenever the window is full; NaN after the last."""
    W, loss_T = model.config.block_size, torch.full((len(text) - 1,), math.nan)
    for start in range(0, len(text) - W, W + 1 - keep):
        first = keep - 1 if start else 0
        logits_TV = model(text[None, start : start + W])[0, first:]
        loss_T[start + first : start + W] = losses_of(logits_TV, text[start + first + 1 : start + W + 1])
    return loss_T


def recomputed_for_each(model: ModernGPT, text: Tensor, every: int) -> Tensor:
    """Return loss_T of each `every`-th token, with the whole window recomputed; NaN for the tokens between."""
    W, loss_T = model.config.block_size, torch.full((len(text) - 1,), math.nan)
    for ends_B in torch.arange(W, len(text) - 1, every).split(64):
        windows_BT = text[ends_B[:, None] - W + 1 + torch.arange(W)]
        loss_T[ends_B] = losses_of(model(windows_BT)[:, -1], text[ends_B + 1])
    return loss_T


def rolling(model: ModernGPT, text: Tensor, window: int, sinks: int = 0) -> Tensor:
    """Return loss_T where each token attends to the last `window` tokens; `sinks` of them are the first of the text."""
    c, tokens = model.config, text[None, :-1]
    x_TD = model.embedding_norm(model.ngram_embedding(model.token_embedding(tokens), tokens))[0]
    cached: list[tuple[Tensor, Tensor] | None] = [None] * c.n_layer
    losses = []
    for start in range(0, x_TD.size(0), CHUNK):
        y_TD = x0_TD = x_TD[start : start + CHUNK]
        for layer, (block, scale) in enumerate(zip(model.blocks, model.embedding_skip, strict=True)):
            assert isinstance(block, Block)
            y_TD = y_TD + scale * x0_TD
            normed_TD = block.attention_norm(y_TD)
            heads_TD, cached[layer] = attend(block.attention, normed_TD, start, cached[layer], window, sinks)
            y_TD = y_TD + block.attention.output(heads_TD)
            y_TD = y_TD + block.feed_forward(block.feed_forward_norm(y_TD))
        logits_TV = model.head(model.final_norm(y_TD))
        if cap := c.logit_softcap:
            logits_TV = cap * torch.tanh(logits_TV / cap)
        losses.append(losses_of(logits_TV, text[start + 1 : start + 1 + len(y_TD)]))
    return torch.cat(losses)


def attend(
    attention: Attention, x_TD: Tensor, start: int, cached: tuple[Tensor, Tensor] | None, window: int, sinks: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return heads_TD of tokens from `start` on, and keys (not rotated) and values of all so far, shapes HSE."""
    T, H, K = len(x_TD), attention.n_head, attention.n_kv_head
    qkv_HTE = attention.query_key_value(x_TD).view(T, H + 2 * K, -1).transpose(0, 1)
    q_HTE, k_HTE = attention.query_key_norm(qkv_HTE[: H + K]).split([H, K])
    k_HTE, v_HTE = (x_HTE.repeat_interleave(H // K, 0) for x_HTE in (k_HTE, qkv_HTE[H + K :]))
    k_HSE, v_HSE = (
        (k_HTE, v_HTE) if cached is None else (torch.cat((cached[0], k_HTE), 1), torch.cat((cached[1], v_HTE), 1))
    )
    first = max(0, start - window)  # key that any token here attends to
    near_S, far_S = torch.arange(first, start + T), torch.arange(min(sinks, start + T))
    queries_T = torch.arange(start, start + T)
    back_TS = queries_T[:, None] - near_S
    near_HTS = rotated(q_HTE, queries_T) @ rotated(k_HSE[:, first:], near_S).mT
    near_HTS.masked_fill_((back_TS < 0) | (back_TS >= window - sinks) | (near_S < sinks), -math.inf)
    far_HTS = rotated(q_HTE, queries_T.clamp(max=window - 1)) @ rotated(k_HSE[:, : len(far_S)], far_S).mT
    far_HTS.masked_fill_(far_S > queries_T[:, None], -math.inf)
    shares_HTS = (torch.cat((far_HTS, near_HTS), 2) * attention.scale).softmax(2)
    heads_HTE = shares_HTS @ torch.cat((v_HSE[:, : len(far_S)], v_HSE[:, first:]), 1)
    return heads_HTE.transpose(0, 1).flatten(1), (k_HSE, v_HSE)


def rotated(x_HTE: Tensor, positions_T: Tensor) -> Tensor:
    """Return queries or keys rotated to these positions."""
    angles_TE = positions_T[:, None].double() * torch.tensor(rotary_frequencies(x_HTE.size(2))).double()
    turns_TE = torch.polar(torch.ones_like(angles_TE), angles_TE).to(torch.complex64)
    pairs_HTE = torch.view_as_complex(x_HTE.unflatten(2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs_HTE * turns_TE).flatten(2)


if __name__ == "__main__":
    sys.exit(main())
