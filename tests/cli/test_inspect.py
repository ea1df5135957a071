"""`quill inspect` writes a picture, numbers and a page for each view of a run."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from quill.cli.lab.views import VIEWS


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("tuned-lens", "over-time")])
def test_a_view_writes_a_picture_numbers_and_a_page_of_one_file(quill, trained, tmp_path, name):
    flags = [f"--show={name}", "--prompt=the ", f"--to={tmp_path}", "--windows=4"]
    flags += ["--corrupted=teh ", "--token=w", "--versus=n"] if name == "patching" else []
    code, out, error = quill("inspect", trained.out, *flags)
    assert (code, error) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{ending}" for ending in ("png", "json", "html")}
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    assert numbers["title"] in out and numbers["explanation"]
    page = (tmp_path / f"{name}.html").read_text("utf-8")
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^"]{5})', page)) == {"data:"}
    assert all(str(tmp_path / f"{name}.{ending}") in out for ending in ("png", "json", "html"))


def test_a_tuned_lens_is_trained_once_and_kept_beside_the_run(quill, trained, tmp_path):
    out_dir = tmp_path / "out"
    shutil.copytree(trained.out, out_dir)
    assert quill("inspect", out_dir, "--show=tuned-lens", "--prompt=the ")[0] == 0
    file = out_dir / "tuned_lens.safetensors"
    first = (file.stat().st_mtime_ns, file.read_bytes())
    assert quill("inspect", out_dir, "--show=tuned-lens", "--prompt=the ")[0] == 0
    assert (file.stat().st_mtime_ns, file.read_bytes()) == first
    file.write_bytes(b"damaged")
    assert quill("inspect", out_dir, "--show=tuned-lens", "--prompt=the ")[0] == 0
    assert file.read_bytes() == first[1]
    assert (out_dir / "inspect" / "tuned-lens.png").exists()


def test_json_prints_the_numbers_and_writes_no_file(quill, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = quill("inspect", trained.out, "--prompt=the ", "--layer=0", "--head=1", "--json")
    assert code == 0 and list(json.loads(out)["maps"]) == ["0.1"]
    assert not list(tmp_path.iterdir()) and not (trained.out / "inspect").exists()


def test_without_a_prompt_the_start_of_the_validation_split_is_shown(quill, trained):
    code, out, _ = quill("inspect", trained.out, "--json")
    text = (trained.folder / "my.txt").read_text("utf-8")
    shown = "".join(json.loads(out)["tokens"])
    assert code == 0 and len(shown) > 4 and shown == text[int(len(text) * 0.9) :][: len(shown)]


def test_a_target_is_ablated_by_name(quill, trained):
    numbers = json.loads(
        quill("inspect", trained.out, "--show=ablation", "--target=head:0.1", "--windows=4", "--json")[1]
    )
    assert "head:0.1" in numbers["title"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt="], "the prompt is empty"),
        (["--prompt=" + "the " * 200], "block_size"),
        (["--prompt=é€"], "'é'"),
        (["--prompt=the", "--layer=9"], "layer must be from 0 to"),
        (["--prompt=the", "--layer=0", "--head=99"], "head must be from 0 to"),
        (["--prompt=the", "--show=attribution", "--position=3"], "position must be from 0 to 2"),
        (["--prompt=the", "--show=attribution", "--token=th"], "single token"),
        (["--prompt=the", "--show=picture"], "--show='picture' cannot be used"),
        (["--show=ablation", "--target=head:0.99"], "head must be from 0 to"),
        (["--show=ablation", "--target=tail:1"], "tail"),
        (["--prompt=the", "--show=patching"], "give it as --corrupted"),
        (["--prompt=the", "--show=patching", "--corrupted=thee"], "same number of tokens"),
        (["--over-time"], "film"),
        (["--show=neurons", "--layer=5"], "layer must be from 0 to"),
        (["--show=all", "--json"], "one view"),
        (["--prompt=the", "--seed=-1"], "seed must be"),
        (["--windows=1"], "windows must be"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(refused, trained, tmp_path, flags, message):
    assert message in refused("inspect", trained.out, f"--to={tmp_path}", *flags)


def test_a_run_that_does_not_exist_is_refused(refused):
    assert "nowhere does not exist" in refused("inspect", "nowhere")


def test_the_film_of_a_run_is_drawn_over_time(quill, here, tiny):
    assert quill("train", "my.txt", *tiny, "--film=True")[0] == 0
    code, _, error = quill("inspect", "out", "--over-time")
    assert (code, error) == (0, "")
    assert (here / "out" / "inspect" / "over-time.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((here / "out" / "inspect" / "over-time.json").read_text("utf-8"))["steps"][0] == 0
