"""Conversion of values, and messages that stay one line whatever the value is."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import quill
from quill.errors import LONGEST_MESSAGE, ConfigError, QuillError, first_line, shorten
from quill.validation import check_fields, convert_text, convert_value, describe_type, nearest, require, show


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3), ("-3", int, -3), ("1_000", int, 1000), ("3", float, 3.0), ("1e-3", float, 1e-3),
        ("inf", float, float("inf")), ("3", str, "3"), ("None", str, "None"), ("none", int | None, None),
        ("NULL", float | None, None), ("7", int | None, 7), ("yes", bool, True), ("OFF", bool, False),
        ("auto", bool | Literal["auto"], "auto"), ("1", bool | Literal["auto"], True), ("x", Literal["x", "y"], "x"),
        ("", str, ""),
    ],
)  # fmt: skip
def test_a_text_becomes_a_value_of_its_type(text: str, annotation: Any, value: object) -> None:
    got = convert_text(text, annotation)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("3.0", int), ("1e3", int), ("", int), ("9" * 5000, int), ("10**10", int), ("three", float), ("nan", float),
        ("maybe", bool), ("2", bool), ("z", Literal["x", "y"]), ("x", int | None),
    ],
)  # fmt: skip
def test_a_text_of_another_type_is_refused(text: str, annotation: Any) -> None:
    with pytest.raises(ValueError):
        convert_text(text, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3), (3, float, 3.0), ("1e-3", float, 1e-3), (None, int | None, None), ("None", int | None, None),
        (True, bool, True), (True, bool | Literal["auto"], True), (4, float | None, 4.0), ("1984", str, "1984"),
        (10**400, float, float("inf")),
    ],
)  # fmt: skip
def test_a_value_of_a_file_becomes_one_of_its_type(value: object, annotation: Any, expected: object) -> None:
    got = convert_value(value, annotation)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (1, bool),
        (1.5, int),
        (1984, str),
        (False, str),
        (None, int),
        ([1], int),
        ({}, str),
        (1, Literal["1"]),
    ],
)
def test_a_value_of_another_type_is_refused(value: object, annotation: Any) -> None:
    with pytest.raises(ValueError):
        convert_value(value, annotation)


def bomb() -> list:
    level: list = ["x"] * 9
    for _ in range(20):
        level = [level] * 9
    return level


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, 10**5000, -(10**5000), bomb(), {str(i): i for i in range(10**5)}, b"x" * 10**7],
    ids=["text", "number", "negative number", "nested lists", "dict", "bytes"],
)
def test_any_value_is_shown_in_part_of_a_line(value: object) -> None:  # R17, U13
    assert len(show(value)) < 400 and "\n" not in show(value)
    with pytest.raises(ConfigError) as caught:
        require(False, "n_embd", value, "small")
    assert str(caught.value).startswith("n_embd=") and str(caught.value).endswith("must be small")


@pytest.mark.parametrize("value", [3, -1.5, None, True, "", "a b", "Köln\n", (1, 2), ["a.txt", "b.txt"], 10**18])
def test_a_short_value_is_shown_as_it_is(value: object) -> None:
    assert show(value) == repr(value)


def test_a_message_is_one_line_with_its_beginning_and_its_end() -> None:
    error = QuillError("what is wrong " + "x" * 10**6 + "\n: what to do")
    assert str(error).startswith("what is wrong xxx") and str(error).endswith("xxx : what to do")
    assert len(str(error)) <= LONGEST_MESSAGE and "\n" not in str(error)
    assert shorten("short,  with two spaces") == "short,  with two spaces"
    assert str(ConfigError("two\nlines")) == "two lines"


def test_the_nearest_name_is_named_and_a_far_one_is_not() -> None:
    assert nearest("n_emdb", ["n_embd", "n_head"]) == " (did you mean 'n_embd'?)"
    assert nearest("zzz", ["n_embd", "n_head"]) == ""
    assert nearest("n_embd" * 10**6, ["n_embd"]) == ""


def test_fields_are_checked_against_their_annotations() -> None:
    @dataclasses.dataclass
    class Config:
        count: int | None = None
        rate: float = 0.5

    check_fields(Config(3, 1))
    for wrong, words in ((Config(True), "count=True"), (Config(1, "much"), "rate='much'")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=words):
            check_fields(wrong)
    assert describe_type(int | None) == "a whole number or None"


def messages_of(file: Path) -> Iterator[str]:
    """Yield the strings in a file that are no docstrings, with … for what is put into them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def test_errors_of_the_python_api_name_settings_and_no_flags_except_in_whole_commands() -> None:  # U14
    """Only planning/out_of_memory.py gives flags, to be appended to the command."""
    package = Path(quill.__file__).parent
    elsewhere = {
        package / "other_names.py",
        package / "planning" / "out_of_memory.py",
        *(package / "cli").rglob("*.py"),
    }
    found = {
        f"{file.relative_to(package)}: {message}"
        for file in {*package.rglob("*.py")} - elsewhere
        for message in messages_of(file)
        if re.search(r"(?<![\w-])--[a-z]", re.sub(r"quill [a-z]+( --\w+=\S+)+", "", message))
    }
    assert not found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no such file\ndetails", "no such file"),
        (
            "backend='inductor' raised:\nCompilationError: no room\n\nadvice",
            "backend='inductor' raised: CompilationError: no room",
        ),
        ("raised:\n", "raised:"),
        ("", "RuntimeError"),
    ],
)
def test_the_first_line_of_an_error_includes_what_its_colon_introduces(text: str, line: str) -> None:
    assert first_line(RuntimeError(text)) == line
