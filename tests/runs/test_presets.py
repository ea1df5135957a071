"""Configuration files: what is read from them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from quill.errors import ConfigError
from quill.runs.presets import read_settings


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


def test_a_config_that_is_nowhere_names_the_presets():
    with pytest.raises(ConfigError, match=r"neither a preset nor a file \(did you mean 'laptop'\?\)"):
        read_settings("labtop")
    with pytest.raises(ConfigError, match=r"presets: debug, laptop, modern, modern-laptop, shakespeare, v2"):
        read_settings("zzz")
