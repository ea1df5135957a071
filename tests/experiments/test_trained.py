"""The experiments that train models: the same seed gives the same numbers, and files are whole."""

import dataclasses
import itertools
import json
import math
import os
import re
import signal
from typing import Any

import numpy as np
import pytest
import torch

from quill import process
from quill.data.dataset import prepare_dataset
from quill.errors import CorpusError
from quill.experiments.catalog import load_experiment
from quill.experiments.counting import counted_losses
from quill.experiments.experiment import Progress
from quill.experiments.trained.depth_stability import stable_width
from quill.experiments.trained.dropout import in_digits, zero_crossing
from quill.experiments.trained.ladder import rungs_of
from quill.experiments.trained.mlp import MLPSettings, variants_of
from quill.experiments.training import shortened, train_model, validation_windows
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

SMALL = {
    "ladder": {"n_layer": 2},
    "mlp": {"n_layer": 1, "rank_depth": 2},
    "depth-stability": {"depths": (1,), "start_depths": (1, 2), "learning_rates": (1e-3, 1e-2)},
    "dropout": {"n_layer": 1, "shares": (1.0, 0.25)},
}


LONG = pytest.mark.long  # each trains a dozen models; the ladder stays in the core suite


def small_settings(name, tiny) -> Any:
    return dataclasses.replace(load_experiment(name).quick, **tiny, **SMALL[name])


@pytest.mark.parametrize("name", [name if name == "ladder" else pytest.param(name, marks=LONG) for name in SMALL])
def test_an_experiment_gives_the_same_numbers_for_the_same_seed_and_whole_files(name, tiny, tmp_path):
    settings = small_settings(name, tiny)
    torch.manual_seed(1)
    state, seen = torch.get_rng_state(), []
    result = load_experiment(name).run(settings, lambda what, share: seen.append(share))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = load_experiment(name).run(settings)
    assert result.reproducible() == again.reproducible()
    assert result.verdict in ("supported", "not here", "unclear")
    mine = [share for share in seen[-5:]]
    assert mine == sorted(mine) and mine[-1] == 1.0

    files = result.save(tmp_path / name)
    assert [file.name for file in files] == ["result.png", "result.json", "result.html"]
    numbers = json.loads(files[1].read_text(encoding="utf-8"))
    assert numbers["experiment"] == name and numbers["seed"] == settings.seed
    assert {"claim", "measure", "control", "opposite", "verdict", "effects", "settings", "timings"} <= set(numbers)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    page = files[2].read_text(encoding="utf-8")
    assert page.endswith("</html>\n") and f"<tr><th>Verdict</th><td>{result.verdict}</td></tr>" in page
    assert repr(result).startswith(f"{result.title}\nclaim ") and len(repr(result)) < 4000
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "http" not in page.replace(str(settings.dataset), "")


def test_another_seed_gives_other_numbers(tiny):
    one, other = (
        load_experiment("dropout").run(small_settings("dropout", tiny | {"seed": seed, "seeds": 1})) for seed in (1, 2)
    )
    assert one.figures["validation_loss"].tolist() != other.figures["validation_loss"].tolist()


@pytest.fixture
def dataset(tiny):
    return prepare_dataset(tiny["dataset"], data_dir=tiny["data_dir"])


def test_training_lowers_the_loss_and_keeps_the_model_and_its_curve(dataset):
    config = GPTConfig(dataset.tokenizer.vocab_size, 8, 1, 2, 16, 0.0)
    windows = validation_windows(dataset, 8, 20)
    recipe = TrainConfig(batch_size=8, max_iters=60, warmup_iters=5, learning_rate=0.01, eval_interval=20)
    kept, steps = [], []
    trained = train_model(config, recipe, dataset, windows, edit=kept.append, with_curve=True, on_step=steps.append)
    assert trained.model is kept[0] and sum(steps) == 60
    assert list(trained.curve) == [0, 20, 40, 60]
    assert np.array_equal(trained.curve[60], trained.losses_N) and len(trained.losses_N) == 20
    assert trained.loss < trained.curve[0].mean() - 0.3
    assert trained.tokens == 60 * 8 * 8 and not trained.diverged


def test_a_run_that_diverges_has_an_infinite_loss(dataset):
    config = GPTConfig(dataset.tokenizer.vocab_size, 8, 1, 2, 8, 0.0)

    def ruin(model):
        with torch.no_grad():
            model.head.weight.fill_(math.nan)

    recipe = TrainConfig(batch_size=2, max_iters=5)
    steps = []
    trained = train_model(config, recipe, dataset, validation_windows(dataset, 8, 9), edit=ruin, on_step=steps.append)
    assert trained.diverged and np.isinf(trained.losses_N).all() and sum(steps) == 5


@pytest.mark.usefixtures("signals")
def test_ctrl_c_during_training_ends_the_experiment(dataset):
    config = GPTConfig(dataset.tokenizer.vocab_size, 8, 1, 2, 8, 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_model(
            config, TrainConfig(batch_size=2, max_iters=5), dataset, validation_windows(dataset, 8, 9),
            edit=lambda model: os.kill(os.getpid(), signal.SIGINT),
        )  # fmt: skip
    process.received.clear()


def test_a_part_of_a_text_is_its_beginning_and_keeps_the_validation_split(dataset):
    part = shortened(dataset, 100)
    assert np.array_equal(part.train, dataset.train[:100]) and np.array_equal(part.val, dataset.val)


@pytest.mark.parametrize("name", SMALL)
def test_a_text_that_is_too_short_is_one_line(name, tiny, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("abcdefgh" * 20, encoding="utf-8")
    settings = small_settings(name, tiny | {"dataset": str(short)})
    with pytest.raises(CorpusError, match=r"short\.txt is too short for this experiment: .*at least 720 characters"):
        load_experiment(name).run(settings)


def test_a_share_of_the_text_that_is_too_small_is_one_line(tiny):
    settings = dataclasses.replace(small_settings("dropout", tiny), shares=(1.0, 0.001))
    with pytest.raises(CorpusError, match=r"it trains on 0\.001 of the text, 5 tokens, and needs 72"):
        load_experiment("dropout").run(settings)


def test_each_rung_differs_from_the_one_below_in_one_respect(tiny):
    rungs = rungs_of(small_settings("ladder", tiny))
    for below, rung in itertools.pairwise(rungs[1:]):
        changed = [getattr(below, name) != getattr(rung, name) for name in ("n_head", "n_layer", "dropout", "edits")]
        assert sum(changed) == 1
        assert len(below.edits) - len(rung.edits) in (0, 1)


def test_variants_of_equal_parameters_have_equal_parameters():
    shapes = {variant.name: variant for variant in variants_of(MLPSettings())}

    def weights(name, share):  # a block has 4 D² weights in attention and 8 D² in the feed-forward network
        return shapes[name].n_layer * share * shapes[name].n_embd ** 2

    whole = weights("whole GPT", 12)
    assert weights("attention, 3 × deeper", 4) == weights("MLPs, 1.5 × deeper", 8) == whole
    assert weights("attention, √3 × wider", 4) == pytest.approx(whole, rel=0.03)


def test_counting_gives_the_entropy_of_a_known_text():
    tokens = np.array([0, 1] * 5000)
    single, pairs = counted_losses(tokens, torch.tensor([[0, 1, 0, 1]]))
    assert single == pytest.approx(math.log(2), abs=1e-4) and pairs == pytest.approx(0, abs=1e-3)


def test_the_zero_crossing_is_interpolated_over_the_logarithm():
    assert zero_crossing(np.array([100.0, 1.0]), np.array([0.1, -0.1])) == pytest.approx(10)
    assert zero_crossing(np.array([1.0, 10.0, 100.0]), np.array([-0.1, -0.2, -0.3])) is None
    assert zero_crossing(np.array([1.0, 10.0]), np.array([0.1, 0.2])) is None


def test_the_stable_band_is_measured_in_decades():
    losses_RS = np.array([[1.0, 1.0], [1.0, 9.0], [np.inf, 9.0]])
    assert stable_width(losses_RS, np.array([1e-3, 1e-2, 1e-1]), 2.0).tolist() == [2.0, 1.0]


def test_progress_tells_the_share_and_the_time_left():
    seen, now = [], [0.0]
    progress = Progress(lambda what, share: seen.append((what, share)), 100, clock=lambda: now[0])
    for at, amount in ((1.0, 1), (10.0, 24), (40.0, 75)):
        now[0] = at
        progress("seed 1", amount)
    assert seen == [("seed 1", 0.01), ("seed 1, 30 s left", 0.25), ("seed 1", 1.0)]


def test_epochs_are_shown_without_powers_of_ten():
    assert [in_digits(epochs) for epochs in (0.512, 8.17, 32.7, 99.4, 130.7)] == ["0.51", "8.2", "33", "99", "131"]
