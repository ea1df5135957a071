"""POST /api/alternatives: what else could have come at a position, before and after the sampling rules."""

import math
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from quill.engines.request import Request, SamplingConfig
from quill.generation.alternatives import alternatives
from quill.generation.language_model import LanguageModel

RULES: dict[str, Any] = {"temperature": 0.7, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}
PENALTIES: dict[str, Any] = {"presence_penalty": 0.3, "frequency_penalty": 0.1}


def ask(client: TestClient, **question: Any) -> dict[str, Any]:
    answer = client.post("/api/alternatives", json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_is_that_of_the_model_and_the_rules_for_every_token(
    client: TestClient, model: LanguageModel
) -> None:
    prompt, generated = model.tokenizer.encode("KIN").tolist(), model.tokenizer.encode("G 1").tolist()
    answer = ask(client, prompt=prompt, generated=generated, **RULES, **PENALTIES)
    config = SamplingConfig(**RULES, **PENALTIES)
    logits_V = model.logits("KING 1")[-1].numpy()
    expected = alternatives(logits_V, Request(tuple(prompt), 1, config), generated)
    found = {each["id"]: each for each in answer["alternatives"]}
    assert sorted(found) == list(range(model.tokenizer.vocab_size))
    np.testing.assert_allclose([found[i]["before"] for i in sorted(found)], expected.before_V, rtol=1e-5)
    np.testing.assert_allclose([found[i]["after"] for i in sorted(found)], expected.after_V, rtol=1e-5)
    assert [each["before"] for each in answer["alternatives"]] == sorted(expected.before_V.tolist(), reverse=True)
    assert all(model.tokenizer.decode([i]) == each["text"] for i, each in found.items())


def test_the_probability_of_a_generated_token_is_the_one_that_the_completion_reports(client: TestClient) -> None:
    body = {"prompt": "KI", "max_tokens": 5, "seed": 3, "logprobs": 0, "return_token_ids": True}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    for position, token in enumerate(choice["token_ids"]):
        answer = ask(client, prompt="KI", generated=choice["token_ids"][:position])
        [chosen] = [each for each in answer["alternatives"] if each["id"] == token]
        assert math.log(chosen["before"]) == pytest.approx(choice["logprobs"]["token_logprobs"][position], abs=1e-5)


def test_a_text_longer_than_the_context_is_cropped_and_the_answer_says_so(
    client: TestClient, model: LanguageModel
) -> None:
    context = model.config.block_size
    short = ask(client, prompt="K" * context)
    long = ask(client, prompt="G" * 5 + "K" * context)
    assert (short["cropped"], short["read"]) == (False, context)
    assert (long["cropped"], long["read"]) == (True, context)
    assert long["alternatives"] == short["alternatives"]


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["K", "I"]}, "prompt"),
        ({"prompt": "Ω"}, "Ω"),
        ({"prompt": [10**9]}, "1000000000"),
        ({"prompt": "K", "generated": [-1]}, "-1"),
        ({"prompt": "K", "generated": [True]}, "generated"),
        ({"prompt": "K", "generated": "I"}, "generated"),
        ({"prompt": "K", "generated": [0] * 10**5}, "prompt"),
        ({"prompt": "K", "temperature": -1}, "temperature"),
        ({"prompt": "K", "top_p": 1e308}, "top_p"),
    ],
)
def test_what_cannot_be_answered_is_a_400_that_names_it(
    client: TestClient, question: dict[str, Any], named: str
) -> None:
    answer = client.post("/api/alternatives", json=question)
    assert answer.status_code == 400 and named in answer.json()["error"]["message"], answer.text


def test_an_unknown_model_is_a_404(client: TestClient) -> None:
    answer = client.post("/api/alternatives", json={"model": "other", "prompt": "K"})
    assert answer.status_code == 404
