"""Look inside a model from outside: activations, attention, lenses, attribution, ablation, films.

Every instrument takes a subject (`quill.load("out")`, or any object with `.model` and `.tokenizer`) and returns a
finding, which shows itself in a notebook and has `.numbers`, `.figure()`, `.explained()` and `.save(folder)`:

    from quill import lab
    model = quill.load("out")
    lab.attention_maps(model, "ROMEO:")
    lab.ablate(model, "head:0.3", text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quill.lab.ablation.cost import ablate, ablate_each, ablate_together
    from quill.lab.ablation.patching import patch
    from quill.lab.ablation.pruning import prune_heads
    from quill.lab.attention import attention_maps
    from quill.lab.attribution import attribute
    from quill.lab.film.film import load_film
    from quill.lab.finding import Finding
    from quill.lab.logit_lens import lens
    from quill.lab.residual import residual_parts
    from quill.lab.roles.classify import head_roles
    from quill.lab.roles.neurons import neuron_cards
    from quill.lab.subject import ModelAndTokenizer
    from quill.lab.token_influence import influence
    from quill.lab.tuned_lens import load_tuned_lens, save_tuned_lens, train_tuned_lens

__all__ = [
    "Finding",
    "ModelAndTokenizer",
    "ablate",
    "ablate_each",
    "ablate_together",
    "attention_maps",
    "attribute",
    "head_roles",
    "influence",
    "lens",
    "load_film",
    "load_tuned_lens",
    "neuron_cards",
    "patch",
    "prune_heads",
    "residual_parts",
    "save_tuned_lens",
    "train_tuned_lens",
]

_HOMES = {
    "ablate": "ablation.cost",
    "ablate_each": "ablation.cost",
    "ablate_together": "ablation.cost",
    "patch": "ablation.patching",
    "prune_heads": "ablation.pruning",
    "attention_maps": "attention",
    "attribute": "attribution",
    "load_film": "film.film",
    "Finding": "finding",
    "lens": "logit_lens",
    "residual_parts": "residual",
    "head_roles": "roles.classify",
    "neuron_cards": "roles.neurons",
    "ModelAndTokenizer": "subject",
    "influence": "token_influence",
    "load_tuned_lens": "tuned_lens",
    "save_tuned_lens": "tuned_lens",
    "train_tuned_lens": "tuned_lens",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quill.lab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill.lab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
