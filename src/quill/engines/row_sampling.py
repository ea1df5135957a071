"""The choice of a token for many texts at once, each by its own rules, without asking the device a question.

On the way text → tokens → model → training → generation → people this is `sampling.py` once more for engines that
choose on a GPU: what is a number of a request there is a tensor with a row for each place here, so that a CUDA graph
can record the choice. A stage leaves the scores of a row that does not want it as they are, bit for bit; so a stage
that nobody wants can be left out without anybody noticing.

The formulas and their sources stand in `sampling.py`; a test holds that both choose the same token.

Shapes: B places, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from quill.engines.request import Request, SamplingConfig
from quill.engines.sampling import draw

SMALLEST_TEMPERATURE = float(torch.finfo(torch.float32).tiny)  # as in sampling.py
Stages = frozenset[str]
ALL_STAGES: Stages = frozenset({"penalties", "temperature", "top_k", "top_p", "min_p", "draw"})


def stages_of(requests: Iterable[Request]) -> Stages:
    """Return which stages these requests want; "draw" is wanted by all that are not greedy."""
    wanted: set[str] = set()
    for request in requests:
        how = request.sampling
        penalties = (how.presence_penalty, how.frequency_penalty, how.repetition_penalty - 1)
        wanted |= {"penalties"} if request.logit_bias or any(penalties) else set()
        if how.temperature:
            wanted |= {"draw"} | {name for name, is_wanted in _filters(how).items() if is_wanted}
    return frozenset(wanted)


def _filters(how: SamplingConfig) -> dict[str, bool]:
    return {
        "temperature": how.temperature != 1,
        "top_k": how.top_k is not None,
        "top_p": how.top_p is not None and how.top_p < 1,
        "min_p": bool(how.min_p),
    }


class RowSampling:
    """How each of B places chooses its tokens, as tensors that stay where they are."""

    def __init__(self, places: int, vocab_size: int, device: torch.device) -> None:
        def column(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(places, 1, dtype=dtype, device=device)

        self.greedy_B1, self.scaled_B1, self.nucleus_B1 = (column(torch.bool) for _ in range(3))
        self.temperature_B1, self.top_p_B1, self.log_min_p_B1 = column(), column(), column()
        self.presence_B1, self.frequency_B1, self.repetition_B1 = column(), column(), column()
        self.last_kept_B1 = column(torch.long)  # top_k - 1
        self.bias_BV, self.seen_BV, self.counts_BV = (torch.zeros(places, vocab_size, device=device) for _ in range(3))
        self.vocab_size = vocab_size
        for place in range(places):
            self.assign(place, Request((0,), 0, SamplingConfig(0)))  # whoever is nobody chooses too

    def assign(self, place: int, request: Request) -> None:
        """Let a place choose as this request says, from its first token on."""
        how, V = request.sampling, self.vocab_size
        wanted = _filters(how)
        self.greedy_B1[place] = how.temperature == 0
        self.scaled_B1[place] = how.temperature not in (0, 1)
        self.temperature_B1[place] = max(how.temperature, SMALLEST_TEMPERATURE) if how.temperature else 1.0
        self.last_kept_B1[place] = min(how.top_k or V, V) - 1
        self.nucleus_B1[place] = wanted["top_p"]
        self.top_p_B1[place] = how.top_p if how.top_p is not None else 1.0
        self.log_min_p_B1[place] = math.log(how.min_p) if how.min_p else -math.inf
        self.presence_B1[place], self.frequency_B1[place] = how.presence_penalty, how.frequency_penalty
        self.repetition_B1[place] = how.repetition_penalty
        rows_3V = torch.zeros(3, V)  # filled here, and moved at once
        for token, bias in request.logit_bias.items():
            rows_3V[0, token] = bias
        rows_3V[1, list(request.prompt)] = 1
        rows_3V = rows_3V.to(self.bias_BV.device)
        for row, tensor_BV in enumerate((self.bias_BV, self.seen_BV, self.counts_BV)):
            tensor_BV[place] = rows_3V[row]

    def choose(self, logits_BV: Tensor, uniform_B: Tensor, stages: Stages = ALL_STAGES) -> Tensor:
        """Return the next token of each place (B,) for float32 scores, by these stages at least."""
        if "penalties" in stages:
            logits_BV = self._adjust(logits_BV)
        best_B = logits_BV.argmax(-1)
        if "draw" not in stages:
            return best_B
        if "temperature" in stages:
            scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / self.temperature_B1
            logits_BV = torch.where(self.scaled_B1, scaled_BV, logits_BV)
        if "top_k" in stages or "top_p" in stages:
            logits_BV = self._keep_the_first(logits_BV, stages)
        if "min_p" in stages:
            least_B1 = logits_BV.amax(-1, keepdim=True) + self.log_min_p_B1
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf)
        drawn_B = draw(logits_BV.softmax(-1), uniform_B)
        return torch.where(self.greedy_B1[:, 0], best_B, drawn_B)

    def count(self, tokens_B: Tensor, active_B: Tensor) -> None:
        """Remember what was written, in places where `active_B` is 1."""
        self.counts_BV.scatter_add_(1, tokens_B[:, None], active_B[:, None].to(self.counts_BV.dtype))

    def _adjust(self, logits_BV: Tensor) -> Tensor:
        """Return scores after biases and penalties: `sampling.adjust`, row by row."""
        logits_BV = logits_BV + self.bias_BV
        written_BV = self.counts_BV > 0
        penalised_BV = torch.where(logits_BV > 0, logits_BV / self.repetition_B1, logits_BV * self.repetition_B1)
        logits_BV = torch.where((self.seen_BV > 0) | written_BV, penalised_BV, logits_BV)
        return logits_BV - self.presence_B1 * written_BV - self.frequency_B1 * self.counts_BV

    def _keep_the_first(self, logits_BV: Tensor, stages: Stages) -> Tensor:
        """Return scores after top-k and top-p, which share a sorting."""
        sorted_BV = logits_BV.sort(dim=-1, descending=True).values
        last_kept_B1 = sorted_BV.gather(-1, self.last_kept_B1)
        if "top_p" in stages:
            # What top-k removes stands at the end: sorting again would change nothing.
            sorted_BV = sorted_BV.masked_fill(sorted_BV < last_kept_B1, -math.inf)
            p_BV = sorted_BV.softmax(-1)
            kept_B1 = (p_BV.cumsum(-1) - p_BV < self.top_p_B1).sum(-1, keepdim=True)
            # Scores that are not numbers keep none; the device must live to tell of them.
            last_of_nucleus_B1 = sorted_BV.gather(-1, (kept_B1 - 1).clamp(min=0))
            last_kept_B1 = torch.where(self.nucleus_B1, last_of_nucleus_B1, last_kept_B1)
        return logits_BV.masked_fill(logits_BV < last_kept_B1, -math.inf)
