"""A configuration is possible or it does not exist."""

import dataclasses

import pytest

from quill.errors import ConfigError, QuillError
from quill.model.config import GPTConfig, ModernConfig


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_embd": 385}, ["n_embd=385", "divisible by n_head=6", "n_embd=384"]),
        ({"n_layer": 0}, ["n_layer=0", "1 or more"]),
        ({"n_head": -6}, ["n_head=-6", "1 or more"]),
        ({"block_size": "256"}, ["block_size='256'", "a whole number"]),
        ({"n_layer": 6.0}, ["n_layer=6.0", "a whole number"]),
        ({"n_layer": True}, ["n_layer=True", "a whole number"]),
        ({"bias": 1}, ["bias=1", "True or False"]),
        ({"dropout": 1.0}, ["dropout=1.0", "less than 1"]),
        ({"dropout": float("nan")}, ["dropout=nan"]),
        ({"activation": "swish"}, ["activation='swish'", "'gelu' or 'relu'"]),
    ],
)
def test_an_impossible_value_is_named_with_what_would_do(wrong: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        GPTConfig(**{"vocab_size": 65, **wrong})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, QuillError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_kv_head": 4}, ["n_kv_head=4", "a divisor of n_head=6"]),
        ({"n_kv_head": 0}, ["n_kv_head=0"]),
        ({"n_embd": 90}, ["n_embd=90", "even number"]),
        ({"logit_softcap": -1.0}, ["logit_softcap=-1.0", "0 or more"]),
    ],
)
def test_an_impossible_modern_value_is_named_with_what_would_do(wrong: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ModernConfig(**{"vocab_size": 65, **wrong})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig(vocab_size=65).n_layer = 7  # type: ignore[misc]


def test_a_whole_number_is_accepted_as_a_number() -> None:
    assert GPTConfig(vocab_size=65, dropout=0).dropout == 0
