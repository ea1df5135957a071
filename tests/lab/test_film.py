"""The film of a run: its frames are what the instruments measure, and a file that was harmed is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_models import CONFIGS, Subject, one_of_each_architecture_in_core

from quill.checkpoints.tensor_file import TensorFile, write_tensor_file
from quill.errors import CheckpointError, ConfigError
from quill.lab.film.film import Film, load_film, triangle
from quill.lab.film.format import MOST_BYTES, MOST_FRAMES, NAME, Evaluation, Frames, probe_length, read_film, write_film
from quill.lab.film.recorder import NEVER, FilmRecorder, make_frame, next_step, repeated_texts, sample_tokens
from quill.lab.logit_lens import lens
from quill.lab.trace import trace
from quill.model.config import GPTConfig

TOKENS = np.array([1, 2, 3, 1, 2, 3, 4, 5, 1, 2, 3, 10])
PROMPT = np.array([10])


@pytest.fixture
def film(subject: Subject) -> Frames:
    """A film of three frames."""
    frame = make_frame(subject.model, TOKENS, PROMPT, 0, Evaluation(0, 2.5, 2.25))
    assert frame is not None
    frames = (frame, replace(frame, step=1), replace(frame, step=7, evaluation=Evaluation()))
    return Frames(TOKENS, subject.tokenizer, frames)


def test_a_frame_is_what_trace_and_lens_measure(subject, film):
    frame, found = film.frames[0], trace(subject, TOKENS, "*.weights_*")
    for layer, attention_HN in enumerate(frame.attention_LHN):
        weights_HTS = found[f"blocks.{layer}.attention.weights_HTS"]
        np.testing.assert_allclose(triangle(attention_HN), weights_HTS, atol=0.01)
    seen = lens(subject, TOKENS)
    assert np.array_equal(frame.best_RT, seen.best_RT)
    np.testing.assert_allclose(frame.probability_RT, seen.probability_RT, atol=1e-3)
    np.testing.assert_allclose(frame.loss_RU, seen.loss_RT, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(frame.kl_RT, seen.kl_RT, rtol=2e-3, atol=1e-3)


def test_a_frame_changes_neither_model_nor_random_numbers(subject):
    subject.model.train()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in subject.model.named_modules()}
    modes = [module.training for module in subject.model.modules()]
    state, numbers = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    one = make_frame(subject.model, TOKENS, PROMPT, 3, Evaluation())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numbers)
    assert [module.training for module in subject.model.modules()] == modes and all(modes)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert {name: set(vars(module)) for name, module in subject.model.named_modules()} == attributes
    other = make_frame(subject.model, TOKENS, PROMPT, 3, Evaluation())
    assert one is not None and other is not None
    assert all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items() if name[-1].isupper())


def test_a_model_with_logits_that_are_not_finite_gives_no_frame(subject):
    with torch.no_grad():
        subject.model.head.weight.fill_(float("nan"))
    assert make_frame(subject.model, TOKENS, PROMPT, 3, Evaluation()) is None


def test_a_sample_depends_on_its_seed_and_ends_with_the_context(subject):
    first, second = (sample_tokens(subject.model, PROMPT, 9, seed) for seed in (0, 1))
    assert np.array_equal(first, sample_tokens(subject.model, PROMPT, 9, 0)) and not np.array_equal(first, second)
    assert len(sample_tokens(subject.model, PROMPT, 100, 0)) == subject.model.config.block_size


def test_a_film_is_read_as_it_was_written(film, tmp_path):
    write_film(tmp_path / NAME, film)
    found = read_film(tmp_path / NAME)
    assert found.steps == [0, 1, 7] and found.tokenizer.to_json() == film.tokenizer.to_json()
    assert [frame.evaluation for frame in found.frames] == [frame.evaluation for frame in film.frames]
    for one, other in zip(found.frames, film.frames, strict=True):
        assert all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items() if name[-1].isupper())
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_no_byte_of_a_film_can_change_without_an_error(make_subject, tmp_path):
    subject = make_subject(CONFIGS["classic"])
    frame = make_frame(subject.model, TOKENS, PROMPT, 0, Evaluation(0, 2.5, 2.25))
    assert frame is not None
    file = tmp_path / NAME
    write_film(file, Frames(TOKENS, subject.tokenizer, (frame,)))
    data = file.read_bytes()
    for position in range(0, len(data), 3):
        changed = bytes([data[position] ^ (1, 32, 128)[position % 9 // 3]])
        file.write_bytes(data[:position] + changed + data[position + 1 :])
        try:
            again = read_film(file)
        except CheckpointError as error:
            assert "\n" not in str(error)
            continue
        assert again.steps == [0] and np.array_equal(again.frames[0].attention_LHN, frame.attention_LHN)
        assert json.dumps(again.tokenizer.to_json()) == json.dumps(subject.tokenizer.to_json())
        assert position < 2000  # only the layout of the header, such as a space, may change unseen
    for length in range(0, len(data), 101):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_film(file)


def test_a_missing_or_foreign_film_is_refused_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"film\.safetensors does not exist: train with film=True"):
        load_film(tmp_path)
    write_tensor_file(tmp_path / NAME, {"a": torch.zeros(2)}, {"format": "quill tuned lens 1"})
    with pytest.raises(CheckpointError, match="is no film"):
        load_film(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, about: about.update(steps=[0, 7, 1]), "rising steps"),
        (lambda tensors, about: about.update(steps=[0, 1]), "3 frames, 2 steps"),
        (lambda tensors, about: about.update(evaluations=[[0, None, "x"]] * 3), "evaluations"),
        (lambda tensors, about: about.update(tokenizer={"kind": "new"}), "tokenizer"),
        (lambda tensors, about: tensors.pop("kl_RT"), "tensors are not those"),
        (lambda tensors, about: tensors.update(kl_RT=tensors["kl_RT"].float()), "kl_RT has another type"),
        (lambda tensors, about: tensors.update(kl_RT=tensors["kl_RT"][:, :, 1:].clone()), "another shape"),
        (lambda tensors, about: tensors["kl_RT"].fill_(-1), "kl_RT has impossible values"),
        (lambda tensors, about: tensors["loss_RU"].fill_(float("nan")), "loss_RU has impossible values"),
        (lambda tensors, about: tensors["probability_RT"].fill_(1.5), "probability_RT has impossible values"),
        (lambda tensors, about: tensors["induction_LH"].fill_(float("inf")), "induction_LH has impossible values"),
        (lambda tensors, about: tensors["best_RT"].fill_(11), "outside the vocabulary"),
        (lambda tensors, about: tensors["sample_G"].fill_(-1), "outside the vocabulary"),
    ],
)
def test_impossible_contents_are_refused_also_where_the_checksum_is_right(make_subject, tmp_path, change, message):
    from quill.lab.film.format import digest_of

    subject = make_subject(CONFIGS["classic"])
    frame = make_frame(subject.model, TOKENS, PROMPT, 0, Evaluation())
    assert frame is not None
    file = tmp_path / NAME
    write_film(file, Frames(TOKENS, subject.tokenizer, (frame, replace(frame, step=1), replace(frame, step=7))))
    with TensorFile(file) as opened:
        about, (arrays, _) = opened.metadata, opened.read()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    change(tensors, about)
    about.pop("sha256")
    about["sha256"] = digest_of({name: tensor.numpy() for name, tensor in tensors.items()}, about)
    file.unlink()
    write_tensor_file(file, tensors, about)
    with pytest.raises(CheckpointError, match=message):
        read_film(file)


def test_frames_are_log_spaced_with_the_first_and_the_last_step():
    def steps(total: int) -> list[int]:
        found = [0]
        while (following := next_step(found[-1], total)) != NEVER:
            found.append(following)
        return found

    assert steps(14) == [0, 1, 2, 3, 4, 5, 7, 9, 12, 14]
    assert steps(1) == [0, 1]
    for total in (2, 60, 450, 1000, 5000, 123_456, 10**6):
        found = steps(total)
        assert found[0] == 0 and found[-1] == total and len(found) <= 24
        assert all(before < after for before, after in itertools.pairwise(found))
    assert len(steps(5000)) >= 20


@pytest.mark.parametrize("shape", [(6, 6, 256), (12, 12, 1024), (2, 2, 32), (1, 3, 128), (24, 16, 1024)])
def test_the_largest_film_fits_five_megabytes(shape, tmp_path):
    L, H, block_size = shape
    config = GPTConfig(65, block_size=block_size, n_layer=L, n_head=H, n_embd=8 * H)
    T = probe_length(config, 10**6)
    assert 10 < T <= min(96, block_size)
    per_frame = L * H * (T * (T + 1) // 2 + 2) + (L + 1) * T * 10 + 32 * 4
    assert MOST_FRAMES * per_frame + 64_000 <= MOST_BYTES
    longer = (T + 1) * (T + 2) // 2 * L * H * MOST_FRAMES
    assert T in (96, block_size) or longer > 0.9 * MOST_BYTES


def test_a_recorder_keeps_at_most_so_many_frames_and_drops_those_of_a_branch_that_was_left(make_subject, tmp_path):
    subject = make_subject(CONFIGS["modern"])
    recorder = FilmRecorder(tmp_path / NAME, subject.model.config, subject.tokenizer, TOKENS, PROMPT)
    for step in range(40):  # each call says that this is the last step, so each is recorded
        assert recorder(subject.model, step, step, Evaluation()) == NEVER or step > MOST_FRAMES - 3
    assert len(recorder.frames) == MOST_FRAMES and recorder.frames[-1].step == 39
    assert recorder(subject.model, 10, 100, Evaluation()) > 10
    assert read_film(tmp_path / NAME).steps[-1] == 39 and recorder.frames[-1].step == 10
    recorder(subject.model, 100, 100, Evaluation())
    assert read_film(tmp_path / NAME).steps == [*range(11), 100]


def test_a_model_whose_attention_cannot_be_read_ends_the_film_and_not_the_run(make_subject, tmp_path):
    subject, warnings = make_subject(CONFIGS["classic"]), []
    recorder = FilmRecorder(
        tmp_path / NAME, subject.model.config, subject.tokenizer, TOKENS, PROMPT, warn=warnings.append
    )
    subject.model.blocks[1] = torch.nn.Identity()
    assert recorder(subject.model, 0, 10, Evaluation()) == NEVER == recorder(subject.model, 1, 10, Evaluation())
    assert len(warnings) == 1 and not (tmp_path / NAME).exists()


def test_texts_for_induction_repeat_distinct_tokens():
    for tokens_T, period in repeated_texts(65, 96, 0):
        assert len(tokens_T) == 96 and len(set(tokens_T[:period].tolist())) == period
        assert np.array_equal(tokens_T[:period], tokens_T[period : 2 * period])
    assert len({period for _, period in repeated_texts(65, 96, 0)}) == 3 and repeated_texts(65, 3, 0) == []


@one_of_each_architecture_in_core
def test_a_film_shows_itself(film, tmp_path: Path):
    write_film(tmp_path / NAME, film)
    found = load_film(tmp_path, layer=1)
    numbers = json.loads(found.to_json())
    assert numbers["steps"] == [0, 1, 7] and len(numbers["samples"]) == 3 and numbers["shown_head"] == [1, None]
    assert numbers["text"] == found.text and len(found.text) == len(TOKENS)
    assert np.array(numbers["lens_agreement"])[:, -1].tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.attention_TS(0, 1).sum(-1), 1)
    assert [file.suffix for file in found.save(tmp_path, "film")] == [".png", ".json", ".html"]
    assert load_film(tmp_path, layer=1, head=0).shown == (1, 0) and isinstance(load_film(str(tmp_path)), Film)
    for wrong in ({"layer": 3}, {"layer": 0, "head": 2}, {"head": 0}, {"layer": -1}):
        with pytest.raises(ConfigError):
            load_film(tmp_path, **wrong)
