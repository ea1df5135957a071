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
        ({"n_layer": 10**9}, ["n_layer=1000000000", "at most 4,096"]),  # R7, R17, U22
        ({"n_embd": 10**18}, ["n_embd=1000000000000000000", "at most 65,536"]),
        ({"n_embd": 10**400}, ["n_embd=", "at most 65,536"]),
        ({"block_size": 10**9}, ["block_size=1000000000", "at most 1,048,576"]),
        ({"vocab_size": 10**9}, ["vocab_size=1000000000", "at most 16,777,216"]),
        ({"dropout": 10**400}, ["dropout=", "less than 1"]),
        ({"activation": "swish"}, ["activation='swish'", "'gelu' or 'relu'"]),
    ],
)
def test_an_impossible_value_is_named_with_the_accepted_ones(wrong: dict, words: list[str]) -> None:
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
        ({"ngram": 10**9}, ["ngram=1000000000", "at most 32"]),  # R7, U22
        ({"ngram_rows": 10**9}, ["ngram_rows=1000000000", "at most 268,435,456"]),
        ({"ngram": 0}, ["ngram=0", "1 or more"]),
        ({"logit_softcap": 10**400}, ["logit_softcap=", "at most 1e30"]),
        ({"logit_softcap": float("nan")}, ["logit_softcap=nan"]),
        ({"logit_softcap": -1.0}, ["logit_softcap=-1.0", "0 or more"]),
    ],
)
def test_an_impossible_modern_value_is_named_with_the_accepted_ones(wrong: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ModernConfig(**{"vocab_size": 65, **wrong})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_configuration_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig(vocab_size=65).n_layer = 7  # type: ignore[misc]


def test_a_whole_number_is_accepted_as_a_number() -> None:
    assert GPTConfig(vocab_size=65, dropout=0).dropout == 0


def test_both_configurations_know_their_key_and_value_heads() -> None:
    assert GPTConfig(vocab_size=65).kv_heads == ModernConfig(vocab_size=65).kv_heads == 6
    assert ModernConfig(vocab_size=65, n_kv_head=2).kv_heads == 2


def test_ngram_tables_have_a_row_for_each_ngram_or_as_many_as_are_allowed() -> None:
    assert ModernConfig(vocab_size=3, ngram=4, ngram_rows=100).ngram_sizes == [16, 64, 100]
    assert ModernConfig(vocab_size=3, ngram=1).ngram_sizes == []
