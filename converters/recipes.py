"""The recipes behind `--quant`: which tensors are quantized, and how finely.

recipe          what a level gives every tensor, on a target's grids
refined         the same with what somebody wants of single tensors: a recipe file, a search for mixed precision
carried_over    the same with the codes that the source brings, where the target's grids hold them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgellm.converters.weights import LazyTensor
from edgellm.errors import UsageError
from edgellm.scheme import IMPORTED, Recipe, Rule, Scheme
from edgellm.spec import ModelSpec

Grid = Callable[[int, int], Scheme]  # the scheme that a target has for so many bits in blocks of such a size
QUANTS = ("int4", "int8", "fp32")
METHODS = {"int4": "gptq", "int8": "rtn"}  # what each is rounded by unless somebody says
KV = {"fp32": 32, "int8": 8}  # bits of keys and values
ACTIVATIONS = {"dynamic": 8, "int16": 16, "none": 32}  # bits of what comes into products with quantized weights
TABLE_BLOCK = 64  # of the embedding and the head, at the least: in 8 bit a finer block buys no closeness, only scales to read
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
TABLES = ("embed", "head")
SINGLE = (*TABLES, "final")  # in no layer
FINAL = "final.weight"
FUSED = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))  # what back ends make one product of, where schemes agree
FLOAT_BITS = 32


@dataclass(frozen=True)
class Want:
    """What somebody wants of one tensor.

    Attributes:
        bits: 4, 8, or 32 for float32.
        block: weights that share a scale; None: whatever suits the target and the source.
    """

    bits: int
    block: int | None = None


def recipe(
    quant: str, method: str | None, block_size: int, grid: Grid, kv: str = "fp32", activations: str = "dynamic"
) -> Recipe:
    """The recipe of a quantization level on a target's grids.

    Under int4 the embedding, the head and a linear before it stay in 8 bit: they are where 4 bits cost most quality.

    Raises:
        UsageError: an unknown level. Whether the grids fit is the target's to say.
    """
    if quant not in QUANTS:
        raise UsageError(f"unknown quantization '{quant}'", where="--quant", fix=f"choose one of {', '.join(QUANTS)}")
    if kv not in KV:
        raise UsageError(f"unknown cache type '{kv}'", where="--kv", fix=f"choose one of {', '.join(KV)}")
    bits = ACTIVATIONS[activations]
    if quant == "fp32":
        return Recipe("fp32", "none", kv=KV[kv], activations=bits)
    tables = tuple(Rule(f"{name}.weight", grid(8, max(block_size, TABLE_BLOCK))) for name in SINGLE)
    scheme = grid(4 if quant == "int4" else 8, block_size)
    rest = tuple(Rule(f"layers.*.{name}.weight", scheme) for name in LINEARS)
    return Recipe(quant, method or METHODS[quant], tables + rest, KV[kv], activations=bits)


def linears(spec: ModelSpec) -> tuple[str, ...]:
    """Canonical names of the weights of all layers' linears."""
    return tuple(f"layers.{layer}.{name}.weight" for layer in range(len(spec.layers)) for name in LINEARS)


def matrices(spec: ModelSpec) -> tuple[str, ...]:
    """Canonical names of every weight that can be quantized: tables and linears."""
    final = (FINAL,) if spec.final_linear else ()
    return ("embed.weight", *linears(spec), *final, *(() if spec.tied_head else ("head.weight",)))


def role(name: str) -> str:
    """What a matrix is in its layer, or of the tables which: "q", "down", "embed"."""
    return name.rsplit(".", 2)[-2]


def refined(
    base: Recipe,
    names: Sequence[str],
    wants: Mapping[str, Want],
    grid: Grid,
    block_size: int,
    method: str | None = None,
) -> Recipe:
    """The recipe with what somebody wants of single tensors.

    Args:
        names: every matrix of the model.
        wants: by name.
        block_size: of wants that name none.
        method: what rounds them; None for the recipe's own, or imatrix where it has none.
    """
    if not wants:
        return base
    rules = {name: Rule(name, base.scheme(name)) for name in names}
    for name, want in wants.items():
        default = max(block_size, TABLE_BLOCK) if role(name) in SINGLE and want.bits == 8 else block_size
        scheme = None if want.bits == FLOAT_BITS else grid(want.bits, default if want.block is None else want.block)
        rules[name] = Rule(name, scheme)
    later = [rule for rule in base.rules if rule.pattern == FINAL and FINAL not in rules]  # of the model once it is rotated
    method = method or (base.method if base.rules else "imatrix")
    return replace(base, method=method, rules=(*compact(rules.values()), *later))


def products(spec: ModelSpec, recipe: Recipe) -> list[tuple[str, ...]]:
    """The weights of every product that takes rounded inputs, in the order of the model; those that are fused are one product.

    An embedding that is no head is looked up, and in no product.
    """
    table = () if spec.tied_head else ("embed.weight",)
    rules = (replace(found, pattern=name) for name in matrices(spec) if (found := recipe.rule(name)) and name not in table)
    return [tuple(rule.pattern for rule in same) for same in _products(rules) if same[0].scheme is not None]


def with_activations(base: Recipe, names: Sequence[str], some: Container[str], bits: int) -> Recipe:
    """The recipe with inputs of so many bits for the products of some weights.

    Args:
        names: every matrix of the model.
        some: those of them that are meant.
    """
    rules = []
    for name in names:
        rule = base.rule(name) or Rule(name, None)
        rules.append(replace(rule, pattern=name, activations=bits if name in some else rule.activations))
    return replace(base, rules=compact(rules))


def carried_over(
    base: Recipe,
    names: Sequence[str],
    tensors: Callable[[str], LazyTensor],
    grid: Grid,
    blocks: Sequence[int],
    asked: Container[str],
) -> Recipe:
    """The recipe with the codes that the source brings, where the target has a grid of the same bits that holds them exactly.

    Block sizes are the source's where nobody asked for one. Of the tables only where every linear is carried over: then the
    bundle is the source to the bit, and beside rounded linears finer blocks of 8 bits would be more to read for nothing.
    Products that are fused lose their zero points together or not at all.

    Args:
        names: every matrix of the model.
        blocks: that the target's grids have.
        asked: matrices whose block somebody asked for.
    """

    def holds(name: str, scheme: Scheme | None) -> bool:
        return scheme is not None and tensors(name).on_grid(scheme, 0, 0) is not None

    rules = {name: Rule(name, base.scheme(name)) for name in names}
    whole = True
    for name in sorted(rules, key=lambda name: role(name) in TABLES):
        scheme = rules[name].scheme
        if scheme is None:
            continue
        is_free = name not in asked and (whole or role(name) not in TABLES)
        sizes = sorted(blocks, reverse=True) if is_free else [scheme.block]  # the fewest scales
        found = next((own for own in (grid(scheme.bits, size) for size in sizes) if holds(name, own)), None)
        rules[name] = Rule(name, scheme) if found is None else Rule(name, found, IMPORTED)
        whole = whole and found is not None
    if all(rule.method is None for rule in rules.values()):
        return base
    for product in _products(rules.values()):
        plain = [replace(rule, scheme=rule.scheme and replace(rule.scheme, symmetric=True)) for rule in product]
        if all(rule.method and holds(rule.pattern, rule.scheme) for rule in plain):
            rules |= {rule.pattern: rule for rule in plain}
    rest = any(rule.scheme is not None and rule.method is None for rule in rules.values())
    return replace(base, method=base.method if rest else IMPORTED, rules=compact(rules.values()))


def compact(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same said with few rules: what most layers have as a pattern, behind the exceptions.

    Args:
        rules: one a matrix, its name as the pattern.
    """
    exceptions: list[Rule] = []
    patterns: list[Rule] = []
    for name, same in _grouped(rules, lambda rule: role(rule.pattern)).items():
        pattern = same[0].pattern if name in SINGLE else f"layers.*.{name}.weight"
        most = Counter(replace(rule, pattern=pattern) for rule in same).most_common(1)[0][0]
        exceptions += [rule for rule in same if replace(rule, pattern=pattern) != most]
        if most.scheme is not None:
            patterns.append(most)
    return (*exceptions, *patterns)


def _products(rules: Iterable[Rule]) -> list[list[Rule]]:
    """The matrices that one product serves: of one layer, side by side, of one scheme."""

    def product(rule: Rule) -> tuple[str, Sequence[str], Scheme | None]:
        own = role(rule.pattern)
        return rule.pattern.rsplit(".", 2)[0], next((roles for roles in FUSED if own in roles), (own,)), rule.scheme

    return list(_grouped(rules, product).values())


def _grouped(rules: Iterable[Rule], key: Callable[[Rule], Hashable]) -> dict[Hashable, list[Rule]]:
    groups: dict[Hashable, list[Rule]] = {}
    for rule in rules:
        groups.setdefault(key(rule), []).append(rule)
    return groups
