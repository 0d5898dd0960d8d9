"""Recipe files: what they say of each tensor, on every target's own grids, and what is wrong with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.converters import recipe_file, targets
from edgellm.converters.architectures import describe
from edgellm.converters.recipes import METHODS, Want, compact, matrices, recipe, refined
from edgellm.errors import UsageError
from edgellm.scheme import Recipe, Rule, Scheme
from edgellm.spec import ModelSpec
from tests.tiny_models import MemoryCheckpoint, tiny


def spec(variant: str = "plain") -> ModelSpec:
    """A llama of 3 layers; "one_kv_head" ties its head."""
    source = tiny("llama", variant)
    return describe(MemoryCheckpoint(source.config, source.state))[0]


def wants(tmp_path: Path, text: str, variant: str = "plain") -> dict[str, Want]:
    file = tmp_path / "my recipe.toml"
    file.write_text(text, encoding="utf-8")
    return recipe_file.read(file).wants(spec(variant))


EXAMPLE = """
base = "int8"
[[rule]]
tensors = "v"
layers = "0, 2-"
bits = 8
block = 32
[[rule]]
tensors = ["v", "down"]
layers = "first 2"
bits = 32
[[rule]]
tensors = ["embed", "head"]
bits = 4
"""


def test_the_first_rule_that_has_a_tensor_decides(tmp_path: Path) -> None:
    assert wants(tmp_path, EXAMPLE) == {
        "layers.0.v.weight": Want(8, 32),
        "layers.2.v.weight": Want(8, 32),
        "layers.1.v.weight": Want(32),
        "layers.0.down.weight": Want(32),
        "layers.1.down.weight": Want(32),
        "embed.weight": Want(4),
        "head.weight": Want(4),
    }
    assert recipe_file.read(tmp_path / "my recipe.toml").base == "int8"


@pytest.mark.parametrize(
    ("layers", "meant"),
    [
        ("1", {1}),
        ('"1"', {1}),
        ('"0-1"', {0, 1}),
        ('"1-"', {1, 2}),
        ('"0 - 2"', {0, 1, 2}),
        ('"first 1, last 1"', {0, 2}),
        ('"last 2"', {1, 2}),
        ('"0,1,1-2"', {0, 1, 2}),
    ],
)
def test_layers_are_numbers_ranges_and_ends(tmp_path: Path, layers: str, meant: set[int]) -> None:
    found = wants(tmp_path, f'[[rule]]\ntensors = "q"\nlayers = {layers}\nbits = 8\n')
    assert found == {f"layers.{layer}.q.weight": Want(8) for layer in meant}


def test_a_rule_without_tensors_is_about_every_linear(tmp_path: Path) -> None:
    found = wants(tmp_path, "[[rule]]\nlayers = 2\nbits = 8\n")
    assert set(found) == {f"layers.2.{name}.weight" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def test_a_tied_head_is_the_embeddings_table(tmp_path: Path) -> None:
    assert wants(tmp_path, '[[rule]]\ntensors = "head"\nbits = 4\n', "one_kv_head") == {"embed.weight": Want(4)}


RULE = '[[rule]]\ntensors = "q"\nbits = 8\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rule = 3", "'rule' is not a list of tables"),
        ("[rule]\nbits = 8", "'rule' is not a list of tables"),
        ("base = 'int3'", "base: unknown quantization 'int3'; choose one of int4, int8, fp32"),
        ("bass = 'int4'", "unknown key 'bass'"),
        ("[[rule]\n", "not readable as TOML"),
        (RULE + "bit = 4", "rule 1: bit: unknown key; a rule has tensors, layers, bits and block"),
        (RULE + '[[rule]]\ntensors = "k"', "rule 2: bits: None is not a number of bits; choose one of 4, 8, 32"),
        ('[[rule]]\ntensors = "k"\nbits = 5', "rule 1: bits: 5 is not a number of bits"),
        ('[[rule]]\ntensors = "k"\nbits = true', "rule 1: bits: True is not"),
        ('[[rule]]\ntensors = "k"\nbits = 8.0', "rule 1: bits: 8.0 is not"),
        ('[[rule]]\ntensors = "qkv"\nbits = 8', "rule 1: tensors: 'qkv' names no tensors; choose from q, k, v, o, gate"),
        ("[[rule]]\ntensors = []\nbits = 8", "rule 1: tensors"),
        ('[[rule]]\ntensors = ["q", 3]\nbits = 8', "rule 1: tensors"),
        (RULE + "block = '32'", "rule 1: block: '32' is not a size"),
        (RULE + "block = -1", "rule 1: block: -1 is not a size"),
        (RULE + "layers = [1, 2]", r"rule 1: layers: \[1, 2\] names no layers"),
        (RULE + "layers = ''", "rule 1: layers: '' names no layers; write them as 3, 0-3"),
        (RULE + "layers = '0-1-2'", "rule 1: layers: '0-1-2' names no layers"),
        (RULE + "layers = 'middle'", "rule 1: layers: 'middle' names no layers"),
        (RULE + "layers = '2-1'", "rule 1: layers: '2-1' is not in a model of 3 layers; name layers from 0 to 2"),
        (RULE + "layers = '1-3'", "rule 1: layers: '1-3' is not in a model of 3 layers"),
        (RULE + "layers = -1", "rule 1: layers: '-1' names no layers"),
        (RULE + "layers = 'last 4'", "rule 1: layers: 'last 4' is not in a model of 3"),
        (RULE + "layers = 'first 0'", "rule 1: layers: 'first 0' is not in a model"),
        ('[[rule]]\ntensors = ["q", "head"]\nlayers = 1\nbits = 8', "rule 1: layers: embed and head are in no layer"),
        (RULE + '[[rule]]\ntensors = "q"\nlayers = 1\nbits = 4', "rule 2: tensors: earlier rules have all of them"),
    ],
)
def test_errors_name_file_rule_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=rf"my recipe\.toml: {words}"):
        wants(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml: cannot be read"):
        recipe_file.read(tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        recipe_file.read(tmp_path)
    (tmp_path / "latin").write_bytes(b"base = '\xe9'")
    with pytest.raises(UsageError, match="not readable as TOML"):
        recipe_file.read(tmp_path / "latin")
    (tmp_path / "deep").write_text("a = " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(UsageError, match="not readable as TOML"):
        recipe_file.read(tmp_path / "deep")
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        recipe_file.read(tmp_path / "large")


@pytest.mark.parametrize(
    ("target", "bits", "block", "fits"),
    [
        ("onnx", 4, 16, True),
        ("onnx", 4, 0, False),
        ("onnx", 8, 48, False),
        ("tflite", 4, 32, True),
        ("tflite", 4, 0, True),
        ("tflite", 4, 16, False),
        ("tflite", 8, 16, True),  # it has a scale a row there, whatever is asked
        ("tflite-compat", 4, 32, False),
        ("onnx", 32, 7, True),
    ],
)
def test_blocks_that_a_target_does_not_have(tmp_path: Path, target: str, bits: int, block: int, fits: bool) -> None:
    (tmp_path / "r.toml").write_text(RULE + f"[[rule]]\nbits = {bits}\nblock = {block}\n", encoding="utf-8")
    file, back_end = recipe_file.read(tmp_path / "r.toml"), targets.find(target)
    if fits:
        file.check(target, back_end.grid, back_end.BLOCKS)
        return
    with pytest.raises(UsageError, match=rf"r\.toml: rule 2: block: {target} has no blocks of {block}; choose one of"):
        file.check(target, back_end.grid, back_end.BLOCKS)


@pytest.mark.parametrize("target", targets.available())
def test_wants_are_met_on_the_targets_own_grids(target: str) -> None:
    back_end = targets.find(target)
    block = back_end.BLOCK_SIZE
    base = recipe("int4", None, block, back_end.grid)
    made = spec()
    named = {"layers.1.v.weight": Want(8), "layers.0.up.weight": Want(32), "head.weight": Want(4), "embed.weight": Want(8)}
    chosen = refined(base, matrices(made), named, back_end.grid, block)
    meant = {
        "layers.1.v.weight": back_end.grid(8, block),
        "layers.0.up.weight": None,
        "head.weight": back_end.grid(4, block),
        "embed.weight": back_end.grid(8, max(block, 64)),
    }
    for name in matrices(made):
        assert chosen.scheme(name) == meant.get(name, base.scheme(name)), name
    assert (chosen.name, chosen.method) == ("int4", METHODS["int4"])


def test_a_block_of_its_own_goes_before_the_targets() -> None:
    back_end = targets.find("onnx")
    base = recipe("int8", None, 64, back_end.grid)
    named = {"layers.1.v.weight": Want(4, 16), "embed.weight": Want(8, 32)}
    chosen = refined(base, matrices(spec()), named, back_end.grid, 64)
    assert chosen.scheme("layers.1.v.weight") == Scheme(4, 16, symmetric=False)
    assert chosen.scheme("embed.weight") == Scheme(8, 32)
    assert chosen.scheme("layers.0.v.weight") == Scheme(8, 64)


def test_quantized_tensors_of_a_float_model_have_a_method() -> None:
    back_end = targets.find("onnx")
    base = recipe("fp32", None, 32, back_end.grid)
    chosen = refined(base, matrices(spec()), {"layers.1.v.weight": Want(8)}, back_end.grid, 32)
    assert chosen.scheme("layers.1.v.weight") == Scheme(8, 32)
    assert chosen.scheme("layers.0.v.weight") is None
    assert chosen.method == "imatrix"


def test_few_rules_say_the_same() -> None:
    """Whatever is mixed: each matrix keeps its scheme and method, and patterns take the place of what most layers have."""
    made = spec()
    schemes = [Scheme(4, 32), Scheme(8, 32), None]
    rules = [Rule(name, schemes[(index * index) % 3], "imported" if index % 5 == 0 else None)
             for index, name in enumerate(matrices(made))]  # fmt: skip
    chosen = Recipe("x", "rtn", compact(rules))
    for rule in rules:
        found = chosen.rule(rule.pattern)
        assert (rule.scheme, rule.method if rule.scheme else None) == (
            (found.scheme, found.method if found.scheme else None) if found else (None, None)
        )
    assert len(compact([Rule(name, Scheme(4, 32)) for name in matrices(made)])) == 9
