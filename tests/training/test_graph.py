"""The step that a GPU records is the step that everybody takes, and nothing in it would have to be recorded again.

No GPU is needed for most of it: what a recording may hold (the same operations on the same places with the same
numbers, step after step, none of which reads a value) can be seen in the operations themselves.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.text.dataset import Dataset, prepare_dataset
from quill.training import batches, loop
from quill.training.batches import DeviceBatches, fetch_batch
from quill.training.checkpoint import find_checkpoint, read_tensors
from quill.training.config import TrainConfig
from quill.training.graph import REHEARSALS, CudaRecorder, RecordedStep, Result, Run, can_be_recorded
from quill.training.loop import train
from quill.training.optimizer import build_optimizer, keep_rates_on, set_learning_rate
from quill.training.step import Step

CPU = torch.device("cpu")
KINDS = ("classic", "modern")
Recipe = Callable[..., TrainConfig]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")


class Rerun:
    """Stands in for a GPU: what it records is simply done again."""

    def __init__(self, device: torch.device = CPU, error: str = ""):
        self.error, self.rehearsed, self.replayed = error, 0, 0

    def rehearse(self, run: Run) -> Result:
        self.rehearsed += 1
        return run()

    def record(self, run: Run) -> Run:
        if self.error:
            raise RuntimeError(self.error)

        def again() -> Result:
            self.replayed += 1
            return run()

        return again


def shape_of(kind: str, dataset: Dataset) -> ModelConfig:
    size = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2}
    return (GPTConfig if kind == "classic" else ModernConfig)(dataset.tokenizer.vocab_size, **size)  # type: ignore[arg-type]


def rates_of(kind: str) -> dict[str, Any]:
    """Return rates that are powers of two and stay: exact in float32, so that nothing is rounded on the way."""
    rates = {"learning_rate": 2**-7, "min_lr": 2**-7, "warmup_iters": 0, "weight_decay": 0.25}
    muon = {"optimizer": "muon", "muon_learning_rate": 2**-6, "embedding_learning_rate": 2**-5}
    return rates if kind == "classic" else rates | muon


def use(recorder: Rerun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop believe that this device records."""
    monkeypatch.setattr(loop, "can_be_recorded", lambda *_: True)
    monkeypatch.setattr(loop, "CudaRecorder", lambda device: recorder)


def saved_state(out_dir: str) -> dict[str, Tensor]:
    folder = find_checkpoint(out_dir, "last")
    return read_tensors(folder / "model.safetensors")[0] | read_tensors(folder / "training.safetensors")[0]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


@pytest.mark.parametrize("letters", ["few", "many"])
def test_batches_cut_on_the_device_are_those_of_the_cpu(
    letters: str, dataset: Dataset, recipe: Recipe, tmp_path: Any
) -> None:
    if letters == "many":  # more characters than a byte can count
        (tmp_path / "many.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 9, encoding="utf-8")
        dataset = prepare_dataset(str(tmp_path / "many.txt"), data_dir=tmp_path)
        assert dataset.tokenizer.vocab_size == 400
    shape, config = shape_of("classic", dataset), recipe(gradient_accumulation_steps=3)
    text = DeviceBatches(dataset, shape, config, CPU)
    place = text.starts_B.data_ptr()
    for step in (0, 1, 7, 12345):
        text.aim(step)
        for cut, drawn in zip(text.cut(), fetch_batch(dataset, shape, config, step, CPU), strict=True):
            assert torch.equal(cut, drawn) and cut.dtype == drawn.dtype and cut.is_contiguous()
    assert text.starts_B.data_ptr() == place, "a recording looks for the windows at one place"


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_run_is_the_run_bit_for_bit(
    kind: str, accumulation: int, dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, recorded = (
        recipe(out, gradient_accumulation_steps=accumulation, **rates_of(kind)) for out in ("plain", "recorded")
    )
    train(shape_of(kind, dataset), plain, dataset)
    recorder = Rerun()
    use(recorder, monkeypatch)
    warnings: list[dict] = []
    train(shape_of(kind, dataset), recorded, dataset, report=lambda e: warnings.append(e))
    assert (recorder.rehearsed, recorder.replayed) == (REHEARSALS, plain.max_iters - REHEARSALS)
    assert not [event for event in warnings if event["event"] == "warning"]
    assert_same(saved_state(plain.out_dir), saved_state(recorded.out_dir))


@pytest.mark.parametrize("kind", KINDS)
def test_rates_that_rise_and_fall_on_the_device_are_those_of_the_schedule(
    kind: str, dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = {"optimizer": "muon"} if kind == "modern" else {}
    train(shape_of(kind, dataset), recipe("plain", **optimizer), dataset)
    use(Rerun(), monkeypatch)
    train(shape_of(kind, dataset), recipe("recorded", **optimizer), dataset)
    plain, recorded = (saved_state(recipe(out).out_dir) for out in ("plain", "recorded"))
    for name in plain:
        torch.testing.assert_close(plain[name], recorded[name], rtol=1e-4, atol=1e-5)


def test_a_recorded_run_can_be_resumed_bit_for_bit(
    dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Rerun(), monkeypatch)
    shape, whole, parts = shape_of("modern", dataset), recipe("whole", optimizer="muon"), recipe("p", optimizer="muon")
    train(shape, whole, dataset)
    steps = iter(range(1, 100))
    train(shape, parts, dataset, stop=lambda: "interrupted" if next(steps) == 7 else None)
    train(shape, parts, dataset, resume=True)
    assert_same(saved_state(whole.out_dir), saved_state(parts.out_dir))


def test_recording_that_fails_costs_one_warning_and_no_step(
    dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = shape_of("classic", dataset)
    train(shape, recipe("plain", **rates_of("classic")), dataset)
    use(Rerun(error="operation not permitted when stream is capturing\nand much more"), monkeypatch)
    events: list[dict] = []
    train(shape, recipe("failed", **rates_of("classic")), dataset, report=events.append)
    (warning,) = (event for event in events if event["event"] == "warning")
    assert "not permitted" in warning["message"] and "much more" not in warning["message"]
    assert_same(saved_state(recipe("plain").out_dir), saved_state(recipe("failed").out_dir))


def test_what_a_graph_cannot_hold_is_not_recorded(
    dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, room = torch.device("cuda"), 10**9
    monkeypatch.setattr(batches, "available_memory", lambda device: room)
    assert can_be_recorded(recipe(), dataset, cuda, torch.bfloat16)
    assert can_be_recorded(recipe(gradient_accumulation_steps=4), dataset, cuda, torch.float32)
    assert not can_be_recorded(recipe(), dataset, CPU, torch.bfloat16)
    assert not can_be_recorded(recipe(), dataset, torch.device("mps"), torch.float32)
    assert not can_be_recorded(recipe(), dataset, cuda, torch.float16), "loss scaling decides by what it sees"
    assert not can_be_recorded(recipe(gradient_checkpointing=True), dataset, cuda, torch.bfloat16)
    room = len(dataset.train)
    assert not can_be_recorded(recipe(), dataset, cuda, torch.bfloat16), "the text would fill the device"


# What is recorded, looked at operation by operation -----------------------------------------------------------------

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


def build_run(
    kind: str, dataset: Dataset, config: TrainConfig, dtype: torch.dtype = torch.bfloat16, *, on_device: bool = True
) -> tuple[Step, DeviceBatches]:
    """Return a step and its batches as the loop builds them for a GPU: without what only makes CPUs quick."""
    shape = shape_of(kind, dataset)
    model = build_model(shape)
    optimizer = build_optimizer(model, config)
    if on_device:
        keep_rates_on(optimizer, CPU)
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Step(model, model, optimizer, scaler, autocast, config), DeviceBatches(dataset, shape, config, CPU)


def places_of(step: Step, text: DeviceBatches) -> dict[int, str]:
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
        text.aim(number)
        set_learning_rate(step.optimizer, 0.01 / (1 + number))
        with Script(places_of(step, text)) as script:
            step(*text.cut())
        if number >= REHEARSALS:
            yield script


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_the_same_operations_on_the_same_places_with_the_same_numbers(
    kind: str, accumulation: int, dtype: torch.dtype, dataset: Dataset, recipe: Recipe
) -> None:
    optimizer = {"optimizer": "muon", "embedding_learning_rate": 0.02} if kind == "modern" else {}
    config = recipe(gradient_accumulation_steps=accumulation, **optimizer)
    first, second = itertools.islice(scripts(kind, dataset, config, dtype=dtype), 2)
    assert first.lines == second.lines, "a recording of one would not be the other"
    assert first.places == second.places, "what lasts has moved to another place"
    assert {"text", "starts", "rate of vector" if kind == "classic" else "rate of muon"} <= first.seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_in_pythons_memory_would_be_recorded_with_the_step(kind: str, dataset: Dataset, recipe: Recipe) -> None:
    config = recipe(optimizer="muon" if kind == "modern" else "adamw")
    first, second = itertools.islice(scripts(kind, dataset, config, on_device=False), 2)
    assert first.lines != second.lines, "or the law above would see nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_of_a_step_reads_a_value_or_takes_its_shape_from_one(
    kind: str, dataset: Dataset, recipe: Recipe
) -> None:
    config = recipe(optimizer="muon" if kind == "modern" else "adamw", gradient_accumulation_steps=2)
    (script,) = itertools.islice(scripts(kind, dataset, config), 1)
    done = {name.removeprefix("aten.").split(".")[0] for name, _ in script.lines}
    assert "embedding" in done and not done & set(READING)
    # And once more with tensors that have no values at all: whoever asks for one gets an error.
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, text = build_run(kind, dataset, config)
        loss, norm = step(*text.cut())
        assert loss.shape == norm.shape == ()
        for looking in (lambda logits: logits / logits.max().item(), lambda x: x if x.sum() > 0 else -x):
            curious = replace(step, forward=lambda tokens_BT, look=looking: look(step.model(tokens_BT)))
            with pytest.raises(DataDependentOutputException):
                curious(*text.cut())


# On a GPU ----------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_cuda_graph_trains_as_the_step_that_it_recorded(
    kind: str, dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"device": "cuda", "compile": False, "max_iters": 40, "eval_interval": 20, "log_interval": 1}
    if kind == "modern":
        changes["optimizer"] = "muon"
    curves = {}
    for out in ("recorded", "plain"):
        if out == "plain":
            monkeypatch.setattr(loop, "can_be_recorded", lambda *_: False)
        events: list[dict] = []
        train(shape_of(kind, dataset), recipe(out, **changes), dataset, report=events.append)
        assert not [event for event in events if event["event"] == "warning"]
        curves[out] = [event["train_loss"] for event in events if event["event"] == "step"]
    torch.testing.assert_close(curves["recorded"], curves["plain"], rtol=0.03, atol=0.03)
    one, other = (saved_state(recipe(out).out_dir) for out in curves)
    assert torch.equal(one["rng.cuda"], other["rng.cuda"]), "dropout has drawn as many numbers"


@needs_cuda
def test_a_cuda_graph_that_fails_leaves_a_device_that_trains(dataset: Dataset, recipe: Recipe) -> None:
    device, config = torch.device("cuda", 0), recipe(device="cuda")
    shape = shape_of("classic", dataset)
    model = build_model(shape).to(device)
    optimizer = build_optimizer(model, config)
    keep_rates_on(optimizer, device)

    def curious(tokens_BT: Tensor) -> Tensor:
        logits_BTV = model(tokens_BT)
        return logits_BTV / max(1.0, logits_BTV.max().item() * 1e-9)

    autocast = torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)
    step = Step(model, curious, optimizer, torch.amp.GradScaler("cuda", enabled=False), autocast, config)
    warnings: list[str] = []
    text = DeviceBatches(dataset, shape, config, device)
    recorded = RecordedStep(step, text, CudaRecorder(device), warnings.append)
    losses = [float(recorded(number)[0]) for number in range(30)]
    assert len(warnings) == 1 and losses[-1] < losses[0]
