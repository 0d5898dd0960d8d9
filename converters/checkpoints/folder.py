"""What stands beside the weights in a Hugging Face folder: tokenizer, chat template, policies, licence.

What transformers does when it loads the folder is what the bundle's tokenizer.json must do by itself, on a device without
transformers. So it is carried byte for byte where the two agree, and otherwise changed where transformers changes it:
special tokens that only tokenizer_config.json names are added, and baked-in truncation and padding are left out.
Whether a text begins with the beginning-of-text token is for tokenizer.json's post-processor to say: transformers 5 ignores
`add_bos_token` where there is a tokenizer.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.bundle import Provenance
from edgellm.converters.checkpoints.base import Text
from edgellm.converters.checkpoints.safetensors import read_json
from edgellm.errors import SourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENIZER_BYTES = 256 << 20
MAX_TEXT_BYTES = 4 << 20

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

RESAVE = "save it again with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"

LICENSE_PHRASES = {
    "apache license version 2.0": "apache-2.0",
    "mit license": "mit",
    "gemma terms of use": "gemma",
    "llama 2 community license": "llama2",
    "llama 3 community license": "llama3",
    "llama 3.1 community license": "llama3.1",
    "llama 3.2 community license": "llama3.2",
    "llama 3.3 community license": "llama3.3",
}


def read_text(folder: Path, config: Mapping[str, Any]) -> Text:
    """Tokenizer and policies of a folder.

    Args:
        config: the content of config.json, for its token ids.

    Raises:
        SourceError: no tokenizer.json, or one that cannot be read; a policy of the wrong type.
    """
    settings = _settings(folder)
    content, tokenizer = _tokenizer(folder, settings)
    generation = _optional(folder / "generation_config.json")
    nested = config.get("text_config")
    sources = [
        (folder / "generation_config.json", generation),
        (folder / "config.json", config),
        (folder / "config.json", nested if isinstance(nested, Mapping) else {}),
    ]

    def token_id(role: str) -> int | None:
        named = settings.get(role)
        found = tokenizer.token_to_id(named) if isinstance(named, str) else None
        declared = [_ids(where, values, f"{role}_id") for where, values in sources]
        return found if found is not None else next((ids[0] for ids in declared if ids), None)

    eos = [id_ for where, values in sources for id_ in _ids(where, values, "eos_token_id")]
    if (named_eos := token_id("eos_token")) is not None:
        eos.append(named_eos)
    return Text(
        tokenizer=content,
        tokenizer_config={key: value for key, value in settings.items() if key != "chat_template"},
        chat_template=_chat_template(folder, settings),
        bos_id=token_id("bos_token"),
        eos_ids=tuple(dict.fromkeys(eos)),
        pad_id=token_id("pad_token"),
        generation=_sampling(folder / "generation_config.json", generation),
    )


def read_licenses(folder: Path) -> dict[str, bytes]:
    """LICENSE* and NOTICE* files: name to content. A link that leads out of the model is not followed."""
    found = {}
    for file in sorted(folder.iterdir()):
        if re.match(r"(licen[sc]e|notice)", file.name, re.IGNORECASE) and file.is_file() and _inside(file, folder):
            found[file.name] = _read(file, MAX_TEXT_BYTES)
    return found


def with_license(folder: Path, provenance: Provenance) -> Provenance:
    """The same provenance with the licence that README.md's front matter declares, else that LICENSE* reads like."""
    if provenance.license is not None:
        return provenance
    readme = folder / "README.md"
    declared = _declared_license(_read(readme, MAX_TEXT_BYTES)) if readme.is_file() else None
    if declared is None:
        declared = next(filter(None, map(_license_of_text, read_licenses(folder).values())), None)
    return replace(provenance, license=declared)


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json completed from special_tokens_map.json, with special tokens as plain strings."""
    settings = _optional(folder / "tokenizer_config.json")
    for role, token in _optional(folder / "special_tokens_map.json").items():
        if settings.get(role) is None:
            settings[role] = token
    for role in ROLES:
        if isinstance(token := settings.get(role), dict):
            settings[role] = token.get("content")
        if not isinstance(settings.get(role, ""), (str, type(None))):
            raise SourceError(f"{role} is not a token", where=folder / "tokenizer_config.json", fix=RESAVE)
    return settings


def _tokenizer(folder: Path, settings: Mapping[str, Any]) -> tuple[bytes, Tokenizer]:
    """The tokenizer.json that does what transformers does with this folder, and the tokenizer it makes."""
    from tokenizers import Tokenizer

    where = folder / "tokenizer.json"
    if not where.is_file():
        kinds = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).is_file()]
        raise SourceError(f"no tokenizer.json{', only ' + kinds[0] if kinds else ''}", where=folder, fix=RESAVE)
    content = _read(where, MAX_TOKENIZER_BYTES)
    value = read_json(where, MAX_TOKENIZER_BYTES)
    changed = False
    if value.get("truncation") is not None or value.get("padding") is not None:
        # transformers sets both anew at each call; a bare tokenizer would cut prompts at the training length
        value |= {"truncation": None, "padding": None}
        content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        changed = _add_missing(tokenizer, value, settings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library's own panic is no Exception
        raise SourceError(f"not a usable tokenizer: {str(error)[:100]}", where=where, fix=RESAVE) from error
    return (tokenizer.to_str().encode("utf-8") if changed else content), tokenizer


def _add_missing(tokenizer: Tokenizer, value: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Adds the tokens that transformers adds on loading; says whether there were any."""
    from tokenizers import AddedToken

    present = {entry["content"]: entry for entry in value.get("added_tokens") or ()}
    wanted: dict[str, AddedToken] = {}
    decoder = settings.get("added_tokens_decoder") or {}
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
        flags = {flag: bool(entry.get(flag, False)) for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        wanted[entry["content"]] = AddedToken(entry["content"], **flags)
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    named = [settings.get(role) for role in ROLES] + list(extra.values() if isinstance(extra, dict) else extra)
    for token in named:
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text and text not in wanted:
            wanted[text] = AddedToken(text, special=True, normalized=False)
    specials = {token.get("content") if isinstance(token, dict) else token for token in named}
    missing = [token for text, token in wanted.items() if text not in present]
    silent = [wanted[text] for text in specials if text in present and not present[text].get("special") and text in wanted]
    for token in silent:
        token.special = True
    for token in missing + silent:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return bool(missing or silent)


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the key of tokenizer_config.json or chat_template.json; of named ones the default."""
    file = folder / "chat_template.jinja"
    if file.is_file() and _inside(file, folder):
        try:
            return _read(file, MAX_TEXT_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError("not UTF-8", where=file, fix="download it again") from error
    template: object = settings.get("chat_template") or _optional(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if isinstance(template, dict):
        template = template.get("default")
    if template is None or isinstance(template, str):
        return template or None
    raise SourceError("chat_template is not a text", where=folder / "tokenizer_config.json", fix=RESAVE)


def _sampling(where: Path, generation: Mapping[str, Any]) -> dict[str, float]:
    """What the authors set, and nothing else. As in transformers only `do_sample` makes a model sample: at 1 without a
    temperature, and a temperature without it is not heeded."""
    chosen: dict[str, float] = {}
    for name in SAMPLING:
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SourceError(f"{name} is not a number", where=where, fix="correct it, or remove the file")
        chosen[name] = value
    if generation.get("do_sample") is True:
        chosen.setdefault("temperature", 1.0)
    else:
        chosen.pop("temperature", None)
    return chosen


def _ids(where: Path, values: Mapping[str, Any], key: str) -> list[int]:
    value = values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(id_) is not int or not -1 <= id_ < 1 << 31 for id_ in ids):
        raise SourceError(f"{key} is not a token id", where=where, fix="correct it in the file")
    return [id_ for id_ in ids if id_ >= 0]  # -1 stands for none in older configs


def _declared_license(readme: bytes) -> str | None:
    """`license` of the YAML front matter; where it is "other", its `license_name`."""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme.decode("utf-8", "replace").replace("\r\n", "\n"), re.DOTALL)
    if front is None:
        return None
    found: list[tuple[str, str]] = re.findall(
        r"^(license|license_name):[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([^\"'\n#]+)", front[1], re.MULTILINE
    )
    declared = {key: value.strip() for key, value in found if value.strip()}
    if declared.get("license") == "other":
        return declared.get("license_name", "other")
    return declared.get("license")


def _license_of_text(content: bytes) -> str | None:
    words = " ".join(re.sub(r"[^a-z0-9.]+", " ", content[:4000].decode("utf-8", "replace").lower()).split())
    return next((name for phrase, name in LICENSE_PHRASES.items() if phrase in words), None)


def _inside(file: Path, folder: Path) -> bool:
    """Whether a file that is carried verbatim belongs to the model: the hub's cache links into its own blobs."""
    target, root = file.resolve(), folder.resolve()
    hub = root.parent.name == "snapshots" and (root.parent.parent / "blobs").resolve()
    return target.is_relative_to(root) or bool(hub and target.is_relative_to(hub))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=path, fix="check the file and its rights") from error
    if len(raw) > limit:
        raise SourceError(f"larger than {limit >> 20} MiB", where=path, fix="the file is damaged: get it again")
    return raw
