"""The tuned lens: an affine map for each layer, trained to predict what the model predicts at its end.

    x ↦ x + x Aᵀ + b        minimise  KL( p_model ‖ softmax(head(norm(x + x Aᵀ + b))) )

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", section 3. A starts at 0, so
training starts at the logit lens. It belongs to one set of weights, whose hash is in its file.

Shapes: R layers that have a map (all readings but the last), N windows, B batch, T time, D width.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quill.checkpoints.tensor_file import TensorFile, write_tensor_file
from quill.errors import CheckpointError, ConfigError
from quill.files import draft_of
from quill.lab.residual import differentiable_unembed
from quill.lab.subject import Subject
from quill.lab.trace import record
from quill.lab.windows import Tokens, windows_of
from quill.model.build import Model

FORMAT = "quill tuned lens 1"
STEPS, BATCH, RATE = 150, 4, 1e-3
NAME = "tuned_lens.safetensors"
"""The file in the folder of a run."""
WINDOWS, LONGEST = 256, 256
"""Windows of the training text, and tokens in each at most."""


@dataclass(frozen=True)
class TunedLens:
    """The affine maps of one model."""

    weight_RDD: Tensor
    bias_RD: Tensor
    weights_sha256: str
    """hash of the model's weights (`hash_of`)"""
    kl_before_R: list[float]
    """mean KL divergence to the model's prediction by the logit lens, over the windows of the last tenth of training"""
    kl_after_R: list[float]
    """the same by this lens"""

    def translate(self, x_BTD: Tensor, reading: int) -> Tensor:
        """Return x + x Aᵀ + b of a layer."""
        return x_BTD + F.linear(x_BTD, self.weight_RDD[reading], self.bias_RD[reading])


def hash_of(model: Model) -> str:
    """Return the SHA-256 of a model's weights, names and shapes included."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_tuned_lens(
    path: Path,
    subject: Subject,
    training_tokens: Callable[[], Tokens],
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> TunedLens:
    """Return the tuned lens in a file. If it is missing or of other weights, train one and write the file."""
    try:
        return load_tuned_lens(path, subject.model)
    except CheckpointError:
        tokens = training_tokens()
        windows_NT = windows_of(tokens, min(subject.model.config.block_size, LONGEST, len(tokens) // 2), WINDOWS)
        found = train_tuned_lens(subject, windows_NT, seed=seed, on_progress=on_progress)
        save_tuned_lens(found, path)
        return found


def train_tuned_lens(
    subject: Subject,
    tokens_NT: Tensor,
    *,
    steps: int = STEPS,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> TunedLens:
    """Return a tuned lens for a model, trained on windows of its training text (`windows_of`).

    `on_progress` gets the share that is done, and may raise to stop. The global random-number state does not change.
    """
    model = subject.model
    device, D, R = model.token_embedding.weight.device, model.config.n_embd, model.config.n_layer
    if len(tokens_NT) < 2:
        raise ConfigError(f"{len(tokens_NT)} windows cannot train a lens: give at least 2")
    weight_RDD = torch.zeros(R, D, D, device=device, requires_grad=True)
    bias_RD = torch.zeros(R, D, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([weight_RDD, bias_RD], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = np.random.default_rng(seed)
    before, after = [], []
    for step in range(steps):
        if on_progress is not None:
            on_progress(step / steps)
        chosen = torch.from_numpy(generator.integers(0, len(tokens_NT), BATCH))
        x_RBTD, logits_BTV = readings(model, tokens_NT[chosen].to(device))
        target_BTV = F.log_softmax(logits_BTV.float(), -1)
        translated = x_RBTD + torch.einsum("rbtd,red->rbte", x_RBTD, weight_RDD) + bias_RD[:, None, None]
        kl_R = divergences(model, translated, target_BTV)
        optimizer.zero_grad(set_to_none=True)
        kl_R.sum().backward(inputs=[weight_RDD, bias_RD])
        optimizer.step()
        schedule.step()
        if step >= steps - max(1, steps // 10):
            after.append(kl_R.detach().tolist())
            with torch.no_grad():
                before.append(divergences(model, x_RBTD, target_BTV).tolist())
    return TunedLens(
        weight_RDD.detach(),
        bias_RD.detach(),
        hash_of(model),
        np.mean(before, 0).tolist(),
        np.mean(after, 0).tolist(),
    )


def readings(model: Model, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_RBTD, the residual stream after the embedding and each block but the last, and logits_BTV."""
    kept: list[Tensor] = []

    class Recorder:
        def wants(self, name: str) -> bool:
            return False

        def add(self, name: str, tensor: Tensor) -> None:
            if name == "embedding_BTD" or (name.startswith("blocks.") and name.split(".")[2] == "output_BTD"):
                kept.append(tensor)

    logits_BTV = record(model, tokens_BT, Recorder())
    return torch.stack(kept[:-1]).float(), logits_BTV


def divergences(model: Model, x_RBTD: Tensor, target_BTV: Tensor) -> Tensor:
    """Return kl_R: the mean KL divergence of the model's prediction from that of each layer, with gradients of x."""
    logs = F.log_softmax(differentiable_unembed(model, x_RBTD.to(model.head.weight.dtype)).float(), -1)
    return (target_BTV.exp() * (target_BTV - logs)).sum(-1).mean((1, 2))


def save_tuned_lens(lens: TunedLens, path: Path) -> None:
    """Write a tuned lens as a safetensors file, whole or not at all."""
    draft = draft_of(path)
    metadata = {
        "format": FORMAT, "weights_sha256": lens.weights_sha256, "kl_before": lens.kl_before_R,
        "kl_after": lens.kl_after_R,
    }  # fmt: skip
    try:
        write_tensor_file(draft, {"weight": lens.weight_RDD, "bias": lens.bias_RD}, metadata)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def load_tuned_lens(path: Path, model: Model) -> TunedLens:
    """Return the tuned lens of a file; CheckpointError where it is damaged or belongs to other weights."""
    D, R = model.config.n_embd, model.config.n_layer
    with TensorFile(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
        about = file.metadata
        if about.get("format") != FORMAT or shapes != {"weight": (R, D, D), "bias": (R, D)}:
            raise CheckpointError(f"{path} is not a tuned lens of this model: delete it, and it is trained again")
        if about.get("weights_sha256") != hash_of(model):
            raise CheckpointError(f"{path} belongs to other weights: delete it, and it is trained again")
        arrays, _ = file.read()
    before, after = about.get("kl_before"), about.get("kl_after")
    if not (isinstance(before, list) and isinstance(after, list)):
        raise CheckpointError(f"{path} is damaged: delete it, and it is trained again")
    to = model.token_embedding.weight.device
    return TunedLens(
        torch.from_numpy(arrays["weight"]).to(to),
        torch.from_numpy(arrays["bias"]).to(to),
        str(about["weights_sha256"]),
        before,
        after,
    )
