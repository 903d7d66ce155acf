"""Chat templates: messages to the text that a model was trained to continue. Rendered in Jinja's sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from x_positional.errors import PretrainedError, import_extra

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`."""
FAULTS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""Errors that a template may raise while it runs."""


class ChatTemplate:
    """A chat template of a published model.

    A template is third-party code: it runs in a sandbox without access to files or to attributes that begin with an
    underscore, and cannot modify its arguments.

    Args:
        text: The Jinja template.
        variables: Variables that it may use besides the messages, as `bos_token`.
        source: Where it comes from, for messages.
    """

    def __init__(self, text: str, variables: Mapping[str, str], source: str):
        self.text, self._variables, self._source = text, dict(variables), source

    def render(self, messages: Sequence[Message], *, reply: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: The conversation.
            reply: Whether to end with the beginning of the model's answer.
            variables: Further variables of the template, such as `tools=` or `enable_thinking=`.

        Raises:
            PretrainedError: If the template fails or rejects the messages.
        """
        jinja2 = import_extra("jinja2", "chat templates need", "pretrained")
        try:
            template = _environment().from_string(self.text)
            return template.render(messages=messages, add_generation_prompt=reply, **{**self._variables, **variables})
        except (jinja2.TemplateError, *FAULTS) as error:
            raise PretrainedError(f"the chat template of {self._source} failed:", [str(error)]) from error


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the model's answers for training; here it has no effect."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **layout)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
