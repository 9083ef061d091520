"""Where chat templates run: Jinja as Hugging Face's library sets it up, every way out closed, every cost counted.

A template is a program that comes with a model file, so it is a stranger's. Jinja's sandbox keeps it from Python's
insides; this environment also keeps it from time and memory: loop bodies, calls, filters, operators and literals are
counted, what they make is weighed before it is made, and the render's budget ends it. Objects that would print as
addresses cannot become text.

Knows: Jinja. Does not know: messages, models. Imports jinja2, so it is imported only when a template is rendered.
Source of the dialect: Hugging Face transformers, `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from ridgeline.text.template_budget import (
    ENTRY_WEIGHT,
    MAX_INTEGER_BITS,
    MAX_OUTPUT_CHARACTERS,
    Budget,
    TemplateLimitError,
    bounded_text,
    check_format,
    check_growth,
    structure_weight,
)

# These neither join nor print what they are given, so they need not weigh it first.
_STRUCTURAL = frozenset(
    {
        "abs", "attr", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
        "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "select",
        "selectattr", "sort", "sum", "unique",
    }
)  # fmt: skip
_REFUSED_METHODS = frozenset({"translate", "maketrans", "fromkeys", "encode", "decode", "from_bytes"})
_REFUSED_FILTERS = frozenset({"random", "pprint", "urlize", "wordwrap", "xmlattr"})
_STRFTIME = re.compile(r"(?:[^%]|%[-A-Za-z%])*")


class TemplateRefusalError(TemplateError):
    """A template called `raise_exception`: it does not accept this conversation."""


class _Guarded:
    """A function or method in a template's hands: it can be called, and that is all."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TemplateLimitError("functions are called by name only")

    def __str__(self) -> str:
        raise TemplateLimitError("a function is not text")

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]  # a hash is made of an address


class _MeteredContext(Context):
    """A render's variables, with its budget."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budget = Budget()
        self.tick = self.budget.tick

    def made(self, value: Any) -> Any:
        """A value that a literal or a call made, weighed; iterators become lists, functions are guarded."""
        if isinstance(value, str):
            self.budget.spend(len(value))
            return value
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            most = MAX_OUTPUT_CHARACTERS // ENTRY_WEIGHT
            value = list(islice(value, most + 1))
            if len(value) > most:
                raise TemplateLimitError(f"it makes a list of more than {most} entries")
        if isinstance(value, (list, tuple, dict, set)):
            self.budget.spend(structure_weight(value))
            return value
        return guarded(value)

    def joined(self, values: Iterable[Any]) -> str:
        """The values as one text: the operator `~`."""
        values = tuple(values)
        self.budget.weighed(values)
        return "".join(map(str, values))


def guarded(value: Any) -> Any:
    """The value as a template may hold it."""
    is_plain = value is None or isinstance(value, (str, int, float, list, dict, tuple, Undefined, Macro, _Guarded))
    return value if is_plain or not callable(value) else _Guarded(value)


class _MeteredCode(CodeGenerator):
    """Writes the counting into the Python that a template is compiled to."""

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("context.tick()")
        super().blockvisit(body, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("context.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(context.tick() or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("context.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("context.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("context.made(")
        super().visit_Tuple(node, frame)
        self.write(")")


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant wrote; for rendering it is a scope."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja for chat templates: Hugging Face's filters and functions, counted and guarded."""

    code_generator_class = _MeteredCode
    context_class = _MeteredContext
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(bounded_text)  # what blocks that are captured are put together with

    def __init__(self) -> None:
        # Constants are not folded: that would run filters while a template is compiled, where nothing is counted.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_printable,
            extensions=[_GenerationTag, loopcontrols],
        )
        self.globals = {
            "range": _Guarded(safe_range),
            "dict": _Guarded(dict),
            "namespace": _Guarded(Namespace),
            "raise_exception": _Guarded(_raise_exception),
            "strftime_now": _Guarded(_strftime_now),
        }
        self.filters["tojson"] = _to_json
        self.filters = {
            name: _metered_filter(name, function)
            for name, function in self.filters.items()
            if name not in _REFUSED_FILTERS
        }
        self.tests = {name: _metered_test(function) for name, function in self.tests.items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute or entry, guarded if it can be called."""
        return guarded(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An entry or attribute, guarded if it can be called."""
        return guarded(super().getitem(obj, argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - Jinja's signature
        """Call what a template may call, counted."""
        if isinstance(__obj, _Guarded):
            __obj = __obj._function
            _check_call(__context.budget, __obj, args, kwargs)
        __context.budget.tick()
        return __context.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make much of little, checked before it does."""
        budget: Budget = context.budget
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (max(right, 0) if operator == "**" else 1) + right.bit_length()
            if bits > MAX_INTEGER_BITS:
                raise TemplateLimitError(f"it makes a number of more than {MAX_INTEGER_BITS} bits")
            budget.spend(bits)
        elif operator == "*":
            text, count = (right, left) if isinstance(left, int) else (left, right)
            budget.spend(structure_weight(text) * max(0, count) if isinstance(count, int) else 0)
        elif operator == "%" and isinstance(left, str):
            check_format(budget, left, right)
        return context.made(super().call_binop(context, operator, left, right))


@pass_context
def _printable(context: Any, value: Any) -> Any:
    if isinstance(value, Undefined):
        return value
    context.budget.weighed(value)
    return value


def _check_call(budget: Budget, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    name = getattr(function, "__name__", "")
    if name in _REFUSED_METHODS:
        raise TemplateLimitError(f"{name} cannot be used")
    # The sandbox's own wrapper around str.format keeps the method that it stands for.
    subject = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    check_growth(budget, name, subject, (*args, *kwargs.values()))


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    wanted = getattr(function, "jinja_pass_arg", None)

    @pass_context
    @functools.wraps(function, updated=())
    def metered(context: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.budget
        budget.tick()
        if isinstance(subject, _Guarded):
            raise TemplateLimitError("a function is not a value")
        arguments = (*args, *kwargs.values())
        if name not in _STRUCTURAL:
            budget.weighed(subject)
            for argument in arguments:
                budget.weighed(argument)
        check_growth(budget, name, subject, arguments)
        extra = {None: (), "context": (context,), "eval_context": (context.eval_ctx,)}
        first = extra.get(wanted.name if wanted else None, (context.environment,))
        return context.made(function(*first, subject, *args, **kwargs))

    return metered


def _metered_test(function: Any) -> Callable[..., Any]:
    wanted = getattr(function, "jinja_pass_arg", None)

    @pass_context
    @functools.wraps(function, updated=())
    def metered(context: Any, *args: Any, **kwargs: Any) -> bool:
        context.budget.tick()
        if args and isinstance(args[0], _Guarded):
            args = (args[0]._function, *args[1:])
        return bool(function(context.environment, *args, **kwargs) if wanted else function(*args, **kwargs))

    return metered


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object = "") -> str:
    raise TemplateRefusalError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200 or not _STRFTIME.fullmatch(pattern):
        raise TemplateLimitError("strftime_now has a format that is not a date's")
    return datetime.datetime.now().strftime(pattern)
