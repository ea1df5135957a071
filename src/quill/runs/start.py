"""Start a training run with everything that it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.checkpoints.run_folder import remove_run, write_config
from quill.generation.sample import sampler
from quill.runs.settings import build_configs

if TYPE_CHECKING:
    from quill.data.dataset import Dataset
    from quill.training.loop import TrainResult


def prepare(settings: dict[str, Any]) -> Dataset:
    """Return the tokens to train on, preparing them where they are missing, long enough for the model's context."""
    from quill.data.dataset import prepare_dataset
    from quill.data.windows import require_window
    from quill.device import resolve_device, resolve_dtype

    resolve_dtype(settings["dtype"], resolve_device(settings["device"]))  # a GPU that is not there is found first
    dataset = prepare_dataset(settings["dataset"], tokenizer=settings["tokenizer"], data_dir=settings["data_dir"])
    require_window(dataset.train, settings["block_size"], f"the training split of {dataset.name}")
    require_window(dataset.val, settings["block_size"], f"the validation split of {dataset.name}")
    return dataset


def start_training(
    settings: dict[str, Any],
    dataset: Dataset,
    *,
    resume: bool = False,
    replace: bool = False,
    stop: Callable[[], str | None] | None = None,
    plan: Callable[[int], int] | None = None,
    mark: str = "",
) -> TrainResult:
    """Train with everything that a run leaves behind: config.yaml, metrics, samples, the picture, checkpoints.

    With `replace` an earlier run in the same folder goes. `stop` and `plan` are those of `train()`. `mark` is a comment
    that opens config.yaml.
    """
    from quill.tracking.jsonl import JsonLines, read_events
    from quill.tracking.loss_plot import LossPlot
    from quill.tracking.samples import Samples
    from quill.tracking.tensorboard import TensorBoard
    from quill.tracking.terminal import choose_display
    from quill.tracking.tracker import fan_out
    from quill.training.loop import train

    out_dir = Path(settings["out_dir"])
    model_config, config = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    tensorboard = TensorBoard(out_dir / "tensorboard") if config.tensorboard else None
    history = read_events(out_dir / "metrics.jsonl") if resume else []
    if replace:
        remove_run(out_dir)
    with choose_display(history=history) as display:
        everyone = fan_out(
            JsonLines(out_dir / "metrics.jsonl"), display, Samples(out_dir / "samples.txt", history), tensorboard,
            LossPlot(out_dir / "loss.png", history),
        )  # fmt: skip
        report = Reporter(
            everyone, lambda steps: write_config(out_dir, settings | {"max_iters": steps}, mark), dataset.note
        )
        return train(
            model_config,
            config,
            dataset,
            report=report,
            sample=sampler(dataset, config.sample_tokens, config.seed),
            resume=resume,
            stop=stop or (lambda: None),
            plan=plan,
        )


class Reporter:
    """Hands events on, once training has really begun: until then nothing in the run's folder is touched.

    What comes before the start (a warning about compiling) waits for it. `configure` is told how many steps the run
    shall have, when it begins and when that changes.
    """

    def __init__(self, consumer: Callable[[dict[str, Any]], None], configure: Callable[[int], None], note: str) -> None:
        self._consumer, self._configure, self._note = consumer, configure, note
        self._begun = False
        self._waiting: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("start", "plan"):
            self._configure(event["max_iters"])
        if event["event"] == "start":
            self._begun = True
            self._consumer({"corpus_note": self._note} | event)
            for earlier in self._waiting:
                self._consumer(earlier)
        elif self._begun:
            self._consumer(event)
        else:
            self._waiting.append(event)
