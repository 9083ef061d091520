"""Compiling and running a chat template, and saying in whose power a failure lies.

Knows: Jinja's exceptions. Does not know: messages. Imports jinja2.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from ridgeline.errors import ModelFileError, RequestError
from ridgeline.text.template_budget import bounded_text
from ridgeline.text.template_sandbox import TemplateEnvironment, TemplateRefusalError

_HINT = "it comes with the model file; use another conversion of the model, or report it to its maker"


@lru_cache(maxsize=1)
def _environment() -> TemplateEnvironment:
    return TemplateEnvironment()


def compiled(source: str) -> Template:
    """The template, ready to run. Raises ModelFileError if it is not Jinja, or too deep to compile."""
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise ModelFileError(f"the chat template, line {error.lineno}: {error.message}", hint=_HINT) from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, AssertionError, SystemError) as error:
        raise ModelFileError(f"the chat template cannot be compiled: {_reason(error)}", hint=_HINT) from error


def rendered(template: Template, variables: Mapping[str, Any]) -> str:
    """What the template makes of the variables.

    Raises:
        RequestError: it does not accept them.
        ModelFileError: it asks for what no template may have.
    """
    try:
        return bounded_text(template.root_render_func(template.new_context(dict(variables))))
    except TemplateRefusalError as error:
        raise RequestError(
            f"the model's chat template does not accept this conversation: {error.message}", field="messages"
        ) from error
    except (SecurityError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"the model's chat template was stopped: {_reason(error)}", hint=_HINT) from error
    except Exception as error:  # a stranger's program: it may raise anything
        raise RequestError(
            f"the model's chat template cannot write this conversation: {_reason(error)}",
            hint="give each message the fields that the template uses (role, content), as text",
            field="messages",
        ) from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"
