"""Does a fast engine still compute this model?

The Numba step and the static twin for CUDA graphs repeat the formulas of `model/`. After an edit of a model they would
generate with the old formula. A fingerprint identifies the source that they implement. If the source differs, or the
model is an object that could have been changed, the engine's logits are compared with the model's own before the first
token.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import quill
from quill.checkpoints.format import Checkpoint
from quill.model.config import CONFIGS, QK_GAIN, ModelConfig, ModernConfig
from quill.model.rotary import rotary_frequencies
from quill.model.shapes import weight_shapes

if TYPE_CHECKING:
    from quill.model.build import Model

IMPLEMENTED = "e54852c22f9af827"
"""`source_fingerprint()` of the model that numba_step/ and static_model.py implement."""

SHORT = 32  # tokens compared if classes and source are known; otherwise a whole context
PAST_CONTEXT = 4  # tokens compared past the context if positions roll
TOLERANCE, HALF_TOLERANCE = 2e-4, 3e-2  # of the largest logit; float32 rounding is ten times smaller

Logits = Callable[[Sequence[int]], np.ndarray]
"""logits_TV of tokens, past the context one token at a time"""


def source_fingerprint() -> str:
    """Return a digest of the source and constants that decide a model's logits; comments do not change it.

    It is computed in about a millisecond, without importing PyTorch.
    """
    folder = Path(quill.__file__).parent / "model"
    try:
        code = [code_of((folder / f"{name}.py").read_text(encoding="utf-8")) for name in ("gpt", "modern", "cache")]
    except OSError:  # installed without its source
        return "unknown"
    example = ModernConfig(vocab_size=10, block_size=100, n_head=2, n_embd=20)
    constants = (example.rolling_window, example.ngram_sizes, rotary_frequencies(10), QK_GAIN)
    return hashlib.sha256("\0".join([*code, repr(constants)]).encode()).hexdigest()[:16]


def code_of(source: str) -> str:
    """Return Python source without comments, docstrings, blank lines and spaces at line ends."""
    # Other strings are matched too, and kept, so that a # inside a string does not begin a comment.
    pattern = r'(?P<left_out>"""(?:.|\n)*?"""|#[^\n]*)|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    code = re.sub(pattern, lambda match: "" if match["left_out"] else match[0], source)
    return "\n".join(line.rstrip() for line in code.splitlines() if line.strip())


def unknown_weight(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> str:
    """Return a message about the first weight that is new, missing or of another shape; "" if all fit."""
    if type(config) not in CONFIGS.values():
        return f"and this engine does not know {type(config).__name__}"
    expected, found = weight_shapes(config), {name: tuple(array.shape) for name, array in arrays.items()}
    name = min((name for name, _ in expected.items() ^ found.items()), default="")
    return f"and this engine does not know its weight {name}" if name else ""


def must_compare(model: Model | Checkpoint) -> bool:
    """Return whether an engine for this model must be compared with the model before its first token.

    False for a checkpoint whose model has not been built yet, if the source is unedited: no module can have changed.
    """
    loaded = "quill.model.gpt" in sys.modules
    return loaded or not isinstance(model, Checkpoint) or source_fingerprint() != IMPLEMENTED


def difference(model: Model, logits: Logits) -> str:
    """Return a message about how an engine's logits differ from the model's own; "" if they agree.

    A model of known classes and source is compared on a short sequence; any other on a whole context, and past it if
    positions roll.
    """
    known = source_fingerprint() == IMPLEMENTED and is_built_in(model)
    config = model.config
    count = min(SHORT, config.block_size) if known else config.block_size + bool(config.rolling_window) * PAST_CONTEXT
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=count).tolist()
    expected_TV = own_logits(model, tokens)
    if not np.isfinite(expected_TV).all():  # damaged weights are reported when the first token is chosen
        return ""
    largest = float(np.abs(expected_TV).max())
    half = model.token_embedding.weight.element_size() < 4
    apart = float(np.abs(logits(tokens) - expected_TV).max())
    if apart <= largest * (HALF_TOLERANCE if half else TOLERANCE):
        return ""
    return f"the model was edited, its logits differ from this engine's by up to {apart:.2g}"


def is_built_in(model: Model) -> bool:
    """Return whether a model has only modules of Quill's and PyTorch's classes, with their original methods.

    Modules of acceleration/ are included: each was compared with the class that it replaces.
    """
    return all(
        type(module).__module__.startswith(("quill.model.", "quill.acceleration.", "torch.nn."))
        and not vars(module).keys() & {"forward", "attend", "project"}
        for module in model.modules()
    )


def own_logits(model: Model, tokens: Sequence[int]) -> np.ndarray:
    """Return logits_TV computed by the model itself: one context at once, then one token at a time."""
    import torch

    from quill.model.cache import KVCache
    from quill.model.modes import evaluation_mode

    weight, context = model.token_embedding.weight, model.config.block_size
    with torch.no_grad(), evaluation_mode(model):
        tokens_1T = torch.tensor([list(tokens)], device=weight.device)
        cache = KVCache(model.config, 1, weight.device, weight.dtype)
        parts = [tokens_1T[:, :context], *tokens_1T[:, context:].split(1, dim=1)]
        return torch.cat([model(part, cache)[0] for part in parts if part.numel()]).float().cpu().numpy()
