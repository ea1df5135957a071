"""What `quill inspect` can show: a name, a line of help, and the instrument that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.errors import ConfigError

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.lab.finding import Finding
    from quill.lab.subject import Subject


@dataclass
class Look:
    """A model, a text, and what was asked for."""

    subject: Subject
    folder: Path
    """the run"""
    prompt: str
    options: Any
    """the flags: layer, head, position, token, versus, target, method, seed"""
    read_dataset: Callable[[], AnyDataset]
    """returns the text of the run, prepared"""
    on_progress: Callable[[str, float], object]

    def validation_tokens(self) -> Any:
        """Return the tokens of the validation split, or of the prompt where it is long enough to measure losses on."""
        if len(self.prompt) >= 16 * 16:
            return self.subject.tokenizer.encode(self.prompt)
        return self.read_dataset().val


def attention(look: Look) -> Finding:
    """Return the attention of every head, or of the layer and head that were chosen."""
    from quill.lab.attention import attention_maps

    kind = look.options.show if look.options.show in ("value-weighted", "rollout") else "weights"
    return attention_maps(look.subject, look.prompt, layer=look.options.layer, head=look.options.head, kind=kind)


def logit_lens(look: Look) -> Finding:
    """Return what each layer would predict."""
    from quill.lab.logit_lens import lens

    return lens(look.subject, look.prompt)


def tuned_lens(look: Look) -> Finding:
    """Return what each layer would predict by a tuned lens, which is trained at its first use."""
    from quill.lab.logit_lens import lens
    from quill.lab.tuned_lens import NAME, find_tuned_lens

    def on_progress(share: float) -> None:
        look.on_progress("training the tuned lens", share)

    folder = look.folder if look.folder.is_dir() else look.folder.parent
    found = find_tuned_lens(
        folder / NAME, look.subject, lambda: look.read_dataset().train, seed=look.options.seed, on_progress=on_progress
    )  # fmt: skip
    return lens(look.subject, look.prompt, tuned=found)


def attribution(look: Look) -> Finding:
    """Return what each part adds to the logit of a token."""
    from quill.lab.attribution import attribute

    options = look.options
    position = -1 if options.position is None else options.position
    return attribute(look.subject, look.prompt, position=position, token=options.token, versus=options.versus)


def ablation(look: Look) -> Finding:
    """Return the loss that each part is worth, or the loss without the targets that were named."""
    from quill.lab.ablation.cost import ablate, ablate_each

    options = look.options
    how = {"method": options.method, "windows": options.windows, "seed": options.seed}
    if options.target:
        return ablate(look.subject, options.target, look.validation_tokens(), **how)
    return ablate_each(look.subject, look.validation_tokens(), **how)


def heads(look: Look) -> Finding:
    """Return the role of every head, and the loss without it."""
    from quill.lab.ablation.cost import ablate_each, text_windows
    from quill.lab.ablation.targets import every_head
    from quill.lab.roles.classify import head_roles

    options = look.options
    windows_NT = text_windows(look.subject, look.validation_tokens(), options.windows)
    config = look.subject.model.config
    costs = ablate_each(
        look.subject, windows_NT, every_head(config), method=options.method, seed=options.seed,
        on_progress=lambda share: look.on_progress("measuring the loss without each head", share),
    )  # fmt: skip
    return head_roles(look.subject, windows_NT, windows=options.windows, costs=costs, seed=options.seed)


def neurons(look: Look) -> Finding:
    """Return cards of the neurons of a layer that add most: what activates them, and what they make likelier."""
    from quill.lab.roles.neurons import neuron_cards

    layer = look.subject.model.config.n_layer - 1 if look.options.layer is None else look.options.layer
    return neuron_cards(look.subject, look.validation_tokens(), layer, seed=look.options.seed)


def influence_of_tokens(look: Look) -> Finding:
    """Return how much each prediction changes when a token is replaced."""
    from quill.lab.token_influence import influence

    return influence(look.subject, look.prompt, seed=look.options.seed)


def patching(look: Look) -> Finding:
    """Return which activations of the prompt, put into the corrupted text, bring its answer back."""
    from quill.lab.ablation.patching import patch

    if look.options.corrupted is None:
        raise ConfigError("patching compares the prompt with another text of the same length: give it as --corrupted=…")
    options = look.options
    position = -1 if options.position is None else options.position
    answers = None if options.token is None or options.versus is None else (options.token, options.versus)
    return patch(look.subject, look.prompt, options.corrupted, answers=answers, position=position)


def over_time(look: Look) -> Finding:
    """Return the film of the run: what it looked like inside while it was trained."""
    from quill.lab.film.film import load_film

    return load_film(look.folder, layer=look.options.layer, head=look.options.head)


VIEWS: dict[str, tuple[Callable[[Look], Finding], str]] = {
    "attention": (attention, "how much each token attends to each, in every head"),
    "value-weighted": (attention, "the same times the size of what is read"),
    "rollout": (attention, "attention followed through the layers"),
    "heads": (heads, "what each head does, and the loss without it"),
    "lens": (logit_lens, "what each layer would predict"),
    "tuned-lens": (tuned_lens, "the same by a lens that is trained at its first use"),
    "attribution": (attribution, "which head or feed-forward made a token likely"),
    "influence": (influence_of_tokens, "how predictions change when a token is replaced"),
    "ablation": (ablation, "the loss without each head and feed-forward"),
    "neurons": (neurons, "what activates a neuron, and what it makes likely"),
    "patching": (patching, "which activations carry the difference between two texts"),
    "over-time": (over_time, "the run while it was trained, if it kept a film"),
}
NOT_IN_ALL = ("patching", "over-time")
"""They need a second text, or a run with a film."""


def view(name: str, look: Look) -> Finding:
    """Return a view by its name."""
    if look.prompt == "":
        raise ConfigError("the prompt is empty: give at least one character to look at")
    return VIEWS[name][0](look)
