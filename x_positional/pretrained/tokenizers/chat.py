"""Chat templates: messages to the text that a model was trained to go on with. Jinja, in its sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from x_positional.errors import PretrainedError
from x_positional.pretrained.extras import needed

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`."""


FAULTS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What a program in the sandbox may run into."""


class ChatTemplate:
    """A template as published models carry it. words: what it may name beside the messages, as `bos_token`.

    A template is a program that somebody else wrote: it runs in a sandbox that reaches neither files nor attributes that
    begin with an underscore, and it changes nothing that it is given.
    """

    def __init__(self, text: str, words: Mapping[str, str], source: str):
        self.text, self._words, self._source = text, dict(words), source

    def render(self, messages: Sequence[Message], *, reply: bool = True, **words: Any) -> str:
        """The text of a conversation. reply: end where the model's answer begins. words: more that the template names,
        such as `tools=` or `enable_thinking=`. Raises PretrainedError with what the template says is wrong."""
        jinja2 = needed("jinja2", "chat templates need")
        try:
            template = _environment().from_string(self.text)
            return template.render(messages=messages, add_generation_prompt=reply, **{**self._words, **words})
        except (jinja2.TemplateError, *FAULTS) as error:
            raise PretrainedError(f"the chat template of {self._source} cannot be followed:", [str(error)]) from error


def _environment() -> Any:
    needed("jinja2", "chat templates need")
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what a model says, for training: here just what is in it."""

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
