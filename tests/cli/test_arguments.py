"""Flags, configuration files and presets."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import yaml

from quill import other_names
from quill.checkpoints.config_file import format_config
from quill.cli.arguments import Parser, add_configuration, settings_of
from quill.cli.main import COMMANDS, _help, load_command
from quill.errors import ConfigError
from quill.model.build import build_model
from quill.model.config import ModernConfig
from quill.runs.presets import parse_config, preset_names, read_config
from quill.runs.settings import FIELDS, build_configs, check_settings
from quill.validation import require


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
def test_flags_are_parsed_to_values_of_the_right_type(argv, name, value):
    got = getattr(read(*argv), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nembd=3"], r"unknown flag --nembd \(did you mean '--n_embd'\?\)"),
        (["--batchsize=3"], r"did you mean '--batch_size'"),
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
def test_an_invalid_flag_is_named_with_the_accepted_values(argv, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        # U8: other tools' names
        (["--lr=1"], r"unknown flag --lr \(did you mean '--learning_rate'\?\)"),
        (["--epochs=3"], r"steps, not epochs: --max_iters, or --minutes"),
        (["--resume_from=x"], r"--resume=True resumes"),
        (["--eval_only"], r"quill evaluate"),
        (["--wandb_log=True"], r"metrics.jsonl.*--tensorboard=True"),
        (["--num_steps=3"], r"did you mean '--max_iters'"),
        (["--hidden_size=3"], r"did you mean '--n_embd'"),
        (["--n_ctx=3"], r"did you mean '--block_size'"),
        (["--seq-len=3"], r"did you mean '--block_size'"),
        (["--output_dir=x"], r"did you mean '--out_dir'"),
        # U19
        (["batch_size=4"], r"did you mean --batch_size=4\?"),
        (["--device=gpu"], r"--device='gpu' cannot be used: did you mean --device=cuda\?"),
        (["--dtype=bf16"], r"did you mean --dtype=bfloat16\?"),
        # U1, T3
        (["--n_layer=2", "--n_layer=3"], r"--n_layer is given twice, as 2 and as 3: it takes one value"),
        (["a.txt", "--dataset=b.txt"], r"dataset is given twice, as 'a.txt' and as --dataset='b.txt'"),
        (["a.txt", "b.txt"], r"takes one dataset, and 'a.txt' and 'b.txt' were given"),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_nearest_one(argv, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "flag", "words"),
    [
        ("generate", "--length=9", "did you mean '--max_new_tokens'"),
        ("generate", "--max_length=9", "did you mean '--max_new_tokens'"),
        ("generate", "--do_sample=False", "--temperature=0 always takes the most likely token"),
        ("train", "--init_from=resume", "--resume=True resumes the run in --out_dir"),
        ("train", "--init_from=scratch", "without --init_from, training starts with random weights"),
    ],
)
def test_each_command_knows_other_tools_names_of_its_own_flags(refused, here, command, flag, words):  # U8
    assert words in refused(command, flag)


@pytest.mark.parametrize(
    ("name", "words"),
    [("lr", "did you mean 'learning_rate'"), ("n_ctx", "did you mean 'block_size'"), ("n-layer", "mean 'n_layer'"),
     ("epochs", "counts steps, not epochs: max_iters, or minutes"), ("eval_only", "quill evaluate")],
)  # fmt: skip
def test_other_tools_names_are_known_in_files_and_from_python(name, words):  # U8
    for source in ("", "my.yaml"):
        with pytest.raises(ConfigError, match=words) as caught:
            check_settings({name: 1}, source)
        assert str(caught.value).startswith(f"{source}: " if source else "there is no setting")


def test_every_name_of_another_tool_leads_to_a_flag_that_some_command_has(commands):
    known = set().union(*(parser.flags for parser in commands)) | {"quantization"}
    for ours, others in other_names._SAME.items():
        assert ours in known, ours
        assert not known & set(others.split()) - {ours}, others


@pytest.fixture
def commands() -> list[Parser]:
    """The parsers of all commands."""
    made = []
    for name in COMMANDS:
        made.append(Parser(name))
        load_command(name).add_arguments(made[-1])
    return made


def test_several_words_are_several_values_where_a_command_takes_them():
    several = Parser("train")
    several.take_bare_word("dataset", several=True)
    several.add_argument("--dataset", default="shakespeare")
    assert several.read(["a.txt", "b.txt"]).given == {"dataset": ["a.txt", "b.txt"]}  # U1
    assert several.read(["a.txt"]).dataset == "a.txt"
    assert several.read(["--", "-a.txt", "--b.txt"]).dataset == ["-a.txt", "--b.txt"]


def test_no_command_drops_a_bare_word(commands):  # U1
    for each in commands:
        if each.several_words:
            assert each.read(["a.txt", "b.txt"]).dataset == ["a.txt", "b.txt"]
        else:
            with pytest.raises(ConfigError, match=r"'b\.txt'|'a\.txt': flags look like"):
                each.read(["a.txt", "b.txt"])
    assert {each.prog for each in commands if each.several_words} == {
        f"quill {name}" for name in ("train", "prepare", "estimate", "v2")
    }


def test_a_flag_that_is_repeated_with_the_same_value_is_accepted():
    assert read("--n_layer=2", "--n_layer=2", "my.txt", "--dataset=my.txt").given == {"n_layer": 2, "dataset": "my.txt"}


def test_an_old_name_works_and_is_answered_with_the_new_one():
    made = parser()
    made.add_argument("--quantization", type=Literal["int8"] | None)
    made.accept_old_name("weights", "quantization", {"fp32": "None"})
    got = made.read(["--weights=int8"])
    assert got.given == {"quantization": "int8"}
    assert got.notes == ["--weights is now called --quantization: use --quantization=int8"]
    assert made.read(["--weights", "fp32"]).given == {"quantization": None}
    assert made.read(["--quantization=int8"]).notes == []
    with pytest.raises(ConfigError, match="--quantization='int4' cannot be used: it takes 'int8' or None"):
        made.read(["--weights=int4"])


@pytest.mark.parametrize("digits", ["9" * 40, "9" * 5000, "-" + "9" * 200])
def test_huge_numbers_are_cut_in_messages(digits):  # U22
    with pytest.raises(ConfigError) as caught:
        settings = settings_of(read(f"--n_layer={digits}"))
        build_configs(settings)
        require(False, "n_layer", settings["n_layer"], "smaller")
    assert len(str(caught.value)) < 200


def test_a_value_of_any_length_leaves_a_message_of_one_line():
    with pytest.raises(ConfigError) as caught:
        read("--n_embd=" + "x" * 10**6)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 118, 200])
def test_help_fits_the_terminal_and_breaks_no_word(commands, monkeypatch, columns):  # U5
    whole = {name: set(parser_.format_help().split()) for name, parser_ in zip(COMMANDS, commands, strict=True)}
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, each in zip(COMMANDS, commands, strict=True):
        page = each.format_help()
        assert set(page.split()) == whole[name]
        longest_word = max(len(word) for word in page.split())
        assert max(map(len, page.splitlines())) <= max(40, min(columns, 118), 6 + longest_word)


@pytest.mark.parametrize("columns", [40, 80])
def test_help_has_the_width_of_the_terminal(commands, monkeypatch, columns):  # U5
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: os.terminal_size((columns, 24)))
    for page in (_help(), *(each.format_help() for each in commands)):
        longest_word = max(len(word) for word in page.split())
        assert columns - 20 < max(map(len, page.splitlines())) <= max(columns, 6 + longest_word)


def test_help_is_bold_only_in_a_terminal_without_no_color(monkeypatch):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m--n_embd=384\x1b[0m" in parser().format_help()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in parser().format_help()


def test_help_is_shown_whatever_the_other_flags_are():
    assert parser().read(["--n_layer=2", "-h", "--nonsense"]).help is True
    assert parser().read([]).help is False


def test_a_word_that_is_no_flag_is_refused_where_none_is_expected():
    lone = Parser("demo")
    with pytest.raises(ConfigError, match="does not know what to do with 'now'"):
        lone.read(["now"])


def test_abbreviated_flags_are_unknown():
    with pytest.raises(ConfigError, match="unknown flag --n_emb"):
        read("--n_emb=3")


@pytest.mark.parametrize("order", [["--n_embd=12", "--config=my.yaml"], ["--config=my.yaml", "--n_embd=12"]])
def test_flags_override_the_configuration_file_in_any_order(tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("n_embd: 96\nn_layer: 3\nlearning_rate: 1e-4\n", encoding="utf-8")
    got = settings_of(read(*order))
    assert [got[name] for name in ("n_embd", "n_layer", "learning_rate", "n_head")] == [12, 3, 1e-4, 6]
    assert read(*order).given == {"n_embd": 12, "config": "my.yaml"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_whole_valid_configuration(name):
    settings = settings_of(read(f"--config={name}"))
    build_configs(settings)
    assert set(read_config(name)[0]) <= set(FIELDS)


def test_presets_have_their_documented_settings():
    laptop, full_size, v2 = (settings_of(read(f"--config={name}")) for name in ("laptop", "shakespeare", "v2"))
    shape = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters", "dropout")
    assert [laptop[name] for name in shape] == [4, 4, 128, 64, 12, 2000, 0.0]
    assert [full_size[name] for name in shape] == [6, 6, 384, 256, 64, 5000, 0.2]
    modern, small = (settings_of(read(f"--config={name}")) for name in ("modern", "modern-laptop"))
    assert modern["architecture"] == small["architecture"] == "modern"
    parameters = build_model(build_configs(modern, vocab_size=65)[0]).count_parameters()
    assert parameters == pytest.approx(10.65e6, rel=0.01)
    assert full_size == settings_of(read())
    assert [v2[name] for name in shape] == [6, 6, 384, 256, 64, 5000, 0.2]
    assert (v2["learning_rate"], v2["min_lr"], v2["activation"], v2["bias"]) == (3e-4, 3e-4, "relu", True)
    assert (v2["tie_weights"], v2["out_dir"]) == (False, "out-v2")


def test_a_written_configuration_reads_back_the_same():
    settings = settings_of(read("--dataset=Übung: 1.txt", "--learning_rate=1e-5", "--compile=False"))
    text = format_config(settings)
    assert check_settings(parse_config(text, "config.yaml"), "config.yaml") == settings
    assert yaml.safe_load(text) == settings


def test_configs_are_built_from_the_flat_settings():
    model, training, _ = build_configs(settings_of(read("--n_layer=2", "--max_iters=9")), vocab_size=65)
    assert (model.vocab_size, model.n_layer, training.max_iters) == (65, 2, 9)


def test_a_flag_of_the_other_model_is_refused_because_it_would_do_nothing():
    with pytest.raises(ConfigError, match=r"n_kv_head belongs to the modern model.*architecture=modern"):
        settings_of(read("--n_kv_head=2"))
    with pytest.raises(ConfigError, match=r"bias belongs to the classic model.*architecture=classic"):
        settings_of(read("--architecture=modern", "--bias=True"))
    modern = settings_of(read("--architecture=modern", "--n_kv_head=2"))
    assert "bias" not in modern and modern["n_kv_head"] == 2
    assert type(build_configs(modern)[0]) is ModernConfig
    assert "n_kv_head" not in settings_of(read())


def test_flags_may_be_typed_with_hyphens() -> None:
    parser = Parser("train")
    parser.add_argument("--out_dir", type=str)
    parser.add_argument("--over_time", action="store_true")
    found = parser.read(["--out-dir=a-b", "--over-time"])
    assert (found.out_dir, found.over_time, found.notes) == ("a-b", True, [])
