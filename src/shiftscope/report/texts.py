"""Texts: the table of a `texts` panel packed small for the page's heat map of tokens.

Every column becomes a typed array: its bytes are grouped by significance (all low bytes, then all high ones), deflated
and written in base64. Divergences and log-probabilities are kept as float16 (three digits, as many as the page prints),
token ids as indices into the pieces that occur. 200 answers of 300 tokens with two top-5 lists stay under 7 MB even
when they are noise.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shiftscope.core.result import Panel

POSITION_LIMIT = 60_000
TEXT_LIMIT = 1000
TOP = 5
REQUIRED = ("text", "position", "token", "js_nats")
TOP_IDS = ("top_base_ids", "top_tuned_ids")
TOP_LOGP = ("top_base_logp", "top_tuned_logp", "top_base_logp_tuned", "top_tuned_logp_base")
HALF = (
    "js_nats",
    "kl_base_tuned_nats",
    "kl_tuned_base_nats",
    "tv",
    "entropy_base_nats",
    "entropy_tuned_nats",
    "logp_base_nats",
    "logp_tuned_nats",
    "p_base_of_tuned_top1",
    "flow_1",
    "flow_2_3",
    "flow_4_10",
    "flow_11_100",
    "flow_over_100",
)
LEFT_OUT = (*REQUIRED[:3], "token_id", "top1_base", "top1_tuned", *TOP_IDS, *TOP_LOGP)


def pack(panel: Panel) -> dict[str, Any]:
    """The content of a `texts` panel as plain JSON values, for heatmap.js.

    Keys: texts (number, id and prompt of each shown text), starts (first row of each, and the end), pieces (the display
    form of each token, by local index), columns (name -> {type, width, data} or {words, ...} for strings), total_texts,
    total_positions (how many the table has: texts are dropped, evenly spaced, beyond TEXT_LIMIT or POSITION_LIMIT).
    Raises: ValueError when the table lacks a column the heat map cannot do without.
    """
    missing = [name for name in REQUIRED if name not in panel.table.column_names]
    if missing:
        raise ValueError(
            f"panel {panel.title!r} lacks the columns {missing}: a heat map of tokens needs {list(REQUIRED)}"
        )
    whole = panel.table.sort_by([("text", "ascending"), ("position", "ascending")])
    text_N = whole["text"].to_numpy()
    ids, counts = np.unique(text_N, return_counts=True)
    shown = _chosen(counts)
    table = whole.filter(pa.array(np.isin(text_N, ids[shown]))).combine_chunks()
    pieces, tokens = _tokens(table)
    about = {entry["text"]: entry for entry in _metadata(table, b"texts", [])}
    return {
        "texts": [_about(int(i), about.get(int(i), {})) for i in ids[shown]],
        "starts": [0, *np.cumsum(counts[shown]).tolist()],
        "pieces": pieces,
        "columns": {name: _typed(values) for name, values in tokens.items()} | _columns(table),
        "total_texts": len(ids),
        "total_positions": len(text_N),
    }


def unpack(column: dict[str, Any]) -> np.ndarray:
    """The typed array of a packed column, as heatmap.js reads it; rows × width for lists."""
    dtype = np.dtype(column["type"])
    planes = np.frombuffer(zlib.decompress(base64.b64decode(column["data"])), np.uint8).reshape(dtype.itemsize, -1)
    values = np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
    return values.reshape(-1, column["width"]) if column["width"] > 1 else values


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no markup can begin or end in it, whatever the texts hold."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _chosen(counts: np.ndarray) -> np.ndarray:
    """Indices of the texts to show: all, or evenly spaced ones that keep within the limits (at least one)."""
    n = min(len(counts), TEXT_LIMIT)
    while n > 1:
        chosen = np.arange(n) * len(counts) // n
        positions = int(counts[chosen].sum())
        if positions <= POSITION_LIMIT:
            return chosen
        n = max(1, min(n - 1, int(n * POSITION_LIMIT / positions)))
    return np.arange(min(1, len(counts)))


def _about(number: int, entry: dict[str, Any]) -> dict[str, Any]:
    return {"text": number, "id": str(entry.get("id", number)), "prompt": str(entry.get("prompt", ""))}


def _metadata(table: pa.Table, key: bytes, default: Any) -> Any:
    stored = (table.schema.metadata or {}).get(key)
    return default if stored is None else json.loads(stored)


def _tokens(table: pa.Table) -> tuple[list[str], dict[str, np.ndarray]]:
    """The pieces that occur, and every column of tokens (emitted, top lists) as indices into them."""
    forms = table["token"].to_pylist()
    if "token_id" not in table.column_names:
        kinds = list(dict.fromkeys(forms))
        place = {form: i for i, form in enumerate(kinds)}
        return kinds, {"token": np.array([place[form] for form in forms], np.int64)}
    known = {int(i): piece for i, piece in _metadata(table, b"tokens", {}).items()}
    columns = {"token": table["token_id"].to_numpy()}
    known |= dict(zip(columns["token"].tolist(), forms, strict=True))
    for name in TOP_IDS:
        if name in table.column_names:
            columns[name] = _matrix(table[name])[:, :TOP]
    ids = np.unique(np.concatenate([values.reshape(-1) for values in columns.values()]))
    return [known.get(int(i), f"#{i}") for i in ids], {
        name: np.searchsorted(ids, values) for name, values in columns.items()
    }


def _columns(table: pa.Table) -> dict[str, Any]:
    """Every other column: scalars, the log-probabilities of the top lists, and strings as indices into their words."""
    packed = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if name in TOP_LOGP:
            packed[name] = _typed(_matrix(table[name])[:, :TOP].astype("f2"))
        elif name == "position" or name not in LEFT_OUT:
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                coded = (
                    table[name].combine_chunks().dictionary_encode()
                    if table.num_rows
                    else pa.array([""]).dictionary_encode()
                )
                coded = coded if isinstance(coded, pa.DictionaryArray) else coded.combine_chunks()
                packed[name] = _typed(pc.fill_null(coded.indices, 0).to_numpy()) | {
                    "words": coded.dictionary.to_pylist()
                }
            elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
                packed[name] = _typed(_scalar(name, table[name]))
    return packed


def _scalar(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers: float16 for the known nats and probabilities, whole numbers as they are, else float32."""
    if pa.types.is_boolean(column.type):
        return pc.fill_null(column, False).to_numpy().astype(np.int64)
    if pa.types.is_integer(column.type) and column.null_count == 0:
        values = column.to_numpy()
        return values if not len(values) or values.min() >= 0 else values.astype("f4")
    floats = pc.cast(column, pa.float64()).to_numpy()
    return floats.astype("f2" if name in HALF else "f4")


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A list column of one length as rows × length."""
    flat = pc.list_flatten(column).to_numpy()
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1)


def _typed(values: np.ndarray) -> dict[str, Any]:
    """A typed array for the page: whole numbers in the least unsigned width, bytes grouped by place, deflated."""
    if values.dtype.kind in "iu":
        highest = int(values.max()) if values.size else 0
        values = values.astype("u1" if highest < 1 << 8 else "<u2" if highest < 1 << 16 else "<u4")
    planes = np.ascontiguousarray(values.reshape(-1)).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()
    width = values.shape[1] if values.ndim == 2 else 1
    return {
        "type": values.dtype.str.lstrip("<|"),
        "width": width,
        "data": base64.b64encode(zlib.compress(planes, 9)).decode(),
    }
