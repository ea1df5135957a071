"""Configuration files: what is read from them, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quill.errors import ConfigError
from quill.runs.presets import check_settings, parse_config, read_settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_embdd: 3", r"my.yaml: there is no setting 'n_embdd' \(did you mean 'n_embd'\?\)"),
        ("n_embd: wide", r"my.yaml: n_embd='wide' cannot be used: it takes a whole number"),
        ("dataset: 12", r"my.yaml: dataset=12 cannot be used: it takes text"),
        ("n_embd: [1", r"my.yaml is not YAML \(line 1\)"),
        ("just words", r"my.yaml holds no settings"),
        ("stop: x", r"there is no setting 'stop'"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings("my.yaml")
    assert "\n" not in str(caught.value)


def test_the_error_for_a_missing_configuration_names_the_presets():
    with pytest.raises(ConfigError, match=r"neither a preset nor a file \(did you mean 'laptop'\?\)"):
        read_settings("labtop")
    with pytest.raises(ConfigError, match=r"presets: debug, laptop, modern, modern-laptop, shakespeare, v2"):
        read_settings("zzz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # R17: nine levels of nine references each would be 10⁹ values
        (
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (i, i, b",".join([b"*%c" % (i - 1)] * 9)) for i in range(98, 107)),
            r"my.yaml \(line 1\) uses YAML's anchors",
        ),
        (b"dataset: " + b"[" * 100_000, r"nested too deeply"),
        (b"n_embd: 384\nn_embd: 96\n", r"line 2\) sets 'n_embd' a second time"),
        (b"n_embd: 384\n" * 100_000, r"more than 1,000,000 bytes"),
        ("dataset: Köln.txt".encode("latin-1"), r"is not UTF-8 text \(byte 11\): save it as UTF-8"),  # T8
        ("dataset: a.txt".encode("utf-16"), r"is not UTF-8 text"),
        (b"n_embd: " + b"9" * 5000, r"my.yaml is not YAML|cannot be used"),
        (b"dataset: 2024-13-01", r"my.yaml is not YAML"),
        (b"dataset: a\x00b", r"my.yaml is not YAML"),
        (b"dataset: 2024-01-01", r"dataset=.* cannot be used: it takes text.*quotes make it text"),  # T10
        (b"dataset: 1984", r"dataset=1984 cannot be used: it takes text.*quotes make it text, as in dataset: '…'"),
        (b"dataset: no", r"dataset=False cannot be used: it takes text.*quotes make it text"),
        (b"n_embd: " + b"x" * 900_000, r"n_embd='xxx.*xxx' cannot be used: it takes a whole number$"),
        (b"[n_embd, 3]: 4", r"my.yaml is not YAML"),
    ],
)
def test_a_file_that_cannot_be_a_configuration_is_refused_in_one_line(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings("my.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_configuration_file_that_is_too_large_is_not_read(
    tmp_path,
):  # R17: config.yaml of 50 MB; this one takes no space
    large = tmp_path / "large.yaml"
    with open(large, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        read_settings(str(large))


def test_a_folder_a_pipe_and_a_device_are_refused_as_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder without a config\.yaml"):
        read_settings(str(tmp_path))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for name in (str(tmp_path / "pipe"), "/dev/zero"):
            with pytest.raises(ConfigError, match=r"^config=.* is a device or a pipe: give a file$"):
                read_settings(name)


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch):  # T8
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "my.yaml").write_text("n_layer: 3", encoding="utf-8")
    assert read_settings("~/my.yaml")[0] == {"n_layer": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("learning_rate: 1e-3", 1e-3),  # text to YAML 1.1
        ("learning_rate: 1", 1.0),
        ("lr_decay_iters: None", None),
        ("lr_decay_iters: null", None),
        ("lr_decay_iters:", None),
        ("dataset: '1984'", "1984"),
        ("tensorboard: yes", True),
        ("compile: auto", "auto"),
        ("compile: true", True),
    ],
)
def test_values_are_read_as_the_type_of_their_setting(text, value):
    name = text.partition(":")[0]
    got = check_settings(parse_config(text, "my.yaml"), "my.yaml")[name]
    assert got == value and type(got) is type(value)


def test_a_file_with_a_byte_order_mark_or_nothing_in_it_is_read(tmp_path):
    (tmp_path / "mark.yaml").write_text("n_layer: 3", encoding="utf-8-sig")
    assert read_settings(str(tmp_path / "mark.yaml"))[0] == {"n_layer": 3}
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_settings(str(tmp_path / "empty.yaml"))[0] == {}
