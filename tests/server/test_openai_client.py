"""The server as the official client sees it."""

import json
import time

import httpx
import openai
import pytest


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hi"}]
ECHO = "echo:user:hi\n"


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == ("echo", 512)
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_chat(client):
    answer = client.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=100)
    assert answer.choices[0].message.content == ECHO
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == len(ECHO)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.timing["queue_seconds"] == 0.25


def test_chat_stream_equals_whole(client):
    stream = client.chat.completions.create(
        model="echo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ECHO
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(ECHO)
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1


def test_chat_n_and_logprobs(client):
    answer = client.chat.completions.create(
        model="echo", messages=MESSAGES, n=3, logprobs=True, top_logprobs=2, max_completion_tokens=5
    )
    assert [choice.message.content for choice in answer.choices] == ["echo:"] * 3
    entry = answer.choices[2].logprobs.content[0]
    assert (entry.token, entry.logprob, entry.bytes, len(entry.top_logprobs)) == ("e", -0.5, [101], 2)


def test_content_parts_and_tokens(client, server):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == ECHO
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "hi"}).json()
    assert tokens == {"count": 2, "max_model_len": 512, "tokens": [104, 105]}
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": [104, 105]}).json() == {"prompt": "hi"}


def test_completions(client):
    answer = client.completions.create(model="echo", prompt=["ab", "cd"], max_tokens=7, n=2)
    assert [choice.text for choice in answer.choices] == ["echo:ab", "echo:ab", "echo:cd", "echo:cd"]
    tokens = client.completions.create(model="echo", prompt=[104, 105], max_tokens=7, echo=True, logprobs=1)
    assert tokens.choices[0].text == "hiecho:hi"
    assert tokens.choices[0].logprobs.token_logprobs[:3] == [None, -1.0, -0.5]
    assert tokens.choices[0].logprobs.text_offset[:3] == [0, 1, 2]


def test_echo_without_output(client):
    answer = client.completions.create(model="echo", prompt=[[104, 105]], max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "hi"
    assert answer.choices[0].logprobs.token_logprobs == [None, -1.0]
    assert answer.usage.completion_tokens == 0


def test_completions_stream(client):
    stream = client.completions.create(model="echo", prompt=["a", "b"], max_tokens=6, stream=True)
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "echo:a", 1: "echo:b"}


def test_stream_says_where_tokens_begin(client):
    asked = {"model": "echo", "prompt": "ab", "max_tokens": 6, "logprobs": 1, "echo": True}
    whole = client.completions.create(**asked).choices[0].logprobs
    pieces = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [offset for piece in pieces for offset in piece.text_offset] == whole.text_offset == list(range(8))
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens


def test_every_sample_has_the_prompts_logprobs(client):
    asked = {"model": "echo", "prompt": ["ab", "cd"], "max_tokens": 6, "n": 2, "logprobs": 1, "echo": True}
    for choice, prompt in zip(client.completions.create(**asked).choices, ("ab", "ab", "cd", "cd"), strict=True):
        assert choice.text == f"{prompt}echo:{prompt[0]}"
        assert choice.logprobs.token_logprobs == [None, -1.0] + [-0.5] * 6
    with pytest.raises(openai.BadRequestError, match="echo, logprobs and n > 1"):
        client.completions.create(**asked, stream=True)


def test_prompt_logprobs_are_told_or_refused(client):
    extra = {"prompt_logprobs": 0}
    told = client.completions.create(model="echo", prompt="ab", max_tokens=1, extra_body=extra).choices[0]
    assert told.prompt_logprobs == [None, {"98": {"logprob": -1.0, "decoded_token": "b"}}]
    chat = client.chat.completions.create(model="echo", messages=MESSAGES, extra_body=extra)
    assert len(chat.prompt_logprobs) == len("user:hi\n")
    for create, prompt in ((client.completions.create, {"prompt": "a"}),
                           (client.chat.completions.create, {"messages": MESSAGES})):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="a stream does not carry"):
            create(model="echo", stream=True, extra_body=extra, **prompt)


def test_token_ids_in_streams(client):
    extra = {"return_token_ids": True}
    chat = client.chat.completions.create(model="echo", messages=MESSAGES, stream=True, extra_body=extra)
    ids = [token for chunk in chat for token in chunk.choices[0].token_ids or ()]
    assert bytes(ids).decode() == ECHO
    plain = client.completions.create(model="echo", prompt="ab", stream=True, extra_body=extra)
    assert bytes(token for chunk in plain for token in chunk.choices[0].token_ids).decode() == "echo:ab"


def test_overload_is_told_with_a_time(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "OVERLOAD"}])
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["retry-after-ms"] == "2500"


def test_engine_death(client):
    dying = [{"role": "user", "content": "DIE"}]
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="echo", messages=dying)
    assert caught.value.code == "engine_restarted"
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="echo", messages=dying, stream=True))
    assert "ended unexpectedly" in str(caught.value)


def test_failed_request(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "FAIL"}])
    assert "not finite" in str(caught.value)


@pytest.mark.parametrize("is_stream", [True, False])
def test_disconnect_cancels(server, is_stream):
    num_before = len(server.engine.cancelled)
    slow = {"model": "echo", "messages": [{"role": "user", "content": "SLOW" * 20}], "stream": is_stream}
    with httpx.Client(timeout=0.3) as client:
        if is_stream:
            with client.stream("POST", f"{server.url}/v1/chat/completions", json=slow) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/chat/completions", json=slow)
    deadline = time.monotonic() + 2
    while len(server.engine.cancelled) == num_before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.engine.cancelled) > num_before
    assert server.engine.num_running == 0


def test_raw_stream_bytes(server):
    body = {"model": "echo", "prompt": "a", "max_tokens": 1, "stream": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "e"
