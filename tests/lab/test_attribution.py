"""The parts of the residual stream, and what they add to the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, MODERN, Subject

from quill.errors import ConfigError
from quill.lab import trace as tracing
from quill.lab.attribution import attribute
from quill.lab.residual import Unembedding, residual_parts, unembed
from quill.lab.trace import trace
from quill.model.config import ModernConfig

TEXT = "abcabcdead"


def test_parts_of_the_residual_stream_add_up_to_it(subject: Subject) -> None:
    found = residual_parts(subject, TEXT)
    last = subject.model.config.n_layer - 1
    expected_TD = found.trace[f"blocks.{last}.output_TD"]
    np.testing.assert_allclose(found.total_TD(), expected_TD, atol=1e-4 * np.abs(expected_TD).max())


def test_parts_at_one_position_are_those_of_all_positions_there(subject: Subject) -> None:
    everywhere, at_4 = residual_parts(subject, TEXT), residual_parts(subject, TEXT, position=4)
    assert at_4.names == everywhere.names
    np.testing.assert_allclose(at_4.parts_PTD, everywhere.parts_PTD[:, 4:5], rtol=1e-5, atol=1e-6)


def test_parts_of_a_trace_in_files_are_those_of_a_trace_in_memory(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = residual_parts(subject, TEXT)
    monkeypatch.setattr(tracing, "MOST_MEMORY", 2000)
    np.testing.assert_array_equal(residual_parts(subject, TEXT).parts_PTD, in_memory.parts_PTD)


def test_parts_of_a_batch_are_refused(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="of one text"):
        residual_parts(subject, torch.tensor([[1, 2], [3, 4]]))


def test_what_parts_add_to_the_logits_sums_to_the_logits_within_1e_4(subject: Subject) -> None:
    found = residual_parts(subject, TEXT)
    unembedding = Unembedding(subject.model, found.total_TD())
    summed_TV = sum(unembedding.logits_of(part_TD) for part_TD in found.parts_PTD) + unembedding.constant_V
    np.testing.assert_allclose(unembedding.capped(summed_TV), found.trace["logits_TV"], atol=1e-4)
    one_V = sum(unembedding.logits_of(part_TD, 3) for part_TD in found.parts_PTD) + unembedding.constant_V
    np.testing.assert_allclose(one_V, summed_TV[3], rtol=1e-9)


def test_unembedding_the_last_residual_stream_gives_the_logits(subject: Subject) -> None:
    found = trace(subject, TEXT)
    last_TD = torch.from_numpy(found[f"blocks.{subject.model.config.n_layer - 1}.output_TD"])
    np.testing.assert_array_equal(unembed(subject.model, last_TD[None])[0].numpy(), found["logits_TV"])


def test_an_attribution_adds_up_to_the_difference_of_the_models_logits(subject: Subject) -> None:
    found = attribute(subject, TEXT, position=4, token="c", versus="\n")
    logits_V = trace(subject, TEXT)["logits_TV"][4].astype(np.float64)
    if isinstance(subject.model.config, ModernConfig):
        subject.model.config = replace(subject.model.config, logit_softcap=0.0)  # type: ignore[assignment]
    before_V = trace(subject, TEXT)["logits_TV"][4]
    c, newline = subject.tokenizer.encode("c\n")
    assert found.total == pytest.approx(before_V[c] - before_V[newline], abs=1e-4)
    assert found.context == list(TEXT[:5]) and (found.token, found.versus) == ("c", "\n")
    odds_V = np.exp(logits_V - logits_V.max())
    assert found.probability == pytest.approx(odds_V[c] / odds_V.sum())


def test_a_head_that_is_silenced_has_an_attribution_of_zero(subject: Subject) -> None:
    E = subject.model.config.n_embd // subject.model.config.n_head
    with torch.no_grad():
        subject.model.blocks[1].attention.output.weight[:, E : 2 * E] = 0  # type: ignore[union-attr]
    found = attribute(subject, TEXT)
    values = dict(zip(found.names, found.values_P, strict=True))
    assert values["head 1.1"] == 0
    assert sum(value != 0 for name, value in values.items() if name.startswith("head")) == 3 * 2 - 1


def test_the_likeliest_token_is_explained_unless_another_is_named(subject: Subject) -> None:
    best = int(trace(subject, TEXT)["logits_TV"][-1].argmax())
    assert attribute(subject, TEXT).token == subject.tokenizer.decode([best])
    assert attribute(subject, TEXT, token=3).token == subject.tokenizer.decode([3])


@pytest.mark.parametrize(
    "options", [{"position": 10}, {"position": -11}, {"token": "ab"}, {"token": 11}, {"versus": -1}]
)
def test_a_position_or_token_that_does_not_exist_is_refused(
    make_subject: Callable[..., Subject], options: dict[str, int]
) -> None:
    with pytest.raises(ConfigError) as caught:
        attribute(make_subject(CLASSIC), TEXT, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_an_attribution_is_drawn(config, make_subject: Callable[..., Subject], tmp_path: Path) -> None:
    assert attribute(make_subject(config), TEXT, versus="\n").save(tmp_path, "a")[0].read_bytes()[:4] == b"\x89PNG"
