"""Completions over HTTP are those of `LanguageModel.complete`, in the shape of OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from quill.generation.language_model import LanguageModel

SAMPLING = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "presence_penalty": 0.1}


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=fields)
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error | {"status": response.status_code}


def test_an_answer_has_the_shape_of_openai(client: TestClient) -> None:
    answer = complete(client, prompt="KING", seed=1)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert answer["id"].startswith("cmpl-") and answer["object"] == "text_completion" and answer["model"] == "out"
    [choice] = answer["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"], len(choice["text"])) == (
        0,
        None,
        "length",
        16,
    )
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}


@pytest.mark.parametrize("sampling", [{}, SAMPLING, {"temperature": 0}, {"repetition_penalty": 1.2}])
def test_a_text_is_that_of_the_language_model(client: TestClient, model: LanguageModel, sampling: dict) -> None:
    answer = complete(client, prompt="KING", max_tokens=30, seed=5, n=2, **sampling)
    options = {"temperature": 1.0, **sampling}
    expected = model.complete("KING", max_new_tokens=30, seed=5, num_samples=2, **options)
    assert [choice["text"] for choice in answer["choices"]] == [each.text for each in expected]


def test_several_prompts_are_answered_prompt_by_prompt(client: TestClient) -> None:
    answer = complete(client, prompt=["KING", "now"], max_tokens=5, seed=3, n=2)
    texts = [choice["text"] for choice in answer["choices"]]
    alone = [complete(client, prompt=prompt, max_tokens=5, seed=3, n=2) for prompt in ("KING", "now")]
    assert texts == [choice["text"] for each in alone for choice in each["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 20, "total_tokens": 27}


def test_a_prompt_may_be_token_ids(client: TestClient, model: LanguageModel) -> None:
    tokens = model.tokenizer.encode("KING").tolist()
    text = complete(client, prompt="KING", seed=1)["choices"][0]["text"]
    for prompt in (tokens, [tokens], ["KING"]):
        assert complete(client, prompt=prompt, seed=1)["choices"][0]["text"] == text


def test_best_of_returns_the_texts_with_the_highest_mean_log_probability(
    client: TestClient, model: LanguageModel
) -> None:
    answer = complete(client, prompt="KING", max_tokens=9, seed=2, n=2, best_of=5)
    expected = model.complete("KING", max_new_tokens=9, temperature=1.0, seed=2, num_samples=2, best_of=5)
    assert [choice["text"] for choice in answer["choices"]] == [each.text for each in expected]
    assert answer["usage"]["completion_tokens"] == 45


def test_a_stop_string_ends_a_text_before_it(client: TestClient, model: LanguageModel) -> None:
    text = complete(client, prompt="KING", max_tokens=40, seed=4)["choices"][0]["text"]
    stop = text[12:15]
    [choice] = complete(client, prompt="KING", max_tokens=40, seed=4, stop=["never ", stop])["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_a_bias_of_a_token_given_as_text_forces_it(client: TestClient, model: LanguageModel) -> None:
    [token] = model.tokenizer.encode("K").tolist()
    assert complete(client, prompt="K", max_tokens=3, logit_bias={str(token): 100})["choices"][0]["text"] == "KKK"


def test_fields_that_are_ignored_are_named_in_a_header(client: TestClient) -> None:
    fields = {"prompt": "K", "user": "me", "foo": 1, "böse\r\n": 2, "stream_options": {"include_obfuscation": True}}
    response = client.post("/v1/completions", json=fields)
    assert response.headers["x-quill-ignored"] == "foo, b%C3%B6se%0D%0A"
    assert "x-quill-ignored" not in client.post("/v1/completions", json={"prompt": "K"}).headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": ["K", 1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": "é"}, "prompt"),
        ({"prompt": [True]}, "prompt"), ({"prompt": [10**30]}, "prompt"),
        ({"prompt": "K", "max_tokens": 0}, "max_tokens"), ({"prompt": "K", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "K", "max_tokens": True}, "max_tokens"), ({"prompt": "K", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "K", "temperature": 1e308}, "temperature"), ({"prompt": "K", "temperature": -1}, "temperature"),
        ({"prompt": "K", "top_p": 0}, "top_p"), ({"prompt": "K", "top_k": -2}, "top_k"),
        ({"prompt": "K", "n": 0}, "n"), ({"prompt": "K", "n": 2, "best_of": 1}, "best_of"),
        ({"prompt": "K", "n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "K", "stop": ""}, "stop"), ({"prompt": "K", "stop": ["x", ""]}, "stop"),
        ({"prompt": "K", "seed": -2}, "seed"), ({"prompt": "K", "seed": 2**64}, "seed"),
        ({"prompt": "K", "suffix": "b"}, "suffix"), ({"prompt": "K", "logprobs": -1}, "logprobs"),
        ({"prompt": "K", "logprobs": 10**6}, "logprobs"), ({"prompt": "K", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "K", "logit_bias": {"0": 1e39}}, "logit_bias"), ({"prompt": "K", "model": "other"}, "model"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_an_error_that_names_its_field(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    assert refused(client, **fields)["param"] == param


def test_an_unknown_model_is_not_found_and_the_models_are_listed(client: TestClient) -> None:
    error = refused(client, prompt="K", model="gpt-4")
    assert (error["status"], error["code"]) == (404, "model_not_found") and error["message"].endswith("models are out")
    assert complete(client, prompt="K", model="out")["model"] == "out"
    assert client.get("/v1/models/../../etc/passwd").status_code == 404
    assert client.get("/v1/models").json()["data"] == [client.get("/v1/models/out").json()]


def test_a_chat_is_not_found_and_the_error_names_completions(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json={"messages": []})
    assert response.status_code == 404 and "/v1/completions" in response.json()["error"]["message"]
