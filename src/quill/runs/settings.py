"""Settings of a run: one flat dictionary by name, and the frozen configurations that are built from it.

Each layer of values overrides the one before: defaults, a preset or configuration file, settings given by name.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from quill.errors import ConfigError
from quill.model.config import CONFIGS, ModelConfig
from quill.other_names import suggest_name
from quill.training.config import LARGEST_COUNT, TrainConfig
from quill.validation import check_fields, convert_settings, require


@dataclass(frozen=True)
class RunSettings:
    """The invocation of a run: which text, where, on what. TrainConfig is its recipe."""

    dataset: str | list[str] = "shakespeare"
    """text to train on: shakespeare, tinystories, pydoc, or paths of your own text (files, folders, globs); or a
    mixture of them, each with its share of the windows (a.txt:0.7,b/:0.3)"""
    tokenizer: Literal["char", "byte"] = "char"
    """how text becomes tokens: char (its own characters) or byte (any text, any language)"""
    data_dir: str = "data"
    """folder for prepared token files"""
    out_dir: str = "out"
    """folder of this run: configuration, metrics, samples, checkpoints"""
    init_from: str | None = None
    """start from the weights of a run or a .safetensors file instead of random ones (fine-tuning)"""
    vocab: Literal["same", "extend"] = "same"
    """with init_from: same refuses characters outside the model's vocabulary, extend adds them to it"""
    sample_tokens: int = 200
    """length of the sample generated at each evaluation; 0 for none"""
    log_interval: int = 10
    """steps between log lines"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps"""
    dtype: Literal["auto", "fastest", "float32", "bfloat16", "float16"] = "auto"
    """number format of matrix products: auto is bfloat16 (or float16) on CUDA and float32 elsewhere; fastest also uses
    bfloat16 on CPUs with instructions for it"""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile: True is worth it on long runs; auto compiles on CUDA where steps cannot be captured as a graph
    (float16, gradient checkpointing, a text too large for the GPU). If it fails there is one warning"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """what each of several processes (torchrun) keeps: ddp the whole model, fsdp a part of all weights, gradients and
    optimizer state, which needs less memory and sends more"""
    tensorboard: bool = False
    """also write TensorBoard event files into out_dir"""
    film: bool = False
    """record what the model computes for one text at up to 24 moments of the run (film.safetensors, at most 5 MB), for
    quill inspect --over_time; True by default with minutes"""

    def __post_init__(self) -> None:
        check_fields(self)
        require(1 <= self.log_interval <= LARGEST_COUNT, "log_interval", self.log_interval, f"1 to {LARGEST_COUNT}")
        most = 10**6
        require(0 <= self.sample_tokens <= most, "sample_tokens", self.sample_tokens, f"from 0 to {most}")
        for name in ("data_dir", "out_dir", "device"):
            require(bool(getattr(self, name).strip()), name, getattr(self, name), "a name or a path, not empty")
        paths = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        require(bool(paths) and all(path.strip() for path in paths), "dataset", self.dataset, "a name or a path")


# The vocabulary is decided by the text and its tokenizer, so it is not a setting.
SHAPES = {
    name: tuple(f.name for f in dataclasses.fields(config) if f.name != "vocab_size")
    for name, config in CONFIGS.items()
}
MODEL_FIELDS = ("architecture", *dict.fromkeys(itertools.chain(*SHAPES.values())))
TRAIN_FIELDS = tuple(f.name for f in dataclasses.fields(TrainConfig))
RUN_FIELDS = tuple(f.name for f in dataclasses.fields(RunSettings))
FIELDS = (*MODEL_FIELDS, *TRAIN_FIELDS, *RUN_FIELDS)
OLD_NAMES = {"windows": "data_order"}
"""Settings that had another name in earlier versions: old name, new name."""

# Settings that have an effect only with these values of another setting (D4).
EFFECTIVE = {
    "muon_learning_rate": ("optimizer", ("muon",)),
    "ngram_learning_rate": ("optimizer", ("muon",)),
    "cooldown": ("lr_schedule", ("wsd",)),
}

Settings = dict[str, Any]


def default_settings(architecture: str) -> Settings:
    """Return the settings of an architecture, each with its default value."""
    fields = (f for c in (CONFIGS[architecture], TrainConfig, RunSettings) for f in dataclasses.fields(c))
    return {"architecture": architecture} | {f.name: f.default for f in fields if f.name != "vocab_size"}


def resolve_settings(
    given: Mapping[str, Any], file: Mapping[str, Any] | None = None, *, source: str = "", architecture: str = "classic"
) -> Settings:
    """Return the settings of a run: defaults, then those of a file, then those given by name.

    `source` names the file in messages, and `architecture` is the default one. An unknown name, a wrong type, an
    impossible value, or a given setting without effect is a ConfigError.
    """
    file, given = check_settings(file or {}, source), check_settings(given)
    settings = default_settings(given.get("architecture", file.get("architecture", architecture)))
    for name in (*file, *given):
        if name not in settings:
            owner = next(other for other, names in SHAPES.items() if name in names)
            where = f"{source}: " if name not in given else ""
            raise ConfigError(f"{where}{name} belongs to the {owner} model: leave it out, or use architecture={owner}")
    settings |= file | given
    check_effect(given, settings)
    build_configs(settings)
    return settings


def setting_types() -> dict[str, Any]:
    """Return the annotation of every setting by name."""
    types: dict[str, Any] = {"architecture": Literal[tuple(CONFIGS)]}
    for config in (*CONFIGS.values(), TrainConfig, RunSettings):
        types |= get_type_hints(config)
    return {name: kind for name, kind in types.items() if name != "vocab_size"}


def check_settings(settings: Mapping[str, Any], source: str = "") -> Settings:
    """Return settings under their current names, converted to their types; errors name the source and the setting."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in settings.items()}
    return convert_settings(renamed, setting_types(), source, suggest_name)


def check_effect(names: Iterable[str], settings: Settings) -> None:
    """Raise ConfigError for a named setting that has no effect."""
    for name in names:
        other, values = EFFECTIVE.get(name, ("architecture", (settings["architecture"],)))
        if settings[other] not in values:
            raise ConfigError(
                f"{name} does nothing with {other}={settings[other]}: leave it out, or use {other}={values[0]}"
            )
        if name == "ngram_learning_rate" and settings["architecture"] != "modern":
            raise ConfigError(f"{name} does nothing without n-gram tables: leave it out, or use architecture=modern")
        if name in ("ngram_rows", "ngram_dropout") and settings["ngram"] == 1:
            raise ConfigError(f"{name} does nothing with ngram=1: leave it out, or use a larger ngram")
        if name == "vocab" and settings["vocab"] != "same" and not settings["init_from"]:
            raise ConfigError("vocab does nothing without init_from: leave it out, or name a trained model")


def build_configs(settings: Mapping[str, Any], vocab_size: int = 1) -> tuple[ModelConfig, TrainConfig, RunSettings]:
    """Return the three frozen configurations of flat settings; impossible values are ConfigErrors."""
    kind = settings["architecture"]
    model = CONFIGS[kind](vocab_size=vocab_size, **{name: settings[name] for name in SHAPES[kind]})
    train = TrainConfig(**{name: settings[name] for name in TRAIN_FIELDS})
    return model, train, RunSettings(**{name: settings[name] for name in RUN_FIELDS})
