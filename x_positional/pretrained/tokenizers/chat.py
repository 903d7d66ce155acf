"""Chat templates: messages to the text that a model was trained to continue. Rendered in Jinja's sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from x_positional.errors import PretrainedError, import_extra

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`."""


class ChatTemplate:
    """A chat template of a published model.

    A template is third-party code: it runs in a sandbox (`sandbox.py`) without access to files or to attributes that begin
    with an underscore, cannot modify its arguments, and is limited in time and in the size of every value.

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
            PretrainedError: If the template fails, rejects the messages or exceeds its limits.
        """
        import_extra("jinja2", "chat templates need", "pretrained")
        from x_positional.pretrained.tokenizers.sandbox import render

        given = {**self._variables, **variables, "messages": messages, "add_generation_prompt": reply}
        try:
            return render(self.text, given)
        except (
            Exception
        ) as error:  # a template may fail with any error of Python, of Jinja's parser and of its compiler
            reason = str(error)[:1000] or type(error).__name__
            raise PretrainedError(f"the chat template of {self._source} failed:", [reason]) from error
