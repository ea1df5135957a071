"""Record the film of a run while it trains.

A frame takes one forward pass without gradients, of the probe text beside a few texts of repeated random tokens, and a
short sample. It changes neither the model nor the state of any random-number generator of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quill.errors import QuillError, first_line
from quill.lab.attention import packed_triangle
from quill.lab.film.format import (
    MOST_FRAMES,
    SAMPLE_TOKENS,
    TYPES,
    Evaluation,
    Frame,
    Frames,
    probe_length,
    read_film,
    write_film,
)
from quill.lab.residual import unembed
from quill.lab.roles.patterns import Score, induction_pattern
from quill.lab.trace import record
from quill.lab.windows import Tokens
from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.config import ModelConfig
from quill.model.modes import evaluation_mode
from quill.tokenizers.base import Tokenizer

FEWEST_FRAMES, MOST_PLANNED, STEPS_PER_FRAME = 12, 24, 30
"""Frames that are planned: one for 30 steps of the run, within these bounds. A frame costs about as much as a step of a
very small model, and much less than one of a larger model."""
REPEATED_TEXTS = 3
"""Texts of repeated random tokens, on which induction is measured; each has another period."""
TEMPERATURE = 0.8
NEVER = 2**62
LARGEST = 6e4  # float16 ends at 65,504


def next_step(last: int, total: int) -> int:
    """Return the step of the frame after the one at step `last`, in a run of `total` steps.

    Steps grow by a factor with which the planned frames cover the run. The last step has one.
    """
    if last >= total:
        return NEVER
    planned = min(MOST_PLANNED, max(FEWEST_FRAMES, total // STEPS_PER_FRAME))
    factor = total ** (1 / (planned - 2))
    step = max(last + 1, round(last * factor))
    return step if step <= total / factor**0.5 else total


class FilmRecorder:
    """Adds a frame to the film of a run when one is due, and says when the next one is.

    `val_tokens` is the validation split, `prompt` begins the samples. With `resume` the film in the file goes on. What
    goes wrong ends the film with one warning, and never the run.
    """

    def __init__(
        self,
        file: Path,
        config: ModelConfig,
        tokenizer: Tokenizer,
        val_tokens: Tokens,
        prompt: np.ndarray,
        *,
        seed: int = 0,
        resume: bool = False,
        warn: Callable[[str], object] = lambda message: None,
    ):
        self.file, self.seed, self.warn = file, seed, warn
        self.prompt = prompt
        self.tokens_T = np.array(val_tokens[: probe_length(config, len(val_tokens))], np.int64)
        self.frames: list[Frame] = []
        self.tokenizer = tokenizer
        self._broken = len(self.tokens_T) < 2
        if self._broken:
            warn("there is no film of this run: it needs a context of at least 2 tokens and a model that fits 5 MB")
        elif resume and file.exists():
            self._continue(config)

    def __call__(self, model: Model, step: int, total: int, evaluation: Evaluation) -> int:
        """Record a frame if one is due after `step` of `total` steps; return the step of the next one."""
        if self._broken:
            return NEVER
        try:
            return self._advance(model, step, total, evaluation)
        except Exception as error:  # a full disk, an edited model whose parts cannot be recorded, memory that runs out
            self._broken = True
            self.warn(f"the film ends before step {step}, because {self.file} cannot go on: {first_line(error)}")
            return NEVER

    def _advance(self, model: Model, step: int, total: int, evaluation: Evaluation) -> int:
        while self.frames and self.frames[-1].step > step:  # of a branch of the run that was left
            self.frames.pop()
        last = self.frames[-1].step if self.frames else -1
        due = not self.frames or step >= self._next(last, total)
        if step > last and (due or step == total):
            frame = make_frame(model, self.tokens_T, self.prompt, step, evaluation, self.seed)
            if frame is not None:
                self.frames[MOST_FRAMES - 1 :] = [frame]
                write_film(self.file, Frames(self.tokens_T, self.tokenizer, tuple(self.frames)))
        return self._next(self.frames[-1].step if self.frames else step, total)

    def _next(self, last: int, total: int) -> int:
        return next_step(last, total) if len(self.frames) < MOST_FRAMES - 1 else total

    def _continue(self, config: ModelConfig) -> None:
        try:
            film = read_film(self.file)
        except QuillError as error:
            self.warn(f"a new film begins here: {error}")
            return
        shape = (config.n_layer, config.n_head, len(self.tokens_T) * (len(self.tokens_T) + 1) // 2)
        same = film.frames[0].attention_LHN.shape == shape and np.array_equal(film.tokens_T, self.tokens_T)
        if same and film.tokenizer.to_json() == self.tokenizer.to_json():
            self.frames = list(film.frames)
        else:
            self.warn(f"a new film begins here: {self.file} is of another model or text")


def make_frame(
    model: Model, tokens_T: np.ndarray, prompt: np.ndarray, step: int, evaluation: Evaluation, seed: int = 0
) -> Frame | None:
    """Return what a model computes for the probe text; None if its logits are not finite."""
    T, L = len(tokens_T), model.config.n_layer
    texts = repeated_texts(model.config.vocab_size, T, seed)
    rows = [tokens_T, *(text for text, _ in texts)]
    device = model.token_embedding.weight.device
    kept: dict[str, Tensor] = {}

    class Keeper:
        def wants(self, name: str) -> bool:
            return True

        def add(self, name: str, tensor: Tensor) -> None:
            parts = name.split(".")
            if parts[-1] == "weights_BHTS":
                kept[f"weights {parts[1]}"] = tensor
            elif name == "embedding_BTD" or (len(parts) == 3 and parts[-1] == "output_BTD"):
                kept[f"stream {parts[1] if len(parts) == 3 else -1}"] = tensor[0]

    logits_BTV = record(model, torch.from_numpy(np.stack(rows)).to(device), Keeper())
    if not bool(logits_BTV.isfinite().all()):
        return None
    streams_RTD = torch.stack([kept[f"stream {layer}"] for layer in range(-1, L)])
    weights_BLHTS = torch.stack([kept[f"weights {layer}"] for layer in range(L)], 1).float().cpu().numpy()
    arrays = read_lens(unembed(model, streams_RTD[:-1].to(model.head.weight.dtype)), logits_BTV[:1], tokens_T)
    arrays["attention_LHN"] = packed_triangle(weights_BLHTS[0])
    arrays["induction_LH"] = induction(weights_BLHTS[1:], texts)
    arrays["sample_G"] = sample_tokens(model, prompt, SAMPLE_TOKENS, seed)
    return Frame(step, evaluation, **{name: arrays[name].astype(kind) for name, kind in TYPES.items()})


def read_lens(lens_QTV: Tensor, logits_1TV: Tensor, tokens_T: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of a logit lens, given the logits of all readings but the last, and those of the model."""
    logs_RTV = F.log_softmax(torch.cat([lens_QTV, logits_1TV]).float(), -1)
    probability_RT, best_RT = logs_RTV.exp().max(-1)
    kl_RT = (logs_RTV[-1].exp() * (logs_RTV[-1] - logs_RTV)).sum(-1)
    right_U1 = torch.from_numpy(tokens_T[1:, None]).to(logs_RTV.device)
    loss_RU = -logs_RTV[:, :-1].gather(-1, right_U1.expand(len(logs_RTV), -1, 1))[..., 0]
    found = {"best_RT": best_RT, "probability_RT": probability_RT, "loss_RU": loss_RU, "kl_RT": kl_RT}
    return {name: tensor.clamp(0, LARGEST).cpu().numpy() for name, tensor in found.items()}


def repeated_texts(vocab_size: int, length: int, seed: int) -> list[tuple[np.ndarray, int]]:
    """Return texts of `length` tokens that repeat random ones, and their periods, which differ.

    The tokens of a period differ from one another, so there is one place that an induction head can attend to.
    """
    generator = np.random.default_rng(seed)
    longest = min(length // 2, vocab_size)
    periods = np.unique(np.linspace(max(2, longest // 2), longest, REPEATED_TEXTS).round().astype(int))
    chosen = [int(period) for period in periods if 2 <= period <= longest]
    return [(np.resize(generator.permutation(vocab_size)[:period], length), period) for period in chosen]


def induction(weights_BLHTS: np.ndarray, texts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Return strength_LH of induction: attention to the token after the earlier occurrence, in the second period."""
    score = Score(np.zeros(weights_BLHTS.shape[1:3]))
    for weights_LHTS, (tokens_T, period) in zip(weights_BLHTS, texts, strict=True):
        positions_T = np.arange(len(tokens_T))
        second_T = (positions_T >= period) & (positions_T < 2 * period)
        score.add(weights_LHTS, induction_pattern(tokens_T), second_T)
    if not score.queries:
        return np.zeros(weights_BLHTS.shape[1:3])
    return (score.mean_LH - score.uniform) / (1 - score.uniform)


def sample_tokens(model: Model, prompt: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` sampled tokens that follow a prompt, or fewer where the context ends, the same for a seed."""
    random = np.random.default_rng(seed).random(count)
    device = model.token_embedding.weight.device
    chosen: list[int] = []
    with torch.inference_mode(), evaluation_mode(model):
        cache = KVCache(model.config, device=device)
        new = torch.from_numpy(np.asarray(prompt, np.int64))[None].to(device)
        for number in random[: model.config.block_size - len(prompt) + 1]:
            logits_V = model(new, cache)[0, -1].double().cpu().numpy() / TEMPERATURE
            cumulative_V = np.exp(logits_V - logits_V.max()).cumsum()
            token = int(np.searchsorted(cumulative_V, number * cumulative_V[-1], "right"))
            chosen.append(min(token, len(logits_V) - 1))
            new = torch.tensor([[chosen[-1]]], device=device)
    return np.array(chosen)
