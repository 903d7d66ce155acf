"""YAML from anywhere: no tags that run code, no duplicate keys, bounded in size, nesting and number of values.

PyYAML's pure-Python loader takes about 1 s for 500 KB of text or for 20,000 values, which sets the limits.
"""

import stat
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from x_positional.errors import ConfigError, shown
from x_positional.schemes.values import MAX_KEYS, MAX_NESTING, require_bounded

MAX_BYTES = 512 * 1024
"""Of a file. A training file that spells out every field of 128 different layers has about 200 KB."""
MAX_NODES = 20_000
"""Keys, values, lists and mappings, before aliases are expanded."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with limits. Dates stay text, as no config holds one."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.level = self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.level, self.nodes = self.level + 1, self.nodes + 1
        if self.level > MAX_NESTING:
            self._refuse(f"is nested more than {MAX_NESTING} levels deep", self.peek_event())
        if self.nodes > MAX_NODES:
            self._refuse(f"has more than {MAX_NODES} keys and values", self.peek_event())
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self.level -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        seen: set[tuple[Hashable, Hashable]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                self._refuse(f"has the key {shown(key.value)} twice", key)
            seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)  # type: ignore[no-untyped-call]
        if len(node.value) > MAX_KEYS:
            self._refuse(f"has a mapping of more than {MAX_KEYS} keys", node)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except ConfigError:
            raise
        except (ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
            self._refuse(f"has a value that cannot be read: {error}", node)

    def _refuse(self, why: str, at: Any) -> NoReturn:
        raise ConfigError(f"{why} (line {at.start_mark.line + 1})")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError with the reason where there is none."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """The text of a file of at most MAX_BYTES. Raises ConfigError; a FIFO or device is not opened."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            kind = "a directory" if Path(path).is_dir() else "not a regular file"
            raise ConfigError(f"cannot read {_named(path)}: it is {kind}")
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"cannot read {_named(path)}: it has more than {MAX_BYTES // 1024} KB")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {_named(path)}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {_named(path)}: it is not UTF-8 text") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read {_named(path)}: a path cannot contain a null character") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names it in errors. Raises ConfigError."""
    data = parse_value(text, source)
    if data is None:
        raise ConfigError(f"{source}: the file is empty; expected a model: section")
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source} holds a {type(data).__name__}; expected a model: section")
    return dict(data)


def parse_value(text: str, source: str) -> Any:
    """The value in a YAML text, bounded as in `schemes/values.py`. Raises ConfigError."""
    try:
        loader = _Loader(text)
        data = loader.get_single_data()  # type: ignore[no-untyped-call]
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    require_bounded(data, source)
    return data


def _named(path: str | Path) -> str:
    text = str(path)
    plain = text.isprintable() and len(text) <= 300
    return text if plain else shown(text)
