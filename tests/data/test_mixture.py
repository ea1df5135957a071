"""Mixtures: what names one, and the windows that it gives: a function of (seed, step, row), in exact shares."""

import itertools
import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.data.corpus import find_corpus
from quill.data.dataset import prepare_dataset
from quill.data.mixed_dataset import MixedDataset, prepare_any
from quill.data.mixed_tokens import MixedTokens, TranslatedTokens
from quill.data.mixture import DECK, Mixture, find_mixture
from quill.data.windows import DataOrder, batch_starts, sample_batch
from quill.distributed.environment import Ranks, part_of
from quill.errors import CorpusError
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

A, B = "to be or not to be\n" * 40, "Ärger, Öl, Übung 红楼梦\n" * 30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two texts, and nothing of this machine in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    Path("a.txt").write_text(A, encoding="utf-8")
    Path("b").mkdir()
    Path("b/b.txt").write_text(B, encoding="utf-8")
    return tmp_path


def mixed(dataset: str, **how: object) -> MixedDataset:
    found = prepare_any(dataset, **how)  # type: ignore[arg-type]
    assert isinstance(found, MixedDataset)
    return found


# ---- names


def test_weights_become_shares() -> None:
    assert find_mixture("a.txt:0.7,b/:0.3") == Mixture(("a.txt", "b/"), (0.7, 0.3))
    assert find_mixture("a.txt:7, b/:3") == Mixture(("a.txt", "b/"), (0.7, 0.3))
    found = find_mixture("C:\\a.txt:1,pydoc:1e0,x/*.txt:2")
    assert found == Mixture(("C:\\a.txt", "pydoc", "x/*.txt"), (0.25, 0.25, 0.5))
    assert str(find_mixture("a.txt:1,b/:2")) == "a.txt:0.3333,b/:0.6667"


@pytest.mark.parametrize("dataset", ["a.txt", "a.txt,b", "C:\\a.txt", "a:b.txt", "[ab],[c].txt", "notes: one, two.txt"])
def test_a_path_without_weights_is_no_mixture(dataset: str) -> None:
    assert find_mixture(dataset) is None and find_mixture([dataset]) is None


@pytest.mark.skipif(os.name == "nt", reason="no such names here")
def test_a_file_that_has_the_name_of_a_mixture_is_a_file() -> None:
    Path("a.txt:1,b:2").write_text("a file " * 20, encoding="utf-8")
    assert find_mixture("a.txt:1,b:2") is None
    assert prepare_any("a.txt:1,b:2").title == "a.txt:1,b:2"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("a.txt:0.7,b", "'b' has no weight in a mixture"),
        ("a,b.txt:1,c:2", "'a' has no weight in a mixture: .*a comma or a colon in it must be renamed"),
        (":1,b:2", "'' has no weight"),
        ("a:b.txt:1,c:2", "'a:b.txt' has a colon in it, so it cannot be in a mixture"),
        ("a.txt:x,b:1", "'x' is not a weight for 'a.txt': it must be a number above 0"),
        ("a.txt:,b:1", "'' is not a weight"),
        ("a.txt:0,b:1", "'0' is not a weight"),
        ("a.txt:-1,b:1", "'-1' is not a weight"),
        ("a.txt:nan,b:1", "'nan' is not a weight"),
        ("a.txt:inf,b:1", "'inf' is not a weight"),
        ("a.txt:1e300,b:1e-300", "the weight of 'b' .* a share of at least 1/65,536"),
        ("a.txt:1e308,b:1e308", "another is too large"),
        ("a.txt:1", "gives one text a weight: a mixture has two or more"),
        ("a.txt:1,a.txt:2", "has 'a.txt' twice"),
    ],
)
def test_what_is_no_mixture_and_no_path_is_one_clear_line(dataset: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        prepare_any(dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["a.txt:0.7,b/:0.3", ["a.txt:0.7,b/:0.3"], ["pydoc", "a.txt:1"]])
def test_what_takes_a_single_text_refuses_a_mixture(dataset: str | list[str]) -> None:
    for use in (find_corpus, prepare_dataset):
        with pytest.raises(CorpusError, match="mixture"):
            use(dataset)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=40))
def test_the_windows_of_a_deck_are_shared_out_as_the_weights_say(weights: list[float]) -> None:
    mixture = find_mixture(",".join(f"{number}:{weight}" for number, weight in enumerate(weights)))
    assert mixture is not None
    counts = mixture.counts()
    assert sum(counts) == DECK and min(counts) >= 1
    assert all(abs(count / DECK - share) < 1 / DECK for count, share in zip(counts, mixture.shares, strict=True))


# ---- texts and vocabulary


def test_all_texts_have_the_vocabulary_of_all_characters() -> None:
    found = mixed("a.txt:0.7,b/:0.3")
    assert found.tokenizer == CharTokenizer.from_text(A + B)
    for source, text in enumerate((A, B)):
        for split, cut in (
            (found.train, slice(None, len(text) * 9 // 10)),
            (found.val, slice(len(text) * 9 // 10, None)),
        ):
            assert found.tokenizer.decode(np.asarray(split.parts[source][:])) == text[cut]
    assert found.note == f"70 % a.txt, {len(A)} characters; 30 % b/, {len(B)} characters"
    assert len(found.train) == len(A) * 9 // 10 + len(B) * 9 // 10 and found.train.dtype == np.uint8


def test_the_prepared_texts_are_those_of_every_other_mixture() -> None:
    single = prepare_dataset("a.txt")
    before = single.folder.stat().st_mtime_ns
    first, second = mixed("a.txt:0.7,b/:0.3"), mixed("b/:1,a.txt:2,pydoc:3")
    assert first.sources[0].folder == second.sources[1].folder == single.folder
    assert single.folder.stat().st_mtime_ns == before
    assert first.sha256 != second.sha256 and first.sha256 == mixed("a.txt:7,b/:3").sha256
    assert first.sha256 != mixed("a.txt:0.6,b/:0.4").sha256 != mixed("b/:0.6,a.txt:0.4").sha256


def test_bytes_and_a_given_vocabulary_need_no_translation() -> None:
    tokenizer = CharTokenizer.from_text(A + B + "?")
    for how in ("byte", tokenizer):
        found = mixed("a.txt:0.7,b/:0.3", tokenizer=how)
        assert found.tokenizer == (ByteTokenizer() if how == "byte" else tokenizer)
        assert all(isinstance(part, np.memmap) for part in (*found.train.parts, *found.val.parts))


def test_more_than_256_characters_of_all_texts_take_two_bytes() -> None:
    for name, first in (("x", 0x100), ("y", 0x180)):
        Path(f"{name}.txt").write_text("".join(map(chr, range(first, first + 200))) * 5, encoding="utf-8")
    found = mixed("x.txt:1,y.txt:1")
    assert found.tokenizer.vocab_size == 0x180 + 200 - 0x100 and found.train.dtype == np.uint16
    inputs, _ = sample_batch(found.train, batch_size=50, block_size=8, seed=0, step=0)
    assert inputs.max() > 256 and {ord(c) >> 7 for c in found.tokenizer.decode(inputs.ravel())} >= {2, 3}


def test_each_text_must_be_long_enough() -> None:
    found = mixed("a.txt:0.7,b/:0.3")
    assert found.longest_block_size == -(-len(B) // 10) - 1
    with pytest.raises(CorpusError, match="the validation split of b/ has 63 tokens; block_size=63"):
        found.require_window(63)


def test_slices_of_several_texts_are_those_of_the_texts_one_behind_the_other() -> None:
    texts = MixedTokens(
        [np.arange(5), TranslatedTokens(np.arange(3), np.arange(10, 14)), np.arange(20, 24)], "abc", (1, 1, 2)
    )
    whole = np.asarray(texts)
    assert whole.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 23]
    for start in range(-13, 14):
        for stop in range(-13, 14):
            assert texts[start:stop].tolist() == whole[start:stop].tolist()


# ---- windows


def texts(*lengths: int, counts: tuple[int, ...]) -> MixedTokens:
    """Return texts whose tokens say where they are: number 1,000,000 · text + place."""
    return MixedTokens([np.arange(n) + 1_000_000 * k for k, n in enumerate(lengths)], [*map(str, lengths)], counts)


COUNTS = (DECK * 3 // 4, DECK // 4 - 100, 100)


@pytest.mark.parametrize("data_order", ["random", "shuffled"])
def test_a_deck_of_windows_has_the_exact_share_of_each_text(data_order: DataOrder) -> None:
    tokens = texts(5000, 700, 90, counts=COUNTS)
    sources: list[int] = []
    for step in range(2 * DECK // 512):
        inputs, targets = sample_batch(tokens, batch_size=512, block_size=8, seed=1, step=step, data_order=data_order)
        assert np.array_equal(inputs + 1, targets), "a window reaches from one text into the next"
        sources += (inputs[:, 0] // 1_000_000).tolist()
    for deck in (0, 1):
        assert [count for _, count in sorted(Counter(sources[deck * DECK : (deck + 1) * DECK]).items())] == [*COUNTS]
    assert sources[:DECK] != sources[DECK:]
    quarters = [Counter(sources[start : start + DECK // 4])[0] for start in range(0, DECK, DECK // 4)]
    assert max(abs(count - DECK * 3 // 16) for count in quarters) < 500, "the texts are not mixed"


def test_in_shuffled_order_each_text_has_every_window_once_an_epoch() -> None:
    lengths, block_size = (4001, 801, 161), 8
    tokens = texts(*lengths, counts=COUNTS)
    starts = [
        batch_starts(tokens, batch_size=300, block_size=8, seed=3, step=step, data_order="shuffled")
        for step in range(240)
    ]  # 72,000 windows: more than a deck
    every = np.concatenate(starts)
    for first, length in zip(tokens.starts_S.tolist(), lengths, strict=True):
        own = every[(every >= first) & (every < first + length)] - first
        windows = (length - 1) // block_size - 1
        epochs = [own[start : start + windows] for start in range(0, len(own) - windows, windows)]
        assert len(epochs) >= 5
        for epoch in epochs:
            assert len(set(epoch // block_size)) == windows and len(set(epoch % block_size)) == 1
        assert any(a.tolist() != b.tolist() for a, b in itertools.pairwise(epochs))


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 8), st.sampled_from(["random", "shuffled"]), st.integers(0, 10**6))
def test_a_batch_is_the_same_for_any_number_of_processes_and_after_any_other(
    each: int, world_size: int, data_order: DataOrder, step: int
) -> None:
    tokens, size = texts(5000, 700, 90, counts=COUNTS), each * world_size

    def batch(part: slice = slice(None), seed: int = 7) -> list[list[int]]:
        draw: dict[str, Any] = {
            "batch_size": size,
            "block_size": 8,
            "seed": seed,
            "step": step,
            "data_order": data_order,
        }
        return sample_batch(tokens, **draw, part=part)[0].tolist()

    whole = batch()
    batch(seed=8)
    parts = [batch(part_of(size, Ranks(rank, world_size, rank))) for rank in range(world_size)]
    assert [*itertools.chain(*parts)] == whole == batch()


def test_the_batches_of_a_mixture_never_change() -> None:
    draw: dict[str, Any] = {"batch_size": 6, "block_size": 8, "seed": 1337}
    tokens = texts(10**7, 10**6, 90, counts=COUNTS)
    shuffled = [batch_starts(tokens, **draw, step=n, data_order="shuffled").tolist() for n in (0, 10**9)]
    assert shuffled == [
        [1270923, 10673634, 3302627, 6912875, 10395002, 10384026],
        [4347283, 5715147, 10596970, 10428178, 758507, 4911187],
    ]
    assert batch_starts(tokens, **draw, step=5).tolist() == [166740, 9905713, 6533706, 7561643, 8432469, 10610727]


def test_the_order_of_a_mixture_takes_little_memory_however_long_the_texts_are() -> None:
    class Long:
        dtype = np.dtype(np.uint8)

        def __len__(self) -> int:
            return 10**15

    tokens = MixedTokens([Long(), Long()], "ab", (DECK // 2, DECK // 2))  # type: ignore[list-item]
    draw: dict[str, Any] = {"batch_size": 64, "block_size": 256, "seed": 1, "data_order": "shuffled"}
    batch_starts(tokens, **draw, step=0)  # what is allocated once is not counted
    tracemalloc.start()
    starts = batch_starts(tokens, **draw, step=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(starts.tolist())) == 64 and starts.max() > 10**15 and peak < 3_000_000
