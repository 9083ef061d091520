"""`LLM` as a script uses it: shapes that vLLM's users know, several callers, mistakes that name the fix."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings

import pytest

import ridgeline
from ridgeline import LLM, SamplingParams
from ridgeline.errors import EngineDeadError, RequestError, UserError
from tests.tiny_models import write_tiny_gguf, write_tiny_safetensors

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    with LLM(
        str(write_tiny_gguf(folder / "tiny.gguf")),
        chip="reference",
        kv_format="f32",
        cache_folder=str(folder / "cache"),
        context_tokens=512,
    ) as opened:
        yield opened


def test_generate_gives_answers_in_order_and_in_the_known_shape(llm) -> None:
    prompts = ["hello world", "the", "an in"]
    answers = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2))
    assert [answer.prompt for answer in answers] == prompts
    for answer in answers:
        (output,) = answer.outputs
        assert output.index == 0 and output.finish_reason == "length"
        assert len(output.token_ids) == len(output.logprobs) == 8
        assert all(len(entry.top) == 2 for entry in output.logprobs)
        assert output.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in output.logprobs))
        assert answer.finished and answer.timing is not None
        assert llm.get_tokenizer().decode(output.token_ids) == output.text


def test_every_form_of_a_prompt(llm) -> None:
    text = "hello world"
    token_ids = llm.get_tokenizer().encode(text)
    forms = [text, token_ids, tuple(token_ids), {"prompt": text}, {"prompt_token_ids": token_ids}]
    expected = llm.generate(text, GREEDY)[0].outputs[0].token_ids
    for form in forms:
        assert llm.generate(form, GREEDY)[0].outputs[0].token_ids == expected
    assert [answer.outputs[0].token_ids for answer in llm.generate(forms, GREEDY)] == [expected] * 5
    assert llm.generate([], GREEDY) == []


def test_a_sampling_and_a_priority_for_each(llm) -> None:
    lengths = [SamplingParams(max_tokens=number, ignore_eos=True) for number in (1, 2, 3)]
    answers = llm.generate(["a", "b", "c"], lengths, priority=[2, 1, 0])
    assert [len(answer.outputs[0].token_ids) for answer in answers] == [1, 2, 3]
    with pytest.raises(RequestError, match="2 entries for 3 prompts"):
        llm.generate(["a", "b", "c"], lengths[:2])


def test_seeds_are_told_and_repeat(llm) -> None:
    sampling = SamplingParams(max_tokens=8, ignore_eos=True, n=3)
    answer = llm.generate("the", sampling)[0]
    assert [output.index for output in answer.outputs] == [0, 1, 2]
    again = llm.generate("the", SamplingParams(max_tokens=8, ignore_eos=True, n=3, seed=answer.seed))[0]
    assert [each.token_ids for each in again.outputs] == [each.token_ids for each in answer.outputs]
    assert llm.generate("the", sampling)[0].seed != answer.seed


def test_prompt_logprobs(llm) -> None:
    answer = llm.generate("hello world the", SamplingParams(max_tokens=1, prompt_logprobs=1, n=2))[0]
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids)
    assert answer.prompt_logprobs[0] is None
    assert [entry.token_id for entry in answer.prompt_logprobs[1:]] == list(answer.prompt_token_ids[1:])
    without = llm.generate("hello world the", SamplingParams(max_tokens=1))[0]
    assert without.prompt_logprobs is None and without.outputs[0].logprobs is None


def test_chat_renders_the_template(llm) -> None:
    messages = [{"role": "user", "content": "hello"}]
    (answer,) = llm.chat(messages, GREEDY)
    assert answer.prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert answer.prompt_token_ids[0] == llm.get_tokenizer().token_id("<|im_start|>")
    several = llm.chat([messages, messages], GREEDY)
    assert [each.outputs for each in several] == [answer.outputs] * 2
    with pytest.raises(RequestError, match="conversation 0 is empty"):
        llm.chat([[]], GREEDY)


def test_stream_is_generate_in_pieces(llm) -> None:
    whole = llm.generate("hello", GREEDY)[0].outputs[0]
    chunks = list(llm.stream("hello", GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert chunks[-1].finish_reason.value == "length" and chunks[-1].timing is not None


def test_a_stream_that_is_dropped_is_cancelled(llm) -> None:
    before = llm.statistics().num_cancelled
    stream = llm.stream("hello", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    stream.close()
    assert llm.statistics().num_cancelled == before + 1
    assert llm.statistics().num_running == 0


def test_streams_in_turns_and_calls_within_do_not_mix(llm) -> None:
    alone = {name: llm.generate(name, GREEDY)[0].outputs[0].token_ids for name in ("hello", "world", "the")}
    first, second = llm.stream("hello", GREEDY), llm.stream("world", GREEDY)
    tokens = {"hello": (), "world": ()}
    for one, other in zip(first, second, strict=True):
        tokens["hello"] += one.token_ids
        tokens["world"] += other.token_ids
        assert llm.generate("the", GREEDY)[0].outputs[0].token_ids == alone["the"]
    assert tokens == {name: alone[name] for name in tokens}


def test_several_threads(llm) -> None:
    expected = [llm.generate(prompt, GREEDY)[0].outputs for prompt in ("hello", "world", "the", "in")]
    found: dict[int, list] = {}

    def call(number: int, prompt: str) -> None:
        found[number] = [llm.generate(prompt, GREEDY)[0].outputs for _ in range(3)]

    threads = [
        threading.Thread(target=call, args=(number, prompt))
        for number, prompt in enumerate(("hello", "world", "the", "in"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [[outputs] * 3 for outputs in expected]


def test_map_keeps_order_and_passes_mistakes_through(llm) -> None:
    jobs = [("hello", GREEDY), ([], GREEDY), ([{"role": "user", "content": "the"}], GREEDY), ("world", GREEDY)]
    first, mistake, chat, last = llm.map(iter(jobs))
    assert first.outputs == llm.generate("hello", GREEDY)[0].outputs
    assert isinstance(mistake, RequestError)
    assert chat.outputs == llm.chat(jobs[2][0], GREEDY)[0].outputs
    assert last.outputs == llm.generate("world", GREEDY)[0].outputs


def test_more_prompts_than_the_queue_takes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ridgeline.llm.EngineSettings", lambda **said: ridgeline_settings(**said))
    from ridgeline.engine.settings import EngineSettings

    def ridgeline_settings(**said):
        return EngineSettings(**said, max_queued_requests=3)

    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with LLM(str(path), chip="reference", kv_format="f32", cache_folder=str(tmp_path)) as small:
        sampling = SamplingParams(max_tokens=2, ignore_eos=True, n=2)
        answers = small.generate([f"hello {number}" for number in range(40)], sampling)
        assert [len(answer.outputs[1].token_ids) for answer in answers] == [2] * 40


def test_an_impossible_prompt_is_named_before_anything_runs(llm) -> None:
    before = llm.statistics().num_steps
    with pytest.raises(RequestError, match="prompt 1: the prompt has 600 tokens") as caught:
        llm.generate([[1], [2] * 600], GREEDY)
    assert caught.value.field == "prompt"
    with pytest.raises(RequestError, match="prompt 0 is float"):
        llm.generate([1.5], GREEDY)
    with pytest.raises(RequestError, match="give one SamplingParams"):
        llm.generate("a", {"max_tokens": 3})
    assert llm.statistics().num_steps == before


@pytest.mark.parametrize(
    ("option", "near"),
    [("max_model_len", "context_tokens"), ("n_ctx", "context_tokens"), ("chp", "chip"), ("contxt_tokens", "context")],
)
def test_unknown_options_are_refused_with_the_right_name(option, near) -> None:
    with pytest.raises(UserError) as caught:
        LLM("nowhere.gguf", **{option: 1})
    assert near in caught.value.hint and repr(option) in caught.value.message


def test_a_folder_with_safetensors_gives_the_same_answer(llm, tmp_path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_tiny_safetensors(folder)
    with LLM(str(folder), chip="reference", kv_format="f32", cache_folder=str(tmp_path)) as other:
        assert other.generate("hello world", GREEDY)[0].outputs == llm.generate("hello world", GREEDY)[0].outputs


def test_closed_means_closed(tmp_path) -> None:
    closed = LLM(
        str(write_tiny_gguf(tmp_path / "tiny.gguf")), chip="reference", kv_format="f32", cache_folder=str(tmp_path)
    )
    stream = closed.stream("hello", GREEDY)
    next(stream)
    closed.close()
    closed.close()
    with pytest.raises(EngineDeadError):
        list(stream)
    with pytest.raises(EngineDeadError):
        closed.generate("hello", GREEDY)


def test_importing_ridgeline_imports_nothing_heavy() -> None:
    code = "import ridgeline, sys; print([name for name in ('numpy', 'jinja2', 'msgspec') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert ridgeline.LLM is LLM
    with warnings.catch_warnings(), pytest.raises(AttributeError):
        _ = ridgeline.nothing_of_the_kind
