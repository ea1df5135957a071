"""A run knows its text: it is found again after a move and from other folders, and another text is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import quill as library
from quill.errors import CorpusError, QuillError


@pytest.fixture
def run(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was started in it with relative paths: my.txt, data/ and out/."""
    folder = tmp_path / "started"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(trained.folder / "my.txt", folder)
    given: dict[str, Any] = {**settings(trained.flags), "dataset": "my.txt", "data_dir": "data", "out_dir": "out"}
    library.run(progress=False, **given)
    return folder


def settings(flags: list[str]) -> dict[str, Any]:
    from quill.cli.arguments import Parser, add_configuration

    parser = Parser("train")
    add_configuration(parser)
    return parser.read(flags).given


def test_a_run_is_resumed_from_another_folder(run, tmp_path, monkeypatch, quill):  # T2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert quill("train", "--resume=True", f"--out_dir={run / 'out'}", "--max_iters=7")[0] == 0
    assert quill("evaluate", f"--out_dir={run / 'out'}")[0] == 0
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_a_run_that_was_moved_with_its_text_is_resumed(run, tmp_path, monkeypatch, quill):  # T2
    shutil.move(run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert quill("train", "--resume=True", "--out_dir=moved/out", "--max_iters=7")[0] == 0
    monkeypatch.chdir(tmp_path / "moved")
    assert quill("train", "--resume=True", "--max_iters=8")[0] == 0


def test_prepared_tokens_are_enough_to_resume_a_run_that_was_moved(run, tmp_path, monkeypatch, quill):  # T2
    Path("my.txt").unlink()
    shutil.move(run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    code, out, _ = quill("train", "--resume=True", "--max_iters=7")
    assert code == 0 and "not there any more" in out
    assert quill("evaluate")[0] == 0


def test_another_text_under_the_same_name_is_noticed(run, tmp_path, monkeypatch, quill):  # T1, R13
    text = Path("my.txt").read_text(encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "my.txt").write_text(text[::-1], encoding="utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")  # the right one is beside the run
    assert quill("train", "--resume=True", f"--out_dir={run / 'out'}", "--max_iters=7")[0] == 0
    monkeypatch.chdir(run)
    for other in (text[len(text) // 2 :] + text[: len(text) // 2], text[: len(text) * 6 // 10]):
        Path("my.txt").write_text(other, encoding="utf-8")
        code, _, error = quill("train", "--resume=True", "--max_iters=8")
        assert code == 2 and error.count("\n") == 1
        assert quill("evaluate")[0] == 2


def test_the_error_for_a_missing_text_names_the_path_in_the_configuration(run, quill):
    Path("my.txt").unlink()
    shutil.rmtree("data")
    code, _, error = quill("train", "--resume=True", "--max_iters=8")
    assert code == 2 and "'my.txt'" in error and error.count("\n") == 1


def test_a_run_on_a_text_in_memory_is_resumed_without_giving_it_again(trained, tmp_path, monkeypatch):  # U13
    monkeypatch.chdir(tmp_path)
    text = (trained.folder / "my.txt").read_text(encoding="utf-8")
    given: dict[str, Any] = {**settings(trained.flags), "data_dir": "data", "out_dir": "out"}
    del given["dataset"]
    library.run(text=text, progress=False, **given)
    assert library.run(resume=True, max_iters=8, out_dir="out", progress=False).step == 8
    with pytest.raises(QuillError, match="the text is not the one"):
        library.run(resume=True, max_iters=9, out_dir="out", text=text[::-1], progress=False)


def test_a_text_in_place_of_a_path_is_an_error_of_one_line(trained):  # U13
    text = (trained.folder / "my.txt").read_text(encoding="utf-8")
    with pytest.raises(CorpusError, match=r"is a text of [\d,]+ characters, not a path: give it as text=") as caught:
        library.run(dataset=text, progress=False)
    assert len(str(caught.value)) < 200
