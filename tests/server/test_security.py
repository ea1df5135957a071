"""Who may use the server: names of hosts, origins, the key, and what a browser is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from quill.server.app import STATIC, create_app
from quill.server.connection.security import CONTENT_SECURITY_POLICY, is_loopback
from quill.server.served_models import ServedModels
from quill.server.settings import Limits, ServerSettings

KEY = "a-key-of-this-test"
ROUTES = ["/v1/models", "/v1/models/out", "/tokenizer_info", "/metrics", "/openapi.json", "/api/alternatives", "/x"]


@pytest.fixture(scope="module")
def local(served: ServedModels) -> Iterator[TestClient]:
    """A client of a server on the loopback interface, which names it rightly."""
    with TestClient(create_app(served), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="module")
def public(served: ServedModels) -> Iterator[TestClient]:
    """A client of a server on all interfaces, which needs a key."""
    settings = ServerSettings(host="0.0.0.0", key=KEY)
    with TestClient(create_app(served, settings), base_url="http://192.168.0.7:8000") as client:
        yield client


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1234", "127.0.0.1", "127.8.9.1:80", "[::1]:8000", "LOCALHOST"]
)
def test_names_of_this_machine_are_accepted_at_any_port(local: TestClient, host: str) -> None:
    assert local.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "192.168.0.7", "[fe80::1]", "", "a@localhost"]
)
def test_any_other_host_is_refused_so_that_dns_rebinding_is_in_vain(local: TestClient, host: str) -> None:
    answer = local.get("/v1/models", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_a_named_host_is_accepted(served: ServedModels) -> None:
    app = create_app(served, ServerSettings(allowed_hosts=("quill.example:8000",)))
    with TestClient(app, base_url="https://quill.example") as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"host": "www.quill.example"}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "http://127.0.0.1:9000", "http://127.0.0.1", "https://[", "file://"]
)
def test_a_page_of_another_origin_is_refused(local: TestClient, origin: str) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("OPTIONS", "/v1/completions")):
        answer = local.request(method, path, headers={"origin": origin})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_page_itself_is_of_the_same_origin(local: TestClient) -> None:
    origin = {"origin": "http://127.0.0.1:8000"}
    assert local.post("/v1/completions", json={"prompt": "K"}, headers=origin).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_a_body_that_a_form_can_send_is_refused(local: TestClient, kind: str) -> None:
    answer = local.post("/v1/completions", content='{"prompt": "K"}', headers={"content-type": kind})
    assert answer.status_code == 415
    kind = "Application/JSON; charset=utf-8"
    answer = local.post("/v1/completions", content='{"prompt": "K"}', headers={"content-type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
def test_without_the_key_every_route_is_closed(public: TestClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for method in ("GET", "POST"):
        answer = public.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens_every_route_and_health_and_the_page_need_none(public: TestClient) -> None:
    files = [f"/{file.relative_to(STATIC).as_posix()}" for file in STATIC.rglob("*") if file.is_file()]
    assert "/index.html" in files
    for path in ("/", *files):
        assert public.get(path).status_code == 200, path
    assert "status" in public.get("/health").json()
    key = {"authorization": f"Bearer {KEY}"}
    assert public.get("/v1/models", headers=key).status_code == 200
    assert public.post("/v1/completions", json={"prompt": "K"}, headers=key).status_code == 200


@pytest.mark.parametrize(
    "path", ["/..%2fapp.py", "/../app.py", "/vendor/../../app.py", "/%2e%2e/settings.py", "//etc/passwd"]
)
def test_no_file_outside_the_page_is_served(local: TestClient, path: str) -> None:
    assert local.get(path).status_code == 404


def test_on_all_interfaces_every_address_is_a_host_and_other_names_are_not(public: TestClient) -> None:
    assert public.get("/", headers={"host": "10.0.0.1"}).status_code == 200
    assert public.get("/", headers={"host": "evil.com"}).status_code == 403


def test_an_empty_bearer_is_accepted_where_no_key_is_needed(local: TestClient) -> None:
    assert local.get("/v1/models", headers={"authorization": "Bearer "}).status_code == 200


def test_every_answer_carries_the_headers_that_protect_the_page(local: TestClient) -> None:
    bad = local.get("/v1/models", headers={"host": "evil.com"})
    for answer in (local.get("/"), local.get("/v1/models"), local.get("/x"), local.post("/v1/completions"), bad):
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers


def test_headers_larger_than_the_limit_are_refused(served: ServedModels) -> None:
    settings = ServerSettings(limits=dataclasses.replace(Limits(), header=2000))
    with TestClient(create_app(served, settings), base_url="http://localhost") as client:
        assert client.get("/", headers={"x": "a" * 1500}).status_code == 200
        for answer in (client.get("/", headers={"x": "a" * 2000}), client.get("/" + "a" * 2000)):
            assert answer.status_code == 431 and "2,000 bytes" in answer.json()["error"]["message"]


def test_only_addresses_of_this_machine_need_no_key() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.com", "")))
