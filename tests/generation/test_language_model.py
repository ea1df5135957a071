"""Text in, text out: streamed text is the text, requests are checked, and a loaded model is the saved one."""

from pathlib import Path
from typing import Any

import pytest
import torch

import quill
from quill.checkpoints.run_folder import save_checkpoint
from quill.errors import CheckpointError, ConfigError, TokenizerError
from quill.generation import completion
from quill.generation.language_model import GenerateOptions, LanguageModel, load
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

CHARACTERS = CharTokenizer.from_text("abcdefgh é漢\n")


def tiny(tokenizer: Tokenizer = CHARACTERS, seed: int = 0) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(GPTConfig(tokenizer.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.1)).eval()
        for parameter in model.parameters():
            parameter.data.mul_(4)
    return LanguageModel(model, tokenizer)


@pytest.fixture(params=["char", "byte"])
def language_model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(CHARACTERS if request.param == "char" else ByteTokenizer())


def test_joined_pieces_are_the_text(language_model: LanguageModel):
    requests: list[GenerateOptions] = [{}, {"stop": ["a", "e"]}, {"temperature": 0}, {"top_k": 3, "top_p": 0.9}]
    for request in requests:
        options: GenerateOptions = {"max_new_tokens": 60, "seed": 4, **request}
        text = language_model.generate("bad", **options)
        assert "".join(language_model.stream("bad", **options)) == text
        [first, second] = language_model.generate("bad", num_samples=2, **options)
        assert first == text
        assert second != text or options.get("temperature") == 0


def test_text_is_the_continuation_alone():
    model = tiny()
    text = model.generate("bad", max_new_tokens=10, seed=1)
    assert len(text) == 10
    assert text.startswith(model.generate("bad", max_new_tokens=4, seed=1))


def test_greedy_text_is_the_arg_max_of_logits():
    model = tiny()
    text = model.generate("a", max_new_tokens=8, temperature=0)
    best = model.logits("a" + text).argmax(-1)[:-1]
    assert model.tokenizer.decode(best.tolist()) == text


def test_text_ends_before_the_stop_string_and_is_otherwise_the_same():
    model = tiny()
    whole = model.generate("a", max_new_tokens=80, seed=2)
    for stop in (whole[30], whole[30:33], whole[30:40]):
        assert model.generate("a", max_new_tokens=80, seed=2, stop=stop) == whole[: whole.index(stop)]
    assert model.generate("a", max_new_tokens=80, seed=2, stop="zz") == whole


def test_a_stop_string_in_the_prompt_stops_nothing():
    model = tiny()
    options: GenerateOptions = {"max_new_tokens": 1, "temperature": 0}
    text = model.generate("ab", **options)
    assert model.generate("ab", **{**options, "stop": "b" + text}) == text


def test_generation_ends_when_every_row_has_stopped():
    model, passes = tiny(), []
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    whole = model.generate("a", num_samples=3, max_new_tokens=200, seed=3)
    passes.clear()
    stopped = model.generate("a", num_samples=3, max_new_tokens=200, seed=3, stop="b")
    assert stopped == [text[: text.index("b")] for text in whole]
    assert len(set(map(len, stopped))) > 1
    assert len(passes) == 1 + sum(map(len, stopped))  # a text that has ended costs nothing more


def test_rows_of_a_stream_equal_the_samples():
    model = tiny()
    options: GenerateOptions = {"max_new_tokens": 50, "seed": 3, "stop": "bc"}
    rows = ["", "", ""]
    for row, piece in model.stream("a", num_samples=3, **options):
        assert piece
        rows[row] += piece
    assert rows == model.generate("a", num_samples=3, **options)


def test_without_a_seed_texts_differ():
    model = tiny()
    assert len({model.generate("a", max_new_tokens=40) for _ in range(3)}) == 3


def test_max_new_tokens_of_zero_gives_no_text(language_model: LanguageModel):
    assert language_model.generate("a", max_new_tokens=0) == ""
    assert language_model.generate("a", num_samples=2, max_new_tokens=0) == ["", ""]


def test_unknown_characters_are_an_error_or_skipped():
    model = tiny()
    with pytest.raises(TokenizerError, match=r"'X' at position 2"):
        model.generate("abXc")
    assert model.generate("abXc", unknown="skip", seed=0) == model.generate("abc", seed=0)
    with pytest.raises(ConfigError, match="XX"):
        model.generate("XX", unknown="skip")


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": ""},
        {"prompt": 3},
        {"unknown": "drop"},
        {"max_new_tokens": -1},
        {"num_samples": 0},
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"stop": ""},
        {"seed": -1},
    ],
)
def test_a_bad_request_is_an_error_of_one_line_before_the_first_token(options: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        request: Any = {"prompt": "a", **options}
        tiny().stream(**request)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="temprature"):
        tiny().generate("a", temprature=1)  # pyright: ignore[reportCallIssue]


def test_logits_accept_a_text_token_ids_or_a_tensor():
    model = tiny()
    tokens = CHARACTERS.encode("abca")
    logits_TV = model.logits("abca")
    assert logits_TV.shape == (4, CHARACTERS.vocab_size) and logits_TV.dtype == torch.float32
    same_tokens = [tokens.tolist(), tokens, tokens.astype("uint16"), torch.tensor(tokens), torch.tensor(tokens).long()]
    for same in same_tokens:
        assert torch.equal(model.logits(same), logits_TV)
    with torch.no_grad():
        torch.testing.assert_close(model.model(torch.tensor(tokens)[None].long())[0], logits_TV)


def test_logits_have_no_dropout_and_are_no_inference_tensors():
    model = tiny()
    expected = model.logits("abca")
    model.model.train()
    assert torch.equal(model.logits("abca"), expected)
    assert model.model.training and not model.logits("a").is_inference()


@pytest.mark.parametrize("tokens", ["", [], [[1, 2]], [0.5], [-1], [99], ["a"], "a" * 17, None])
def test_impossible_tokens_are_an_error(tokens: object):
    with pytest.raises(ConfigError):
        tiny().logits(tokens)  # pyright: ignore[reportArgumentType]


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="vocab_size=12"):
        LanguageModel(tiny().model, ByteTokenizer())


def save(folder: Path, model: LanguageModel, step: int, best: bool) -> Path:
    about: dict[str, Any] = {"step": step, "val_loss": 2.5, "best": best}
    return save_checkpoint(folder, model.model, model.tokenizer, training_tensors={}, training_metadata={}, **about)


def test_a_loaded_model_generates_the_text_of_the_saved_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    best, last = tiny(), tiny(seed=1)
    save(tmp_path / "out", best, 10, best=True)
    save(tmp_path / "out", last, 20, best=False)
    text = best.generate("a", seed=0, max_new_tokens=30)
    loaded = load(tmp_path / "out", device="cpu")
    assert loaded.generate("a", seed=0, max_new_tokens=30) == text
    assert loaded.checkpoint is not None and loaded.checkpoint.step == 10
    newest = load(tmp_path / "out", checkpoint="last")
    assert newest.generate("a", seed=0, max_new_tokens=30) == last.generate("a", seed=0, max_new_tokens=30) != text
    monkeypatch.chdir(tmp_path)
    assert quill.load(device="cpu").generate("a", seed=0, max_new_tokens=30) == text
    file = tmp_path / "out" / "checkpoints" / "step-000010" / "model.safetensors"
    assert load(file).generate("a", seed=0, max_new_tokens=30) == text


def test_loading_without_a_model_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in (None, "absent"):
        with pytest.raises(CheckpointError):
            load(path)
    with pytest.raises(ConfigError, match="checkpoint"):
        load("absent", checkpoint="first")  # pyright: ignore[reportArgumentType]


def test_a_completion_has_its_tokens_and_the_reason_of_its_end():
    model = tiny()
    [completion] = model.complete("bad", max_new_tokens=30, seed=3, logprobs=2)
    assert completion.text == model.generate("bad", max_new_tokens=30, seed=3) and completion.finish_reason == "length"
    assert model.tokenizer.decode([token.token_id for token in completion.tokens]) == completion.text
    logprobs_TV = model.logits("bad" + completion.text[:13]).log_softmax(-1)  # what fits the context
    for token, logprobs_V in zip(completion.tokens[:14], logprobs_TV[2:], strict=True):
        assert (
            token.logprob == pytest.approx(logprobs_V[token.token_id].item(), abs=1e-4) and len(token.top_logprobs) == 2
        )
    stop = completion.text[5]
    [stopped] = model.complete("bad", max_new_tokens=30, seed=3, stop=stop)
    assert stopped.finish_reason == "stop" and stopped.text == completion.text[: completion.text.index(stop)]
    assert stopped.tokens[0].logprob is None


def test_echo_puts_the_prompt_before_with_its_probabilities():
    model = tiny()
    [plain] = model.complete("bad", max_new_tokens=5, seed=3, logprobs=0)
    [echo] = model.complete("bad", max_new_tokens=5, seed=3, logprobs=0, echo=True)
    assert echo.text == "bad" + plain.text and echo.tokens[3:] == plain.tokens
    logprobs_TV = model.logits("bad").log_softmax(-1)
    expected = [logprobs_TV[t, token.token_id].item() for t, token in enumerate(echo.tokens[1:3])]
    assert echo.tokens[0].logprob is None
    assert [token.logprob for token in echo.tokens[1:3]] == pytest.approx(expected, abs=1e-5)
    [long] = model.complete("bad" * 10, max_new_tokens=1, seed=3, logprobs=0, echo=True)
    assert [token.logprob is None for token in long.tokens] == [True] * 15 + [False] * 16


def test_best_of_returns_the_likeliest_texts():
    model = tiny()
    every = model.complete("bad", num_samples=6, max_new_tokens=12, seed=3, logprobs=0)
    best = model.complete("bad", num_samples=2, best_of=6, max_new_tokens=12, seed=3)
    assert best == sorted(every, key=lambda completion: -completion.mean_logprob)[:2]
    with pytest.raises(ConfigError, match="best_of=1"):
        model.complete("bad", num_samples=2, best_of=1)


def test_a_bias_forbids_or_forces_a_character():
    model = tiny()
    assert model.generate("bad", max_new_tokens=9, logit_bias={"é": 1e4}) == "é" * 9
    assert "a" not in model.generate("bad", max_new_tokens=300, temperature=2.0, logit_bias={"a": -1e4})
    number = int(model.tokenizer.encode("é")[0])
    assert model.generate("bad", max_new_tokens=9, logit_bias={number: 1e4}) == "é" * 9
    with pytest.raises(ConfigError, match="logit_bias='ab'"):
        model.generate("bad", logit_bias={"ab": 1.0})
    with pytest.raises(ConfigError, match="token=99"):
        model.generate("bad", logit_bias={99: 1.0})


def test_penalties_change_the_text():
    model = tiny()
    plain = model.generate("a", max_new_tokens=12, temperature=0)
    for penalty in ("presence_penalty", "frequency_penalty"):
        options: GenerateOptions = {"max_new_tokens": 12, "temperature": 0, penalty: 1e4}  # type: ignore[misc]
        assert len(set(plain)) < len(set(model.generate("a", **options))) == 12  # no character twice
    once = model.generate("a", max_new_tokens=11, temperature=0, repetition_penalty=1e9)
    assert "a" not in once  # the prompt counts


def test_two_streams_of_one_model_may_be_read_in_turn():
    model = tiny()
    expected = [model.generate("a", max_new_tokens=40, seed=seed) for seed in (1, 2)]
    streams = [model.stream("a", max_new_tokens=40, seed=seed) for seed in (1, 2)]
    assert ["".join(pieces) for pieces in zip(*zip(*streams, strict=True), strict=True)] == expected


def test_a_model_that_is_trained_further_generates_with_its_present_weights():
    model = tiny()
    before = model.generate("bad", max_new_tokens=20, temperature=0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(-1)
    now = LanguageModel(model.model, model.tokenizer).generate("bad", max_new_tokens=20, temperature=0)
    assert model.generate("bad", max_new_tokens=20, temperature=0) == now != before


class Piece(str):
    """A piece of a text that may not be added to another one: a sum of n of them would copy n²/2 characters."""

    def __radd__(self, other: str) -> str:
        raise AssertionError("added one by one")


def test_texts_are_joined_once() -> None:
    # W13: a text that was collected by += became slower as it grew
    pieces = [(row, Piece(letter)) for letter in "abc" for row in (0, 1)]
    assert completion.join(pieces, 2) == ["abc", "abc"]
    events = [completion.Piece(row, text, None, None) for row, text in pieces]
    assert [each.text for each in completion.collect(events, 2)] == ["abc", "abc"]
