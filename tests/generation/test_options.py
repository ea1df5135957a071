"""Options: each means what it says in every method, and what cannot be used is one line at the call."""

from __future__ import annotations

from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from quill.errors import ConfigError
from quill.generation.language_model import LanguageModel, load
from quill.generation.options import GenerateOptions, UnknownOptionError, renamed
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.char import CharTokenizer

CHARACTERS = CharTokenizer.from_text("abcdefgh é漢\n")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(CHARACTERS.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16)).eval()
    return LanguageModel(gpt, CHARACTERS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_method_returns_num_samples_texts(model: LanguageModel, count: int) -> None:
    # W5: generate and stream mixed two texts character by character
    options: GenerateOptions = {"max_new_tokens": 30, "seed": 3}
    texts = model.generate("a", num_samples=count, **options)
    assert len(texts) == count and texts[0] == model.generate("a", **options) and len(set(texts)) == count
    rows = [""] * count
    for row, piece in model.stream("a", num_samples=count, **options):
        rows[row] += piece
    assert rows == texts == [each.text for each in model.complete("a", num_samples=count, **options)]


def test_a_stream_of_one_text_gives_text(model: LanguageModel) -> None:
    pieces = list(model.stream("a", max_new_tokens=5, seed=1))
    assert all(isinstance(piece, str) for piece in pieces) and len("".join(pieces)) == 5


@pytest.mark.parametrize("method", ["generate", "stream", "complete"])
@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("temprature", "did you mean 'temperature'"),
        ("max_tokens", "did you mean 'max_new_tokens'"),
        ("num_return_sequences", "did you mean 'num_samples'"),
        ("colour", ""),
    ],
)
def test_an_option_that_a_method_does_not_take_is_refused_by_name(
    model: LanguageModel, method: str, option: str, hint: str
) -> None:
    # W5
    with pytest.raises(UnknownOptionError, match=rf"^{method} has no option '{option}'.*{hint}") as caught:
        getattr(model, method)("a", **{option: 1})
    assert isinstance(caught.value, ConfigError) and isinstance(caught.value, TypeError)


@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize("option", ["best_of", "logprobs"])
def test_the_error_for_an_option_of_another_method_names_that_method(
    model: LanguageModel, method: str, option: str
) -> None:
    # W5
    with pytest.raises(UnknownOptionError, match=rf"{method} has no option '{option}': complete has it"):
        getattr(model, method)("a", **{option: 1})


WRONG: list[dict[str, Any]] = [
    {"num_samples": 2.0}, {"num_samples": "2"}, {"num_samples": True}, {"num_samples": 0},
    {"num_samples": 10**12}, {"best_of": 10**12},  # U22
    {"best_of": "2"},
    {"best_of": 2.5}, {"best_of": True}, {"best_of": 0}, {"logprobs": "1"}, {"logprobs": -1}, {"logprobs": True},
    {"max_new_tokens": 2**31 + 1}, {"max_new_tokens": 10**400},
    {"max_new_tokens": 2.0}, {"max_new_tokens": None}, {"seed": "1"}, {"seed": 1.0}, {"seed": True}, {"echo": 1},
    {"stop": [3]}, {"stop": b"x"}, {"stop": 5}, {"unknown": None}, {"temperature": "0.8"}, {"top_k": 1.5},
    {"logit_bias": {"a": "5"}}, {"logit_bias": [("a", 5.0)]}, {"logit_bias": {"a": 1e39}}, {"logit_bias": {1.5: 1}},
    {"logit_bias": {True: 1.0}}, {"prompt": b"a"}, {"prompt": None}, {"prompt": ["a"] * 1000},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_option_of_the_wrong_type_is_an_error_of_one_line(model: LanguageModel, wrong: dict[str, Any]) -> None:
    # W14, W6
    request = {"prompt": "a", **wrong}
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}=") as caught:
        model.complete(**request)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    if not wrong.keys() & {"best_of", "logprobs"}:
        with pytest.raises(ConfigError):
            model.stream(**request)  # before anything is read from it


def test_numpy_numbers_are_accepted(model: LanguageModel) -> None:
    # W14
    expected = model.complete("a", num_samples=2, best_of=3, logprobs=2, max_new_tokens=9, seed=7, temperature=0.5)
    options: dict[str, Any] = {
        "num_samples": np.int64(2), "best_of": np.int32(3), "logprobs": np.int8(2), "max_new_tokens": np.uint16(9),
        "seed": np.uint64(7), "temperature": np.float32(0.5),
    }  # fmt: skip
    assert model.complete("a", **options) == expected


@pytest.mark.parametrize(
    "tokens", [[True, False], [1, True], np.array([True]), torch.tensor([True]), [np.True_], [1j], [2**70], object()]
)
def test_a_value_that_is_no_token_id_is_refused(model: LanguageModel, tokens: Any) -> None:
    # W14
    with pytest.raises(ConfigError, match="tokens"):
        model.logits(tokens)


def test_a_token_with_two_biases_is_refused(model: LanguageModel) -> None:
    # W6: the one that came last counted
    token = int(CHARACTERS.encode("a")[0])
    with pytest.raises(ConfigError, match="twice"):
        model.generate("a", logit_bias={"a": 1.0, token: 2.0})


def test_logit_bias_may_be_none(model: LanguageModel) -> None:
    assert model.generate("a", seed=1, logit_bias=None) == model.generate("a", seed=1, logit_bias={})


def test_a_note_says_that_a_prompt_beyond_the_context_is_cut() -> None:
    # W16
    notes: list[str] = []
    with torch.random.fork_rng():
        gpt = GPT(GPTConfig(CHARACTERS.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16)).eval()
    model = LanguageModel(gpt, CHARACTERS, on_status=notes.append)
    model.generate("a" * 16, max_new_tokens=1)
    assert notes == []
    model.generate("a" * 17, max_new_tokens=1)
    assert notes == ["the prompt has 17 tokens, and the model reads the last 16 of them"]


def test_keywords_of_earlier_versions_work_with_advice() -> None:
    def tell(text: str) -> None: ...

    with pytest.warns(FutureWarning) as warned:
        assert renamed({"which": "last", "weights": "int8", "tell": tell}) == {
            "checkpoint": "last", "quantization": "int8", "on_status": tell,
        }  # fmt: skip
        assert renamed({"weights": "fp32"}) == {"quantization": None}
    assert [str(each.message) for each in warned] == [
        "which= is now called checkpoint=: use checkpoint='last'",
        "weights= is now called quantization=: use quantization='int8'",
        "tell= is now called on_status=: use on_status=…",
        "weights= is now called quantization=: use quantization=None",
    ]
    with pytest.raises(UnknownOptionError, match=r"'enigne'.*did you mean 'engine'"):
        load("x", enigne="torch")  # type: ignore


def test_every_option_is_checked_and_documented() -> None:
    assert get_type_hints(GenerateOptions).keys() == GenerateOptions.__annotations__.keys()
