"""The command line of the comparison."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgellm.benchmarks import models as real_models
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quiet, table
from edgellm.benchmarks.peers.measure import Settings, measure, open_model, prepare
from edgellm.benchmarks.permuted import SUFFIX, permuted
from edgellm.errors import EdgeError, ResourceError


def main() -> int:
    """Prepare, look whether the machine is quiet, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python -m edgellm.benchmarks.peers", description="edgellm beside other engines, measured alike."
    )
    default = Settings()
    parser.add_argument(
        "--models",
        nargs="+",
        default=["smollm2"],
        metavar="NAME",
        help=f"{', '.join(real_models.MODELS)}, or paths; with {SUFFIX} after it, on a grid that favours nobody",
    )
    parser.add_argument(
        "--peers", nargs="+", default=list(peers.available()), metavar="PEER", help="such as llama_cpp or llama_cpp:q4_0"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=list(default.threads), metavar="N")
    parser.add_argument("--trials", type=int, default=default.trials, metavar="N", help="rounds")
    parser.add_argument("--prefill", type=int, default=default.prefill, metavar="TOKENS")
    parser.add_argument("--depths", nargs="+", type=int, default=list(default.depths), metavar="TOKENS")
    parser.add_argument("--steps", type=int, default=default.steps, metavar="TOKENS", help="decode steps after each depth")
    parser.add_argument("--positions", type=int, default=default.positions, metavar="TOKENS", help="of the text, for KL")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing: draw the tables of an earlier run")
    parser.add_argument("--prepare", action="store_true", help="make the engines' files and stop")
    parser.add_argument("--noisy", action="store_true", help="measure on a busy machine too; the tables are marked")
    arguments = parser.parse_args()
    numbers = [*arguments.threads, arguments.trials, arguments.prefill, *arguments.depths, arguments.steps, arguments.positions]
    if min(numbers) < 1:
        parser.error("every number has to be 1 or more")
    try:
        if arguments.from_json:
            _write(json.loads(arguments.from_json.read_text(encoding="utf-8")), None, arguments.markdown)
            return 0
        return _run(arguments)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    settings = Settings(
        threads=tuple(arguments.threads),
        trials=arguments.trials,
        prefill=arguments.prefill,
        depths=tuple(arguments.depths),
        steps=arguments.steps,
        positions=arguments.positions,
        seed=arguments.seed,
    )
    engines = peers.choose(arguments.peers)
    seen = quiet.look()
    if seen.reasons and not (arguments.noisy or arguments.prepare):
        raise ResourceError(
            f"the machine is not quiet ({'; '.join(seen.reasons)})",
            fix="wait for it, or give --noisy for figures that mean little",
        )
    models, prepared, left_out = [], [], []
    for name in arguments.models:
        _say(f"{name}: the source at float32")
        plain = name.removesuffix(SUFFIX)
        source = real_models.fetch(plain) if plain in real_models.MODELS else Path(plain)
        label = plain if plain in real_models.MODELS else source.stem
        if name != plain:
            source, label = permuted(source), label + SUFFIX
        models.append(open_model(label, source, settings.positions))
        made, missing = prepare(models[-1], engines, _say)
        prepared += made
        left_out += missing
    if arguments.prepare:
        for each in left_out:
            print(f"left out: {each['model']}, {each['engine']}: {each['reason']}")
        return 0
    report = measure(models, prepared, left_out, settings, seen, _say)
    _write(report, arguments.json, arguments.markdown)
    return 0


def _write(report: dict[str, object], json_file: Path | None, markdown_file: Path | None) -> None:
    text = table.markdown(report)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if markdown_file:
        markdown_file.write_text(text, encoding="utf-8")
    print(text)


def _say(step: str) -> None:
    print(step, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
