"""Log-probabilities over HTTP: what clients that score texts rely on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from quill.generation.language_model import LanguageModel


def choice_of(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def streamed(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    response = client.post("/v1/completions", json={**fields, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [msgspec.json.decode(event.removeprefix("data: ")) for event in events]


def test_an_echo_has_the_prompts_log_probabilities_and_the_first_has_none(
    client: TestClient, model: LanguageModel
) -> None:
    choice = choice_of(client, prompt="KING 1", max_tokens=3, seed=1, logprobs=4, echo=True)
    [expected] = model.complete("KING 1", max_new_tokens=3, temperature=1.0, seed=1, logprobs=4, echo=True)
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"] == expected.text
    assert found["token_logprobs"] == [token.logprob for token in expected.tokens]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["text_offset"] == list(range(9))
    for token, top in zip(found["tokens"][1:], found["top_logprobs"][1:], strict=True):
        assert token in top and 4 <= len(top) <= 5 and max(top.values()) <= 0


def test_log_probabilities_are_the_models_own_before_temperature_and_filters(client: TestClient) -> None:
    written = choice_of(client, prompt="KING", max_tokens=4, temperature=0.5, top_k=2, seed=1, logprobs=0, echo=True)
    scored = choice_of(client, prompt=written["text"], max_tokens=0, logprobs=0, echo=True, temperature=2)
    assert scored["logprobs"]["tokens"] == written["logprobs"]["tokens"]
    one, other = scored["logprobs"]["token_logprobs"], written["logprobs"]["token_logprobs"]
    assert one[1:] == pytest.approx(other[1:], abs=1e-5)


@pytest.mark.parametrize(("logprobs", "count"), [(0, 1), (True, 1), (1, 1), (32, 32)])
def test_as_many_log_probabilities_as_were_asked_for(client: TestClient, logprobs: Any, count: int) -> None:
    choice = choice_of(client, prompt="KING", max_tokens=4, temperature=0, logprobs=logprobs)
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [count] * 4
    assert choice["logprobs"]["text_offset"] == [4, 5, 6, 7]


@pytest.mark.parametrize("logprobs", [None, False])
def test_no_log_probabilities_without_asking(client: TestClient, logprobs: Any) -> None:
    assert choice_of(client, prompt="KING", logprobs=logprobs)["logprobs"] is None


def test_a_prompt_longer_than_the_context_cannot_be_scored(client: TestClient) -> None:
    fields = {"prompt": "KING KING", "echo": True, "max_tokens": 1}
    error = client.post("/v1/completions", json={**fields, "logprobs": 1}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert choice_of(client, **fields)["text"].startswith("KING KING")
    assert choice_of(client, prompt="KING KIN", echo=True, max_tokens=1, logprobs=1)["logprobs"]["tokens"][7] == "N"


@pytest.mark.parametrize("stop", [None, "n", ["ow", "is"]])
@pytest.mark.parametrize("echo", [False, True])
def test_the_events_of_a_stream_joined_are_the_answer(client: TestClient, echo: bool, stop: Any) -> None:
    fields = {
        "prompt": ["KING", "now"], "max_tokens": 40, "seed": 6, "n": 2, "logprobs": 2, "echo": echo, "stop": stop,
        "return_token_ids": True,
    }  # fmt: skip
    whole = client.post("/v1/completions", json=fields).json()
    if echo:
        assert client.post("/v1/completions", json={**fields, "prompt": "KING KING"}).status_code == 400
    events = streamed(client, **fields, stream_options={"include_usage": True})
    joined: dict[int, Any] = {}
    for event in events[:-1]:
        assert event["usage"] is None and event["id"] == events[0]["id"]
        for choice in event["choices"]:
            known = joined.setdefault(choice["index"], choice | {"text": "", "logprobs": {}, "token_ids": []})
            assert known["finish_reason"] is None
            known["text"] += choice["text"]
            known["token_ids"] += choice["token_ids"]
            for name, values in choice["logprobs"].items():
                known["logprobs"].setdefault(name, []).extend(values)
            known["finish_reason"] = choice["finish_reason"]
            # the tokens that were sent so far are exactly the text that was sent so far
            assert "".join(known["logprobs"]["tokens"]) == known["text"]
    assert [joined[index] for index in sorted(joined)] == whole["choices"]
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])
