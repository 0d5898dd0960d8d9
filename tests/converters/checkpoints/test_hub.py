"""Hub ids, in a fresh process against a loopback hub: huggingface_hub reads its endpoint and switches when it is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer, models

import edgellm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from tests.hub_server import Hub, Repo, digest, serve

CHILD = """
import json, sys
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.errors import EdgeError
source, revision = sys.argv[1], sys.argv[2] or None
try:
    with open_checkpoint(source, revision=revision) as checkpoint:
        p = checkpoint.provenance
        sums = {name: float(checkpoint.tensor(name).array().sum()) for name in sorted(checkpoint.names())}
        extra = sorted(checkpoint.licenses())
        text = checkpoint.naming == "hf" and checkpoint.text().chat_template
        out = dict(source=p.source, revision=p.revision, license=p.license, sha256=p.sha256)
        out |= dict(sums=sums, licenses=extra, template=text)
except EdgeError as error:
    out = dict(error=str(error), kind=type(error).__name__)
print(json.dumps(out))
"""


@dataclass
class Client:
    """Opens hub ids in fresh processes that share one cache."""

    hub: Hub
    home: Path

    def __call__(self, source: str, revision: str = "", **env: str) -> dict[str, Any]:
        done = self.run("-c", CHILD, source, revision, **env)
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert "\n" not in value.get("error", "")
        return value

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """A fresh interpreter that knows this hub and this cache."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        settings = {
            **kept,
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.home),
            "PYTHONPATH": str(Path(edgellm.__file__).parents[1]),
            "NO_PROXY": "127.0.0.1,localhost",
            **env,
        }
        command = [sys.executable, "-W", "error", *map(str, arguments)]
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)

    def cache(self) -> list[Path]:
        """Every file under the cache, links included."""
        return [path for path in (self.home / "hub").glob("models--*/**/*") if path.is_file() or path.is_symlink()]


def weights(*names: str, rows: int = 64, seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    return safetensors.numpy.save({name: random.standard_normal((rows, 32)).astype(np.float32) for name in names})


def model_files() -> dict[str, bytes]:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    return {
        "config.json": b'{"model_type": "llama", "eos_token_id": 1}',
        "generation_config.json": b'{"temperature": 0.7}',
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"model_max_length": 8}',
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "LICENSE": b"Apache License\nVersion 2.0",
        "model.safetensors": weights("x"),
        # what a conversion does not need
        "consolidated.safetensors": weights("x", seed=1),
        "pytorch_model.bin": b"\x80\x04pickle",
        "training_args.bin": b"\x80\x04",
        "assets/picture.png": b"png",
        "onnx/model.onnx": b"onnx",
        "vocab.json": b"{}",
    }


TOKEN = "hf_" + 8 * "x"
NEEDED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub({"org/tiny": Repo(model_files())})) as served:
        yield served


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "home")


def test_only_what_is_needed_is_fetched_and_the_commit_is_kept(client: Client) -> None:
    content = client.hub.repos["org/tiny"].files["model.safetensors"]
    got = client("org/tiny", HF_TOKEN=TOKEN)
    expected = safetensors.numpy.load(content)["x"].sum(dtype=np.float32)
    assert got["sums"]["x"] == pytest.approx(float(expected), rel=1e-4)
    assert {key: got[key] for key in ("source", "revision", "license", "licenses", "template")} == {
        "source": "org/tiny",
        "revision": "a" * 40,
        "license": "apache-2.0",
        "licenses": ["LICENSE"],
        "template": "{{ messages }}",
    }
    assert got["sha256"] == {"model.safetensors": digest(content)}
    assert client.hub.fetched() == [*NEEDED, "model.safetensors"]
    for request in client.hub.seen:
        assert request.path.startswith(("/api/models/org/tiny", "/org/tiny/resolve/", "/cdn/")), "telemetry"
        assert request.token == (None if request.path.startswith("/cdn/") else f"Bearer {TOKEN}")


def test_a_second_run_needs_no_network(client: Client) -> None:
    first = client("org/tiny")
    client.hub.seen.clear()
    assert client("org/tiny") == first
    assert client.hub.fetched() == []
    client.hub.seen.clear()
    assert client("org/tiny", HF_HUB_OFFLINE="1") == first
    assert client.hub.seen == []
    client.hub.down = True
    assert client("org/tiny") == first
    assert client("org/tiny", HF_ENDPOINT="http://127.0.0.1:9") == first
    assert client("org/tiny", "a" * 40, HF_HUB_OFFLINE="1") == first


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and the model is not in the cache; unset"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached .* not in the cache; check the network"),
    ],
)
def test_without_network_and_cache_the_cure_is_named(client: Client, env: dict[str, str], message: str) -> None:
    got = client("org/tiny", **env)
    assert got["kind"] == "SourceError"
    assert re.search(message, got["error"]), got["error"]


def test_a_revision_is_pinned(client: Client) -> None:
    files = model_files() | {"model.safetensors": weights("x", seed=7)}
    client.hub.repos["org/tiny"] = Repo(files, commit="b" * 40, branches=("main", "v1.0"))
    got = client("org/tiny", "v1.0")
    assert got["revision"] == "b" * 40
    assert got["sha256"]["model.safetensors"] == digest(files["model.safetensors"])
    # the branch moves on; the commit does not
    client.hub.repos["org/tiny"] = Repo(model_files(), commit="c" * 40)
    assert client("org/tiny")["revision"] == "c" * 40
    assert client("org/tiny", "b" * 40, HF_HUB_OFFLINE="1")["sums"] == got["sums"]
    assert "no such revision; check --revision" in client("org/tiny", "v9")["error"]


def ranges(hub: Hub) -> list[str | None]:
    return [request.range for request in hub.seen if request.method == "GET" and request.path.startswith("/cdn/")]


def test_a_cut_transfer_goes_on_where_it_was_cut(client: Client) -> None:
    client.hub.cut_after["model.safetensors"] = [3000]
    got = client("org/tiny")
    assert ranges(client.hub) == [None, "bytes=3000-"]
    assert got["sha256"] == {"model.safetensors": digest(client.hub.repos["org/tiny"].files["model.safetensors"])}


def test_a_new_process_goes_on_where_the_last_one_was_cut(client: Client) -> None:
    client.hub.cut_after["model.safetensors"] = [3000] + [0] * 50
    failed = client("org/tiny")
    assert "the transfer broke off" in failed["error"]
    assert "goes on where it was cut" in failed["error"]
    assert "org/tiny" in failed["error"]
    client.hub.cut_after.clear()
    client.hub.seen.clear()
    got = client("org/tiny")
    assert ranges(client.hub) == ["bytes=3000-"]
    assert got["sha256"] == {"model.safetensors": digest(client.hub.repos["org/tiny"].files["model.safetensors"])}
    assert not [path for path in client.cache() if "incomplete" in path.name]


def test_leftovers_of_something_else_are_thrown_away(client: Client) -> None:
    content = client.hub.repos["org/tiny"].files["model.safetensors"]
    blobs = client.home / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    for leftover in (b"x" * 100, b"x" * (len(content) + 5)):
        (blobs / f"{digest(content)}.incomplete").write_bytes(leftover)
        assert client("org/tiny")["sha256"] == {"model.safetensors": digest(content)}
        (blobs / digest(content)).unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_wrong_byte_is_named_and_not_kept(client: Client, name: str) -> None:
    client.hub.wrong_byte.add(name)
    got = client("org/tiny")
    assert got["kind"] == "SourceError"
    assert f"org/tiny/{name}: what arrived is not what the hub describes" in got["error"]
    assert not [path for path in client.cache() if path.name == name]
    assert not [path for path in client.cache() if path.name.startswith(digest(model_files()[name]))]
    assert "error" in client("org/tiny", HF_HUB_OFFLINE="1")
    client.hub.wrong_byte.clear()
    assert client("org/tiny")["revision"] == "a" * 40


def test_a_damaged_file_of_the_cache_is_fetched_again(client: Client) -> None:
    first = client("org/tiny")
    blob = next(path for path in client.cache() if path.name == first["sha256"]["model.safetensors"])
    blob.write_bytes(b"cut short")
    assert client("org/tiny") == first


def test_a_broken_update_leaves_the_last_good_commit_for_offline_use(client: Client) -> None:
    first = client("org/tiny")
    client.hub.repos["org/tiny"] = Repo(model_files() | {"model.safetensors": weights("x", seed=3)}, commit="d" * 40)
    client.hub.wrong_byte.add("model.safetensors")
    assert "hash" in client("org/tiny")["error"]
    assert client("org/tiny", HF_HUB_OFFLINE="1") == first


def test_shards_are_those_of_the_index(client: Client) -> None:
    files = model_files()
    del files["model.safetensors"]
    files |= {f"model-{i}.safetensors": weights(f"x{i}", seed=i) for i in (1, 2, 3)}
    index = {"weight_map": {"x1": "model-1.safetensors", "x2": "model-2.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    client.hub.repos["org/tiny"] = Repo(files)
    assert sorted(client("org/tiny")["sums"]) == ["x1", "x2"]
    assert client.hub.fetched() == [*NEEDED, "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"]


def test_a_hostile_index_names_nothing_outside(client: Client) -> None:
    files = model_files()
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = b'{"weight_map": {"x": "../../../../etc/x.safetensors"}}'
    client.hub.repos["org/tiny"] = Repo(files)
    assert "is not a file name of this folder" in client("org/tiny")["error"]


@pytest.mark.parametrize(
    ("repo_id", "refusal", "message"),
    [
        ("org/none", None, "no such file or folder, and no such model on the hub; check the name"),
        ("org/tiny", "GatedRepo", "the model is gated; accept its terms on its page on the hub, then log in"),
        ("org/tiny", None, ""),
    ],
)
def test_refusals_are_one_line_with_a_cure(client: Client, repo_id: str, refusal: str | None, message: str) -> None:
    client.hub.repos["org/tiny"].refusal = refusal
    got = client(repo_id)
    assert message in got.get("error", "")
    assert ("error" in got) == bool(message)


def test_a_full_disk_is_said_before_the_download(client: Client) -> None:
    client.hub.claimed_size["model.safetensors"] = 1 << 60
    got = client("org/tiny")
    assert got["kind"] == "ResourceError"
    assert "GB are free" in got["error"]
    assert "HF_HOME" in got["error"]
    assert ranges(client.hub) == []


def test_a_repository_of_pickles_is_refused(client: Client) -> None:
    files = {name: content for name, content in model_files().items() if not name.endswith(".safetensors")}
    client.hub.repos["org/tiny"] = Repo(files)
    assert "only pickled weights" in client("org/tiny")["error"]
    client.hub.repos["org/tiny"] = Repo({"README.md": b""})
    assert "neither safetensors nor GGUF" in client("org/tiny")["error"]


def gguf_file(tmp_path: Path, seed: float) -> bytes:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.full((4, 32), seed, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (tmp_path / "x.gguf").read_bytes()


def test_gguf_repositories(client: Client, tmp_path: Path) -> None:
    one, two = gguf_file(tmp_path, 1), gguf_file(tmp_path, 2)
    client.hub.repos["org/gguf"] = Repo({"README.md": b"---\nlicense: mit\n---\n", "m-Q4_0.gguf": one, "m-Q8_0.gguf": two})
    got = client("org/gguf:m-Q8_0.gguf")
    assert got["sums"] == {"token_embd.weight": 256.0}
    assert got["source"] == "org/gguf:m-Q8_0.gguf"
    assert got["revision"] == "a" * 40
    assert got["license"] == "mit"
    assert got["sha256"] == {"m-Q8_0.gguf": digest(two)}
    assert client.hub.fetched() == ["README.md", "m-Q8_0.gguf"]
    assert "2 GGUF models: m-Q4_0.gguf, m-Q8_0.gguf; name one, as in 'org/gguf:m-Q4_0.gguf'" in client("org/gguf")["error"]
    assert "no file 'm-Q2.gguf'; it has m-Q4_0.gguf, m-Q8_0.gguf" in client("org/gguf:m-Q2.gguf")["error"]
    del client.hub.repos["org/gguf"].files["m-Q8_0.gguf"]
    assert client("org/gguf")["sums"] == {"token_embd.weight": 128.0}


def test_all_parts_of_a_split_gguf_are_fetched(client: Client, tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("tests.gguf_files")
    values = {f"t{i}": np.full((4, 32), i, np.float32) for i in range(5)}
    gguf_files.write_model(tmp_path / "big.gguf", values, split_max_tensors=2)
    parts = {part.name: part.read_bytes() for part in sorted(tmp_path.glob("big-*.gguf"))}
    assert len(parts) == 3
    client.hub.repos["org/split"] = Repo({**parts, "other/notes.txt": b""})
    for source in ("org/split", "org/split:big-00002-of-00003.gguf"):
        got = client(source)
        assert got["sums"] == {name: float(value.sum()) for name, value in values.items()}
        assert got["sha256"] == {name: digest(content) for name, content in parts.items()}
    assert client.hub.fetched() == list(parts), "once"
    del client.hub.repos["org/split"].files["big-00002-of-00003.gguf"]
    client.hub.repos["org/split"].commit = "e" * 40
    assert "big-00002-of-00003.gguf" in client("org/split")["error"]


def test_an_adapter_of_the_hub_is_the_same_as_its_folder(client: Client, tiny_source: Path, tmp_path: Path) -> None:
    """The command line takes its id too."""
    hidden = json.loads((tiny_source / "config.json").read_text())["hidden_size"]
    factors = np.random.default_rng(5).standard_normal((2, 2, hidden)).astype(np.float32)
    name = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"
    parts = {name.format("A"): factors[0], name.format("B"): factors[1].T.copy()}
    files = {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4}',
        "adapter_model.safetensors": safetensors.numpy.save(parts),
    }
    client.hub.repos["org/lora"] = Repo({**files, "optimizer.pt": b"\x80\x04"})
    folder = tmp_path / "lora"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    bundles = {}
    for adapter in ("org/lora", str(folder)):
        target = tmp_path / f"bundle-{len(bundles)}"
        done = client.run("-m", "edgellm", "convert", tiny_source, "-o", target, "--adapter", adapter, "--no-eval")
        assert done.returncode == 0, done.stderr
        bundles[adapter] = Bundle.open(target)
    assert client.hub.fetched() == list(files)
    of_hub, of_folder = bundles.values()
    plain = convert(tiny_source, tmp_path / "plain")
    assert of_hub.provenance.adapter == "org/lora"
    assert of_hub.files["model.onnx.data"] == of_folder.files["model.onnx.data"]
    assert of_hub.files["model.onnx.data"] != plain.files["model.onnx.data"]
