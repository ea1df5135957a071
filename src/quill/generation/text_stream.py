"""From tokens to pieces of text that can be shown at once, ending exactly before a stop string.

A piece is final: it has whole characters only, and text that may be the beginning of a stop string is held back until
the next tokens decide.

Reference: Aho & Corasick, "Efficient String Matching" (1975), for the longest end that is a beginning of a pattern.
"""

from __future__ import annotations

from collections.abc import Sequence

from quill.errors import ConfigError
from quill.tokenizers.base import Tokenizer
from quill.validation import show


def as_stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop strings as a tuple; an empty one would stop at once and is a ConfigError."""
    strings = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(string, str) and string for string in strings):
        raise ConfigError(
            f"stop={show(stop)} cannot be used: stop must be text of at least one character, or a list of such"
        )
    return tuple(strings)


def decode_prompt(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, list[int]]:
    """Return the text of a prompt without an unfinished last character, and the tokens of that character.

    These tokens are given to the TextStream of the generated text, which completes the character.
    """
    decoder = tokenizer.stream_decoder()
    text = "".join(map(decoder.feed, tokens))
    unfinished = decoder.flush()
    for count in range(len(tokens) + 1 if unfinished else 0):
        tail = list(tokens[len(tokens) - count :])
        if not any([decoder.feed(token) for token in tail]) and decoder.flush() == unfinished:
            return text, tail
        decoder.flush()
    return text + unfinished, []


class TextStream:
    """Text of one row, token by token; `stopped` becomes True when a stop string was generated.

    The text ends before the stop string that is complete first (the longest of those complete at the same character),
    wherever the pieces end. The stop string itself is left out. `unfinished` are the tokens of a character that began
    in the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = (), unfinished: Sequence[int] = ()) -> None:
        self._decoder = tokenizer.stream_decoder()
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped = False
        for token in unfinished:
            self._decoder.feed(token)

    def feed(self, token: int) -> str:
        """Add a token, and return the text that is final now, possibly none."""
        return "" if self.stopped else self._release(self._decoder.feed(token))

    def flush(self) -> str:
        """End the text, and return the text that was held back: no stop string can follow."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush()) + self._held
        self._held = ""
        return text

    def _release(self, piece: str) -> str:
        if not self._stop_strings:
            return piece
        text, self._held = self._held + piece, ""
        found = [(at + len(stop), at) for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        certain = len(text) - max(_length_of_open_end(text, stop) for stop in self._stop_strings)
        self._held = text[certain:]
        return text[:certain]


def _length_of_open_end(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
