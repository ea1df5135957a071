"""Clients that people have, as they are, against a server process: the openai package and curl."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from quill.generation.language_model import LanguageModel, load


@pytest.fixture(scope="module")
def openai_client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def fast_model(trained) -> LanguageModel:
    """The model with the engine that the server chooses."""
    return load(trained.out, device="cpu")


def test_openai_completes_a_text(openai_client: openai.OpenAI, fast_model: LanguageModel) -> None:
    answer = openai_client.completions.create(model="out", prompt="KING", max_tokens=20, seed=1, temperature=0.8)
    assert answer.choices[0].text == fast_model.generate("KING", max_new_tokens=20, seed=1, temperature=0.8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.total_tokens == 24
    assert [model.id for model in openai_client.models.list()] == ["out"]
    assert openai_client.models.retrieve("out").object == "model"


def test_openai_streams_a_text(openai_client: openai.OpenAI, fast_model: LanguageModel) -> None:
    stream = openai_client.completions.create(
        model="out", prompt="KING", max_tokens=60, seed=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 60
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == fast_model.generate("KING", max_new_tokens=60, seed=2, temperature=1.0)


def test_openai_reads_log_probabilities_and_an_echo(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="out", prompt="KING", max_tokens=2, logprobs=3, echo=True, seed=1)
    found = answer.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.token_logprobs is not None
    assert "".join(found.tokens) == answer.choices[0].text and len(found.token_logprobs) == 6


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "gpt-4", "prompt": "KING"}, openai.NotFoundError, "there is no model 'gpt-4'"),
        ({"model": "out", "prompt": ""}, openai.BadRequestError, "the prompt is empty"),
        ({"model": "out", "prompt": "K", "max_tokens": 10**9}, openai.BadRequestError, "more than the limit"),
    ],
)
def test_openai_raises_the_error_of_its_own(openai_client: openai.OpenAI, fields, error, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        openai_client.completions.create(**fields)
    assert caught.value.body["message"] in str(caught.value)


def test_openai_gets_an_error_for_a_chat(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="use /v1/completions"):
        openai_client.chat.completions.create(model="out", messages=[{"role": "user", "content": "Hello"}])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_completes_a_text(address: str, fast_model: LanguageModel) -> None:
    def curl(*words: str) -> str:
        return subprocess.run(["curl", "-sSN", *words], capture_output=True, text=True, check=True).stdout

    header, body = "Content-Type: application/json", json.dumps({"prompt": "KING", "max_tokens": 9, "seed": 1})
    text = fast_model.generate("KING", max_new_tokens=9, seed=1, temperature=1.0)
    assert json.loads(curl(f"{address}v1/completions", "-H", header, "-d", body))["choices"][0]["text"] == text
    assert json.loads(curl(f"{address}health")) == {"status": "ok"}
    lines = curl(f"{address}v1/completions", "-H", header, "-d", body[:-1] + ', "stream": true}').splitlines()
    pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
    assert "".join(pieces) == text and lines[-2:] == ["data: [DONE]", ""]


def test_the_examples_of_the_documentation_print_a_text(address: str, fast_model: LanguageModel) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    page = page.replace("http://localhost:8000/", address)
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    text = fast_model.generate("KING", max_new_tokens=40, seed=1, temperature=0.8)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == f"{text}\n"
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (command,) = re.findall(r"^curl .*", page, re.MULTILINE)
    done = subprocess.run(shlex.split(command), capture_output=True, encoding="utf-8", check=True)
    text = fast_model.generate("KING", max_new_tokens=40, seed=1, temperature=1.0)
    assert json.loads(done.stdout)["choices"][0]["text"] == text
