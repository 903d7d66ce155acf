"""Text to the ids of a published model and back, at once or streamed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from x_positional.errors import PretrainedError, import_extra
from x_positional.pretrained.folder import CONFIG, Folder, read_text
from x_positional.pretrained.tensors.write import write_json
from x_positional.pretrained.tokenizers.chat import ChatTemplate, Message

TOKENIZER, SETTINGS, GENERATION, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
T = TypeVar("T")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def tokenizer_error(what: str, error: BaseException) -> BaseException:
    """What to raise for an error of the package tokenizers, whose panics are no subclass of Exception."""
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
    return error if interrupted else PretrainedError(what, [str(error)])


class TextStream:
    """Decodes ids one at a time. The pieces of text, and that of `finish`, add up to the text of all ids.

    Each step decodes the ids since the last piece again, preceded by those of that piece: some tokenizers decode the first
    word of a text differently.

    Args:
        decode: Ids to text.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._context, self._context_ids = "", 0

    def feed(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED) or len(text) <= len(self._context):
            return ""
        piece = text[len(self._context) :]
        self._ids = self._ids[self._context_ids :]
        self._context_ids, self._context = len(self._ids), self._decode(self._ids)
        return piece

    def finish(self) -> str:
        """The remaining text: an incomplete character, as the replacement character."""
        return self._decode(self._ids)[len(self._context) :]


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a published model."""

    backend: Any
    """A `tokenizers.Tokenizer`."""
    special: Mapping[str, str]
    """Special tokens: `bos_token` and so on -> their text."""
    ends: tuple[int, ...]
    """Ids that end a text, as `eos_token=` of `generate`."""
    template: ChatTemplate | None
    """The chat template, if there is one."""
    source: str
    """Where it comes from, for messages."""
    starts: tuple[int, ...] = ()
    """Ids that a target begins with, as `start_tokens` of `XTransformer.generate`; none if the model names none."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. special: add the tokens that begin or end every text, if the model has them."""
        return self._run(lambda: self.backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids. special: include special tokens."""
        return self._run(lambda: self.backend.decode([int(i) for i in ids], skip_special_tokens=not special))

    def _run(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (TypeError, ValueError, OverflowError):  # of an argument
            raise
        except BaseException as error:
            raise tokenizer_error(f"the tokenizer of {self.source} failed:", error) from error

    def decoder(self) -> TextStream:
        """A decoder of ids that arrive one at a time."""
        return TextStream(self.decode)

    def chat(self, messages: Sequence[Message], *, reply: bool = True, **variables: Any) -> str:
        """The text of a conversation, by the chat template.

        Args:
            messages: As `[{"role": "user", "content": "..."}]`.
            reply: Whether to end with the beginning of the model's answer.
            variables: Further variables of the template, such as `tools=`.

        Raises:
            PretrainedError: If the model has no template, or the template fails.
        """
        if self.template is None:
            raise PretrainedError(
                f"{self.source} has no chat template:", ["it is not a chat model; pass it a text to continue."]
            )
        return self.template.render(messages, reply=reply, **variables)

    def encode_chat(self, messages: Sequence[Message], *, reply: bool = True, **variables: Any) -> list[int]:
        """Ids of a conversation, see `chat`. The template contains all special tokens."""
        return self.encode(self.chat(messages, reply=reply, **variables), special=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / TOKENIZER))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self.special}
        write_json(folder / SETTINGS, settings)
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template.text, encoding="utf-8")


def folder_tokenizer(folder: Folder) -> TextTokenizer:
    """The tokenizer of a folder. Raises PretrainedError if there is no readable one."""
    tokenizers = import_extra("tokenizers", "tokenizer.json needs", "pretrained")
    file, config = folder.find(TOKENIZER), folder.json(CONFIG)
    if file is None:
        raise PretrainedError(f"{folder.path} has no readable tokenizer:", [_why_none(folder)])
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:
        raise tokenizer_error(f"{file} cannot be read:", error) from error
    backend.no_padding()  # some files contain the settings of the last call
    backend.no_truncation()
    settings, generation = folder.json(SETTINGS), folder.json(GENERATION)
    special = {name: text for name in SPECIAL if (text := _text(settings.get(name))) is not None}
    ends = [
        generation.get("eos_token_id"),
        config.get("eos_token_id"),
        backend.token_to_id(special.get("eos_token", "")),
    ]
    starts = [generation.get(name, config.get(name)) for name in ("decoder_start_token_id", "forced_bos_token_id")]
    template = _template(folder, settings)
    return TextTokenizer(
        backend,
        special,
        _ids(ends),
        None if template is None else ChatTemplate(template, special, str(folder.path)),
        str(folder.path),
        _ids(starts),
    )


def _ids(found: Iterable[Any]) -> tuple[int, ...]:
    """Ids, from numbers and lists of numbers."""
    flat = [one for value in found for one in (value if isinstance(value, list) else [value]) if one is not None]
    if wrong := [one for one in flat if not isinstance(one, int) or isinstance(one, bool) or one < 0]:
        raise PretrainedError("the tokenizer cannot be read:", [f"eos_token_id={wrong[0]!r} must be a token id."])
    return tuple(dict.fromkeys(flat))


def _text(token: Any) -> str | None:
    """The text of a special token, which older files store as an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise PretrainedError(f"{SETTINGS} cannot be read:", [f"the special token {text!r} must be a string."])
    return text


def _template(folder: Folder, settings: Mapping[str, Any]) -> str | None:
    """The chat template, from its own file or from a key; of several, the one named default."""
    file = folder.find(TEMPLATE)
    if file is not None:
        return read_text(file)
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, Mapping)}
        found = named.get("default") or next(iter(named.values()), None)
    if found is not None and not isinstance(found, str):
        raise PretrainedError(f"{folder.path / SETTINGS} cannot be read:", ["chat_template must be a string."])
    return found


def _why_none(folder: Folder) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model") if name in folder.files]
    if others:
        path = str(folder.path)
        return (
            f"it has {' and '.join(others)} but no {TOKENIZER}. transformers can write it: "
            f"AutoTokenizer.from_pretrained({path!r}).save_pretrained({path!r})"
        )
    return f"{TOKENIZER} is missing. Download it too, or pass token ids."


DOCUMENT_END = 0
"""Byte 0, which no text contains."""


def byte_tokenizer() -> TextTokenizer:
    """A tokenizer with id = byte. The end of a document has an id but no special token, whose letter could occur in a text.

    Raises MissingExtra without the package tokenizers.
    """
    import_extra("tokenizers", "tokenizer.json needs", "pretrained")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend: Any = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return TextTokenizer(backend, {}, (DOCUMENT_END,), None, "bytes")


def byte_letters() -> list[str]:
    """The letter that represents each byte in byte-level tokenizers: the byte's own if it is printable, otherwise the next
    one from 256 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
