"""Recipe files: what `--recipe FILE.toml` says of single tensors, by role and layer.

base = "int4"                    # what the rest gets; --quant goes before it

[[rule]]                         # the first rule that has a tensor decides
tensors = "v"                    # or a list of q k v o gate up down embed head; left out: every linear
layers = "0-3, 27-, last 2"      # or a number; left out: every layer
bits = 8                         # 4, 8, or 32 for float32
block = 32                       # weights that share a scale; left out: what suits the target and the source
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from edgellm.converters.recipes import FLOAT_BITS, LINEARS, QUANTS, TABLES, Grid, Want
from edgellm.errors import UsageError
from edgellm.spec import ModelSpec

MAX_BYTES = 1 << 20
BITS = (4, 8, FLOAT_BITS)
SPAN = re.compile(r"(?:(?P<end>first|last) +(?P<count>\d+))|(?P<low>\d+)(?P<dash> *- *)?(?P<high>\d+)?")


@dataclass(frozen=True)
class Choice:
    """One rule.

    Attributes:
        number: which of the file's, from 1 on.
        layers: as the file says; None for all.
    """

    number: int
    roles: tuple[str, ...]
    layers: str | None
    want: Want


@dataclass(frozen=True)
class RecipeFile:
    """What a file says; nothing, for where there is none.

    Attributes:
        base: the level of what no rule has, or None.
    """

    path: Path
    base: str | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def has_few_bits(self) -> bool:
        """Whether it asks for fewer than 8 somewhere."""
        return any(choice.want.bits < 8 for choice in self.choices)

    def check(self, target: str, grid: Grid, blocks: Sequence[int]) -> None:
        """Say which rule asks for a block that a target does not have; UsageError.

        Args:
            blocks: those that it has.
        """
        for choice in self.choices:
            block = choice.want.block
            ignored = block is not None and (choice.want.bits == FLOAT_BITS or grid(choice.want.bits, block).block != block)
            if block is not None and not ignored and block not in blocks:
                known = ", ".join(map(str, blocks))
                raise self._error(choice.number, "block", f"{target} has no blocks of {block}", f"choose one of {known}")

    def wants(self, spec: ModelSpec) -> dict[str, Want]:
        """What is wanted of the tensors of a model, by canonical name; UsageError for layers that it does not have."""
        wants: dict[str, Want] = {}
        for choice in self.choices:
            layers = self._layers(choice, len(spec.layers))
            names = [f"layers.{layer}.{name}.weight" for layer in layers for name in choice.roles if name in LINEARS]
            # a tied head is the embedding's table
            names += ["embed.weight" if spec.tied_head else f"{name}.weight" for name in choice.roles if name in TABLES]
            new = {name: choice.want for name in names if name not in wants}
            if not new:
                fix = "put it before them, or leave it out"
                raise self._error(choice.number, "tensors", "earlier rules have all of them", fix)
            wants |= new
        return wants

    def _layers(self, choice: Choice, count: int) -> list[int]:
        found: set[int] = set()
        for span in [] if choice.layers is None else choice.layers.split(","):
            match = SPAN.fullmatch(span.strip())
            if match is None:
                fix = "write them as 3, 0-3, 27-, first 2 or last 2, with commas between"
                raise self._error(choice.number, "layers", f"'{span.strip()}' names no layers", fix)
            if match["end"]:
                size = int(match["count"])
                low, high = (0, size - 1) if match["end"] == "first" else (count - size, count - 1)
            else:
                low = int(match["low"])
                high = int(match["high"]) if match["high"] else count - 1 if match["dash"] else low
            if not 0 <= low <= high < count:
                fix = f"name layers from 0 to {count - 1}"
                raise self._error(choice.number, "layers", f"'{span.strip()}' is not in a model of {count} layers", fix)
            found.update(range(low, high + 1))
        return list(range(count)) if choice.layers is None else sorted(found)

    def _error(self, number: int, key: str, what: str, fix: str) -> UsageError:
        return error(self.path, number, key, what, fix)


NONE = RecipeFile(Path())


def read(path: str | os.PathLike[str]) -> RecipeFile:
    """Read a recipe file.

    Raises:
        UsageError: it cannot be read, is no TOML, or says what makes no sense; the message names rule and key.
    """
    path = Path(path)
    content = _toml(path)
    unknown = content.keys() - {"base", "rule"}
    if unknown:
        raise UsageError(f"unknown key '{min(unknown)}'", where=path, fix="a recipe has 'base' and [[rule]]s")
    base, rules = content.get("base"), content.get("rule", [])
    if base is not None and base not in QUANTS:
        raise UsageError(f"base: unknown quantization {base!r}", where=path, fix=f"choose one of {', '.join(QUANTS)}")
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise UsageError("'rule' is not a list of tables", where=path, fix="begin each with a line [[rule]]")
    return RecipeFile(path, base, tuple(_choice(path, number, rule) for number, rule in enumerate(rules, 1)))


def error(path: Path, number: int, key: str, what: str, fix: str) -> UsageError:
    """What is wrong with a key of a rule."""
    return UsageError(what, where=f"{path}: rule {number}: {key}", fix=fix)


def _toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UsageError(f"larger than {MAX_BYTES >> 20} MiB", where=path, fix="give a recipe")
        return tomllib.loads(raw.decode("utf-8"))
    except OSError as failure:
        raise UsageError(f"cannot be read: {failure.strerror or failure}", where=path, fix="check the path") from failure
    except (ValueError, RecursionError) as failure:  # TOML's and Unicode's errors are ValueErrors
        reason = "nested too deeply" if isinstance(failure, RecursionError) else str(failure)[:120]
        raise UsageError(f"not readable as TOML: {reason}", where=path, fix="see docs/quantization.md") from failure


def _choice(path: Path, number: int, rule: Mapping[str, Any]) -> Choice:
    unknown = rule.keys() - {"tensors", "layers", "bits", "block"}
    if unknown:
        raise error(path, number, min(unknown), "unknown key", "a rule has tensors, layers, bits and block")
    named = rule.get("tensors", list(LINEARS))
    roles = [named] if isinstance(named, str) else named
    known = (*LINEARS, *TABLES)
    if not isinstance(roles, list) or not roles or not all(isinstance(name, str) and name in known for name in roles):
        raise error(path, number, "tensors", f"{named!r} names no tensors", f"choose from {', '.join(known)}")
    layers = rule.get("layers")
    if type(layers) not in (NoneType, int, str):
        raise error(path, number, "layers", f"{layers!r} names no layers", 'write a number, or a text as "0-3, 27-"')
    if layers is not None and set(roles) & set(TABLES):
        raise error(path, number, "layers", "embed and head are in no layer", "give them a rule of their own")
    bits, block = rule.get("bits"), rule.get("block")
    if type(bits) is not int or bits not in BITS:
        raise error(path, number, "bits", f"{bits!r} is not a number of bits", f"choose one of {', '.join(map(str, BITS))}")
    if block is not None and (type(block) is not int or block < 0):
        raise error(path, number, "block", f"{block!r} is not a size", "give a number of weights, or leave it out")
    return Choice(number, tuple(dict.fromkeys(roles)), None if layers is None else str(layers), Want(bits, block))
