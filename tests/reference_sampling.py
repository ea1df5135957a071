"""Sampling written out for one configuration: what `quill.engines.sampling` and the compiled sampler must choose.

Biases and penalties, temperature, then top-k, then top-p, then min-p. Each filter sees what the one before it left.

Shapes: B rows (samples), V vocabulary.
"""

import math

import torch
from torch import Tensor

from quill.engines.request import SamplingConfig
from quill.engines.sampling import SMALLEST_TEMPERATURE, draw


def adjust(logits_V: Tensor, config: SamplingConfig, bias_V: Tensor, seen_V: Tensor, counts_V: Tensor) -> Tensor:
    """Return scores of one text after its biases and penalties.

    `seen_V` is above 0 for tokens of the prompt, and `counts_V` says how often each token was written since.
    """
    # logits'_i = logits_i / r if logits_i > 0 else logits_i r, for tokens seen      Keskar et al. 2019, section 4.1
    # logits''_i = logits'_i - presence [counts_i > 0] - frequency counts_i           OpenAI's API, "Frequency penalty"
    logits_V = logits_V + bias_V
    if config.repetition_penalty != 1:
        repetition = config.repetition_penalty
        penalised_V = torch.where(logits_V > 0, logits_V / repetition, logits_V * repetition)
        logits_V = torch.where((seen_V > 0) | (counts_V > 0), penalised_V, logits_V)
    return logits_V - config.presence_penalty * (counts_V > 0) - config.frequency_penalty * counts_V


def apply_temperature(logits_BV: Tensor, temperature: float) -> Tensor:
    """Divide scores by the temperature; 0 leaves only the likeliest token (the first of equals)."""
    # logits'_i = (logits_i - max_j logits_j) / temperature      Ackley, Hinton & Sejnowski 1985, section 2
    # Subtracting the maximum changes no probability, and keeps a tiny temperature from making infinity - infinity.
    if temperature == 1:
        return logits_BV
    if temperature == 0:
        best_B1 = logits_BV.argmax(-1, keepdim=True)
        return torch.full_like(logits_BV, -math.inf).scatter_(-1, best_B1, 0.0)
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(temperature, SMALLEST_TEMPERATURE)


def apply_top_k(logits_BV: Tensor, top_k: int) -> Tensor:
    """Remove all but the `top_k` highest scores (and ties of the last one)."""
    # keep i  where  logits_i >= the k-th highest logit      Fan, Lewis & Dauphin 2018, arXiv:1805.04833, section 5
    if top_k >= logits_BV.size(-1):
        return logits_BV
    last_kept_B1 = logits_BV.topk(top_k, dim=-1).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < last_kept_B1, -math.inf)


def apply_top_p(logits_BV: Tensor, top_p: float) -> Tensor:
    """Remove all but the nucleus: the fewest likeliest tokens whose probabilities sum to at least `top_p`."""
    # keep the smallest set with  sum of p_i >= top_p      Holtzman et al. 2020, arXiv:1904.09751, section 3.1
    # A token belongs to it when the likelier ones before it do not reach top_p yet.
    if top_p >= 1:
        return logits_BV
    sorted_BV = logits_BV.sort(dim=-1, descending=True).values
    p_BV = sorted_BV.softmax(-1)
    kept_B1 = (p_BV.cumsum(-1) - p_BV < top_p).sum(-1, keepdim=True)
    last_kept_B1 = sorted_BV.gather(-1, kept_B1 - 1)
    return logits_BV.masked_fill(logits_BV < last_kept_B1, -math.inf)


def apply_min_p(logits_BV: Tensor, min_p: float) -> Tensor:
    """Remove every token that is less than `min_p` times as likely as the likeliest one."""
    # keep i  where  p_i >= min_p * max_j p_j      Nguyen et al. 2024, arXiv:2407.01082, section 3
    # In scores: logits_i >= max_j logits_j + ln(min_p), so no probabilities are needed.
    if min_p == 0:
        return logits_BV
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(min_p), -math.inf)


def probabilities(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """Turn scores into the float32 probabilities that tokens are drawn from, after all filters."""
    logits_BV = apply_temperature(logits_BV.float(), config.temperature)
    if config.top_k is not None:
        logits_BV = apply_top_k(logits_BV, config.top_k)
    if config.top_p is not None:
        logits_BV = apply_top_p(logits_BV, config.top_p)
    if config.min_p is not None:
        logits_BV = apply_min_p(logits_BV, config.min_p)
    return logits_BV.softmax(-1)


def choose_tokens(logits_BV: Tensor, config: SamplingConfig, uniform_B: Tensor) -> Tensor:
    """Choose the next token of each row (B,): the likeliest at temperature 0, else a draw with the row's uniform."""
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    return draw(probabilities(logits_BV, config), uniform_B)
