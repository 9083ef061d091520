"""Requests that no client should send: each gets the right answer, and the next request is served."""

import json
import logging
import socket
import time

import httpx
import pytest

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
BAD_FIELDS = [
    ("temperature", -1), ("temperature", 1e999), ("top_p", 2), ("top_p", 0), ("top_p", -1), ("top_k", -7), ("n", 0),
    ("n", 10**9), ("min_tokens", 2**31), ("max_tokens", 0), ("max_tokens", 2**63), ("max_tokens", "ten"),
    ("stop", ["x"] * 100_000), ("stop", [""]), ("stop", 5), ("bad_words", ["y"] * 1000), ("stop_token_ids", [-1]),
    ("logit_bias", {"abc": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"5": 1e9}), ("allowed_token_ids", []),
    ("top_logprobs", 3), ("prompt_logprobs", 10**5), ("seed", -1), ("presence_penalty", 3), ("messages", []),
    ("messages", "x"), ("messages", [{"role": 5}]), ("messages", [{"content": "x"}]), ("messages", None),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]),
    ("tools", "x"), ("tools", [{"type": "function"}]), ("response_format", {"type": "json_schema"}),
    ("response_format", "x"), ("chat_template", "{{ 1 }}"), ("stream_options", 5), ("cache_salt", "s" * 2000),
    ("priority", 2**40), ("audio", {}), ("functions", []),
]  # fmt: skip


def alive(server):
    assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=[f"{f}-{i}" for i, (f, _) in enumerate(BAD_FIELDS)])
def test_impossible_fields(server, field, value):
    body = json.dumps({**CHAT, field: value}).replace("Infinity", "1e999")
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if field not in ("messages",):
        assert (error["param"] or "body").split(".")[0].split("[")[0] in (field, "body"), error
    assert len(error["message"]) < 400
    alive(server)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b"5", b'{"messages": NaN}', b"\xff\xfe",
     b'{"messages": "\xed\xa0\x80"}', b"[" * 100_000,
     b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}'],
)  # fmt: skip
def test_bodies_that_are_not_requests(server, raw):
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=raw)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    alive(server)


def test_no_inner_names_in_errors(server):
    for raw in (b"{", b'{"messages": 5}', b'{"prompt": {}}'):
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            text = httpx.post(server.url + path, content=raw).text
            assert not any(sign in text for sign in ("0x", " object at", "site-packages", "Traceback", "/src/"))


def test_prompt_lists(server):
    for prompt in (["x"] * 20_000, [[]] * 300, {"a": 1}, [1.5]):
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 400, (prompt, answer.text)
    alive(server)


def test_long_prompts(server):
    for text in ("x" * 600, "x" * 600_000):
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": text, "max_tokens": 1})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", 1], [-1], [256], [10**30]])
def test_prompts_that_are_no_prompts(server, prompt):
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert answer.json()["error"]["code"] is None, "clients shorten the prompt for context_length_exceeded"
    alive(server)


@pytest.mark.parametrize("num_bytes_sent", [5, None])
def test_client_that_goes_away_is_no_error(server, caplog, num_bytes_sent):
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "SLOW", "max_tokens": 60}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    log = logging.getLogger("uvicorn.error")  # it does not hand its records on
    log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.ERROR, log.name):
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(head + body[:num_bytes_sent])
                time.sleep(0.1)
                assert server.engine.num_running == (num_bytes_sent is None)
            deadline = time.monotonic() + 5
            while server.engine.num_running and time.monotonic() < deadline:
                time.sleep(0.01)
            alive(server)
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records


def test_body_over_the_limit(server):
    answer = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "' + b"x" * (2 << 20) + b'"}')
    assert answer.status_code == 413

    def pieces():
        for _ in range(64):
            yield b"x" * (64 << 10)

    try:
        answer = httpx.post(f"{server.url}/v1/completions", content=pieces())
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server may hang up on a body that it will not read
    alive(server)


def test_huge_headers(server):
    with pytest.raises((httpx.HTTPError, AssertionError)):
        answer = httpx.get(f"{server.url}/health", headers={"x-big": "y" * (4 << 20)})
        assert answer.status_code < 400
    alive(server)


def test_foreign_host_is_refused_without_a_key(server):
    for host in ("evil.example", "testserver", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 421


def test_methods_and_paths(server):
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{server.url}/nowhere").status_code == 404
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["type"] == "not_found_error"
    assert httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "model": "other"}).status_code == 404


def test_length_and_chunked_together(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert b" 400 " in raw.recv(4096).split(b"\r\n")[0]
    alive(server)


@pytest.mark.parametrize("path", ["/v1/models", "//v1/models", "/V1/models", "/metrics", "/version", "/tokenize",
                                  "/", "/health/", "/health/../v1/models", "/livez%2f..%2fv1/models",
                                  "/%2e%2e/v1/models"])  # fmt: skip
def test_key_guards_every_path(keyed_server, path):
    assert httpx.get(keyed_server.url + path).status_code == 401
    assert httpx.get(keyed_server.url + path, headers={"authorization": "Bearer secret-3"}).status_code == 401
    for headers in ({"authorization": "Bearer secret-2"}, {"x-api-key": "secret-1"}):
        assert httpx.get(keyed_server.url + path, headers=headers).status_code != 401


def test_open_paths(keyed_server):
    for path in ("/health", "/livez", "/readyz"):
        assert httpx.get(keyed_server.url + path).status_code == 200


def test_metrics_page(server):
    alive(server)
    page = httpx.get(f"{server.url}/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
        "generation_tokens_total", "e2e_request_latency_seconds_bucket", "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket", "request_success_total", "cache_config_info",
    ):  # fmt: skip
        assert f"\nvllm:{name}{{" in page, name
    assert 'vllm:kv_cache_usage_perc{model_name="echo"} 0.25' in page
