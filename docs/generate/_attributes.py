"""An extension of griffe: the fields of a config or dataclass are a table in its documentation, not a heading each."""

from typing import Any

import griffe


def default(value: Any) -> Any:
    """The default of a field, without the bounds in `Field(...)`. None where there is none."""
    if isinstance(value, griffe.ExprCall) and str(value.function) in ("Field", "field"):
        given = {part.name: part.value for part in value.arguments if isinstance(part, griffe.ExprKeyword)}
        return given.get("default", given.get("default_factory"))
    return value


class FieldsAsTable(griffe.Extension):
    """Moves documented fields of classes into a section of the class's docstring."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called for each class after its members."""
        fields = {
            name: member
            for name, member in cls.members.items()
            if isinstance(member, griffe.Attribute)
            and member.docstring
            and not name.startswith("_")
            and "property" not in member.labels
        }
        if not fields:
            return
        cls.docstring = cls.docstring or griffe.Docstring("", parent=cls)
        rows = [
            griffe.DocstringAttribute(
                name,
                annotation=field.annotation,
                description=field.docstring.value + shown(default(field.value)),
            )
            for name, field in fields.items()
            if field.docstring is not None
        ]
        cls.docstring.parsed.append(griffe.DocstringSectionAttributes(rows))
        for name in fields:
            cls.del_member(name)


def shown(value: Any) -> str:
    """The default in words."""
    return "" if value is None else f" Default: `{value}`."
