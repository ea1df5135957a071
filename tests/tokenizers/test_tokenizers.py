"""Tokenizers: decoding undoes encoding, pieces are whole characters, and errors name what is wrong."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import TokenizerError
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharacterSet, CharTokenizer
from quill.tokenizers.load import build_tokenizer, tokenizer_from_json

EMOJI = "👩‍👩‍👧 🇨🇳 é 红楼梦 \U0010ffff \U00010000 naïve\tτέλος\n"
WIDE = "".join(map(chr, range(1000)))
"""more characters than a byte has values"""
any_text = st.text(st.characters(exclude_categories=("Cs",)))  # any character but halves of one
some_text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


@settings(deadline=None)
@given(some_text)
def test_decoding_undoes_encoding_by_characters(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(any_text)
def test_decoding_undoes_encoding_by_bytes(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


@settings(deadline=None)
@given(st.binary())
def test_byte_tokens_of_a_file_are_its_bytes(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    assert ByteTokenizer().encode(text, compact=True).tobytes() == raw
    assert ByteTokenizer().encode(text).tolist() == list(raw)


@pytest.mark.parametrize("text", ["", "a", EMOJI, "x" * 1000])
@pytest.mark.parametrize("kind", ["char", "byte"])
def test_token_arrays_are_flat_writable_and_of_the_dtype(kind: str, text: str) -> None:
    tokenizer = build_tokenizer(kind, EMOJI + "ax")
    compact, tokens = tokenizer.encode(text, compact=True), tokenizer.encode(text)
    assert compact.dtype == tokenizer.dtype and tokens.dtype == np.int64
    for array in (compact, tokens):
        assert array.ndim == 1 and array.flags.writeable and array.flags.c_contiguous
    assert np.array_equal(compact, tokens)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_encoded_text_is_an_index_that_pytorch_accepts(kind: str) -> None:  # U14
    embedding = torch.nn.Embedding(256, 2)
    tokens = build_tokenizer(kind, EMOJI).encode(EMOJI)
    assert embedding(torch.from_numpy(tokens)).shape == (len(tokens), 2)
    assert embedding.weight[tokens].shape == (len(tokens), 2)


def test_a_character_vocabulary_is_the_sorted_set_of_characters() -> None:
    tokenizer = CharTokenizer.from_text("hello\nworld")
    assert tokenizer.characters == "\ndehlorw"
    assert tokenizer.encode("hello").tolist() == [3, 2, 4, 4, 5]


@pytest.mark.parametrize(("size", "dtype"), [(255, np.uint8), (256, np.uint8), (257, np.uint16), (50_000, np.uint16)])
def test_the_dtype_is_the_smallest_that_holds_the_vocabulary(size: int, dtype: type) -> None:
    text = "".join(chr(0x10000 + i) for i in range(size))
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.dtype == dtype and tokenizer.vocab_size == size
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_535, 65_536])
def test_a_vocabulary_of_any_size_knows_its_characters_and_no_others(size: int) -> None:
    first = 0x10000 - size // 2 if size < 60_000 else 0x20000  # characters of two and of four bytes in UTF-16
    known = "".join(map(chr, range(first, first + size)))
    tokenizer = CharTokenizer(known)
    assert np.array_equal(tokenizer.encode(known), np.arange(size))
    for unknown in (chr(first - 1), chr(first + size), "a"):
        assert tokenizer.unknown_characters(known[:3] + unknown) == [(len(known[:3]), unknown)]
        with pytest.raises(TokenizerError, match="is not among"):
            tokenizer.encode(known[:3] + unknown)


@settings(deadline=None)
@given(any_text, any_text)
def test_tokens_of_a_text_and_of_its_utf_8_are_the_same(text: str, more: str) -> None:
    for tokenizer in (ByteTokenizer(), CharTokenizer.from_text(f"{text}{more} "), CharTokenizer(WIDE)):
        known = tokenizer.drop_unknown(text)
        tokens = tokenizer.encode_utf8(known.encode())
        assert tokens.dtype == tokenizer.dtype and np.array_equal(tokens, tokenizer.encode(known))


@pytest.mark.parametrize(
    "raw", ["naïve 红".encode(), b"abc", b"a" * 9 + b"\x80", ("a" * 9 + "é").encode(), ("é" * 9).encode()]
)
def test_a_character_of_utf_8_without_a_token_is_refused(raw: bytes) -> None:
    for tokenizer in (CharTokenizer("a"), CharTokenizer("a" + WIDE[400:900])):
        with pytest.raises(TokenizerError, match="is not among"):
            tokenizer.encode_utf8(raw)


@settings(deadline=None)
@given(st.lists(any_text))
def test_the_bytes_of_a_text_add_the_same_characters_as_the_text(texts: list[str]) -> None:
    with_bytes, without = CharacterSet(), CharacterSet()
    for text in texts:
        with_bytes.add(text, text.encode())
        without.add(text)
    assert with_bytes.characters == without.characters == "".join(sorted(set("".join(texts))))


def test_a_vocabulary_too_large_for_two_bytes_is_refused_with_advice() -> None:
    with pytest.raises(TokenizerError, match=r"\(tokenizer=byte\)"):
        CharTokenizer.from_text("".join(map(chr, range(0x10000, 0x10000 + 65_537))))


def test_an_unknown_character_is_named_with_its_position() -> None:
    tokenizer = CharTokenizer.from_text("abc")
    with pytest.raises(TokenizerError, match=r"'é' at position 2 .*\(unknown=skip\)"):
        tokenizer.encode("abécé")
    assert tokenizer.unknown_characters("abécé") == [(2, "é"), (4, "é")]
    assert tokenizer.drop_unknown("abécé") == "abc"


@settings(deadline=None)
@given(some_text, st.text())
def test_text_without_its_unknown_characters_can_be_encoded(vocabulary: str, text: str) -> None:
    for tokenizer in (CharTokenizer.from_text(vocabulary), ByteTokenizer()):
        unknown = {position for position, _ in tokenizer.unknown_characters(text)}
        kept = tokenizer.drop_unknown(text)
        assert kept == "".join(c for i, c in enumerate(text) if i not in unknown)
        tokenizer.encode(kept)


def test_every_code_point_outside_the_vocabulary_is_reported_as_unknown() -> None:
    tokenizer = CharTokenizer.from_text("a")
    assert len(tokenizer.unknown_characters("\0a\U0010ffff\ud800")) == 3


def test_half_a_character_is_an_error_in_one_line_and_never_a_crash() -> None:
    for tokenizer in (CharTokenizer.from_text("ab"), ByteTokenizer()):
        with pytest.raises(TokenizerError, match=r"\\ud83d.* at position 1") as caught:
            tokenizer.encode("a\ud83db")
        assert str(caught.value).isascii() and "\n" not in str(caught.value)
    with pytest.raises(TokenizerError, match=r"\(tokenizer=byte\)"):
        CharTokenizer.from_text("a\udc80")


def test_no_text_gives_no_character_vocabulary() -> None:
    with pytest.raises(TokenizerError, match="empty"):
        CharTokenizer.from_text("")


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), ByteTokenizer()])
@pytest.mark.parametrize("bad", [[-1], [0, 256], [1, 10**12], np.array([999], np.uint16), [1.5], [[0, 1]]])
def test_a_number_that_is_no_token_is_refused(tokenizer: Tokenizer, bad: list) -> None:
    with pytest.raises(TokenizerError, match="token"):
        tokenizer.decode(bad)


@pytest.mark.parametrize("bad", [5, None, b"ab", ["ab"]])
def test_a_value_that_is_no_text_is_not_encoded(bad: Any) -> None:  # W14
    for tokenizer in (CharTokenizer("ab"), ByteTokenizer()):
        with pytest.raises(TokenizerError, match=f"only text can be encoded, not {type(bad).__name__}"):
            tokenizer.encode(bad)


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), ByteTokenizer()])
def test_no_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([]) == "" == tokenizer.decode(np.array([], np.int64))
    assert tokenizer.count_characters(tokenizer.encode("")) == 0


@settings(deadline=None)
@given(some_text)
def test_characters_are_counted_as_python_counts_them(text: str) -> None:
    for tokenizer in (CharTokenizer.from_text(text), ByteTokenizer()):
        tokens = tokenizer.encode(text)
        assert tokenizer.count_characters(tokens) == tokenizer.count_characters(tokens.astype(np.int64)) == len(text)


@settings(deadline=None)
@given(some_text)
def test_json_carries_the_whole_tokenizer(text: str) -> None:
    for tokenizer in (CharTokenizer.from_text(text), ByteTokenizer()):
        assert tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer


@pytest.mark.parametrize(
    "data",
    [{}, {"kind": "word"}, {"kind": "char"}, {"kind": "char", "characters": [1]}, {"kind": "char", "characters": "aa"}],
)
def test_json_that_describes_no_tokenizer_is_refused(data: dict) -> None:
    with pytest.raises(TokenizerError):
        tokenizer_from_json(data)


def test_an_unknown_tokenizer_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TokenizerError, match=r"'word'.*'char' or 'byte'"):
        build_tokenizer("word", "text")


def test_a_tokenizer_is_given_as_its_kind_or_as_a_tokenizer_only() -> None:  # U14
    tokenizer = CharTokenizer("abc")
    assert build_tokenizer(tokenizer, "xyz") is tokenizer
    for wrong in (None, 5, ["char"], {"kind": "char"}):
        with pytest.raises(TokenizerError, match=rf"tokenizer={type(wrong).__name__} object .*'char', 'byte'"):
            build_tokenizer(wrong, "text")  # type: ignore[arg-type]


@settings(deadline=None)
@given(some_text, some_text)
def test_an_extended_vocabulary_keeps_its_ids_and_encodes_the_new_text(old: str, new: str) -> None:
    before = CharTokenizer.from_text(old)
    after = before.extend(new)
    assert after.characters == before.characters + "".join(sorted(set(new) - set(old)))
    assert np.array_equal(before.encode(old), after.encode(old))
    assert after.decode(after.encode(new)) == new
    assert after.extend(new) is after and ByteTokenizer().extend(new) == ByteTokenizer()


def test_a_vocabulary_is_not_extended_by_invalid_characters() -> None:
    with pytest.raises(TokenizerError, match="invalid byte"):
        CharTokenizer("abc").extend("d\udc80")
    with pytest.raises(TokenizerError, match="65,536 is the most"):
        CharTokenizer("abc").extend("".join(map(chr, range(0x10000, 0x10000 + 65_534))))


@settings(deadline=None)
@given(some_text)
def test_streamed_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    for tokenizer in (CharTokenizer.from_text(text), ByteTokenizer()):
        decoder = tokenizer.stream_decoder()
        pieces = [decoder.feed(int(token)) for token in tokenizer.encode(text)]
        assert "".join(pieces) == text and decoder.flush() == ""
        assert [piece for piece in pieces if piece] == list(text)


def test_an_emoji_appears_with_its_last_byte_and_not_before() -> None:
    decoder = ByteTokenizer().stream_decoder()
    assert [decoder.feed(byte) for byte in "🙂!".encode()] == ["", "", "", "🙂", "!"]


@settings(deadline=None)
@given(st.binary())
def test_streaming_invalid_bytes_shows_what_decoding_shows(raw: bytes) -> None:
    tokenizer = ByteTokenizer()
    decoder = tokenizer.stream_decoder()
    streamed = "".join(decoder.feed(byte) for byte in raw) + decoder.flush()
    assert streamed == tokenizer.decode(list(raw)) == raw.decode("utf-8", "replace")


def test_a_flushed_decoder_starts_again() -> None:
    decoder = ByteTokenizer().stream_decoder()
    assert decoder.feed(0xF0) == "" and decoder.flush() == "\ufffd"
    assert decoder.feed(ord("a")) == "a" and decoder.flush() == ""


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), ByteTokenizer()])
def test_streaming_a_number_that_is_no_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="not a token"):
        tokenizer.stream_decoder().feed(256)


def test_tables_agree_with_a_dictionary_on_a_text_of_many_slices() -> None:
    draw = random.Random(0)
    text = "".join(draw.choices("abc \n红楼梦🙂", k=150_000))
    tokenizer = CharTokenizer.from_text(text)
    numbers = {character: i for i, character in enumerate(tokenizer.characters)}
    tokens = tokenizer.encode(text)
    assert tokens.tolist() == [numbers[character] for character in text] and tokenizer.decode(tokens) == text
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert tokenizer.unknown_characters(text + "aXY") == [(150_001, "X"), (150_002, "Y")]
    with pytest.raises(TokenizerError, match="at position 150,000 "):
        tokenizer.encode(text + "X")
