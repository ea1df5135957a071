"""Logit lens and tuned lens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, MODERN, Subject
from torch.nn import functional as F

from quill.errors import CheckpointError, ConfigError
from quill.lab.logit_lens import lens
from quill.lab.trace import trace
from quill.lab.tuned_lens import TunedLens, load_tuned_lens, save_tuned_lens, train_tuned_lens

TEXT = "abcabcdead"


def windows(seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (12, 16), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained() -> tuple[Subject, TunedLens]:
    """A classic model of small weights, and a lens that was trained on it."""
    from quill.model.build import build_model
    from quill.tokenizers.char import CharTokenizer

    torch.manual_seed(0)
    model = build_model(CLASSIC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    subject = Subject(model, CharTokenizer.from_text("abcdefghij\n"))
    return subject, train_tuned_lens(subject, windows(), steps=60)


def test_the_last_reading_of_the_lens_is_the_model(subject: Subject) -> None:
    found = lens(subject, TEXT)
    logits_TV = torch.from_numpy(trace(subject, TEXT)["logits_TV"]).double()
    assert found.best_RT[-1].tolist() == logits_TV.argmax(-1).tolist()
    np.testing.assert_allclose(found.kl_RT[-1], 0, atol=1e-9)
    tokens_T = torch.from_numpy(subject.tokenizer.encode(TEXT))
    expected_T = F.cross_entropy(logits_TV[:-1], tokens_T[1:], reduction="none")
    np.testing.assert_allclose(found.loss_RT[-1], expected_T.numpy(), atol=1e-6)


def test_ranks_and_losses_of_the_lens_agree(subject: Subject) -> None:
    found = lens(subject, TEXT)
    hit_RT = found.rank_RT == 1
    expected_RT = found.best_RT[:, :-1] == subject.tokenizer.encode(TEXT)[1:]
    assert (hit_RT == expected_RT).all()
    np.testing.assert_allclose(np.exp(-found.loss_RT[hit_RT]), found.probability_RT[:, :-1][hit_RT], rtol=1e-6)
    assert (found.kl_RT >= 0).all() and found.kl_RT[:-1].max() > 0


def test_blocks_that_add_nothing_predict_what_the_embedding_predicts(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if name.endswith(("attention.output.weight", "feed_forward.output.weight")):
                parameter.zero_()
    found = lens(subject, TEXT)
    assert (found.best_RT == found.best_RT[0]).all()
    np.testing.assert_allclose(found.kl_RT, 0, atol=1e-9)


def test_a_lens_of_zero_maps_is_the_logit_lens(subject: Subject) -> None:
    R, D = subject.model.config.n_layer, subject.model.config.n_embd
    zero = TunedLens(torch.zeros(R, D, D), torch.zeros(R, D), "", [], [])
    np.testing.assert_array_equal(lens(subject, TEXT, tuned=zero).kl_RT, lens(subject, TEXT).kl_RT)


def test_training_brings_every_layer_nearer_to_the_model(trained: tuple[Subject, TunedLens]) -> None:
    _, tuned = trained
    assert all(after < before for after, before in zip(tuned.kl_after_R, tuned.kl_before_R, strict=True))


def test_training_a_lens_is_deterministic_and_changes_no_weight(trained: tuple[Subject, TunedLens]) -> None:
    subject, tuned = trained
    state, training = torch.get_rng_state(), subject.model.training
    again = train_tuned_lens(subject, windows(), steps=60)
    assert torch.equal(again.weight_RDD, tuned.weight_RDD) and again.weights_sha256 == tuned.weights_sha256
    assert torch.equal(torch.get_rng_state(), state) and subject.model.training == training
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_a_lens_trains_on_every_architecture(subject: Subject) -> None:
    tuned = train_tuned_lens(subject, windows(), steps=3)
    assert tuned.weight_RDD.abs().sum() > 0
    assert lens(subject, TEXT, tuned=tuned).tuned


def test_a_saved_lens_is_loaded_whole_and_only_for_its_model(
    trained: tuple[Subject, TunedLens], make_subject: Callable[..., Subject], tmp_path: Path
) -> None:
    subject, tuned = trained
    path = tmp_path / "tuned_lens.safetensors"
    save_tuned_lens(tuned, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = load_tuned_lens(path, subject.model)
    assert torch.equal(loaded.weight_RDD, tuned.weight_RDD) and torch.equal(loaded.bias_RD, tuned.bias_RD)
    assert (loaded.kl_before_R, loaded.kl_after_R) == (tuned.kl_before_R, tuned.kl_after_R)
    with pytest.raises(CheckpointError, match="other weights"):
        load_tuned_lens(path, make_subject(CLASSIC, seed=1).model)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        load_tuned_lens(path, subject.model)


def test_one_window_cannot_train_a_lens(make_subject: Callable[..., Subject]) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        train_tuned_lens(make_subject(CLASSIC), windows()[:1])


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_a_lens_is_drawn(config, make_subject: Callable[..., Subject], tmp_path: Path) -> None:
    found = lens(make_subject(config), TEXT)
    assert found.save(tmp_path, "lens")[0].read_bytes()[:4] == b"\x89PNG"
    assert set(found.numbers()["mean_by_layer"]["loss"]) == {"embedding", "block 0", "block 1", "block 2"}
    lens(make_subject(config), "a").save(tmp_path, "one")
