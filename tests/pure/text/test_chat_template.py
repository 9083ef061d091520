"""Chat templates: the same text as the reference renders, and no harm from those that mean it."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ridgeline.errors import ModelFileError, RequestError, UserError
from ridgeline.text import template_probe
from ridgeline.text.chat_template import CHATML, ChatTemplate
from ridgeline.text.template_run import compiled, rendered

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "chat_templates.json").read_text("utf-8"))
"""Made with transformers 5.23 (`apply_chat_template`) from the models' own templates."""
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", GOLDEN)
def test_same_text_as_the_reference(name: str, cache_folder: Path) -> None:
    model = GOLDEN[name]
    template = ChatTemplate(
        {"default": model["template"]}, special_tokens=model["special_tokens"], cache_folder=cache_folder
    )
    for case in model["cases"]:
        assert template.render(**case["given"]) == case["text"]


def test_arguments_may_come_as_the_api_sends_them(cache_folder: Path) -> None:
    model = GOLDEN["qwen2.5-coder-0.5b"]
    template = ChatTemplate({"default": model["template"]}, cache_folder=cache_folder)
    case = next(case for case in model["cases"] if any("tool_calls" in m for m in case["given"]["messages"]))
    given = json.loads(json.dumps(case["given"]))
    for message in given["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    assert template.render(**given) == case["text"]


def render(source: str, messages: Any = MESSAGES, **variables: Any) -> str:
    return rendered(compiled(source), {"messages": messages, **variables})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", "yo"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "hi"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("a\n{% if true %}\n  b\n{% endif %}\nc", "a\n  b\nc"),
        ("{{ {'b': '<é>', 'a': [1, none, true]} | tojson }}", '{"b": "<é>", "a": [1, null, true]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro shout(x) %}{{ x | upper }}!{% endmacro %}{{ shout('a') }}", "A!"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages[0].content.split('h')[-1].strip() }}", "i"),
        ("{{ '%s-%05d' % ('a', 7) }}{{ '{:>3}'.format(1) }}", "a-00007  1"),
        ("{{ messages[0] is mapping }}{{ x is defined }}{{ 'a' in 'abc' }}", "TrueFalseTrue"),
        ("{{ messages[-1:] | length }}{{ messages | last | attr('role') }}", "1"),
        ("{{ ('a' ~ 1 ~ none) }}{{ 7 // 2 }}{{ 2 ** 5 }}", "a1None332"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for a in range(3) %}{{ loop.index }}{{ ',' if not loop.last }}{% endfor %}", "1,2,3"),
        ("{{ dict(a=1) }}{{ 'x' * 3 }}{{ undefined_name }}", "{'a': 1}xxx"),
        ("{%- set m = messages | first %}{{ m['role'] }}", "user"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("{% filter upper %}a{% endfilter %}{% set q %}b{% endset %}{{ q }}", "Ab"),
        ("{% call(x) f() %}{{ x }}{% endcall %}{% macro f() %}{% endmacro %}", None),
    ],
)
def test_dialect(source: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(UserError):
            render(source)
    else:
        assert render(source) == text


ESCAPES = [
    "{{ cycler.__init__.__globals__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__subclasses__() }}",
    "{{ ('x' | attr('__class__')).__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{% set f = 'x' | attr('format') %}{{ f | string }}",
    "{{ 'x' | attr('format') }}",
    "{{ messages.index }}",
    "{{ '' ~ messages.index }}",
    "{{ '%s' % messages.index }}",
    "{{ '%r' | format(messages.index) }}",
    "{{ '{}'.format(messages.index) }}",
    "{{ [messages.index] | join }}",
    "{{ [messages.index] | string }}",
    "{{ {'a': messages.index} | tojson }}",
    "{{ range }}{{ raise_exception }}",
    "{% block a %}{% endblock %}{{ self.a | string }}",
    "{% for m in messages %}{{ loop.cycle }}{% endfor %}",
    "{{ {messages.index: 1} }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ lipsum() }}",
    "{{ messages.append(1) }}{{ messages.append(1).x }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out(source: str) -> None:
    with pytest.raises(UserError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | map('upper') | string }}",
        "{{ (messages | selectattr('role')) ~ '' }}",
        "{{ [1] | reverse }}",
        "{{ {'a': 1}.items() }}",
    ],
)
def test_no_addresses(source: str) -> None:
    with contextlib.suppress(UserError):
        assert "0x" not in render(source)


DOUBLE = "{% set ns = namespace(s=%s) %}{% for i in range(100) %}{% set ns.s = %s %}{% endfor %}{{ ns.s }}"
HUNGRY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ 'x' | center(3000000000) }}",
    "{{ 'x'.center(3000000000) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ 'x' * 3000000000 }}",
    "{{ [1] * 3000000000 }}",
    "{{ (10 ** 10) ** (10 ** 10) }}",
    "{{ '%3000000000d' % 1 }}",
    "{{ '%*d' % (3000000000, 1) }}",
    "{{ '{:3000000000d}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=3000000000) }}",
    DOUBLE.replace("%s", "'x'", 1).replace("%s", "ns.s ~ ns.s"),
    DOUBLE.replace("%s", "'x'", 1).replace("%s", "ns.s + ns.s"),
    DOUBLE.replace("%s", "'x'", 1).replace("%s", "'%s%s' % (ns.s, ns.s)"),
    DOUBLE.replace("%s", "'x'", 1).replace("%s", "'{0}{0}'.format(ns.s)"),
    DOUBLE.replace("%s", "'x'", 1).replace("%s", "[ns.s, ns.s] | join"),
    DOUBLE.replace("%s", "'x'", 1).replace("%s", "ns.s.replace('x', 'xx')"),
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "[ns.s, ns.s]"),
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "(ns.s, ns.s)"),
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "{1: ns.s, 2: ns.s}"),
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "dict(a=ns.s, b=ns.s)"),
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "[{}, {}] | map(attribute='z', default=ns.s) | list"),
    DOUBLE.replace("%s", "10", 1).replace("%s", "ns.s * ns.s"),
    "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set q %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = q %}{% endfor %}{{ ns.s }}",
    "{% set a = 'x' * 1000000 %}{{ a.replace('x', a) }}",
    "{% set a = 'x' * 1000000 %}{{ a | replace('x', a) }}",
    "{% set a = 'x' * 1000000 %}{{ a | join(a) }}{{ a.join(a) }}",
    "{% set a = 'x' * 1000000 %}{{ a.translate({120: a}) }}",
    "{{ ('x\n' * 100000) | indent(1000) }}",
    "{{ ('x\n' * 100000) | indent('y' * 100000) }}",
    "{{ ('\t' * 1000000).expandtabs(1000) }}",
    "{{ range(99999) | list | tojson(indent=1000) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ 'a' | batch(1000000000, 'x') | list }}",
    "{{ dict.fromkeys(range(99999), 'x' * 100000) }}",
    "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "{{ ('é' * 99999).encode('punycode') }}",
    "{{ ('a\n' * 999999).splitlines() }}{{ ('a\n' * 999999).split('\n') }}{{ ('a\n' * 999999).split() }}",
    "{{ ('é' * 999999) | list }}",
    "{% for i in range(99999) %}{% set x = range(99999) | sort(reverse=true) %}{% endfor %}",
    "{% set a = range(99999) | list %}{% for i in range(99999) %}{% if a == a + [1] %}{% endif %}{% endfor %}",
    "{% set q %}{% for i in range(99999) %}{% for j in range(99999) %}%s{% endfor %}{% endfor %}{% endset %}".replace(
        "%s", "text" * 10_000
    ),
    "{% for i in range(99999) %}%s{% endfor %}".replace("%s", "text" * 10_000),
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% for m in messages recursive %}{{ loop([m, m]) }}{% endfor %}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "-" * 50000 + "1 }}",
    "{{ " + " and ".join(["1"] * 20000) + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
]


@pytest.mark.parametrize("source", HUNGRY, ids=lambda source: source[:60])
def test_time_and_memory_are_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ridgeline.text.template_budget.MAX_SECONDS", 0.3)
    begin = time.thread_time()
    with pytest.raises(UserError):
        render(source)
    assert time.thread_time() - begin < 5


def test_budget_suits_real_conversations() -> None:
    """A thousand long messages are far from every limit."""
    source = GOLDEN["qwen2.5-coder-0.5b"]["template"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": "words and more words " * 200} for i in range(1000)]
    assert len(render(source, messages, tools=None, add_generation_prompt=True)) > 4_000_000


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% endif %}", "{{ x | nosuchfilter }}", "{% if x is nosuch %}"])
def test_broken_templates_are_the_model_files_fault(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        compiled(source)


def test_template_says_no() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="cannot write this conversation"):
        render("{{ messages[0].nothing.more }}")


def test_probe_runs_once_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(template_probe, "_probe", tried.append)
    for source in ("a", "a", "b"):
        ChatTemplate({"default": source}, cache_folder=tmp_path).render(MESSAGES)
    assert tried == ["a", "b"]
    ChatTemplate({"default": "a"}).render(MESSAGES)
    assert tried == ["a", "b", "a"]


def test_probe_refuses_what_brings_its_process_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate({"default": "{{ 'x' * 3000000000 }}"}, cache_folder=tmp_path)
    for _ in range(2):
        with pytest.raises(ModelFileError, match="tried and refused"):
            template.render(MESSAGES)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(template_probe.sys, "executable", "/bin/false")
    with pytest.raises(ModelFileError, match="brought down"):
        ChatTemplate({"default": "a"}).render(MESSAGES)


def test_probe_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(template_probe.sys, "executable", str(sleeper))
    monkeypatch.setattr(template_probe, "MAX_SECONDS", 0.2)
    with pytest.raises(ModelFileError, match="does not end"):
        ChatTemplate({"default": "a"}).render(MESSAGES)


@pytest.fixture
def chatml(cache_folder: Path) -> ChatTemplate:
    return ChatTemplate({"default": CHATML}, cache_folder=cache_folder)


def test_chatml(chatml: ChatTemplate) -> None:
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    assert chatml.render(MESSAGES, add_generation_prompt=False) == expected
    assert chatml.render(MESSAGES) == expected + "<|im_start|>assistant\n"


def test_continuing(chatml: ChatTemplate) -> None:
    text = chatml.render(MESSAGES, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("assistant\nyo")
    with pytest.raises(RequestError, match="exclude each other"):
        chatml.render(MESSAGES, continue_final_message=True)
    for messages in ([], [{"role": "user", "content": None}]):
        with pytest.raises(RequestError, match="last message"):
            chatml.render(messages, add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("name", ["messages", "tools", "eos_token", "range", "__class__", "a b", "raise_exception", ""])
def test_reserved_names(chatml: ChatTemplate, name: str) -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs"):
        chatml.render(MESSAGES, extra={name: 1})


def test_extra_variables(cache_folder: Path) -> None:
    template = ChatTemplate({"default": "{{ enable_thinking }}{{ bos_token }}"}, special_tokens={"bos_token": "<s>"},
                            cache_folder=cache_folder)  # fmt: skip
    assert template.render(MESSAGES, extra={"enable_thinking": False}) == "False<s>"


@pytest.mark.parametrize("messages", [[{"content": "x"}], ["x"], [{"role": 1}], [None]])
def test_messages_without_a_role(chatml: ChatTemplate, messages: Any) -> None:
    with pytest.raises(RequestError, match=r"messages\[0\]"):
        chatml.render(messages)


def test_no_template() -> None:
    with pytest.raises(UserError, match="no chat template"):
        ChatTemplate({}).render(MESSAGES)
    with pytest.raises(ModelFileError, match="characters"):
        ChatTemplate({"default": "x" * (1 << 21)})


def test_template_for_tools(cache_folder: Path) -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, cache_folder=cache_folder)
    assert template.render(MESSAGES) == "plain"
    assert template.render(MESSAGES, tools=[{"type": "function"}]) == "tools"
