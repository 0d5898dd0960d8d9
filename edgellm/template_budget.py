"""A Jinja sandbox with a budget: what a chat template may cost in steps and characters.

Jinja's sandbox guards Python's insides, not time and memory: `'x' * 10**9`, three nested loops over `range(99999)` or a
text that doubles itself forty times pass it. So everything that repeats or grows is charged to the rendering's budget:

- every turn of a loop and every call of a macro, by a call that is put into the template's syntax tree;
- every text, list or number that an operator, method, filter or output makes: before it is made where it can be much
  larger than its parts, right after where it cannot.

Filters and methods that chat templates have no use for and whose cost is not bounded that way are left out.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

BUDGET = 64 << 20  # a unit is about one character made; a conversation of a million characters takes a few million
STEP = 64  # of a loop's turn or a call: about the time that some dozens of characters take
ITEM = 8  # of an entry of a list or dict
_NODE = 32  # of looking at a list, dict or number on the way through a nest
MAX_OUTPUT = 16 << 20
MAX_BITS = 4096  # of an integer

# fmt: off
_FILTERS = frozenset({
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round",
    "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
})
# Filters that only pass their input on, entry by entry, and those that compare entries.
_SHALLOW = frozenset({
    "attr", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr", "reverse",
    "select", "selectattr",
})
_DEEP = frozenset({"dictsort", "max", "min", "sort", "unique"})
_GLOBALS = frozenset({"range", "cycler", "joiner"})
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
        "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust",
        "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
    }),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    int: frozenset(),
    float: frozenset({"is_integer"}),
    bytes: frozenset(),
}
# fmt: on
# A width or precision that makes more than its parts: "%*d", "%99999d", "{:99999}", "{:{}}".
_WIDTH = re.compile(r"%[^a-zA-Z%]*(\*|[0-9]{4,})|\{[^{}]*[:.][^{}]*([0-9]{4,}|\{)")

_left: contextvars.ContextVar[list[int]] = contextvars.ContextVar("edgellm_template_budget")


class OverBudget(jinja2.TemplateError):
    """The template asked for more steps or memory than any chat needs."""


def charge(units: int) -> None:
    """Take units from the budget of the rendering under way."""
    left = _left.get()
    left[0] -= units
    if left[0] < 0:
        raise OverBudget("asks for more steps or memory than a chat needs")


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, with costs. Render through `render` only: it holds the budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, trim_blocks: bool, lstrip_blocks: bool, extensions: Iterable[str | type[Extension]]) -> None:
        super().__init__(
            trim_blocks=trim_blocks,
            lstrip_blocks=lstrip_blocks,
            extensions=[*extensions, _Meter],
            finalize=_written,
            optimized=False,  # nothing of the template is computed while it is compiled
        )
        self.filters = {name: _metered_filter(name, filter_) for name, filter_ in self.filters.items() if name in _FILTERS}
        self.tests = {name: _metered_test(cast("Callable[..., Any]", test)) for name, test in self.tests.items()}
        self.globals = {name: value for name, value in self.globals.items() if name in _GLOBALS}
        self.globals |= {"dict": _dict, "namespace": _Namespace}

    def add_filter(self, name: str, filter_: Callable[..., Any]) -> None:
        """Add a filter that writes its whole input out as text."""
        self.filters[name] = _metered_filter(name, filter_)

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Render within a fresh budget.

        Raises:
            OverBudget: it did not suffice.
            SecurityError: the template reached for Python's insides.
        """
        token = _left.set([BUDGET])
        try:
            pieces, size = [], 0
            for piece in template.generate(variables):
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise OverBudget(f"writes more than {MAX_OUTPUT} characters")
                pieces.append(piece)
            return "".join(pieces)
        finally:
            _left.reset(token)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Meter(self).instrument(tree)

    def unsafe_undefined(self, obj: object, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        safe = super().wrap_str_format(value)
        if safe is None:
            return None
        pattern, name = str(value.__self__), value.__name__

        def metered(*args: Any, **kwargs: Any) -> str:
            if name != "format" or _WIDTH.search(pattern):
                raise OverBudget("formats to a width that no chat needs")
            charge(len(pattern) + pattern.count("{") * sum(map(_weight, [*args, *kwargs.values()])))
            return safe(*args, **kwargs)

        return metered

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and isinstance(left, int) and not isinstance(right, int):
            left, right = right, left
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers:
            _check_bits(left.bit_length() * max(right, 0))
        elif operator == "*" and numbers:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*" and isinstance(right, int) and isinstance(left, (str, list, tuple)):
            charge(max(right, 0) * _size(left))
        elif operator == "+":
            charge(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            if _WIDTH.search(left):
                raise OverBudget("formats to a width that no chat needs")
            charge(len(left) + (left.count("%") + 1) * _weight(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, _Meter):
            return obj(*args)
        charge(STEP)
        kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
        if kind is not None:
            name = obj.__name__
            if name not in _METHODS[kind]:
                raise SecurityError(f"call of {kind.__name__}.{name}")
            args = tuple(map(_listed, args))
            charge(_method_cost(owner, name, args, kwargs))
        return _settled(super().call(context, obj, *args, **kwargs))


_Repeated = nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block
_REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


class _Meter(Extension):
    """Puts the charges into a template's syntax tree, as calls of its own methods, which no template can name or shadow."""

    def instrument(self, tree: nodes.Template) -> nodes.Template:
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            word = "from" if isinstance(node, nodes.FromImport) else type(node).__name__.lower()
            raise jinja2.TemplateSyntaxError(f"'{word}' has no place in a chat template", node.lineno)
        # Costs first: what is inserted below is not the template's.
        costs = [(node, STEP + _bulk(node)) for node in tree.find_all(_REPEATED)]
        for node, cost in costs:
            step = self._call("step", nodes.Const(cost))
            cast("_Repeated", node).body.insert(0, nodes.ExprStmt(step, lineno=step.lineno))
        for node in tree.find_all(nodes.For):
            if node.test is not None:
                node.test = nodes.And(self._call("step", nodes.Const(STEP)), node.test, lineno=node.lineno)
        for operand in tree.find_all(nodes.Operand):
            operand.expr = self._call("compared", operand.expr)
        self._wrap(tree)
        tree.set_environment(self.environment)
        return tree

    def step(self, cost: int) -> bool:
        """One turn of a loop or one call of a macro."""
        charge(cost)
        return True

    def compared(self, value: Any) -> Any:
        """The right side of a comparison; looking a key up in a dict costs nothing worth counting."""
        if not isinstance(value, dict):
            charge(_effort(value))
        return value

    def copied(self, value: Any) -> Any:
        """A slice."""
        return _settled(value)

    def joined(self, *values: Any) -> str:
        """The operator `~`."""
        return "".join(map(_text, values))

    def _wrap(self, node: nodes.Node) -> None:
        """Replace slices and `~`, innermost first."""
        for name, value in node.iter_fields():
            if isinstance(value, list):
                value[:] = [self._replaced(item) if isinstance(item, nodes.Node) else item for item in value]
            elif isinstance(value, nodes.Node):
                setattr(node, name, self._replaced(value))

    def _replaced(self, node: nodes.Node) -> nodes.Node:
        self._wrap(node)
        if isinstance(node, nodes.Concat):
            return self._call("joined", *node.nodes)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._call("copied", node)
        return node

    def _call(self, method: str, *args: nodes.Expr) -> nodes.Call:
        return self.call_method(method, list(args), lineno=args[0].lineno or 1)


class _Namespace(Namespace):
    """Jinja's namespace without underscored names: an attribute such as `__call__` would pass for the object's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's own: `namespace(self=1)` is allowed
        names = dict(*args[1:], **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"namespace attribute {name!r}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


@jinja2.pass_context  # a finalizer that wants the context is not run at compile time
def _written(context: Context, value: Any) -> Any:
    """Every value on its way to the output, or to the text of a macro or block."""
    return _text(value)


def _listed(value: Any) -> Any:
    """A range, a view of a dict or the result of `map` as a list, which has a length and can be weighed."""
    if isinstance(value, (Iterator, range, KeysView, ValuesView, ItemsView)):
        value = list(value)
        charge(ITEM * len(value))
    return value


def _text(value: Any) -> str:
    """`str(value)`, paid for."""
    charge(_weight(value))
    return str(value)


def _metered_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    # Filters that want the context, or such, get it as their first argument.
    place = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @functools.wraps(filter_)
    def metered(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[place:] if len(args) > place else (None,)
        charge(STEP)
        value = _listed(value)
        if name in _DEEP:
            charge(_effort(value))
        elif name not in _SHALLOW:
            charge(_filter_cost(name, value, [*rest, *kwargs.values()]))
        return _settled(filter_(*args[:place], value, *rest, **kwargs))

    return metered


def _metered_test(test: Callable[..., Any]) -> Callable[..., Any]:
    place = 1 if hasattr(test, "jinja_pass_arg") else 0

    @functools.wraps(test)
    def metered(*args: Any) -> Any:
        charge(1 + sum(0 if isinstance(item, dict) else _effort(item) for item in args[place + 1 :]))
        return test(*args)

    return metered


def _filter_cost(name: str, value: Any, rest: Sequence[Any]) -> int:
    """Characters that a filter which makes text may make."""
    if name == "replace":
        charge(_weight(value))
        return _replace_cost(str(value), rest)
    if name == "join":
        items = value if isinstance(value, (list, tuple, dict, str)) else ()
        return _weight(value) + len(items) * sum(map(_weight, rest))
    if name in ("indent", "tojson"):
        for item in rest:
            if (isinstance(item, int) and item > 64) or (isinstance(item, (str, tuple, list)) and _weight(item) > 64):
                raise OverBudget(f"indents by more than 64 in '{name}'")
        return _weight(value) if name == "tojson" else 64 * (1 + str(value).count("\n")) + _weight(value)
    return _weight(value)


def _method_cost(owner: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Units that a method of a builtin type may take."""
    if not isinstance(owner, str):
        return _effort(owner) if name in ("count", "index") else _size(owner) if name == "copy" else 1
    if name == "join":
        return sum(_weight(item) + len(owner) for item in args[0]) if args and isinstance(args[0], (list, tuple, str)) else 0
    if name == "replace":
        return _replace_cost(owner, args)
    if name in ("center", "ljust", "rjust", "zfill"):
        return len(owner) + max((item for item in args if isinstance(item, int)), default=0)
    if name in ("split", "rsplit", "splitlines"):
        return ITEM * len(owner)
    return len(owner) >> 4


def _replace_cost(text: str, args: Sequence[Any]) -> int:
    old, new = (str(item) if isinstance(item, (str, int, float)) else "" for item in [*args, "", ""][:2])
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise OverBudget(f"computes a number of more than {MAX_BITS} bits")


def _settled(result: Any) -> Any:
    """Charge what came into being."""
    if isinstance(result, int):
        _check_bits(result.bit_length())
    charge(_size(result))
    return result


def _size(value: Any) -> int:
    """Units of a value's own memory, without what its entries point to."""
    return len(value) if isinstance(value, str) else ITEM * len(value) if isinstance(value, (list, tuple, dict)) else 1


def _weight(value: Any) -> int:
    """Characters of a value when it is written out, about. Charged on the way: a small nest can stand for a huge text."""
    if isinstance(value, str):
        return len(value)
    charge(_NODE)
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    if isinstance(value, Mapping):
        return 2 + sum(4 + _weight(item) for item in itertools.chain.from_iterable(value.items()))
    if isinstance(value, (list, tuple)):
        return 2 + sum(4 + _weight(item) for item in value)
    return 32


def _effort(value: Any) -> int:
    """Units that comparing with a value may take; charged on the way as well."""
    if isinstance(value, str):
        return 1 + (len(value) >> 4)
    charge(_NODE)
    if isinstance(value, Mapping):
        return sum(map(_effort, itertools.chain.from_iterable(value.items())))
    return sum(map(_effort, value)) if isinstance(value, (list, tuple)) else 1


def _bulk(node: nodes.Node) -> int:
    """Size of a part of a template: its nodes and its literal text."""
    inner = node.find_all(nodes.Node)
    return sum(len(item.data) if isinstance(item, nodes.TemplateData) else 1 for item in inner)
