"""`ridgeline serve` as its users run it: two processes, a real model file, signals, sudden death."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import psutil
import pytest

from tests.tiny_models import write_tiny_gguf

START_SECONDS = 30


class Serving:
    def __init__(self, folder, cache, *arguments: str) -> None:
        self.model = write_tiny_gguf(folder / "tiny.gguf")
        environment = {**os.environ, "RIDGELINE_CACHE": str(cache)}
        command = [sys.executable, "-m", "ridgeline", "serve", str(self.model), "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines: list[str] = []
        self.url = ""
        self.may_fail = False
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        deadline = time.monotonic() + START_SECONDS
        while not self.url and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("ready"):
                self.url = line.split()[1].removesuffix("/v1")

    def worker(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        self.reader.join(5)
        self.process.stderr.close()
        return self.process.returncode


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache folder for all, so that the roofline is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def serving(tmp_path, cache):
    serving = Serving(tmp_path, cache)
    assert serving.url, "".join(serving.lines)
    yield serving
    status = serving.end()
    assert status == 0 or serving.may_fail, "".join(serving.lines)


LONG = {
    "model": "tiny",
    "prompt": "the world",
    "max_tokens": 1500,
    "temperature": 0.0,
    "extra_body": {"ignore_eos": True},
}


def test_answers_are_the_same_alone_beside_others_and_after_a_restart(serving):
    def ask(client, number, **how):
        answer = client.completions.create(
            model="tiny", prompt=f"hello world {number}", max_tokens=24, logprobs=2, seed=number, temperature=0.9, **how
        )
        return answer.choices[0].text, answer.choices[0].logprobs.token_logprobs

    with serving.client() as client:
        alone = [ask(client, number) for number in range(6)]
        together: dict[int, tuple] = {}
        threads = [threading.Thread(target=lambda n=n: together.__setitem__(n, ask(client, n))) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [together[number] for number in range(6)] == alone
        serving.worker().kill()
        time.sleep(0.1)
        assert [ask(client, number) for number in range(6)] == alone


def test_a_killed_engine_is_told_and_started_again(serving):
    caught: list[Exception] = []

    def stream():
        try:
            with serving.client() as client:
                for _ in client.completions.create(stream=True, **LONG):
                    begun.set()
        except openai.APIError as error:
            caught.append(error)

    begun = threading.Event()
    thread = threading.Thread(target=stream)
    thread.start()
    assert begun.wait(20)
    first = serving.worker()
    first.kill()
    thread.join(10)
    assert not thread.is_alive()
    assert "engine process ended unexpectedly" in str(caught[0])
    with serving.client() as client:
        assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage.completion_tokens >= 1
    assert serving.worker().pid != first.pid
    assert "ridgeline:engine_restarts_total" in httpx.get(f"{serving.url}/metrics").text


def test_a_stopped_engine_is_not_called_alive(serving):
    worker = serving.worker()
    assert httpx.get(f"{serving.url}/livez").status_code == 200
    worker.suspend()
    try:
        deadline = time.monotonic() + 8
        while httpx.get(f"{serving.url}/livez").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert httpx.get(f"{serving.url}/livez").status_code == 503
        assert httpx.get(f"{serving.url}/readyz").status_code == 503
    finally:
        worker.resume()
    deadline = time.monotonic() + 8
    while httpx.get(f"{serving.url}/livez").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert httpx.get(f"{serving.url}/readyz").status_code == 200


def test_the_engine_does_not_outlive_the_server(serving):
    worker = serving.worker()
    serving.process.kill()
    serving.process.wait()
    worker.wait(5)
    serving.may_fail = True


def test_running_answers_finish_after_sigterm(serving):
    texts: list[str] = []

    def ask():
        with serving.client() as client:
            texts.append(client.completions.create(**{**LONG, "max_tokens": 200}).choices[0].finish_reason)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.15)
    serving.process.send_signal(signal.SIGTERM)
    thread.join(20)
    assert texts == ["length"]
    assert serving.process.wait(20) == 0


def test_only_one_port_is_open(serving):
    listening = {
        connection.laddr.port
        for process in [psutil.Process(serving.process.pid), serving.worker()]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {int(serving.url.rsplit(":", 1)[1])}


def test_a_cancelled_stream_frees_its_pages(serving):
    for _ in range(8):
        body = {"prompt": "the world", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{serving.url}/v1/completions", json=body) as answer:
            next(answer.iter_lines())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        page = httpx.get(f"{serving.url}/metrics").text
        if (
            'vllm:num_requests_running{model_name="tiny"} 0.0' in page
            and 'cancelled_total{model_name="tiny"} 8.0' in page
        ):
            break
        time.sleep(0.05)
    assert 'vllm:num_requests_running{model_name="tiny"} 0.0' in page
    assert 'vllm:kv_cache_usage_perc{model_name="tiny"} 0.0' in page
    assert 'ridgeline:cancelled_total{model_name="tiny"} 8.0' in page


def test_a_port_in_use(tmp_path, cache):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        serving = Serving(tmp_path, cache, "--port", str(taken.getsockname()[1]))
        assert serving.end() == 2
    text = "".join(serving.lines)
    assert "error: cannot listen on" in text and "hint:" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--host", "0.0.0.0", "--api-key", ""), "an --api-key is empty"),
        (("--api-key", " secret"), "spaces around it"),
        (("--port", "65536"), "--port is 65536"),
        (("--port", "-1"), "--port is -1"),
        (("--memory", "1MB"), "1.0 MB were allowed"),
    ],
)
def test_a_server_that_cannot_be(tmp_path, cache, arguments, words):
    serving = Serving(tmp_path, cache, *arguments)
    assert serving.end() == 2
    text = "".join(serving.lines)
    assert words in text
    assert all(line.startswith(("error: ", "hint: ")) for line in serving.lines), text


def test_a_broken_tokenizer_ends_the_server(tmp_path, cache, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'serve' in sys.argv:\n"
        "    from ridgeline.text import open as opening\n"
        "    def broken(*arguments): raise ZeroDivisionError('a fault of ours')\n"
        "    opening.open_text = broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]))))
    serving = Serving(tmp_path, cache)
    assert serving.process.wait(20) == 1
    assert serving.end() == 1 and "ZeroDivisionError: a fault of ours" in "".join(serving.lines)
