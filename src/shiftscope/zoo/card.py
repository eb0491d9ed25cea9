"""Saving a zoo checkpoint: Hugging Face files plus card.json, which says what it is and what it should measure."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LICENCE = "Apache-2.0"


def save(
    folder: Path,
    model: Any,
    tokenizer: Any,
    *,
    about: str,
    recipe: str,
    figures: Mapping[str, tuple[float, str]],
    dtype: torch.dtype | None = None,
    verifier: str | None = None,
    prompts: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write model, tokenizer and card into folder, and return folder; the model given is left as it is.

    about: what the checkpoint is and what it was trained on. recipe: 'module:function' that trains it.
    figures: name -> (value, unit), measured on the weights as they are stored.
    dtype: type of the stored weights; None keeps the model's own. verifier: 'module:function' that scores its answers.
    prompts: rows that comparisons use when they are given no texts, written as prompts.jsonl.
    Raises ValueError, before anything is written, for a figure that is no finite number.
    """
    folder = Path(folder)
    for name, (value, unit) in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"the figure {name} is {value} {unit}: a card holds finite numbers only")
    folder.mkdir(parents=True, exist_ok=True)
    stored = model if dtype is None else copy.deepcopy(model).to(dtype)
    stored.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    card = {
        "name": folder.name,
        "about": about,
        "licence": LICENCE,
        "recipe": recipe,
        "figures": {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()},
    }
    if verifier:
        card["verifier"] = verifier
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    if prompts:
        lines = (json.dumps(dict(row), ensure_ascii=False) for row in prompts)
        (folder / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder
