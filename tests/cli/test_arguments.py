"""Laws of flags and configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from quill.checkpoints.run_folder import format_config
from quill.cli.arguments import Parser, add_configuration, settings_of
from quill.errors import ConfigError
from quill.model.build import build_model
from quill.model.config import ModernConfig
from quill.runs.presets import parse_config, preset_names, read_config
from quill.runs.settings import MODEL_FIELDS, TRAIN_FIELDS, build_configs


def parser() -> Parser:
    made = Parser("train")
    made.take_bare_word("dataset")
    add_configuration(made)
    made.add_argument("--stop", type=str, action="append", default=[], help="text")
    made.add_argument("--json", action="store_true", help="switch")
    return made


def read(*argv: str):
    return parser().read(argv)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--n_embd=64"], "n_embd", 64),
        (["--n_embd", "64"], "n_embd", 64),
        (["--learning_rate=1e-4"], "learning_rate", 1e-4),
        (["--learning_rate=1"], "learning_rate", 1.0),
        (["--compile=True"], "compile", True),
        (["--compile"], "compile", True),
        (["--compile", "False"], "compile", False),
        (["--compile=auto"], "compile", "auto"),
        (["--tensorboard=yes"], "tensorboard", True),
        (["--lr_decay_iters=None"], "lr_decay_iters", None),
        (["--lr_decay_iters=null"], "lr_decay_iters", None),
        (["--lr_decay_iters=7"], "lr_decay_iters", 7),
        (["--dataset=null"], "dataset", "null"),
        (["--dataset=12"], "dataset", "12"),
        (["my.txt"], "dataset", "my.txt"),
        (["--tensorboard", "my.txt"], "dataset", "my.txt"),
        (["--stop=a", "--stop= b: [c}\n"], "stop", ["a", " b: [c}\n"]),
        (["--json"], "json", True),
        (["--json=False"], "json", False),
        ([], "n_embd", 384),
    ],
)
def test_flags_mean_what_they_say(argv, name, value):
    got = getattr(read(*argv), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nembd=3"], r"unknown flag --nembd \(did you mean '--n_embd'\?\)"),
        (["--batch-size=3"], r"did you mean '--batch_size'"),
        (["--max=3"], r"did you mean '--max_iters'"),
        (["-x"], r"unknown flag -x;"),
        (["--n_embd=wide"], r"--n_embd='wide' cannot be used: it takes a whole number$"),
        (["--n_embd=1.5"], r"--n_embd='1.5' cannot be used: it takes a whole number$"),
        (["--dropout=much"], r"--dropout='much' cannot be used: it takes a number$"),
        (["--learning_rate=nan"], r"--learning_rate='nan' cannot be used"),
        (["--compile=maybe"], r"--compile='maybe' cannot be used: it takes True or False or 'auto'$"),
        (["--activation=silu"], r"--activation='silu' cannot be used: it takes 'gelu' or 'relu'$"),
        (["--n_layer"], r"--n_layer needs a value: a whole number"),
        (["--n_layer", "--n_head=2"], r"--n_layer needs a value"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named_with_what_would_do(argv, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)


def test_a_word_that_is_no_flag_is_refused_where_none_is_expected():
    lone = Parser("demo")
    with pytest.raises(ConfigError, match="does not know what to do with 'now'"):
        lone.read(["now"])


def test_abbreviated_flags_are_unknown():
    with pytest.raises(ConfigError, match="unknown flag --n_emb"):
        read("--n_emb=3")


@pytest.mark.parametrize("order", [["--n_embd=12", "--config=my.yaml"], ["--config=my.yaml", "--n_embd=12"]])
def test_flags_go_on_top_of_the_file_wherever_it_stands(tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("n_embd: 96\nn_layer: 3\nlearning_rate: 1e-4\n", encoding="utf-8")
    got = read(*order)
    assert (got.n_embd, got.n_layer, got.learning_rate, got.n_head) == (12, 3, 1e-4, 6)
    assert got.given == {"n_embd", "n_layer", "learning_rate"}


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
        read("--config=my.yaml")
    assert "\n" not in str(caught.value)


def test_a_config_that_is_nowhere_names_the_presets():
    with pytest.raises(ConfigError, match=r"neither a preset nor a file \(did you mean 'laptop'\?\)"):
        read("--config=labtop")
    with pytest.raises(ConfigError, match=r"presets: debug, laptop, modern, modern-laptop, shakespeare, v2"):
        read("--config=zzz")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_whole_valid_configuration(name):
    settings = settings_of(read(f"--config={name}"))
    build_configs(settings)
    assert set(read_config(name)[0]) <= {*MODEL_FIELDS, *TRAIN_FIELDS}


def test_presets_are_the_recipes_they_promise():
    laptop, founding, v2 = (settings_of(read(f"--config={name}")) for name in ("laptop", "shakespeare", "v2"))
    shape = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters", "dropout")
    assert [laptop[name] for name in shape] == [4, 4, 128, 64, 12, 2000, 0.0]
    assert [founding[name] for name in shape] == [6, 6, 384, 256, 64, 5000, 0.2]
    modern, small = (settings_of(read(f"--config={name}")) for name in ("modern", "modern-laptop"))
    assert modern["architecture"] == small["architecture"] == "modern"
    parameters = build_model(build_configs(modern, vocab_size=65)[0]).count_parameters()
    assert parameters == pytest.approx(10.65e6, rel=0.01)
    assert founding == settings_of(read())
    assert [v2[name] for name in shape] == [6, 6, 384, 256, 64, 5000, 0.2]
    assert (v2["learning_rate"], v2["min_lr"], v2["activation"], v2["bias"]) == (3e-4, 3e-4, "relu", True)
    assert (v2["tie_weights"], v2["out_dir"]) == (False, "out-v2")


def test_a_written_configuration_reads_back_the_same():
    settings = settings_of(read("--dataset=Übung: 1.txt", "--learning_rate=1e-5", "--compile=False"))
    text = format_config(settings)
    assert parser().check_file(parse_config(text, "config.yaml"), "config.yaml") == settings
    assert yaml.safe_load(text) == settings


def test_configs_are_built_from_the_flat_settings():
    model, training = build_configs(settings_of(read("--n_layer=2", "--max_iters=9")), vocab_size=65)
    assert (model.vocab_size, model.n_layer, training.max_iters) == (65, 2, 9)


def test_a_flag_of_the_other_model_is_refused_because_it_would_do_nothing():
    with pytest.raises(ConfigError, match=r"n_kv_head belongs to the modern model.*--architecture=modern"):
        settings_of(read("--n_kv_head=2"))
    with pytest.raises(ConfigError, match=r"bias belongs to the classic model.*--architecture=classic"):
        settings_of(read("--architecture=modern", "--bias=True"))
    modern = settings_of(read("--architecture=modern", "--n_kv_head=2"))
    assert "bias" not in modern and modern["n_kv_head"] == 2
    assert type(build_configs(modern)[0]) is ModernConfig
    assert "n_kv_head" not in settings_of(read())
