"""The tiny checkpoints that ship with the package: real ones, trained by the recipes beside, small enough for any test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "checkpoints"


def cards() -> list[dict[str, Any]]:
    """The card of every shipped checkpoint: name, about, licence, recipe and expected figures."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*/card.json"))]
