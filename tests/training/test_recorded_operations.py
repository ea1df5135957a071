"""Nothing in a training step would have to be recorded again, as its operations show, one by one and without a GPU.

A CUDA graph replays the same kernels with the same numbers on the same addresses. So a step can be recorded if every
step is the same operations with the same numbers on the same lasting tensors, and none of them reads a value.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from recipes import MakeRecipe as Recipe
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from quill.data.dataset import Dataset
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.optim.optimizer import put_learning_rates_on_device, set_learning_rate
from quill.training.batches import DeviceBatches, plan_batches
from quill.training.config import TrainConfig
from quill.training.graph_step import WARM_UP_STEPS
from quill.training.parameter_groups import build_optimizer
from quill.training.step import TrainStep

CPU = torch.device("cpu")
KINDS = ("classic", "modern")

READING = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2", "bincount",
    "lift_fresh", "lift_fresh_copy",
)  # fmt: skip
"""Operations that bring a value to Python, take a shape from values, or begin as numbers in Python's memory."""


class Script(TorchDispatchMode):
    """Writes down every operation: its name, its numbers, and of each tensor its shape and, if known, its place."""

    def __init__(self, places: dict[int, str]):
        super().__init__()
        self.places, self.lines, self.seen = places, [], set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def describe(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            self.seen.add(place := self.places.get(value.data_ptr()))
            return tuple(value.shape), value.stride(), value.dtype, place

        self.lines.append((str(func), tree_map(describe, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def shape_of(kind: str, dataset: Dataset) -> ModelConfig:
    size = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2}
    return (GPTConfig if kind == "classic" else ModernConfig)(dataset.tokenizer.vocab_size, **size)  # type: ignore[arg-type]


def build_run(
    kind: str, dataset: Dataset, config: TrainConfig, dtype: torch.dtype = torch.bfloat16, *, on_device: bool = True
) -> tuple[TrainStep, DeviceBatches]:
    """Return a step and its batches as the loop builds them for a GPU: without what only makes CPUs quick."""
    shape = shape_of(kind, dataset)
    model = build_model(shape)
    optimizer = build_optimizer(model, config)
    if on_device:
        put_learning_rates_on_device(optimizer, CPU)
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    micro_batches = config.batch_size, config.gradient_accumulation_steps
    step = TrainStep(model, model, optimizer, scaler, autocast, *micro_batches, config.grad_clip)
    return step, DeviceBatches(dataset.train, plan_batches(shape, config), CPU)


def places_of(step: TrainStep, text: DeviceBatches) -> dict[int, str]:
    """Return the addresses of all that lasts from step to step, with their names."""
    places = {tensor.data_ptr(): name for name, tensor in [*step.model.named_parameters(), *step.model.named_buffers()]}
    for group in step.optimizer.param_groups:
        places[group["lr"].data_ptr() if isinstance(group["lr"], Tensor) else 0] = f"rate of {group['kind']}"
        for name, weight in zip(group["names"], group["params"], strict=True):
            places |= {value.data_ptr(): f"{key} of {name}" for key, value in step.optimizer.state[weight].items()}
    return places | {text.tokens_N.data_ptr(): "text", text.starts_B.data_ptr(): "starts"}


def scripts(kind: str, dataset: Dataset, config: TrainConfig, **options: Any) -> Iterator[Script]:
    """Yield what step after step does, while the rates fall."""
    step, text = build_run(kind, dataset, config, **options)
    for number in itertools.count():
        text.set_step(number)
        set_learning_rate(step.optimizer, 0.01 / (1 + number))
        with Script(places_of(step, text)) as script:
            step(*text.cut())
        if number >= WARM_UP_STEPS:
            yield script


BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


# The core suite has each of the three choices twice, the long tests the other combinations.
@pytest.mark.parametrize(
    ("kind", "accumulation", "dtype"),
    [
        ("classic", 1, BFLOAT16), ("classic", 2, FLOAT32), ("modern", 1, FLOAT32), ("modern", 2, BFLOAT16),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("classic", 1, FLOAT32), ("classic", 2, BFLOAT16), ("modern", 1, BFLOAT16), ("modern", 2, FLOAT32)
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_every_step_runs_the_same_operations_on_the_same_addresses_with_the_same_constants(
    kind: str, accumulation: int, dtype: torch.dtype, dataset: Dataset, recipe: Recipe
) -> None:
    optimizer = {"optimizer": "muon", "embedding_learning_rate": 0.02} if kind == "modern" else {}
    config = recipe(gradient_accumulation_steps=accumulation, **optimizer).config
    first, second = itertools.islice(scripts(kind, dataset, config, dtype=dtype), 2)
    assert first.lines == second.lines, "a recording of one would not be the other"
    assert first.places == second.places, "what lasts has moved to another place"
    assert {"text", "starts", "rate of vector" if kind == "classic" else "rate of muon"} <= first.seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_stored_in_python_is_recorded_as_a_constant(
    kind: str, dataset: Dataset, recipe: Recipe
) -> None:
    config = recipe(optimizer="muon" if kind == "modern" else "adamw").config
    first, second = itertools.islice(scripts(kind, dataset, config, on_device=False), 2)
    assert first.lines != second.lines, "otherwise the test above could not fail"


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_of_a_step_reads_a_value_or_takes_its_shape_from_one(
    kind: str, dataset: Dataset, recipe: Recipe
) -> None:
    config = recipe(optimizer="muon" if kind == "modern" else "adamw", gradient_accumulation_steps=2).config
    (script,) = itertools.islice(scripts(kind, dataset, config), 1)
    done = {name.removeprefix("aten.").split(".")[0] for name, _ in script.lines}
    assert "embedding" in done and not done & set(READING)
    # And once more with tensors that have no values at all: asking for one is an error.
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, text = build_run(kind, dataset, config)
        loss, norm = step(*text.cut())
        assert loss.shape == norm.shape == ()
        for looking in (lambda logits: logits / logits.max().item(), lambda x: x if x.sum() > 0 else -x):
            curious = replace(step, forward=lambda tokens_BT, look=looking: look(step.model(tokens_BT)))
            with pytest.raises(DataDependentOutputException):
                curious(*text.cut())
