"""Load any checkpoint by local path, hub id, `@revision`, `+adapter` or zoo name, with its provenance.

`load` gives a causal language model with its verified unembedding; `open_model` a model of any kind: causal, masked
(masked diffusion and masked language models) or any-order.

A name is `org/name`, `./folder`, `org/name@revision`, either followed by `+adapter` (a PEFT folder or hub id), or the name
of a checkpoint that ships with the package (`shiftscope zoo` lists them).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from shiftscope.core.bytes import tokenizer_files
from shiftscope.core.denoising import masked_families
from shiftscope.core.head import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ZOO = Path(__file__).parent.parent / "zoo" / "checkpoints"
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
Kind = Literal["causal", "masked", "any-order"]
INSTEAD = {
    "causal": "use `generate bytes`, `generate ensemble` or `compare models`",
    "masked": "use `generate masked` or `compare decoders`",
    "any-order": "use `generate any-order`",
}


@dataclass(frozen=True)
class Checkpoint:
    """A causal language model with its tokenizer.

    name: as the user wrote it. model: in eval mode. head: the verified unembedding. provenance: where it came from.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can read at once, None where its configuration names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the unembedding (padding included)."""
        return int(self.head.weight.shape[0])


@dataclass(frozen=True)
class Source:
    """A parsed checkpoint name: the model's path or hub id, its revision, and an adapter's."""

    path: str
    revision: str | None = None
    adapter: str | None = None


def parse(name: str) -> Source:
    """Split 'org/name@revision+adapter'; an existing path is taken whole, a zoo name becomes its folder.

    Raises ValueError for a name that is neither an existing folder, nor a zoo name, nor of the form of a hub id.
    """
    if Path(name).exists():
        return Source(_folder(name))
    base, _, added = name.partition("+")
    path, _, revision = base.partition("@")
    adapter = added or None
    if Path(path).exists():
        return Source(_folder(path), revision or None, adapter)
    if (ZOO / path).is_dir():
        return Source(str(ZOO / path), None, adapter)
    looks_like_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        shipped = ", ".join(sorted(folder.name for folder in ZOO.glob("*") if folder.is_dir()))
        raise ValueError(
            f"{name!r} is no checkpoint: there is no such folder; give a folder, a hub id like org/name, or one of the "
            f"shipped checkpoints ({shipped})"
        )
    return Source(path, revision or None, adapter)


def _folder(path: str) -> str:
    if not Path(path).is_dir():
        raise ValueError(
            f"{path!r} is a file: a checkpoint is a folder in Hugging Face format (config.json, weights, tokenizer)"
        )
    if not (Path(path) / "config.json").exists() and not (Path(path) / "adapter_config.json").exists():
        raise ValueError(f"{path!r} holds no config.json: it is not a checkpoint in Hugging Face format")
    return path


@dataclass(frozen=True)
class Opened:
    """A model of any kind with its tokenizer. model: in eval mode. provenance: where it came from."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any] = field(default_factory=dict)


def load(name: str, *, dtype: DTypeName = "auto", device: str = "auto") -> Checkpoint:
    """Load a causal language model and its tokenizer.

    dtype: 'auto' is float32 on a CPU and the checkpoint's own type on an accelerator. device: 'auto' is cuda if present.
    A `+adapter` is merged into the copy in memory; a folder that holds only an adapter is put on the base that it names.
    Raises ValueError, in one sentence, for a name that is no checkpoint or a model that is not causal.
    """
    opened = open_model(name, "causal", dtype=dtype, device=device)
    return Checkpoint(name, opened.model, opened.tokenizer, Head(opened.model), opened.provenance)


def open_model(name: str, kind: Kind, *, dtype: DTypeName = "auto", device: str = "auto") -> Opened:
    """Load a model of a kind and its tokenizer; dtype, device and adapters as for `load`.

    Raises ValueError, in one sentence, for a name that is no checkpoint or a model of another kind (with what reads it).
    """
    source = parse(name)
    if (Path(source.path) / "adapter_config.json").exists() and not (Path(source.path) / "config.json").exists():
        base = json.loads((Path(source.path) / "adapter_config.json").read_text())["base_model_name_or_path"]
        source = Source(parse(base).path, None, source.path)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    chosen = "float32" if dtype == "auto" and device == "cpu" else dtype
    model, tokenizer = _read(name, source, kind, "auto" if chosen == "auto" else getattr(torch, chosen))
    try:
        model.to(torch.device(device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {_first_line(error)}") from error
    provenance = {
        "name": name,
        "revision": source.revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "adapter": source.adapter,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device,
        "sha256": _hashes(source),
    }
    return Opened(name, model, tokenizer, provenance)


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "model in memory") -> Checkpoint:
    """A Checkpoint from a model that the caller already has; the model stays the caller's and is not altered."""
    provenance = {"name": name, "architecture": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch.")}
    return Checkpoint(name, model, tokenizer, Head(model), provenance)


def opened(checkpoint: str | Checkpoint, *, dtype: DTypeName = "auto", device: str = "auto") -> Checkpoint:
    """The checkpoint itself, or loaded by name."""
    return load(checkpoint, dtype=dtype, device=device) if isinstance(checkpoint, str) else checkpoint


def _read(name: str, source: Source, kind: Kind, dtype: torch.dtype | str) -> tuple[Any, PreTrainedTokenizerBase]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, PreTrainedConfig
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config, _ = PreTrainedConfig.get_config_dict(source.path, revision=source.revision)
        found = kind_of(config)
        if found is not None and found != kind:
            raise ValueError(f"it is {_WORDS[found]} ({_architecture(config)}): {INSTEAD[found]}")
        own = tokenizer_files.of_folder(source.path)
        if own is not None and own.name == "tekken.json":
            tokenizer = tokenizer_files.wrapped(own)
        else:
            tokenizer = masked_families.read_tokenizer(source.path, config, source.revision)
        options = {"revision": source.revision or "main", "dtype": dtype}
        if kind == "masked":
            model, told = masked_families.read(source.path, config, **options)
        else:
            causal: Any = AutoModelForCausalLM
            model, told = causal.from_pretrained(source.path, output_loading_info=True, **options)
        if missing := sorted(told["missing_keys"]):
            raise ValueError(
                f"its files hold no {missing[0]} ({len(missing)} weights are missing), so it would be random"
            )
        if source.adapter:
            model = _with_adapter(model, source.adapter)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"{name!r} cannot be loaded as {_WORDS[kind]}: {_first_line(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model, tokenizer


_WORDS = {
    "causal": "a causal language model",
    "masked": "a masked language model",
    "any-order": "an any-order language model",
}


def kind_of(config: dict[str, Any]) -> Kind | None:
    """What a configuration says its checkpoint is; None where it does not say."""
    architecture = _architecture(config)
    if config.get("model_type") == "xlnet":
        return "any-order"
    if config.get("model_type") in masked_families.NATIVE or architecture.endswith("ForMaskedLM"):
        return "masked"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    return None


def kind_named(name: str) -> Kind | None:
    """What the configuration of a checkpoint says it is, by name; None where it does not say. Raises as `parse`."""
    from transformers import PreTrainedConfig

    source = parse(name)
    try:
        return kind_of(PreTrainedConfig.get_config_dict(source.path, revision=source.revision)[0])
    except OSError as error:
        raise ValueError(f"{name!r} cannot be loaded: {_first_line(error)}") from error


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [config.get("model_type", "")])[0])


def _with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError("a `+adapter` needs the package peft: pip install 'shiftscope[train]'") from error
    path, _, revision = adapter.partition("@")
    return PeftModel.from_pretrained(model, path, revision=revision or None).merge_and_unload()


def _hashes(source: Source) -> dict[str, str]:
    """sha256 of the weight and configuration files of a local folder (a hub commit pins them otherwise)."""
    found = {}
    for folder in filter(None, (source.path, source.adapter)):
        for file in sorted(Path(folder).glob("*")) if Path(folder).is_dir() else []:
            if file.suffix in (".safetensors", ".bin", ".json", ".model") and file.name != "card.json":
                with file.open("rb") as stream:
                    found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def check_same_vocabulary(base: Checkpoint, tuned: Checkpoint) -> None:
    """The two tokenizers must give every id the same meaning; the model's padding beyond them may differ.

    Raises ValueError naming the first difference, with what to use instead.
    """
    difference = vocabulary_difference(base, tuned)
    if difference:
        raise ValueError(f"{difference}: the vocabularies differ; use `compare bytes` instead")


def vocabulary_difference(base: Checkpoint, tuned: Checkpoint) -> str:
    """What differs between two vocabularies, in words; empty where every id means the same."""
    ours, theirs = base.tokenizer.get_vocab(), tuned.tokenizer.get_vocab()
    if ours == theirs:
        return ""
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    added = [token for token in differing if token not in ours and theirs[token] < base.vocabulary_size]
    if len(added) == len(differing):  # the tuned tokenizer names ids that were padding in the base
        return ""
    token = differing[0]
    return (
        f"{tuned.name} has {len(theirs)} tokens and {base.name} has {len(ours)}, and {len(differing)} differ (first: "
        f"{token!r}, id {ours.get(token)} against {theirs.get(token)})"
    )
