"""Text to the ids of a published model and back, whole or as it comes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x_positional.errors import PretrainedError
from x_positional.pretrained.extras import needed
from x_positional.pretrained.tensors.files import read_json
from x_positional.pretrained.tokenizers.chat import ChatTemplate, Message

TOKENIZER, SETTINGS, GENERATION, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Ids that arrive one by one, as text: a piece is empty while a character is incomplete. decode: ids to text.

    The pieces and `finish` together are the text of all ids. Only the ids since the last piece are decoded again, with
    those of that piece before them: some tokenizers write a word in another way where it stands first.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._said, self._old = "", 0

    def feed(self, token: int) -> str:
        """The text that this token completes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED) or len(text) <= len(self._said):
            return ""
        piece = text[len(self._said) :]
        self._ids = self._ids[self._old :]
        self._old, self._said = len(self._ids), self._decode(self._ids)
        return piece

    def finish(self) -> str:
        """What is left: a character that never became whole, as the replacement character."""
        return self._decode(self._ids)[len(self._said) :]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of a published model. backend: of the package tokenizers. special: `bos_token` and so on -> their text.
    ends: ids after which the model has said all. template: of conversations, None where it has none."""

    backend: Any
    special: Mapping[str, str]
    ends: tuple[int, ...]
    template: ChatTemplate | None
    source: str

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. special: with the tokens that stand before or after every text, where the model has them."""
        return self.backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids. special: special tokens too."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def decoder(self) -> TextStream:
        """Text of ids that arrive one by one."""
        return TextStream(self.decode)

    def chat(self, messages: Sequence[Message], *, reply: bool = True, **words: Any) -> str:
        """The text of a conversation, `[{"role": "user", "content": "..."}]`, up to where the answer begins.

        words: more that the template names, such as `tools=`. Raises PretrainedError where the model has no template.
        """
        if self.template is None:
            raise PretrainedError(
                f"{self.source} has no chat template:", ["it was not trained to answer; give it a text to go on with."]
            )
        return self.template.render(messages, reply=reply, **words)

    def encode_chat(self, messages: Sequence[Message], *, reply: bool = True, **words: Any) -> list[int]:
        """Ids of a conversation. The template writes the special tokens itself."""
        return self.encode(self.chat(messages, reply=reply, **words), special=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
        from x_positional.pretrained.tensors.write import write_json

        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / TOKENIZER))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self.special}
        write_json(folder / SETTINGS, settings)
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template.text, encoding="utf-8")


def folder_tokenizer(folder: Path, config: Mapping[str, Any]) -> TextTokenizer:
    """The tokenizer of a folder. Raises PretrainedError where there is none that can be read."""
    file = folder / TOKENIZER
    tokenizers = needed("tokenizers", "tokenizer.json needs")
    if not file.is_file():
        raise PretrainedError(f"{folder} has no tokenizer that can be read:", [_why_none(folder)])
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception for every malformed file
        raise PretrainedError(f"{file} cannot be read:", [str(error)]) from error
    backend.no_padding()  # some files keep the settings of the last call
    backend.no_truncation()
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    special = {name: text for name in SPECIAL if (text := _text(settings.get(name))) is not None}
    said = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    ends = [said.get("eos_token_id"), config.get("eos_token_id"), backend.token_to_id(special.get("eos_token", ""))]
    template = _template(folder, settings)
    return TextTokenizer(
        backend,
        special,
        _ids(ends),
        None if template is None else ChatTemplate(template, special, str(folder)),
        str(folder),
    )


def _ids(found: Iterable[Any]) -> tuple[int, ...]:
    """All ids in numbers and lists of them."""
    flat = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(one for one in flat if one is not None))


def _text(token: Any) -> str | None:
    """A special token, which older files write as an object."""
    return token.get("content") if isinstance(token, Mapping) else token


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or a key; of several, the one called default."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        return named.get("default") or next(iter(named.values()), None)
    return found


def _why_none(folder: Path) -> str:
    others = [
        name for name in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model") if (folder / name).is_file()
    ]
    if others:
        return (
            f"there is {' and '.join(others)}, and no {TOKENIZER}. transformers writes one: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return f"{TOKENIZER} is missing. Fetch it too, or give ids."
