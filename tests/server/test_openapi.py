"""schemathesis reads /openapi.json, sends what it allows and what it forbids, and finds no error of the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import jsonschema
import pytest
from api_client import post

CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection",
]  # fmt: skip


@pytest.mark.long
def test_schemathesis_finds_nothing(address: str, tmp_path: Path) -> None:
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
    assert program is not None
    words = [program, "run", f"{address}openapi.json", f"--checks={','.join(CHECKS)}", "--seed=1", "--max-examples=60"]
    words += ["--phases=examples,coverage,fuzzing", "--request-timeout=60", "--generation-database=none"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
        env={**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_answers_have_the_shape_that_the_description_says(address: str) -> None:
    with urlopen(f"{address}openapi.json") as answer:
        document = json.load(answer)
    body = {"prompt": "KING", "max_tokens": 3, "logprobs": 1, "n": 2, "return_token_ids": True, "seed": 1}
    for path, request in (
        ("/v1/completions", body),
        ("/tokenize", {"prompt": "KING", "return_token_strs": True}),
        ("/detokenize", {"tokens": [1, 2]}),
    ):
        status, found = post(address, path, request)
        described = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert status == 200
        jsonschema.validate(found, described | {"components": document["components"]})
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({}, described | {"components": document["components"]})
