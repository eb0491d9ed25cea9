"""The named tensors of any checkpoint, without building a model: safetensors, torch state dicts, folders, hub ids, modules.

Only the tensors that a caller asks for by name and shape are read, so that a large checkpoint costs what is used of it.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.core import checkpoints

Shape = tuple[int, ...]
Wanted = Callable[[str, Shape], bool]
Source = str | Path | Mapping[str, Tensor] | nn.Module
NESTED = ("state_dict", "model", "model_state_dict")  # where training scripts keep the state dict in a torch file
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Tensors:
    """Tensors of a checkpoint by name, in the checkpoint's order.

    found: those that were asked for, on the CPU, in their own type. seen: how many the checkpoint has in all.
    """

    name: str
    found: Mapping[str, Tensor]
    seen: int
    provenance: Mapping[str, Any] = field(default_factory=dict)


def read(source: Source, wanted: Wanted, name: str = "the weights in memory") -> Tensors:
    """The wanted tensors of a checkpoint.

    source: a .safetensors or torch file, a folder of such files, a zoo name, a hub id (with @revision), a state dict, or
    a module (never altered). wanted: (name, shape) -> whether to read it. name: for weights that are given in memory.
    Raises ValueError, in one sentence, for what is no checkpoint, holds no tensors, cannot be read, or holds a tensor
    in two files (a folder with the same weights twice, in two precisions say).
    """
    if isinstance(source, nn.Module):
        source = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    if isinstance(source, Mapping):
        return _given(source, wanted, name)
    files = _files(str(source))
    found: dict[str, Tensor] = {}
    seen = 0
    for file in files:
        tensors, count = (_safetensors if file.suffix == ".safetensors" else _torch)(file, wanted)
        if twice := sorted(found.keys() & tensors.keys()):
            raise ValueError(
                f"{source} holds {twice[0]} twice, again in {file.name}: give the one file that is meant, of "
                f"{', '.join(each.name for each in files)}"
            )
        found |= tensors
        seen += count
    if not seen:
        raise ValueError(f"{source} holds no tensors: give a checkpoint with weights")
    hashes = {}
    for file in files:
        with file.open("rb") as stream:
            hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return Tensors(str(source), found, seen, {"name": str(source), "sha256": hashes})


def _given(state: Mapping[str, Tensor], wanted: Wanted, name: str) -> Tensors:
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        what = f"{others[0]!r} is a {type(state[others[0]]).__name__}" if others else "it is empty"
        raise ValueError(f"{name} are no state dict ({what}): give a mapping from names to tensors")
    found = {key: value.detach().cpu() for key, value in state.items() if wanted(key, tuple(value.shape))}
    return Tensors(name, found, len(state), {"name": name})


def _files(source: str) -> Sequence[Path]:
    path = Path(source)
    if path.is_file():
        if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
            raise ValueError(
                f"{source} ends in {path.suffix or 'nothing'}: weights are .safetensors, .pt, .pth or .bin"
            )
        return [path]
    if not path.is_dir():
        if path.suffix == ".safetensors" or path.suffix in TORCH_SUFFIXES:
            raise ValueError(f"{source} is not a file: give a file of weights, a folder of them or a hub id")
        parsed = checkpoints.parse(source)
        if parsed.adapter:
            raise ValueError(
                f"{source}: weights are read from files as they are; merge the adapter into a folder first"
            )
        path = Path(parsed.path) if Path(parsed.path).is_dir() else _fetched(source, parsed)
    files = sorted(path.glob("*.safetensors")) or sorted(
        file for file in path.glob("*") if file.suffix in TORCH_SUFFIXES and not file.stem.startswith("training_args")
    )
    if not files:
        raise ValueError(f"{source} holds no weights: there is no .safetensors, .pt, .pth or .bin file in it")
    return files


def _fetched(source: str, parsed: checkpoints.Source) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(parsed.path, revision=parsed.revision, allow_patterns=["*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(parsed.path, revision=parsed.revision, allow_patterns=["*.bin", "*.pth"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source!r} cannot be fetched: {str(error).strip().splitlines()[0].rstrip('.')}") from error
    return folder


def _safetensors(file: Path, wanted: Wanted) -> tuple[dict[str, Tensor], int]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            kept = [name for name in names if wanted(name, tuple(opened.get_slice(name).get_shape()))]
            return {name: opened.get_tensor(name) for name in kept}, len(names)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def _torch(file: Path, wanted: Wanted) -> tuple[dict[str, Tensor], int]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is broken, or holds other objects than tensors (a whole model?), which only its own code could read: "
            f"save `model.state_dict()` instead, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().split(". ")[0].splitlines()
        raise ValueError(
            f"{file} cannot be read as a torch state dict: {reason[0] if reason else type(error).__name__}"
        ) from error
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds a {type(state).__name__}: save `model.state_dict()` instead")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value for name, value in tensors.items() if wanted(name, tuple(value.shape))}, len(tensors)
