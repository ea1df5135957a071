"""Echo: the prompt before the text, as one decoding of all tokens gives it, with the same model's probabilities."""

from __future__ import annotations

import pytest
import torch

from quill.generation.language_model import LanguageModel
from quill.generation.text_stream import decode_prompt
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

BYTES = ByteTokenizer()


def byte_model(engine: str = "torch", quantization: str | None = None) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(256, block_size=32, n_layer=1, n_head=2, n_embd=16)).eval()
        for parameter in gpt.parameters():
            parameter.data.mul_(4)
    return LanguageModel(gpt, BYTES, engine=engine, quantization=quantization)  # type: ignore[arg-type]


def text_of(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("prompt", ["é".encode()[:1], "a漢".encode()[:2], "🖋".encode()[:3], b"ab"])
def test_a_character_between_prompt_and_text_is_whole_in_the_echo(prompt: bytes) -> None:
    # W16: two replacement characters where decoding gives the character
    rest = {b"\xc3": b"\xa9", b"a\xe6": "漢".encode()[1:], "🖋".encode()[:3]: "🖋".encode()[3:], b"ab": b"c"}[prompt]
    model = byte_model()
    for position, byte in enumerate(rest):
        # Force one byte after another; with the last the text ends.
        options = {"max_new_tokens": 1, "logit_bias": {byte: float("inf")}, "echo": True}
        before = prompt + rest[:position]
        text = model.generate(text_of(before), **options)  # type: ignore[arg-type]
        assert text == BYTES.decode([*before, byte])
    assert BYTES.decode([*prompt, *rest]) == (prompt + rest).decode()


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 20), marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("prompt", [b"\xff", b"a\xffb\xc3", b"\xe2\x82", b"\xf0\x9f\x92x", "漢字".encode()])
def test_an_echo_is_what_all_tokens_decode_to(prompt: bytes, seeds: range) -> None:
    # W16: a prompt of invalid UTF-8 was echoed as "?"
    model = byte_model()
    for seed in seeds:
        [completion] = model.complete(text_of(prompt), max_new_tokens=12, seed=seed, echo=True)
        tokens = [token.token_id for token in completion.tokens]
        assert bytes(tokens[: len(prompt)]) == prompt
        assert completion.text == BYTES.decode(tokens)
        options = {"max_new_tokens": 12, "seed": seed, "echo": True}
        assert model.generate(text_of(prompt), **options) == completion.text  # type: ignore[arg-type]
        assert "".join(model.stream(text_of(prompt), **options)) == completion.text  # type: ignore[arg-type]


def test_an_unfinished_prompt_that_nothing_follows_ends_in_a_replacement_character() -> None:
    assert byte_model().generate(text_of(b"a\xc3"), max_new_tokens=0, echo=True) == "a\ufffd"


def test_a_prompt_is_decoded_up_to_its_unfinished_character() -> None:
    assert decode_prompt(BYTES, list("aé".encode())) == ("aé", [])
    assert decode_prompt(BYTES, list(b"a\xe2\x82")) == ("a", [0xE2, 0x82])
    assert decode_prompt(BYTES, [0xF0, 0x9F]) == ("", [0xF0, 0x9F])
    assert decode_prompt(BYTES, [0xFF]) == ("\ufffd", [])
    assert decode_prompt(CharTokenizer("ab"), [0, 1]) == ("ab", [])


def test_a_stop_string_of_the_prompt_does_not_cut_an_echo() -> None:
    model = byte_model()
    plain = model.generate("bad", max_new_tokens=9, seed=1)
    assert "bad" not in plain
    assert model.generate("bad", max_new_tokens=9, seed=1, stop="bad", echo=True) == "bad" + plain


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_log_probabilities_of_prompt_and_text_come_from_one_model(quantization: str | None) -> None:
    # W15: with int8 those of the prompt came from the float32 model
    model = byte_model("numba", quantization)
    prompt = "a prompt of some bytes"
    [longer] = model.complete(prompt, max_new_tokens=6, seed=2, logprobs=0, echo=True)
    split = len(prompt) + 3
    text = bytes(token.token_id for token in longer.tokens[:split]).decode("utf-8", "surrogateescape")
    [echo] = model.complete(text, max_new_tokens=0, logprobs=0, echo=True)
    # The same tokens, once as a prompt and once as a text: bit for bit the same probabilities.
    assert [token.logprob for token in echo.tokens] == [token.logprob for token in longer.tokens[:split]]
    exact = model.logits(prompt).log_softmax(-1)
    difference = 0.0
    for t, token in enumerate(longer.tokens[1 : len(prompt)]):
        assert token.logprob is not None
        difference = max(difference, abs(token.logprob - exact[t, token.token_id].item()))
    assert difference > 1e-3 if quantization else difference < 1e-4
