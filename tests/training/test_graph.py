"""Training with a CUDA graph gives the run that the plain step gives, bit for bit.

Most of these tests need no GPU: a stand-in repeats the operations that it recorded. Which operations a graph can
hold is tested in test_recorded_operations.py.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import MakeRecipe as Recipe
from torch import Tensor

from quill.acceleration.compile import compile_choice
from quill.acceleration.cuda_graph import CudaGraphCapture
from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import find_checkpoint
from quill.data.dataset import Dataset, prepare_dataset
from quill.data.mixed_dataset import AnyDataset, prepare_any
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.optim.optimizer import put_learning_rates_on_device
from quill.training import batches, setup
from quill.training.batches import DeviceBatches, HostBatches, plan_batches
from quill.training.context import RunContext
from quill.training.graph_step import WARM_UP_STEPS, CapturedStep, can_be_captured
from quill.training.loop import train
from quill.training.parameter_groups import build_optimizer
from quill.training.step import TrainStep

CPU = torch.device("cpu")
KINDS = ("classic", "modern")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")


class Rerun:
    """A graph capture without a GPU: replaying calls the function again."""

    def __init__(self, device: torch.device = CPU, error: str = ""):
        self.device, self.error, self.warmed_up, self.replayed = device, error, 0, 0

    def warm_up(self, run: Callable[[], Any]) -> Any:
        self.warmed_up += 1
        return run()

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        if self.error:
            raise RuntimeError(self.error)

        def again() -> Any:
            self.replayed += 1
            return run()

        return again


def shape_of(kind: str, dataset: AnyDataset) -> ModelConfig:
    size = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2}
    return (GPTConfig if kind == "classic" else ModernConfig)(dataset.tokenizer.vocab_size, **size)  # type: ignore[arg-type]


def rates_of(kind: str) -> dict[str, Any]:
    """Return rates that are powers of two and stay: exact in float32, so that nothing is rounded on the way."""
    rates = {"learning_rate": 2**-7, "min_lr": 2**-7, "warmup_iters": 0, "weight_decay": 0.25}
    muon = {
        "optimizer": "muon",
        "muon_learning_rate": 2**-6,
        "embedding_learning_rate": 2**-5,
        "ngram_learning_rate": 2**-5,
    }
    return rates if kind == "classic" else rates | muon


def use(recorder: Rerun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop believe that this device records."""
    monkeypatch.setattr(setup, "can_be_captured", lambda *_: True)
    monkeypatch.setattr(setup, "CudaGraphCapture", lambda device: recorder)


def saved_state(out_dir: str) -> dict[str, Tensor]:
    folder = find_checkpoint(out_dir, "last")
    return read_tensors(folder / "model.safetensors")[0] | read_tensors(folder / "training.safetensors")[0]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


@pytest.mark.parametrize("letters", ["few", "many", "mixture"])
def test_batches_cut_on_the_device_are_those_of_the_cpu(
    letters: str, dataset: AnyDataset, recipe: Recipe, tmp_path: Any
) -> None:
    if letters == "many":  # more characters than a byte can count
        (tmp_path / "many.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 9, encoding="utf-8")
        dataset = prepare_dataset(str(tmp_path / "many.txt"), data_dir=tmp_path)
        assert dataset.tokenizer.vocab_size == 400
    if letters == "mixture":
        (tmp_path / "more.txt").write_text("Ärger, Öl, Übung " * 90, encoding="utf-8")
        dataset = prepare_any(f"pydoc:2,{tmp_path / 'more.txt'}:1", data_dir=tmp_path)
    plan = plan_batches(shape_of("classic", dataset), recipe(gradient_accumulation_steps=3).config)
    text, host = DeviceBatches(dataset.train, plan, CPU), HostBatches(dataset.train, plan, CPU)
    place = text.starts_B.data_ptr()
    for step in (0, 1, 7, 12345):
        text.set_step(step)
        for cut, drawn in zip(text.cut(), host(step), strict=True):
            assert torch.equal(cut, drawn) and cut.dtype == drawn.dtype and cut.is_contiguous()
    assert text.starts_B.data_ptr() == place, "a recording looks for the windows at one place"


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_run_equals_the_plain_run_bit_for_bit(
    kind: str, accumulation: int, dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, recorded = (
        recipe(out, gradient_accumulation_steps=accumulation, **rates_of(kind)) for out in ("plain", "recorded")
    )
    train(shape_of(kind, dataset), *plain, dataset)
    recorder = Rerun()
    use(recorder, monkeypatch)
    warnings: list[dict] = []
    train(shape_of(kind, dataset), *recorded, dataset, report=lambda e: warnings.append(e))
    assert (recorder.warmed_up, recorder.replayed) == (WARM_UP_STEPS, plain.config.max_iters - WARM_UP_STEPS)
    assert not [event for event in warnings if event["event"] == "warning"]
    assert_same(saved_state(plain.out_dir), saved_state(recorded.out_dir))


@pytest.mark.parametrize("kind", KINDS)
def test_rates_that_rise_and_fall_on_the_device_are_those_of_the_schedule(
    kind: str, dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = {"optimizer": "muon"} if kind == "modern" else {}
    train(shape_of(kind, dataset), *recipe("plain", **optimizer), dataset)
    use(Rerun(), monkeypatch)
    train(shape_of(kind, dataset), *recipe("recorded", **optimizer), dataset)
    plain, recorded = (saved_state(recipe(out).out_dir) for out in ("plain", "recorded"))
    for name in plain:
        torch.testing.assert_close(plain[name], recorded[name], rtol=1e-4, atol=1e-5)


def test_a_recorded_run_can_be_resumed_bit_for_bit(
    dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Rerun(), monkeypatch)
    shape, whole, parts = shape_of("modern", dataset), recipe("whole", optimizer="muon"), recipe("p", optimizer="muon")
    train(shape, *whole, dataset)
    steps = iter(range(1, 100))
    train(shape, *parts, dataset, stop=lambda: "interrupted" if next(steps) == 7 else None)
    train(shape, *parts, dataset, resume=True)
    assert_same(saved_state(whole.out_dir), saved_state(parts.out_dir))


def test_a_failed_recording_costs_one_warning_and_no_step(
    dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = shape_of("classic", dataset)
    train(shape, *recipe("plain", **rates_of("classic")), dataset)
    use(Rerun(error="operation not permitted when stream is capturing\nand much more"), monkeypatch)
    events: list[dict] = []
    train(shape, *recipe("failed", **rates_of("classic")), dataset, report=events.append)
    (warning,) = (event for event in events if event["event"] == "warning")
    assert "not permitted" in warning["message"] and "much more" not in warning["message"]
    assert_same(saved_state(recipe("plain").out_dir), saved_state(recipe("failed").out_dir))


def test_settings_that_a_graph_cannot_hold_are_not_captured(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, limit = torch.device("cuda"), 10**9
    monkeypatch.setattr(batches, "available_memory", lambda device: limit)

    def captured(device: torch.device, dtype: torch.dtype, checkpointing: bool = False) -> bool:
        context = RunContext(tmp_path, device, dtype, gradient_checkpointing=checkpointing)
        return can_be_captured(context, dataset.train)

    assert captured(cuda, torch.bfloat16)
    assert captured(cuda, torch.float32)
    assert not captured(CPU, torch.bfloat16)
    assert not captured(torch.device("mps"), torch.float32)
    assert not captured(cuda, torch.float16), "loss scaling reads gradients to decide"
    assert not captured(cuda, torch.bfloat16, checkpointing=True)
    limit = len(dataset.train)
    assert not captured(cuda, torch.bfloat16), "the text would fill the device"


def test_a_recorded_step_is_compiled_only_if_that_is_asked_for(recipe: Recipe) -> None:
    assert [compile_choice(c, captured=True) for c in ("auto", True, False)] == [False, True, False]
    assert [compile_choice(c, captured=False) for c in ("auto", True, False)] == ["auto", True, False]


class PretendedCuda:
    """What a capture asks of `torch.cuda`, without a GPU: it notes the order of things."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.device_index = 0  # it is its own stream, graph and generator

    def wait_stream(self, other: object) -> None:
        self.notes.append("wait")

    def replay(self) -> None:
        self.notes.append("replay")

    def set_state(self, state: str) -> None:
        self.notes.append(f"generator at {state}")

    def graphsafe_get_state(self) -> str:
        return "a fresh state"

    def graphsafe_set_state(self, state: str) -> None:
        self.notes.append(f"generator has {state}")

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        self.notes.append(f"into {what}")
        try:
            yield
        finally:
            self.notes.append(f"out of {what}")


def test_functions_are_warmed_up_and_captured_on_one_stream_and_a_failure_is_repaired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = PretendedCuda()
    notes, result = cuda.notes, (torch.ones(()), torch.zeros(()))
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: cuda)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: cuda.noting("the stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: cuda.noting("the graph"))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: "where it was")
    monkeypatch.setattr(torch.cuda, "default_generators", [cuda])
    graphs = CudaGraphCapture(CPU)

    def run() -> tuple[Tensor, Tensor]:
        notes.append("the step")
        return result

    assert graphs.warm_up(run) is result
    assert notes == ["wait", "into the stream", "the step", "out of the stream", "wait"]
    notes.clear()
    replay = graphs.capture(run)
    inside = ["into the stream", "into the graph", "the step", "out of the graph", "out of the stream"]
    assert notes == inside
    assert replay() is replay() is result and notes == [*inside, "replay", "replay"]
    notes.clear()

    def fail() -> None:
        raise RuntimeError("not while capturing")

    monkeypatch.setattr(torch, "Generator", lambda device: cuda)
    with pytest.raises(RuntimeError, match="not while capturing"):
        graphs.capture(fail)
    assert notes[-3:] == ["out of the stream", "generator at where it was", "generator has a fresh state"]


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
            monkeypatch.setattr(setup, "can_be_captured", lambda *_: False)
        events: list[dict] = []
        train(shape_of(kind, dataset), *recipe(out, **changes), dataset, report=events.append)
        assert not [event for event in events if event["event"] == "warning"]
        curves[out] = [event["train_loss"] for event in events if event["event"] == "step"]
    torch.testing.assert_close(curves["recorded"], curves["plain"], rtol=0.03, atol=0.03)
    one, other = (saved_state(recipe(out).out_dir) for out in curves)
    assert torch.equal(one["rng.cuda"], other["rng.cuda"]), "dropout has drawn as many numbers"


@needs_cuda
def test_a_cuda_graph_that_fails_leaves_a_device_that_trains(dataset: Dataset, recipe: Recipe) -> None:
    device, config = torch.device("cuda", 0), recipe(device="cuda").config
    shape = shape_of("classic", dataset)
    model = build_model(shape).to(device)
    optimizer = build_optimizer(model, config)
    put_learning_rates_on_device(optimizer, device)

    def curious(tokens_BT: Tensor) -> Tensor:
        logits_BTV = model(tokens_BT)
        return logits_BTV / max(1.0, logits_BTV.max().item() * 1e-9)

    autocast = torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)
    step = TrainStep(model, curious, optimizer, torch.amp.GradScaler("cuda", enabled=False), autocast, 4, 1, 1.0)
    warnings: list[str] = []
    text = DeviceBatches(dataset.train, plan_batches(shape, config), device)
    recorded = CapturedStep(step, text, CudaGraphCapture(device), warnings.append)
    losses = [float(recorded(number)[0]) for number in range(30)]
    assert len(warnings) == 1 and losses[-1] < losses[0]
