"""What a pydantic class holds, in words: the fields of configs, for generated pages."""

import ast
import inspect
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WORDS = {bool: "bool", int: "integer", float: "number", str: "text", Path: "path", Any: "any", dict: "mapping"}


def field_docs(config: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field of a class and its bases, on one line."""
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in pairwise(statements):
            documented = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and documented:
                docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def default(field: FieldInfo) -> str:
    """The default of a field as a config file holds it."""
    value = field.default
    if field.is_required() or value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
        return "`" + yaml.safe_dump(value, default_flow_style=True, sort_keys=False).strip() + "`" if value else ""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...").strip()
    return f"`{text}`"


def kind(field: FieldInfo, named: Callable[[type[BaseModel]], str]) -> str:
    """The type of a field in a few words, with its bounds. named: how a nested config is written."""
    words = type_words(field.annotation, named)
    bounds = [
        f"{BOUNDS[name]} {getattr(part, name):g}"
        for part in field.metadata
        for name in BOUNDS
        if getattr(part, name, None) is not None
    ]
    return ", ".join([words, *(bound for bound in bounds if "e+" not in bound and len(bound) < 8)])


def type_words(annotation: Any, named: Callable[[type[BaseModel]], str]) -> str:
    """An annotation in a few words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(parts[0], named)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(part, named) for part in parts if part is not type(None)))
    if origin in (tuple, list):
        inner = dict.fromkeys(type_words(part, named) for part in parts if part is not ...)
        return f"list of {' and '.join(inner)}"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return named(annotation)
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
