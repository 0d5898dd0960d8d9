"""`edgellm inspect`: what a bundle or a source is, and whether it will fit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.activations import said
from edgellm.cli._fidelity import show, verdicts
from edgellm.cli._options import readable, to_json
from edgellm.errors import plain

if TYPE_CHECKING:
    from edgellm.bundle import Bundle
    from edgellm.card import Card
    from edgellm.scheme import Recipe, Rule, Scheme
    from edgellm.spec import ModelSpec

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Need:
    """Bytes in RAM: of the weights, and of the KV cache that one position takes."""

    weights: int
    kv_per_token: int


@dataclass(frozen=True)
class Facts:
    """What `inspect` shows.

    Attributes:
        needs: what each graph of a bundle takes, by runtime; of a source, what each `--quant` would.
        files: name to bytes, for a bundle.
        tensors: bits, block, method and activations of every matrix, by what `needs` is by.
        fidelity: a bundle's card, if it has one.
    """

    kind: str
    name: str
    license: str | None
    spec: ModelSpec
    needs: Mapping[str, Need]
    files: Mapping[str, int]
    details: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Mapping[str, Any]]]
    fidelity: Card | None = None

    def fits(self, available: int | None) -> list[dict[str, Any]]:
        """RAM by context length: KV bytes, total bytes, and whether that is available here (None: unknown), all by need."""
        longest = self.spec.max_context
        rows = []
        for context in [*(length for length in CONTEXTS if length < longest), longest]:
            kv = {name: need.kv_per_token * context for name, need in self.needs.items()}
            totals = {name: need.weights + kv[name] for name, need in self.needs.items()}
            fit = {name: None if available is None else total <= available for name, total in totals.items()}
            rows.append({"context": context, "kv": kv, "total": totals, "fits": fit})
        return rows


@click.command(short_help="Show what a bundle or a model is, and whether it will fit.")
@click.argument("model", metavar="BUNDLE|SOURCE")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, revision: str | None, as_json: bool) -> None:
    """Show what a BUNDLE or a SOURCE (a .gguf file, a Hugging Face folder, a hub id) is, and the RAM it takes."""
    from edgellm.bundle import MANIFEST, Bundle
    from edgellm.paths import exists
    from edgellm.runtimes.memory import available_bytes

    facts = _of_bundle(Bundle.open(model)) if exists(Path(model) / MANIFEST) else _of_source(model, revision)
    available = available_bytes()
    if as_json:
        click.echo(to_json(_as_json(facts, available)))
    else:
        _show(facts, available)


def _of_bundle(bundle: Bundle) -> Facts:
    from edgellm.runtimes.memory import kv_bytes_per_token, weight_bytes
    from edgellm.runtimes.preference import choose

    choice = choose(bundle)
    details = {"recipe": bundle.recipe.name, "method": bundle.recipe.method, "made by": bundle.producer}
    details |= {name: _grids(bundle.recipe_of(graph), bundle.spec) for name, graph in bundle.graphs.items()}
    for name, graph in bundle.graphs.items():
        if bundle.recipe_of(graph).rules:
            details[f"activations of {name}"] = said(bundle.recipe_of(graph), bundle.spec)
    details["default"] = f"{choice.name}; {choice.reason}"
    details |= {f"fidelity of {name}": line for name, line in verdicts(bundle).items()}
    if bundle.provenance.revision:
        details["revision"] = bundle.provenance.revision
    if bundle.provenance.adapter:
        details["adapter"] = bundle.provenance.adapter
    return Facts(
        kind="bundle",
        name=bundle.provenance.source,
        license=bundle.provenance.license,
        spec=bundle.spec,
        needs={name: Need(weight_bytes(bundle, graph), kv_bytes_per_token(graph)) for name, graph in bundle.graphs.items()},
        files={name: entry.size for name, entry in bundle.files.items()},
        details=details,
        tensors={name: _tensors(bundle.recipe_of(graph), bundle.spec) for name, graph in bundle.graphs.items()},
        fidelity=bundle.fidelity,
    )


def _grids(recipe: Recipe, spec: ModelSpec) -> str:
    """The grids of a recipe, fewest bits first, and how many matrices are on each: what "int4" is differs by runtime."""
    grids = Counter((rule.scheme, rule.method) for rule in _rules(recipe, spec).values() if rule is not None and rule.scheme)
    order = sorted(grids, key=lambda grid: (grid[0].bits, grid[0].block, grid[1] or ""))
    texts = [f"{_grid(scheme)}{', ' + method if method else ''} (tensors: {grids[scheme, method]})" for scheme, method in order]
    texts += [f"by {recipe.method}"] if any(method is None for _, method in grids) else []
    return "; ".join(texts or ["float32"]) + ("; cache in 8 bits" if recipe.kv == 8 else "")


def _grid(scheme: Scheme) -> str:
    scales = f"in blocks of {scheme.block}" if scheme.block else "a scale a row"
    return f"{scheme.bits} bits {scales}{'' if scheme.symmetric else ' with zero points'}"


def _rules(recipe: Recipe, spec: ModelSpec) -> dict[str, Rule | None]:
    """What the recipe says of every matrix."""
    from edgellm.converters.recipes import matrices

    return {name: recipe.rule(name) for name in matrices(spec)}


def _tensors(recipe: Recipe, spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Bits, block and method of every matrix, and bits of what comes into its product."""
    tensors = {}
    for name, rule in _rules(recipe, spec).items():
        scheme = None if rule is None else rule.scheme
        own = None if rule is None or scheme is None else rule.method or recipe.method
        bits, block = (32, None) if scheme is None else (scheme.bits, scheme.block)
        symmetric, activations = None if scheme is None else scheme.symmetric, recipe.activations_of(name)
        tensors[name] = {"bits": bits, "block": block, "symmetric": symmetric, "method": own, "activations": activations}
    return tensors


def _of_source(source: str, revision: str | None) -> Facts:
    """What each `--quant` would make of a source; nothing is converted, the layout of the weights tells."""
    from edgellm.converters.architectures import describe
    from edgellm.converters.checkpoints import open_checkpoint
    from edgellm.converters.onnx import export as onnx
    from edgellm.converters.preparation import rotates
    from edgellm.converters.recipes import QUANTS, carried_over, matrices, recipe
    from edgellm.converters.transforms import rotation
    from edgellm.runtimes.memory import kv_bytes_per_token

    with open_checkpoint(source, revision=revision) as checkpoint:
        spec, tensors = describe(checkpoint, None)
        recipes = {
            quant: carried_over(
                recipe(quant, None, onnx.BLOCK_SIZE, onnx.grid), matrices(spec), tensors, onnx.grid, onnx.BLOCKS, asked=()
            )
            for quant in QUANTS
        }
        plans = {}
        for quant, own in recipes.items():
            turned = rotation.apply(spec, tensors) if rotates(own.method, {"onnx": own}, spec) else (spec, tensors)
            plans[quant] = onnx.plan(*turned, own)
        details = {"tensors": str(len(checkpoint.names()))} | {quant: _grids(own, spec) for quant, own in recipes.items()}
        if checkpoint.provenance.revision:
            details["revision"] = checkpoint.provenance.revision
        return Facts(
            kind="source",
            name=checkpoint.provenance.source,
            license=checkpoint.provenance.license,
            spec=spec,
            needs={quant: Need(made.layout.size, kv_bytes_per_token(made.graph)) for quant, made in plans.items()},
            files={},
            details=details,
            tensors={quant: _tensors(own, spec) for quant, own in recipes.items()},
        )


def _as_json(facts: Facts, available: int | None) -> dict[str, Any]:
    return {
        "kind": facts.kind,
        "name": facts.name,
        "license": facts.license,
        "spec": dataclasses.asdict(facts.spec),
        "details": facts.details,
        "tensors": facts.tensors,
        "weights": {name: need.weights for name, need in facts.needs.items()},
        "files": facts.files,
        "fidelity": None if facts.fidelity is None else dataclasses.asdict(facts.fidelity),
        "available": available,
        "memory": facts.fits(available),
    }


def _show(facts: Facts, available: int | None) -> None:
    from rich.console import Console
    from rich.table import Table

    spec = facts.spec
    attention = spec.attention(0)
    head = "tied head" if spec.tied_head else "untied head"
    lines = {
        facts.kind: facts.name,
        "license": facts.license or "not declared: ask the model's authors",
        "model": f"{spec.architecture}, {len(spec.layers)} layers, hidden {spec.hidden_size}, MLP {spec.intermediate_size}",
        "attention": f"{attention.heads} heads, {attention.kv_heads} KV heads, head size {attention.head_dim}",
        "vocabulary": f"{spec.vocab_size:,}, {head}",
        "context": f"{spec.max_context:,} tokens",
        **facts.details,
    }
    for name, text in lines.items():
        click.echo(f"{name:<11} {plain(text)}")
    for name, size in sorted(facts.files.items(), key=lambda file: -file[1]):
        click.echo(f"{'file':<11} {name}  {readable(size)}")
    if facts.fidelity is not None:
        click.echo()
        show(facts.fidelity)
    click.echo()
    here = "unknown on this system" if available is None else readable(available)
    click.echo(f"RAM for weights and KV cache; available here: {here}")
    table = Table()
    table.add_column("context", justify="right")
    table.add_column("KV cache", justify="right")
    for name in facts.needs:
        table.add_column(name, justify="right")
    for row in facts.fits(available):
        cells = [readable(row["total"][name]) + _mark(row["fits"][name]) for name in facts.needs]
        caches = dict.fromkeys(map(readable, row["kv"].values()))  # mostly one
        table.add_row(f"{row['context']:,}", " / ".join(caches), *cells)
    Console().print(table)


def _mark(fits: bool | None) -> str:
    return "" if fits is None else "  fits" if fits else "  too large"
