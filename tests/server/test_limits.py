"""Each limit of a request is a 4xx that names it, and what is not JSON is never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from quill.server.app import create_app
from quill.server.served_models import ServedModels
from quill.server.settings import Limits, ServerSettings

LIMITS = Limits(
    body=3000, depth=4, prompt_tokens=50, prompts=5, texts=8, tokens=100, logprobs=200, stops=3, stop_length=10
)


@pytest.fixture(scope="module")
def small(served: ServedModels) -> Iterator[TestClient]:
    """A client of a server with small limits."""
    settings = ServerSettings(allowed_hosts=("testserver",), limits=LIMITS)
    with TestClient(create_app(served, settings)) as client:
        yield client


@pytest.mark.parametrize(
    ("within", "beyond", "named"),
    [
        ({"prompt": "K" * 50}, {"prompt": "K" * 51}, "limit of 50 tokens"),
        ({"prompt": [[1] * 25] * 2}, {"prompt": [[1] * 26] * 2}, "limit of 50 tokens"),
        ({"prompt": ["K"] * 5}, {"prompt": ["K"] * 6}, "limit of 5"),
        ({"prompt": "K", "n": 8}, {"prompt": "K", "n": 9}, "limit of 8 texts"),
        ({"prompt": ["K", "K"], "n": 4}, {"prompt": ["K", "K"], "best_of": 5}, "limit of 8 texts"),
        ({"prompt": "K", "max_tokens": 100}, {"prompt": "K", "max_tokens": 101}, "limit of 100 tokens"),
        ({"prompt": "K", "n": 4, "max_tokens": 25}, {"prompt": "K", "n": 4, "max_tokens": 26}, "limit of 100 tokens"),
        ({"prompt": "K", "logprobs": 9, "max_tokens": 20}, {"prompt": "K", "logprobs": 10, "max_tokens": 20}, "200"),
        ({"prompt": "K", "stop": ["a"] * 3}, {"prompt": "K", "stop": ["a"] * 4}, "limit of 3"),
        ({"prompt": "K", "stop": "a" * 10}, {"prompt": "K", "stop": "a" * 11}, "limit of 10 characters"),
        ({"prompt": "K", "x": [[[1]]]}, {"prompt": "K", "x": [[[[1]]]]}, "nests more than 4"),
        ({"prompt": "K", "x": "a" * 2900}, {"prompt": "K", "x": "a" * 3000}, "larger than 3,000 bytes"),
    ],
)
def test_a_request_beyond_a_limit_is_an_error_that_names_it(
    small: TestClient, within: dict[str, Any], beyond: dict[str, Any], named: str
) -> None:
    base = {"max_tokens": 1}
    assert small.post("/v1/completions", json=base | within).status_code == 200
    answer = small.post("/v1/completions", json=base | beyond)
    assert answer.status_code == (413 if "bytes" in named else 400)
    assert named in answer.json()["error"]["message"]


def test_a_body_without_a_length_is_refused_when_it_has_become_too_large(small: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(50):
            yield b"K" * 100

    headers = {"content-type": "application/json"}
    assert small.post("/v1/completions", content=pieces(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"1", b'"a"', b"{", b'{"prompt": "K"', b"\xff\xfe", b'{"prompt": "\xff"}', b"NaN",
        b'{"prompt": "K", "temperature": NaN}', b'{"prompt": "K", "temperature": Infinity}',
        b'{"prompt": "K", "temperature": 1e999}', b'{"prompt": "\\ud800"}', b'{"prompt": "K"} x', b"[" * 2000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"seed": ' + b"9" * 2000 + b', "prompt": "K"}',
    ],
)  # fmt: skip
def test_what_is_not_json_of_a_request_is_refused(small: TestClient, body: bytes) -> None:
    answer = small.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["K", "KING", 0, 1, -1, 2, 0.5, 1e308, 2**63, 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
NAMES = [
    "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "seed", "n", "best_of", "stop", "echo", "logprobs", "stream", "stream_options",
    "return_token_ids", "suffix", "model", "other",
]  # fmt: skip
BODIES = st.fixed_dictionaries({"prompt": VALUES}) | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6).map(
    lambda fields: {"prompt": "K", "max_tokens": 3} | fields
)


def check(client: TestClient, path: str, body: Any) -> None:
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (body, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
def test_any_values_of_the_fields_give_an_answer_or_a_4xx(small: TestClient, body: Any) -> None:
    check(small, "/v1/completions", body)


@pytest.mark.long
@settings(
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=BODIES)
def test_ten_thousand_requests_give_answers_or_4xx(small: TestClient, body: Any) -> None:
    check(small, "/v1/completions", body)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(["prompt", "content", "tokens", "model"]), VALUES, max_size=3))
def test_any_values_give_tokens_or_a_4xx(small: TestClient, body: Any) -> None:
    check(small, "/tokenize", body)
    check(small, "/detokenize", body)
