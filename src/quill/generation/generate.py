"""Writing tokens: read the prompt at once, then add one token after another with the key/value cache.

On the way text → tokens → model → training → generation → people this is the loop of generation. It knows tokens only;
text, stop strings and prompts belong to `language_model.py`.

Past the trained context: positions are learned for `block_size` places and stored inside the cached keys, so a full
cache cannot slide by one. It is emptied instead, and the last `block_size // 2` tokens are read again at once. Such a
re-reading comes after every `block_size - block_size // 2` tokens, so the cost a token stays bounded however long the
text grows, and the model always sees at least that half.

Reference: Pope et al., "Efficiently Scaling Transformer Inference" (2022), section 2, for prefill and decode.

Shapes: B rows (samples), T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from quill.errors import CheckpointError, require
from quill.generation.sampling import SEEDS, SamplingConfig, choose_tokens, uniforms
from quill.model.build import Model
from quill.model.cache import KVCache

_UNIFORMS_AT_ONCE = 256  # tokens; one copy to the device instead of one a token


def generate_tokens(
    model: Model,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yield the next token of each of `num_samples` rows, `max_new_tokens` times, all continuing one prompt.

    Row r draws from its own random stream of (seed, r), so it does not depend on how many rows are written. The
    model's training mode and the global random state stay as they are. Impossible values are a ConfigError.
    """
    require(len(prompt) > 0, "prompt", list(prompt), "at least one token, there is nothing to continue otherwise")
    for name, value, least in (("max_new_tokens", max_new_tokens, 0), ("num_samples", num_samples, 1)):
        require(_is_whole(value) and value >= least, name, value, f"a whole number of at least {least}")
    require(_is_whole(seed) and 0 <= seed < SEEDS, "seed", seed, "a whole number from 0 to 2**64 - 1")
    return _write(
        model, [int(token) for token in prompt], max_new_tokens, num_samples, sampling or SamplingConfig(), seed
    )


@torch.inference_mode()  # torch applies this to a generator only while it runs, so the caller's code is left alone
def _write(
    model: Model, prompt: list[int], max_new_tokens: int, num_samples: int, sampling: SamplingConfig, seed: int
) -> Iterator[list[int]]:
    if max_new_tokens == 0:
        return
    weight = model.token_embedding.weight
    prompt_1T = torch.tensor([prompt[-model.config.block_size :]], device=weight.device)
    prompt_cache = KVCache(model.config, 1, weight.device, weight.dtype)
    logits_BV = _read(model, prompt_1T, prompt_cache).expand(num_samples, -1)
    if not math.isfinite(logits_BV.amax().item()):
        raise CheckpointError(
            "the model's scores are not finite numbers: its weights are damaged, use another checkpoint"
        )
    cache = prompt_cache.repeat(num_samples) if num_samples > 1 else prompt_cache

    reread = max(1, model.config.block_size // 2)
    recent = deque(prompt_1T.expand(num_samples, -1).unbind(1), maxlen=reread)
    uniforms_TB = torch.empty(0)
    for position in range(max_new_tokens):
        ahead = position % _UNIFORMS_AT_ONCE
        if ahead == 0:
            count = min(_UNIFORMS_AT_ONCE, max_new_tokens - position)
            block_TB = uniforms(seed, range(num_samples), position, count)
            uniforms_TB = torch.from_numpy(block_TB).float().to(weight.device)
        token_B = choose_tokens(logits_BV, sampling, uniforms_TB[ahead])
        yield token_B.tolist()
        if position + 1 == max_new_tokens:
            return
        recent.append(token_B)
        if cache.length < cache.capacity:
            logits_BV = _read(model, token_B.unsqueeze(1), cache)
        else:
            cache.truncate(0)
            logits_BV = _read(model, torch.stack(tuple(recent), dim=1), cache)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block, and leave every module's training mode as it was."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _read(model: Model, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """Return logits_BV after the last of these tokens, which the cache then holds."""
    with evaluation_mode(model):
        return model(tokens_BT, cache)[:, -1]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
