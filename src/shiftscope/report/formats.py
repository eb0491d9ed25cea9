"""Formats: figures, numbers and names as people read them, the same in the terminal and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from shiftscope.core.result import Figure, Result

UPPER = {
    "js": "JS",
    "kl": "KL",
    "tv": "TV",
    "sft": "SFT",
    "rl": "RL",
    "ess": "ESS",
    "auc": "AUC",
    "mmd2": "MMD²",
    "auroc": "AUROC",
    "fpr95": "FPR95",
    "nll": "NLL",
}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Any) -> str:
    """A number to four significant digits (thousands separated, powers of ten below 0.0001), yes or no, or the text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return _float(value)
    return marked(str(value))


def marked(text: str) -> str:
    """A text whose outer spaces and newlines can be seen, so that ' be' and 'be' differ in a table."""
    inner = text.strip(" ")
    lead = "␣" * (len(text) - len(text.lstrip(" ")))
    trail = "␣" * (len(text) - len(text.rstrip(" "))) if inner else ""
    return lead + inner.replace("\n", "↵").replace("\t", "⇥") + trail


def percent(value: float) -> str:
    """A share in percent to three significant digits; what is not all is never shown as 100 %."""
    if 0.999995 < value < 1:
        return "> 99.999 %"
    for digits in range(3, 6):
        text = f"{100 * value:#.{digits}g}".rstrip(".")
        if float(text) != 100 or value == 1:
            break
    return f"{_float(100 * value) if abs(float(text)) < 0.001 else text.replace('-', '−')} %"


def value(figure: Figure) -> str:
    """The value of a figure with its unit: '17.0 %', '0.057 nats', 'yes'."""
    return _with_unit(figure.value, figure.unit)


def interval(figure: Figure) -> str:
    """The interval of a figure: '0.051 to 0.063'; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    if figure.unit == "share" or figure.unit.startswith("share of "):
        return f"{percent(figure.low).removesuffix(' %')} to {percent(figure.high)}"
    return f"{_float(float(figure.low), 3)} to {_float(float(figure.high), 3)}"


def label(name: str, unit: str = "") -> str:
    """A figure's name as words: js_mean_nats in nats is 'JS mean'; a divergence keeps its direction."""
    for suffix in {unit, unit.replace("/", "_per_")} - {""}:
        name = name.removesuffix(f"_{suffix}") if suffix != "share" else name
    name = re.sub(r"kl_(base|tuned|model|against)_(base|tuned|model|against)", r"KL(\1‖\2)", name)
    name = re.sub(r"_([ab])_in_([ab])(?=_|$)", lambda side: f"_of_{side[1].upper()}_in_{side[2].upper()}", name)
    name = re.sub(r"\.(?=[a-zA-Z])", " · ", name)
    words = [UPPER.get(word, word) for word in name.split("_")]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def _with_unit(quantity: Any, unit: str) -> str:
    if isinstance(quantity, (bool, str)):
        return number(quantity)
    if unit == "share":
        return percent(float(quantity))
    if unit.startswith("share of "):
        return f"{percent(float(quantity))} {unit.removeprefix('share ')}"
    text = _float(quantity, 3) if isinstance(quantity, float) else number(quantity)
    return text if unit in ("", "count", "ratio") else f"{text} {unit}"


def _float(quantity: float, digits: int = 4) -> str:
    if math.isnan(quantity):
        return "–"
    if math.isinf(quantity):
        return "∞" if quantity > 0 else "−∞"
    size = abs(quantity)
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e9:
        mantissa, exponent = f"{quantity:.2e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−")
    text = f"{quantity:,.0f}" if size >= 10 ** (digits - 1) else f"{quantity:.{digits}g}"
    return text.replace("-", "−")


def pair(result: Result) -> list[str]:
    """The names of the models a result is about, base first, from its provenance or its parts'; empty when unknown."""
    names = [
        _name(result.provenance[side]) for side in ("base", "tuned", "model", "a", "b") if result.provenance.get(side)
    ]
    if names or not result.parts:
        return names
    return pair(result.parts[0])


def _name(entry: Any) -> str:
    return str(entry.get("name", "unnamed")) if isinstance(entry, Mapping) else str(entry)
