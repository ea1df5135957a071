"""The text of a row: its tokens go with their text, and each is where its character is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quill.engines.request import Token
from quill.server.completions.text import Opening, Piece, RowText, TokenPlaces, join, logprobs_json, name_of
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

BYTES = ByteTokenizer()
CHARS = CharTokenizer("abc\n\ufffd")


def tokens(raw: bytes) -> list[Token]:
    return [Token(byte, -1.0) for byte in raw]


def generated(prompt: bytes, text: bytes, stops: tuple[str, ...] = (), echo: bool = False) -> tuple[Piece, RowText]:
    """Return what was sent of a text, and its row."""
    opening = Opening(BYTES, tokens(prompt), echo, keeps_tokens=True)
    row = RowText(opening, stops)
    pieces = [opening.piece]
    for token in tokens(text):
        pieces.append(row.feed(token))
        if row.stopped:
            return join(pieces), row
    return join([*pieces, row.flush()]), row


def places(raw: bytes) -> list[int]:
    added = TokenPlaces(BYTES, 0)
    return [added.add(byte) for byte in raw]


def test_the_place_of_a_token_is_that_of_its_character() -> None:
    assert places("aéb".encode()) == [0, 1, 1, 2]
    assert places("漢🖋".encode()) == [0, 0, 0, 1, 1, 1, 1]
    assert places(b"\xe2\x41") == [0, 1]  # "\ufffdA"
    assert places(b"\xe2\xe2\x82\xac") == [0, 1, 1, 1]  # "\ufffd€"
    assert places(b"\xff\xffa") == [0, 1, 2]


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_every_token_of_a_whole_text_is_sent_once_and_in_order(prompt: bytes, text: bytes) -> None:
    piece, row = generated(prompt, text, echo=True)
    assert piece.text == (prompt + text).decode("utf-8", "replace")
    assert bytes(token.token_id for token, _ in piece.tokens) == prompt + text
    offsets = [place for _, place in piece.tokens]
    assert offsets == sorted(offsets) and row.num_tokens == len(text)
    assert all(0 <= place < len(piece.text) for place in offsets)


@given(st.text(alphabet="aé漢b", max_size=12))
def test_tokens_of_whole_characters_joined_are_the_text(text: str) -> None:
    piece, _ = generated(b"x", text.encode())
    raw = b"".join(
        bytes.fromhex(name.removeprefix("bytes:\\x")) if name.startswith("bytes:") else name.encode()
        for name in logprobs_json(BYTES, piece.tokens)["tokens"]
    )
    assert raw.decode() == piece.text == text
    assert [place for _, place in piece.tokens] == [
        1 + place for place, character in enumerate(text) for _ in character.encode()
    ]


def test_the_tokens_of_a_stop_string_are_not_sent() -> None:
    piece, row = generated(b"p", "aéSTOPb".encode(), stops=("STOP",))
    assert row.stopped and piece.text == "aé"
    assert bytes(token.token_id for token, _ in piece.tokens) == "aé".encode()


def test_text_that_may_begin_a_stop_string_is_held_back_with_its_tokens() -> None:
    row = RowText(Opening(BYTES, tokens(b"p"), echo=False, keeps_tokens=True), ("STOP",))
    assert [row.feed(token).text for token in tokens(b"xSTxS")] == ["x", "", "", "STx", ""]
    assert (row.flush().text, row.num_tokens) == ("S", 5)


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    assert [name_of(BYTES, token) for token in b"a\xe2\n"] == ["a", "bytes:\\xe2", "\n"]
    assert [name_of(CHARS, token) for token in range(5)] == ["a", "b", "c", "\n", "\ufffd"]


def test_log_probabilities_are_finite_and_include_the_chosen_token() -> None:
    rare = Token(2, -1e9, ((0, -0.1), (1, -2.0)))
    answer = logprobs_json(CHARS, [(Token(0), 0), (rare, 1)])
    assert answer == {
        "tokens": ["a", "c"],
        "token_logprobs": [None, -9999.0],
        "top_logprobs": [None, {"a": -0.1, "b": -2.0, "c": -9999.0}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("echo", [False, True])
def test_a_character_that_began_in_the_prompt_is_whole_in_an_echo_only(echo: bool) -> None:
    piece, _ = generated(b"a\xc3", b"\xa9b", echo=echo)
    assert piece.text == ("aéb" if echo else "\ufffdb")
