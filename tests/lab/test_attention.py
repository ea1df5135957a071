"""Attention maps, rollout and value-weighted attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lab_models import CLASSIC, Subject

from quill.errors import ConfigError
from quill.lab.attention import Kind, attention_maps, rollout, value_weighted
from quill.lab.subject import attention_of
from quill.lab.trace import trace

TEXT = "abcabcdead"
KINDS: list[Kind] = ["weights", "value-weighted", "rollout"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_map_is_causal_and_its_rows_sum_to_one(subject: Subject, kind: Kind) -> None:
    found = attention_maps(subject, TEXT, kind=kind)
    config = subject.model.config
    assert len(found.maps) == (config.n_layer if kind == "rollout" else config.n_layer * config.n_head)
    for map_TS in found.maps.values():
        np.testing.assert_allclose(map_TS.sum(-1), 1, atol=1e-5)
        assert (np.triu(map_TS, 1) == 0).all() and (map_TS >= 0).all()


def test_rollout_of_two_layers_is_computed_as_by_hand() -> None:
    first, second = np.array([[[1, 0], [1, 0]]], float), np.array([[[1, 0], [0.5, 0.5]]], float)
    rolled = rollout(np.stack([first, second]))
    np.testing.assert_allclose(rolled[0], [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(rolled[1], [[1, 0], [0.25 + 0.75 * 0.5, 0.75 * 0.5]])


def test_heads_that_all_attend_to_themselves_roll_out_to_the_identity() -> None:
    weights = np.broadcast_to(np.eye(5), (3, 2, 5, 5))
    np.testing.assert_allclose(rollout(weights)[-1], np.eye(5))


def test_value_weighted_attention_is_that_of_what_a_head_adds(subject: Subject) -> None:
    """The contribution of token s to the output at t is weight · v_s W_O; its length over the row's sum is the map."""
    layer = 1
    found = trace(subject, TEXT)
    of = f"blocks.{layer}.attention."
    weight = attention_of(subject.model, layer).output.weight.detach().numpy()  # type: ignore[union-attr]
    shares = value_weighted(subject, found, layer)
    E = found[of + "v_HSE"].shape[-1]
    h, t = 1, 6
    parts_SD = found[of + "weights_HTS"][h, t][:, None] * found[of + "v_HSE"][h] @ weight[:, h * E : (h + 1) * E].T
    sizes_S = np.linalg.norm(parts_SD, axis=-1)
    np.testing.assert_allclose(shares[h, t], sizes_S / sizes_S.sum(), rtol=1e-4, atol=1e-6)


def test_a_head_or_a_layer_can_be_chosen(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    assert list(attention_maps(subject, TEXT, layer=1).maps) == ["1.0", "1.1"]
    assert list(attention_maps(subject, TEXT, layer=1, head=1).maps) == ["1.1"]
    assert list(attention_maps(subject, TEXT, layer=2, kind="rollout").maps) == ["2"]
    for options in ({"layer": 3}, {"layer": -1}, {"head": 2}, {"kind": "sum"}, {"kind": "rollout", "head": 0}):
        with pytest.raises(ConfigError) as caught:
            attention_maps(subject, TEXT, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_drawn_and_written_as_numbers(make_subject: Callable[..., Subject], kind: Kind, tmp_path) -> None:
    found = attention_maps(make_subject(CLASSIC), TEXT, kind=kind)
    png, json, page = found.save(tmp_path, "attention")
    assert png.read_bytes().startswith(b"\x89PNG") and '"maps"' in json.read_text("utf-8")
    assert "data:image/png;base64," in page.read_text("utf-8")


def test_numbers_are_the_lower_triangles_in_ten_thousandths(make_subject: Callable[..., Subject]) -> None:
    found = attention_maps(make_subject(CLASSIC), TEXT)
    for name, rows in found.numbers()["maps"].items():
        assert [len(row) for row in rows] == list(range(1, len(TEXT) + 1))
        np.testing.assert_allclose(np.array(rows[-1]) / 10_000, found.maps[name][-1], atol=5.1e-5)
