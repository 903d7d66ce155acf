"""Jinja's immutable sandbox with a limit of time and memory, for chat templates, which are third-party code.

Every operation of a template passes `Meter`, whose costs are counted rather than timed, so that a template either always
renders or never does:

- a step for each iteration, call, filter and operator; more for those that walk through a long value;
- a size for each value: the characters that it would take to write it out, so that a list which holds a list twice counts it
  twice. No value is made whose size is above the limit, and the sizes of all values made add up to a limit too.

Operators, calls and attributes are intercepted by the sandbox; loops, output, literals, comparisons and `~` by a rewrite of the
template's syntax tree. What makes a long result of short arguments (`*`, `%`, `**`, `replace`, `center`, `indent` ...) has its
result computed in advance.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from string import Formatter
from types import BuiltinMethodType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE = 100_000
"""Characters of a template: compiling it takes time too."""
STEPS, SIZE, TOTAL = 1_000_000, 2_000_000, 50_000_000
"""Limits of steps, of the size of a value, and of the sizes of all values."""
SHARE, TOTAL_SHARE = 8, 64
"""What each character of the inputs (messages, tools) adds to the last two."""
CALL = 4
"""Steps of a call or a filter."""
CHARACTERS, COMPARED, ITEMS = 200, 1000, 20
"""Characters that are made, characters that are compared, and items of lists that cost a step."""
MAX_INDENT, MAX_BITS, MAX_WIDTH, MAX_PRECISION = 32, 4096, 1000, 100
"""Limits of `tojson(indent=)`, of integers, of widths in formats, and of `round`."""
LITERAL, OPERAND, TICK, TEXT = (f"x_positional {name}" for name in ("literal", "operand", "tick", "text"))
"""Filters that the rewrite inserts: no template can name them."""
TEXT_METHODS = frozenset(
    (
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "format",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "isupper",
        "istitle",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "center",
        "ljust",
        "rjust",
        "zfill",
    )
)
"""Methods of a string that a template may call."""
NO_FILTERS = ("pprint", "urlize", "xmlattr", "wordwrap", "filesizeformat", "random")
"""Filters of Jinja that no chat template needs, and that are slow or differ from call to call."""
SLOW = frozenset(
    (
        "title",
        "striptags",
        "urlencode",
        "wordcount",
        "escape",
        "e",
        "forceescape",
        "dictsort",
        "sort",
        "unique",
        "groupby",
        "list",
    )
)
"""Filters that take as long as eight others on the same value."""
PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0_^]*(\d+|\*)?(?:\.(\d+|\*))?")
"""A field of the operator `%` and of strftime, with its width and precision."""


class TooMuch(TemplateError):
    """A template that exceeds its limits."""


class Meter:
    """Counts what a template does. The sizes of lists and dicts are remembered: a template cannot change them."""

    def __init__(self) -> None:
        self.steps, self.size, self.total = STEPS, SIZE, TOTAL
        self._known: dict[int, tuple[Any, int]] = {}

    def admit(self, inputs: Any) -> None:
        """Raise the limits by the size of the inputs, which the caller trusts."""
        self.steps = self.size = self.total = 1 << 62
        size = self.size_of(inputs)
        self.steps, self.size = STEPS + size, SIZE + SHARE * size
        self.total = TOTAL + TOTAL_SHARE * size

    def step(self, count: int = 1) -> None:
        """Count steps. Raises TooMuch."""
        self.steps -= count
        if self.steps < 0:
            raise TooMuch("it takes too many steps.")

    def expect(self, size: int) -> None:
        """Check the size of a value before it is made. Raises TooMuch."""
        if size > self.size:
            raise TooMuch(f"it makes a value of {size:,} characters; the limit is {self.size:,}.")
        if size > self.total:
            raise TooMuch("it makes too much text.")

    def made(self, value: Any) -> Any:
        """Count a value that was made, and return it. Raises TooMuch."""
        if isinstance(value, str):
            size = len(value)
            self.expect(size)
        else:
            self.expect(self.size_of(value))
            size = 8 * len(value) if isinstance(value, dict | list | tuple | set) else 8
        self.total -= size
        self.step(1 + size // CHARACTERS)
        return value

    def compared(self, value: Any) -> Any:
        """Count a value that is compared or hashed, and return it. Raises TooMuch."""
        size = self.size_of(value)
        self.step(1 + size // (COMPARED if isinstance(value, str) else ITEMS))
        return value

    def size_of(self, value: Any) -> int:
        """Characters that it would take to write a value out. Raises TooMuch for integers of thousands of digits."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise TooMuch(f"it makes an integer of {value.bit_length():,} bits; the limit is {MAX_BITS:,}.")
            return 1 + value.bit_length() // 3
        if not isinstance(value, dict | list | tuple | set | range):
            return 8
        if isinstance(value, range):
            return 8 * len(value)
        known = self._known.get(id(value))
        if known is None:
            self._known[id(value)] = (value, 1 << 62)  # a list that holds itself is too large
            self.step(1 + len(value) // ITEMS)
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            known = self._known[id(value)] = (value, 2 + sum(2 + self.size_of(part) for part in parts))
        return known[1]


class _Rewrite(NodeTransformer):
    """Inserts the filters that count into a template's syntax tree."""

    def _counted(self, node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._tick(0, node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._tick(0, node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> Any:
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else self._counted(n, LITERAL) for n in node.nodes]
        static = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [self._tick(static, node.lineno), node]

    def _tick(self, size: int, line: int) -> nodes.Node:
        return nodes.ExprStmt(self._counted(nodes.Const(size, lineno=line), TICK), lineno=line)

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._counted(node, LITERAL) if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Tuple = visit_Dict = _literal

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._counted(nodes.List(node.nodes, lineno=node.lineno), TEXT)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._counted(node.expr, OPERAND)
        for operand in node.ops:
            operand.expr = self._counted(operand.expr, OPERAND)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = self._counted(node.key, OPERAND)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._counted(node, LITERAL)
        if not isinstance(node.arg, nodes.Const):
            node.arg = self._counted(node.arg, OPERAND)
        return node


class Environment(ImmutableSandboxedEnvironment):
    """Renders one template, once."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self, meter: Meter) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], optimized=False)
        self.meter = meter
        for name in NO_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _as_json
        self.filters = {name: self._metered_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {LITERAL: meter.made, TICK: self._tick, TEXT: self._join_texts, OPERAND: meter.compared}
        self.tests = {name: self._metered_test(function) for name, function in self.tests.items()}
        self.globals["namespace"] = Names
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = self._now
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Rewrite().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in TEXT_METHODS
        if isinstance(obj, int | float | bytes | bytearray):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """A call of a template, whose result is computed in advance where it may be long."""
        self.meter.step(CALL)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            self._expect_text(name, owner, args)
        return self.meter.made(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's replacement of `str.format`, whose result is computed in advance."""
        if not isinstance(value, BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if not isinstance(text, str) or value.__name__ != "format":
            return None

        def form(*args: Any, **kwargs: Any) -> str:
            self._expect_braces(text, [*args, *kwargs.values()])
            return SandboxedFormatter(self).vformat(text, args, kwargs)

        return form

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator of a template."""
        size = self.meter.size_of
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            count = max((one for one in (left, right) if isinstance(one, int)), default=1)
            self.meter.expect(max(size(one) for one in (left, right) if not isinstance(one, int)) * max(count, 1))
        elif operator == "+" and isinstance(left, str | list | tuple):
            self.meter.expect(size(left) + size(right))
        elif operator == "%" and isinstance(left, str):
            self._expect_percent(left, right if isinstance(right, tuple) else [right])
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._expect_power(left, right)
        self.meter.step()
        return self.meter.made(super().call_binop(context, operator, left, right))

    def _expect_power(self, base: int, exponent: int) -> None:
        if base.bit_length() * exponent > MAX_BITS:
            raise TooMuch(f"{base} ** {exponent} is too large.")

    def _expect_text(self, name: str, text: str, args: tuple[Any, ...]) -> None:
        """Count the result of a method of a string before it is called."""
        if name in ("center", "ljust", "rjust", "zfill"):
            self.meter.expect(len(text) + (args[0] if args and isinstance(args[0], int) else 0))
        elif name == "replace":
            self._expect_replaced(text, args)
        elif name == "join" and args:
            self._expect_joined(text, args[0])
        elif name == "format":
            raise TooMuch("str.format is supported as a call only.")
        elif name in ("split", "rsplit", "splitlines"):
            self.meter.expect(4 * len(text))
            self.meter.step(len(text) // CHARACTERS)
        else:
            self.meter.step(len(text) // CHARACTERS)

    def _expect_replaced(self, text: str, args: tuple[Any, ...]) -> None:
        old, new = [*(str(arg) if isinstance(arg, str) else "" for arg in args[:2]), "", ""][:2]
        self.meter.expect(len(text) + text.count(old) * len(new))

    def _expect_joined(self, separator: Any, parts: Any) -> None:
        if isinstance(parts, list | tuple | dict | set | str | range):
            size = self.meter.size_of
            self.meter.expect(size(parts) * (4 if isinstance(parts, str) else 1) + len(parts) * size(separator))

    def _expect_percent(self, text: str, args: Iterable[Any]) -> None:
        """The operator `%`: fields with widths, which `*` takes from the arguments."""
        numbers = [number for field in PERCENT.findall(text) for number in field if number]
        self._expect_fields(text, numbers, "*" in numbers, args, text.count("%"))

    def _expect_braces(self, text: str, args: Iterable[Any]) -> None:
        """`str.format`: a field's width may be a field itself."""
        layouts = [layout or "" for _, _, layout, _ in Formatter().parse(text)]
        numbers = [number for layout in layouts for number in re.findall(r"\d+", layout)]
        self._expect_fields(text, numbers, any("{" in layout for layout in layouts), args, text.count("{"))

    def _expect_fields(self, text: str, numbers: list[str], nested: bool, args: Iterable[Any], fields: int) -> None:
        args = list(args)
        widths = [int(number[:9]) for number in numbers if number != "*"]
        widths += [abs(arg) for arg in args if isinstance(arg, int)] if nested else []
        if max(widths, default=0) > MAX_WIDTH:
            raise TooMuch(f"its format {text[:40]!r} has a width above {MAX_WIDTH}.")
        self.meter.expect(len(text) + fields * (max(map(self.meter.size_of, args), default=0) + MAX_WIDTH))

    def _metered_filter(self, name: str, function: Any) -> Any:
        """The same filter, counted. Attributes that tell Jinja what to pass to it are kept."""
        skipped = 1 if getattr(function, "jinja_pass_arg", None) else 0

        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.step(CALL)
            before, given = args[:skipped], list(args[skipped:])
            if isinstance(given[0], Iterator):  # of another filter: its items are counted together
                given[0] = self.meter.made(list(given[0]))
            self._expect_filter(name, given[0], [*given[1:], *kwargs.values()])
            return self.meter.made(function(*before, *given, **kwargs))

        if skipped:
            metered.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return metered

    def _metered_test(self, function: Any) -> Any:
        def metered(*args: Any) -> Any:
            for arg in args:
                self.meter.compared(arg)
            return function(*args)

        if getattr(function, "jinja_pass_arg", None):
            metered.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return metered

    def _expect_filter(self, name: str, value: Any, given: list[Any]) -> None:
        """Check the result of a filter before it runs."""
        size, counts = self.meter.size_of, [abs(arg) for arg in given if isinstance(arg, int)]
        text, most = value if isinstance(value, str) else "", max(counts, default=0)
        if name == "replace":
            self._expect_replaced(text or str(value), tuple(given))
        elif name == "format":
            self._expect_percent(text, given)
        elif name == "join":
            self._expect_joined(given[0] if given else "", value)
        elif name == "tojson" and most > MAX_INDENT:
            raise TooMuch(f"tojson(indent={most}) is above {MAX_INDENT}.")
        elif name == "round" and most > MAX_PRECISION:
            raise TooMuch(f"round({most}) is above {MAX_PRECISION}.")
        elif name == "sum" and any(not isinstance(arg, int | float | str) for arg in given):
            raise TooMuch("sum of lists is unsupported.")
        elif name in ("indent", "batch", "slice", "center"):
            widest = max([8 * most, *map(size, given)], default=0)
            self.meter.expect(size(value) + (1 + text.count("\n")) * widest)
        elif name in SLOW:
            self.meter.expect(8 * size(value))
            self.meter.step(8 * size(value) // CHARACTERS)

    def _tick(self, size: int) -> int:
        """Count an iteration, or text between the template's tags."""
        self.meter.step()
        self.meter.expect(size)
        self.meter.total -= size
        return size

    def _join_texts(self, parts: list[Any]) -> str:
        """The operator `~`."""
        self.meter.expect(sum(map(self.meter.size_of, parts)))
        return self.meter.made("".join(map(str, parts)))

    def _now(self, form: str) -> str:
        self._expect_percent(str(form), [])
        return datetime.now().strftime(str(form))


class Names(Namespace):
    """`namespace()`: its text is short, because two that refer to each other would have a long one."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Generation(Extension):
    """`{% generation %}` marks the model's answers for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _as_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def render(text: str, variables: Mapping[str, Any]) -> str:
    """The text of a template. Raises TooMuch, and whatever a faulty template raises."""
    if len(text) > MAX_TEMPLATE:
        raise TooMuch(f"it has {len(text):,} characters; the limit is {MAX_TEMPLATE:,}.")
    meter = Meter()
    template = Environment(meter).from_string(text)
    meter.admit(dict(variables))
    return template.render(**variables)
