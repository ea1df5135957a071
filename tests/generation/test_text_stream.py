"""Streamed text: nothing is lost, no character is cut, and no stop string comes out."""

import random

import pytest

from quill.errors import ConfigError
from quill.generation.text_stream import TextStream, as_stop_strings
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

BYTES = ByteTokenizer()


def stream(tokenizer: Tokenizer, text: str, *stop: str) -> list[str]:
    """Return the pieces that come out, one for each token until the stop, and the flush."""
    out = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text).tolist():
        if out.stopped:
            break
        pieces.append(out.feed(token))
    return [*pieces, out.flush()]


def cut_at_first_completed(text: str, stops: tuple[str, ...]) -> str:
    """The definition, written out: the shortest beginning of the text that ends with a stop string, without it."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - max(map(len, matches))]
    return text


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("END",), "one EN two "),
        (("two",), "one EN "),
        (("EN two END",), "one "),  # the first EN is held back, given up and taken again
        (("o", "one"), ""),
        (("never",), "one EN two END three"),
        (("three",), "one EN two END "),
        (("three!",), "one EN two END three"),  # a beginning of the stop string at the end is text
        (("e EN two", " EN"), "one"),
    ],
)
@pytest.mark.parametrize("kind", ["char", "byte"])
def test_text_ends_exactly_before_the_stop_string(kind: str, stops: tuple[str, ...], expected: str):
    text = "one EN two END three"
    tokenizer = CharTokenizer.from_text(text) if kind == "char" else BYTES
    assert "".join(stream(tokenizer, text, *stops)) == expected == cut_at_first_completed(text, stops)


def test_cutting_follows_its_definition_on_many_small_texts():
    chance = random.Random(0)
    tokenizer = CharTokenizer("abß")
    for _ in range(2000):
        text = "".join(chance.choices("abß", k=12))
        stops = tuple("".join(chance.choices("abß", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 3)))
        expected = cut_at_first_completed(text, stops)
        assert "".join(stream(tokenizer, text, *stops)) == expected, (text, stops)
        assert "".join(stream(BYTES, text, *stops)) == expected, (text, stops)
        assert not any(stop in expected for stop in stops)


def test_text_is_held_back_only_while_it_may_be_a_stop_string():
    tokenizer = CharTokenizer.from_text("abcx")
    assert stream(tokenizer, "abxabc", "abc") == ["", "", "abx", "", "", "", ""]
    assert stream(tokenizer, "xab", "abc") == ["x", "", "", "ab"]


def test_pieces_never_hold_part_of_a_character():
    text = "aé漢🖋z"
    pieces = stream(BYTES, text)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_any_bytes_stream_to_what_they_decode_to():
    chance = random.Random(1)
    for _ in range(300):
        tokens = [chance.choice([65, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF, 0xF0, 0x9F]) for _ in range(9)]
        out = TextStream(BYTES)
        assert "".join([*map(out.feed, tokens), out.flush()]) == BYTES.decode(tokens)


def test_an_unfinished_character_can_complete_a_stop_string_at_the_end():
    out = TextStream(BYTES, ("a\ufffd",))
    assert "".join(map(out.feed, [ord("b"), ord("a"), 0xC3])) == "b"
    assert out.flush() == "" and out.stopped


def test_nothing_comes_after_a_stop_string():
    tokenizer = CharTokenizer("ab")
    out = TextStream(tokenizer, ("b",))
    assert [out.feed(token) for token in tokenizer.encode("abaa").tolist()] == ["a", "", "", ""]
    assert out.stopped and out.flush() == ""


def test_stop_strings_are_one_text_or_several_and_never_empty():
    assert as_stop_strings(None) == ()
    assert as_stop_strings("ab") == ("ab",)
    assert as_stop_strings(["a", "b"]) == ("a", "b")
    for wrong in ("", ["a", ""], [3], 3):
        with pytest.raises(ConfigError, match="stop"):
            as_stop_strings(wrong)  # pyright: ignore[reportArgumentType]
