"""`edgellm eval`, `compare`, and what `inspect` and `convert` say of a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from edgellm.benchmarks import texts
from edgellm.bundle import Bundle
from edgellm.evaluation import evaluate
from tests import tiny_folder
from tests.cli.conftest import edgellm

TEXT = "The harbour master kept two ledgers, one for the ships and one for the weather, and he trusted neither."


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in texts.POSITIONS:
        monkeypatch.setitem(texts.POSITIONS, preset, 160)


@pytest.fixture(scope="module")
def carded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carded") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(texts.POSITIONS, "fast", 160)
        from edgellm.conversion import convert

        return convert(source, folder, target="both", preset="fast", evaluate=True).path


def figures(*arguments: object) -> list[dict[str, object]]:
    result = edgellm("eval", *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)["evaluations"]
    return found


def torch_logits(source: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.tensor(transformers.AutoTokenizer.from_pretrained(source)(text)["input_ids"])
    with torch.no_grad():
        return ids, model(ids[None]).logits[0]


def test_figures_are_those_of_transformers(source: Path, bundle: Path, tmp_path: Path) -> None:
    """KL between transformers' own distributions and the session's, in torch."""
    import edgellm as package

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (found,) = figures(bundle, "--against", source, "--text", tmp_path / "text.txt")
    ids, logits = torch_logits(source, TEXT)
    with package.load(bundle) as llm:
        ours = torch.from_numpy(np.array(llm.session().logits(ids.tolist())))
    p, q = logits.double().log_softmax(-1), ours.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    gap = found["gap"]
    assert isinstance(gap, dict)
    assert gap["kl"] == pytest.approx(kl.mean().item(), rel=1e-3)
    assert gap["kl_p99"] == pytest.approx(kl.quantile(0.99).item(), rel=1e-3)
    assert gap["top1"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert gap["positions"] == len(ids)
    for name, each in (("perplexity", ours), ("source_perplexity", logits)):
        loss = torch.nn.functional.cross_entropy(each[:-1].double(), ids[1:])
        assert found[name] == pytest.approx(loss.exp().item(), rel=1e-4)
    # the first tokens that differ, with what leads there
    wrong = torch.nonzero(p.argmax(-1) != q.argmax(-1)).flatten().tolist()
    differences = found["differences"]
    assert isinstance(differences, list)
    assert [each["position"] for each in differences] == wrong[:6]
    assert wrong
    assert TEXT[: wrong[0] + 1].endswith(differences[0]["before"])
    assert differences[0]["source_probability"] == pytest.approx(p[wrong[0]].exp().max().item(), rel=1e-3)
    assert differences[0]["runtime_probability"] == pytest.approx(q[wrong[0]].exp().max().item(), rel=1e-3)
    assert differences[0]["source"] != differences[0]["runtime"]


def test_without_a_source_there_is_perplexity_and_the_card(source: Path, bundle: Path, carded: Path) -> None:
    found = figures(carded)
    assert [each["runtime"] for each in found] == ["onnx", "tflite"]
    card = Bundle.open(carded).fidelity
    assert card is not None
    assert card.text is not None
    for each in found:
        graph = card.graphs[str(each["runtime"])]
        assert (each["gap"], each["differences"]) == (None, [])
        assert each["perplexity"] == pytest.approx(graph.perplexity, rel=1e-5)
        assert each["version"] == graph.runtime
        assert isinstance(each["text"], dict)
        assert each["text"]["sha256"] == card.text.sha256
    shown = edgellm("eval", carded, "--runtime", "tflite")
    assert shown.exit_code == 0
    assert "card, onnx: measured; this method has no gate: KL " in shown.stdout
    assert "ai-edge-litert" in shown.stdout
    assert "onnxruntime" not in shown.stdout.split("card,")[0]
    assert "not measured: not asked for" in edgellm("eval", bundle).stdout


def test_a_terminal_sees_what_differs(source: Path, bundle: Path) -> None:
    shown = edgellm("eval", bundle, "--against", source)
    assert shown.exit_code == 0, shown.output
    for part in (
        "perplexity of the source",
        "KL, 99th percentile",
        "top-1 agreement",
        "onnx finds other tokens likeliest, first at:",
    ):
        assert part in shown.stdout


def test_conversations_are_read_as_the_template_writes_them(source: Path, bundle: Path, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "How tall is it?"}, {"role": "assistant", "content": "Nine metres, or a little less."}]
    lines = tmp_path / "talk.jsonl"
    lines.write_text(json.dumps({"messages": talk}) + "\n\n" + json.dumps(talk[:1]) + "\n", encoding="utf-8")
    (found,) = evaluate(Bundle.open(bundle), runtimes=["onnx"], text=lines)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    rendered = "".join(tokenizer.apply_chat_template(each, tokenize=False) for each in (talk, talk[:1]))
    expected = tokenizer(rendered)["input_ids"]
    assert found.text.positions == len(expected)
    import hashlib

    assert found.text.sha256 == hashlib.sha256(np.array(expected, "<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "there is no text in it"),
        (b"  \n", "there is no text in it"),
        (b"\xff\xfe\x00a", "it is not UTF-8 text"),
        (b"a", "the tokenizer makes no two tokens of it"),
    ],
)
def test_a_text_that_cannot_be_used(bundle: Path, tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    result = edgellm("eval", bundle, "--text", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', '["a", "b"]', "3"])
def test_a_line_that_is_no_conversation_is_named(bundle: Path, tmp_path: Path, line: str) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(f'[{{"role": "user", "content": "a"}}]\n{line}\n')
    result = edgellm("eval", bundle, "--text", file)
    assert result.exit_code == 2
    assert "talk.jsonl, line 2: not a conversation" in result.stderr


def test_a_source_that_is_not_there_or_another_model(bundle: Path, source: Path, tmp_path: Path) -> None:
    result = edgellm("eval", bundle, "--against", tmp_path / "nothing.gguf")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(source, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    tensors = load_file(other / "model.safetensors")
    for name, wanted, change in (
        ("vocabulary 200, not 259", "vocab_size", 200),
        ("layers 1, not 2", "num_hidden_layers", 1),
    ):
        rows = {
            each: values[:200] if wanted == "vocab_size" and len(values) == 259 else values for each, values in tensors.items()
        }
        kept = {each: values for each, values in rows.items() if wanted == "vocab_size" or ".layers.1." not in each}
        save_file(kept, other / "model.safetensors", {"format": "pt"})
        (other / "config.json").write_text(json.dumps({**config, wanted: change}))
        result = edgellm("eval", bundle, "--against", other)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert f"another model than the bundle's: {name}" in result.stderr


def test_a_runtime_that_the_bundle_has_not(bundle: Path) -> None:
    result = edgellm("eval", bundle, "--runtime", "tflite")
    assert result.exit_code == 2
    assert "the bundle has no graph for the runtime 'tflite'; it has: onnx" in result.stderr


def test_inspect_shows_the_card(carded: Path) -> None:
    shown = edgellm("inspect", carded).stdout
    assert "fidelity of onnx measured; this method has no gate: KL " in shown
    value = json.loads(edgellm("inspect", carded, "--json").stdout)
    card = Bundle.open(carded).fidelity
    assert card is not None
    assert card.text is not None
    assert f"sha256 of the token ids {card.text.sha256}" in shown
    assert f"Calibration: sha256 of the token ids {card.calibration}" in shown
    assert f"Machine: {card.machine}. Preset: fast." in shown
    for name, graph in card.graphs.items():
        table = shown[shown.index(f"fidelity of {name} ", shown.index("Preset: fast.")) :]
        assert str(graph.runtime) in table
        for gap in (graph.run, graph.quantization, graph.weights, graph.export, graph.activations, graph.activations_expected):
            assert gap is not None
            assert f"{gap.kl:.3g} ± {gap.kl_error:.1g}" in table
            assert f"{gap.top1:.3f}" in table
        assert f"Perplexity {graph.perplexity:.3f}, of the source {graph.source_perplexity:.3f}." in table
        assert f"{graph.worst[0].name.removesuffix('.weight')} {graph.worst[0].error:.4f}" in table
    assert value["fidelity"]["graphs"]["tflite"]["run"]["kl"] == card.graphs["tflite"].run.kl  # type: ignore[union-attr]
    assert json.loads(edgellm("inspect", Path(__file__).parents[1] / "data" / "bundle-v1", "--json").stdout)["fidelity"] is None


def test_convert_measures_unless_it_is_told_not_to(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The suite's own default is switched off here: by what a user types."""
    from click.testing import CliRunner

    from edgellm.cli import cli

    coarse = tiny_folder.write_coarse(tmp_path_factory.mktemp("coarse") / "tiny")
    for name, options, said in (
        ("fast", ["--preset", "fast"], "onnx: measured; this method has no gate: KL "),
        ("none", ["--no-eval"], "onnx: not measured: not asked for"),
        ("kept", ["--method", "imatrix", "--allow-degraded"], "onnx: past its gate, kept because that was asked for"),
    ):
        result = CliRunner().invoke(cli, ["convert", str(coarse), "-o", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
        assert said in result.stdout
    result = CliRunner().invoke(cli, ["convert", str(coarse), "-o", str(tmp_path / "refused"), "--method", "imatrix"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "not kept, it lost too much: KL 0." in result.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fast", "kept", "none"]


def test_compare_puts_graphs_side_by_side(carded: Path, bundle: Path, source: Path, tmp_path: Path) -> None:
    result = edgellm("compare", carded, bundle, "--trials", "1", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    columns = json.loads((tmp_path / "out.json").read_text())["columns"]
    assert [(each["bundle"], each["runtime"]) for each in columns] == [
        ("tiny", "onnx"),
        ("tiny", "tflite"),
        ("tiny-int4", "onnx"),
    ]
    card = Bundle.open(carded).fidelity
    assert card is not None
    assert columns[0]["gap"]["kl"] == card.graphs["onnx"].run.kl  # type: ignore[union-attr]
    assert columns[2]["gap"] is None
    assert columns[1]["size"] == (carded / "model.tflite").stat().st_size
    for each in columns:
        assert {"prefill 128", "decode after 0"} <= set(each["speed"]), result.stdout
    for part in ("bits per linear weight", "KL, nats", "decode after 0"):
        assert part in result.stdout
    again = edgellm("compare", bundle, "--trials", "1", "--against", source, "--json", "-")
    (column,) = json.loads(again.stdout)["columns"]
    (alone,) = figures(bundle, "--against", source)
    assert column["gap"] == alone["gap"]


def test_bits_of_a_linear_weight_are_those_in_the_file(carded: Path, bundle: Path) -> None:
    """By the formats: MatMulNBits has float32 scales and zero points of 4 bits for 32 weights, LiteRT scales of 16 bits."""
    result = edgellm("compare", carded, bundle, "--trials", "1", "--json", "-")
    columns = json.loads(result.stdout)["columns"]
    assert [each["bits"] for each in columns] == pytest.approx([4 + 36 / 32, 4 + 16 / 32, 4 + 36 / 32])
    shown = edgellm("compare", carded, "--trials", "1").stdout
    assert "5.12" in shown
    assert "as they lie in the file" in shown
    assert "embedding and head are not counted" in shown


def test_figures_of_no_run_are_marked(carded: Path, tmp_path: Path) -> None:
    """As a card is that was made where onnxruntime is not installed."""
    other = shutil.copytree(carded, tmp_path / "elsewhere")
    manifest = json.loads((other / "edgellm.json").read_text(encoding="utf-8"))
    manifest["fidelity"]["graphs"]["onnx"] |= {"run": None, "runtime": None, "activations": None}
    manifest["fidelity"]["graphs"]["onnx"] |= {"verdict": "passed", "notes": ["not run: onnxruntime is not installed"]}
    (other / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    columns = json.loads(edgellm("compare", other, "--trials", "1", "--json", "-").stdout)["columns"]
    assert [each["gap_by"] for each in columns] == ["numpy", "run"]
    card = Bundle.open(other).fidelity
    assert card is not None
    assert [each["gap"]["kl"] for each in columns] == [
        card.graphs["onnx"].quantization.kl,  # type: ignore[union-attr]
        card.graphs["tflite"].run.kl,  # type: ignore[union-attr]
    ]
    shown = edgellm("compare", other, "--trials", "1").stdout
    assert f"{card.graphs['onnx'].quantization.top1:.3f}*" in shown  # type: ignore[union-attr]
    assert "* nothing ran: by numpy" in shown
    assert "nothing ran" not in edgellm("compare", carded, "--trials", "1").stdout
    assert "fidelity of onnx passed its gate by numpy alone: " in edgellm("inspect", other).stdout


def test_compare_says_where_texts_differ(carded: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.conversion import convert

    monkeypatch.setitem(texts.POSITIONS, "fast", 100)
    other = convert(tiny_folder.write(tmp_path / "s"), tmp_path / "other", preset="fast", evaluate=True)
    result = edgellm("compare", carded, other.path, "--trials", "1")
    assert "KL was measured on different texts" in result.stdout


def adapter_of(source: Path, folder: Path) -> Path:
    """A LoRA that changes much, saved by peft."""
    import warnings

    import peft

    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(source)
        modules = ["q_proj", "v_proj", "down_proj"]
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=modules))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(str(folder))
    return folder


def test_a_bundle_with_an_adapter_is_measured_from_the_merged_model(source: Path, tmp_path: Path) -> None:
    """In float32, where nothing else is lost: without it the adapter would be told as loss, so somebody has to say which."""
    lora, (file, made) = adapter_of(source, tmp_path / "lora"), (tmp_path / "text.txt", tmp_path / "made")
    file.write_text(TEXT, encoding="utf-8")
    result = edgellm("convert", source, "-o", made, "--adapter", lora, "--quant", "fp32")
    assert result.exit_code == 0, result.output
    refused = edgellm("eval", made, "--against", source, "--text", file)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "the bundle has the adapter 'lora' merged into it" in refused.stderr
    assert "--adapter none" in refused.stderr
    (merged,) = figures(made, "--against", source, "--adapter", lora, "--text", file)
    (plain,) = figures(made, "--against", source, "--adapter", "none", "--text", file)
    assert isinstance(merged["gap"], dict)
    assert isinstance(plain["gap"], dict)
    assert merged["gap"]["kl"] < 1e-6
    assert plain["gap"]["kl"] > 1e-2
    assert (merged["source"], merged["adapter"], plain["adapter"]) == (str(source), str(lora), None)
    shown = edgellm("eval", made, "--against", source, "--adapter", lora, "--text", file)
    assert "with " in shown.stdout
    told = {}
    for adapter in (str(lora), "none"):
        value = edgellm("compare", made, "--against", source, "--adapter", adapter, "--trials", "1", "--json", "-")
        (column,) = json.loads(value.stdout)["columns"]
        told[adapter] = column["gap"]["kl"]
    assert told[str(lora)] < 1e-6
    assert told["none"] > 1e-2
    assert "give --against as well" in edgellm("compare", made, "--adapter", lora).stderr
    # the source that the plain model is has the perplexity that transformers finds
    ids, logits = torch_logits(source, TEXT)
    loss = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:])
    assert plain["source_perplexity"] == pytest.approx(loss.exp().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--adapter", "some-lora"), "--adapter: there is no source that it belongs to; give --against too"),
        (("--revision", "main"), "--revision: there is no source that it belongs to; give --against too"),
        (("--against", "SOURCE", "--revision", "main"), "--revision: only hub models have revisions"),
        (("--against", "SOURCE", "--adapter", "no-such-lora"), "no-such-lora"),
    ],
)
def test_options_of_a_source_are_checked(bundle: Path, source: Path, options: tuple[str, ...], said: str) -> None:
    result = edgellm("eval", bundle, *(str(source) if each == "SOURCE" else each for each in options))
    assert (result.exit_code != 0, result.stdout, result.stderr.count("\n")) == (True, "", 1)
    assert said in result.stderr


def test_a_revision_is_taken_from_the_hub(bundle: Path, source: Path, tmp_path: Path) -> None:
    """A hub of one commit: asked for by its tag it is there, and by another it is not."""
    import os
    import subprocess
    import sys

    from tests.cli.conftest import ROOT
    from tests.hub_server import Hub, Repo, serve

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    files = {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()}

    def measured(hub: Hub, revision: str) -> subprocess.CompletedProcess[str]:
        options = ["--against", "org/tiny", "--revision", revision, "--text", str(tmp_path / "text.txt"), "--json", "-"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1,localhost"}
        return subprocess.run(
            [sys.executable, "-m", "edgellm", "eval", bundle, *options],
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    with serve(Hub({"org/tiny": Repo(files, branches=("main", "v1.0"))})) as hub:
        found, missing = measured(hub, "v1.0"), measured(hub, "v9")
    assert found.returncode == 0, found.stderr
    (told,) = json.loads(found.stdout)["evaluations"]
    (local,) = figures(bundle, "--against", source, "--text", tmp_path / "text.txt")
    assert (told["gap"], told["revision"]) == (local["gap"], "v1.0")
    assert missing.returncode == 1
    assert "no such revision; check --revision" in missing.stderr


def test_a_source_needs_no_tokenizer(bundle: Path, source: Path, tmp_path: Path) -> None:
    """Texts are read as the bundle reads them."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    bare = shutil.copytree(source, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    found = [figures(bundle, "--against", each, "--text", tmp_path / "text.txt") for each in (bare, source)]
    assert found[0][0]["gap"] == found[1][0]["gap"]


def test_another_number_of_heads_is_another_model(bundle: Path, source: Path, tmp_path: Path) -> None:
    """Though all its matrices have the same shapes."""
    other = shutil.copytree(source, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    (other / "config.json").write_text(json.dumps(config))
    result = edgellm("eval", bundle, "--against", other)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert "another model than the bundle's: attention heads 8/4 of 8, not 4/2 of 16" in result.stderr


def test_a_folder_is_no_text(bundle: Path, tmp_path: Path) -> None:
    result = edgellm("eval", bundle, "--text", tmp_path)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "cannot be read: Is a directory; give another --text" in result.stderr


def test_conversations_need_a_bundle_with_a_template(tmp_path: Path) -> None:
    source = tiny_folder.write(tmp_path / "source", template=None)
    assert edgellm("convert", source, "-o", tmp_path / "made", "--quant", "fp32").exit_code == 0
    (tmp_path / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    result = edgellm("eval", tmp_path / "made", "--text", tmp_path / "talk.jsonl")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "the model has no chat template to write conversations with; give --text plain text" in result.stderr
