"""From logits to the next token, for many sequences at once, each with its own settings.

Each setting is a tensor with a row for each slot, and the random numbers are an argument. So nothing here synchronises
with the device, and a CUDA graph can capture it. The order is fixed: bias and penalties, temperature, top-k, top-p,
min-p, the draw. A stage does not change a bit of a row that does not use it, so a stage that no row uses can be left
out.

The input of each filter is the output of the one before it, with minus infinity for removed tokens. The likeliest token
is never removed. Tokens that tie with the last one kept are kept too, so the order of ties in a sort does not matter.
`tests/reference_sampling.py` has the same formulas for one configuration, and tests compare the two.

Reference: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", arXiv:1904.09751.

Shapes: B slots, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quill.engines.request import Request, SamplingConfig

SMALLEST_TEMPERATURE = float(torch.finfo(torch.float32).tiny)  # below it, dividing float32 logits gives 0/0
LARGEST_UNIFORM = 1.0 - float(torch.finfo(torch.float32).eps)  # a float64 just below 1 becomes 1 in float32

Stages = frozenset[str]
ALL_STAGES: Stages = frozenset({"penalties", "temperature", "top_k", "top_p", "min_p", "draw"})


def stages_of(requests: Iterable[Request]) -> Stages:
    """Return the stages that these requests need; all that are not greedy need "draw"."""
    needed: set[str] = set()
    for request in requests:
        how = request.sampling
        penalties = (how.presence_penalty, how.frequency_penalty, how.repetition_penalty - 1)
        needed |= {"penalties"} if request.logit_bias or any(penalties) else set()
        if how.temperature:
            needed |= {"draw"} | {name for name, is_needed in _filters(how).items() if is_needed}
    return frozenset(needed)


def _filters(how: SamplingConfig) -> dict[str, bool]:
    return {
        "temperature": how.temperature != 1,
        "top_k": how.top_k is not None,
        "top_p": how.top_p is not None and how.top_p < 1,
        "min_p": bool(how.min_p),
    }


@dataclass
class Rules:
    """How each of B rows chooses its tokens, as tensors."""

    greedy_B1: Tensor
    scaled_B1: Tensor
    """whether the temperature is neither 0 nor 1"""
    nucleus_B1: Tensor
    """whether top-p removes anything"""
    temperature_B1: Tensor
    top_p_B1: Tensor
    log_min_p_B1: Tensor
    presence_B1: Tensor
    frequency_B1: Tensor
    repetition_B1: Tensor
    last_kept_B1: Tensor
    """top_k - 1"""
    bias_BV: Tensor
    seen_BV: Tensor
    """1 for tokens of the prompt"""
    counts_BV: Tensor
    """how often each token was generated"""

    def rows(self, slots: Tensor) -> Rules:
        """Return the rules of these slots, copied."""
        return Rules(**{name: tensor.index_select(0, slots) for name, tensor in vars(self).items()})


class BatchSampler:
    """Chooses the next token in each of B slots. Its tensors stay at their addresses."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        def column(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(slots, 1, dtype=dtype, device=device)

        def table() -> Tensor:
            return torch.zeros(slots, vocab_size, device=device)

        self.rules = Rules(
            greedy_B1=column(torch.bool),
            scaled_B1=column(torch.bool),
            nucleus_B1=column(torch.bool),
            temperature_B1=column(),
            top_p_B1=column(),
            log_min_p_B1=column(),
            presence_B1=column(),
            frequency_B1=column(),
            repetition_B1=column(),
            last_kept_B1=column(torch.long),
            bias_BV=table(),
            seen_BV=table(),
            counts_BV=table(),
        )
        self.vocab_size = vocab_size
        self.assign(0, Request((0,), 0, SamplingConfig(0)))  # idle slots also sample; the default is greedy
        for tensor in vars(self.rules).values():
            tensor[1:] = tensor[0]

    def assign(self, slot: int, request: Request) -> None:
        """Set the rules of a slot to those of a request that begins."""
        rules, how, V = self.rules, request.sampling, self.vocab_size
        needed = _filters(how)
        rules.greedy_B1[slot] = how.temperature == 0
        rules.scaled_B1[slot] = how.temperature not in (0, 1)
        rules.temperature_B1[slot] = max(how.temperature, SMALLEST_TEMPERATURE) if how.temperature else 1.0
        rules.last_kept_B1[slot] = min(how.top_k or V, V) - 1
        rules.nucleus_B1[slot] = needed["top_p"]
        rules.top_p_B1[slot] = how.top_p if how.top_p is not None else 1.0
        rules.log_min_p_B1[slot] = math.log(how.min_p) if how.min_p else -math.inf
        rules.presence_B1[slot], rules.frequency_B1[slot] = how.presence_penalty, how.frequency_penalty
        rules.repetition_B1[slot] = how.repetition_penalty
        rows_3V = torch.zeros(3, V)  # filled on the CPU, then copied at once
        for token, bias in request.logit_bias.items():
            rows_3V[0, token] = bias
        rows_3V[1, list(request.prompt)] = 1
        rows_3V = rows_3V.to(rules.bias_BV.device)
        for row, tensor_BV in enumerate((rules.bias_BV, rules.seen_BV, rules.counts_BV)):
            tensor_BV[slot] = rows_3V[row]

    def choose(self, logits_BV: Tensor, uniform_B: Tensor, stages: Stages, slots: Tensor | None = None) -> Tensor:
        """Return the next token of each row (B,) for float32 logits; rows are all slots, or the given `slots`.

        `stages` includes all that the rows need. `uniform_B` are random numbers in [0, 1).
        """
        return choose_tokens(logits_BV, uniform_B, self.rules if slots is None else self.rules.rows(slots), stages)

    def count(self, tokens_B: Tensor, weight_B: Tensor) -> None:
        """Count the token that was generated in each slot; `weight_B` is 1, or 0 in idle slots."""
        self.rules.counts_BV.scatter_add_(1, tokens_B[:, None], weight_B[:, None].to(torch.float32))


def choose_tokens(logits_BV: Tensor, uniform_B: Tensor, rules: Rules, stages: Stages = ALL_STAGES) -> Tensor:
    """Return the next token of each row (B,): the likeliest one if greedy, else a draw with the row's uniform."""
    if "penalties" in stages:
        logits_BV = apply_penalties(logits_BV, rules)
    best_B = logits_BV.argmax(-1)
    if "draw" not in stages:
        return best_B
    drawn_B = draw(apply_temperature_and_filters(logits_BV, rules, stages).softmax(-1), uniform_B)
    return torch.where(rules.greedy_B1[:, 0], best_B, drawn_B)


def choice_probabilities(logits_BV: Tensor, rules: Rules) -> Tensor:
    """Return the probability that `choose_tokens` chooses each token, (B, V), for float32 logits."""
    logits_BV = apply_penalties(logits_BV, rules)
    best_BV = torch.nn.functional.one_hot(logits_BV.argmax(-1), logits_BV.shape[-1]).to(logits_BV.dtype)
    drawn_BV = apply_temperature_and_filters(logits_BV, rules, ALL_STAGES).softmax(-1)
    return torch.where(rules.greedy_B1, best_BV, drawn_BV)


def apply_temperature_and_filters(logits_BV: Tensor, rules: Rules, stages: Stages) -> Tensor:
    """Return logits divided by the temperature, with minus infinity for tokens that top-k, top-p or min-p removes."""
    if "temperature" in stages:
        # logits'_i = (logits_i - max_j logits_j) / temperature      Ackley, Hinton & Sejnowski 1985, section 2
        # Subtracting the maximum changes no probability, and avoids infinity - infinity at a tiny temperature.
        scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / rules.temperature_B1
        logits_BV = torch.where(rules.scaled_B1, scaled_BV, logits_BV)
    if "top_k" in stages or "top_p" in stages:
        logits_BV = apply_top_k_and_top_p(logits_BV, rules, stages)
    if "min_p" in stages:
        # keep i  where  p_i >= min_p max_j p_j      Nguyen et al. 2024, arXiv:2407.01082, section 3
        # In logits: logits_i >= max_j logits_j + ln(min_p).
        least_B1 = logits_BV.amax(-1, keepdim=True) + rules.log_min_p_B1
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf)
    return logits_BV


def apply_penalties(logits_BV: Tensor, rules: Rules) -> Tensor:
    """Return logits after biases and penalties."""
    # logits'_i = logits_i / r if logits_i > 0 else logits_i r, for tokens seen      Keskar et al. 2019, section 4.1
    # logits''_i = logits'_i - presence [counts_i > 0] - frequency counts_i           OpenAI's API, "Frequency penalty"
    logits_BV = logits_BV + rules.bias_BV
    generated_BV = rules.counts_BV > 0
    penalised_BV = torch.where(logits_BV > 0, logits_BV / rules.repetition_B1, logits_BV * rules.repetition_B1)
    logits_BV = torch.where((rules.seen_BV > 0) | generated_BV, penalised_BV, logits_BV)
    return logits_BV - rules.presence_B1 * generated_BV - rules.frequency_B1 * rules.counts_BV


def apply_top_k_and_top_p(logits_BV: Tensor, rules: Rules, stages: Stages) -> Tensor:
    """Return logits after both filters, which share a sort."""
    sorted_BV = logits_BV.sort(dim=-1, descending=True).values
    last_kept_B1 = sorted_BV.gather(-1, rules.last_kept_B1)
    if "top_p" in stages:
        # keep the smallest set with  sum of p_i >= top_p      Holtzman et al. 2020, section 3.1
        # A token belongs to it if the likelier ones before it do not reach top_p. Tokens removed by top-k are at the
        # end, so the order stays.
        sorted_BV = sorted_BV.masked_fill(sorted_BV < last_kept_B1, -math.inf)
        p_BV = sorted_BV.softmax(-1)
        kept_B1 = (p_BV.cumsum(-1) - p_BV < rules.top_p_B1).sum(-1, keepdim=True)
        # Logits that are not numbers keep no token; an invalid index would end the CUDA context.
        last_of_nucleus_B1 = sorted_BV.gather(-1, (kept_B1 - 1).clamp(min=0))
        last_kept_B1 = torch.where(rules.nucleus_B1, last_of_nucleus_B1, last_kept_B1)
    return logits_BV.masked_fill(logits_BV < last_kept_B1, -math.inf)


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return one token per row (B,), drawn with uniforms in [0, 1); a token of probability zero is never drawn."""
    # token = min { i : p_0 + … + p_i > u }      inverse transform sampling, Devroye 1986, section III.2
    # The sum may miss 1 by rounding, so u is scaled by it. A parallel sum may rise a little where p_i = 0, so such sums
    # are set to 0, which no u is below.
    reached_BV = probabilities_BV.cumsum(-1) * (probabilities_BV > 0)
    total_B1 = reached_BV.amax(-1, keepdim=True)
    uniform_B1 = uniform_B.to(reached_BV.dtype).clamp(max=LARGEST_UNIFORM).unsqueeze(-1)
    return (reached_BV > uniform_B1 * total_B1).to(torch.uint8).argmax(-1)
