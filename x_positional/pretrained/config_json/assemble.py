"""From fields by dotted path to the nested fields of a config. What layers say (`each.window`) becomes a pattern, or one
word for all where they agree."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Fields

GROUPS = ("attn", "ff")
OF_LAYER = ("window", "chunk", "keep_first")


def assembled(fields: Fields) -> dict[str, Any]:
    """Nested fields of `ModelConfig`. `each.` paths hold one value per layer."""
    each = {path.removeprefix("each."): values for path, values in fields.items() if path.startswith("each.")}
    alike = {f"layers.{path}": values[0] for path, values in each.items() if all(v == values[0] for v in values)}
    tree: dict[str, Any] = {}
    for path, value in {**{p: v for p, v in fields.items() if not p.startswith("each.")}, **alike}.items():
        _put(tree, path, value)
    apart = {path: values for path, values in each.items() if f"layers.{path}" not in alike}
    if apart:
        layers = tree["layers"]
        layers["pattern"] = _shortest([_entry(layers, apart, i) for i in range(layers["depth"])])
        for name in OF_LAYER:
            layers.pop(name, None)
        if "position" in apart:
            layers.pop("position", None)
    return tree


def _entry(layers: dict[str, Any], apart: Fields, layer: int) -> dict[str, Any]:
    """What one layer says: what is said for all of them, and its own."""
    entry = {name: layers[name] for name in OF_LAYER if layers.get(name)}
    for path, values in apart.items():
        group = path.split(".")[0]
        if group in GROUPS and group not in entry:
            entry[group] = {name: _copied(value) for name, value in layers.get(group, {}).items()}
        _put(entry, path, values[layer])
    return entry


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _shortest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shortest list that, over and over again, gives the same."""
    depth = len(entries)
    period = next(p for p in range(1, depth + 1) if all(entries[i] == entries[i % p] for i in range(depth)))
    return entries[:period]


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *above, leaf = path.split(".")
    for part in above:
        inner = tree.get(part)
        tree[part] = inner if isinstance(inner, dict) else {}
        tree = tree[part]
    tree[leaf] = value
