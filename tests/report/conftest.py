"""Seeded results with the shape of `compare models` on two language models, made without any model."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from shiftscope.core.result import Figure, Panel, Result

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "with",
    "be",
    "on",
    "by",
    "this",
    "are",
    "or",
    "an",
    "from",
    "at",
    "which",
    "not",
    "have",
    "one",
    "can",
    "all",
    "if",
    "each",
    "model",
    "token",
    "law",
    "base",
    "returns",
    "value",
    "list",
    "string",
    "file",
    "object",
    "function",
    "class",
    "type",
    "error",
    "name",
    "module",
    "number",
    "key",
    "default",
    "open",
    "read",
    "write",
    "path",
    "line",
]
PIECES = [f" {word}" for word in WORDS] + WORDS + [".", ",", "\n", "\n\n", "  ", "(", ")", ":", "é", "漢字", "\t", '"']
HOSTILE = "</script><img src=x onerror=alert(1)>"


def law_table(
    n_texts: int, n_tokens: int, *, seed: int = 0, top: int = 10, pieces: list[str] = PIECES, prompt: str = ""
) -> pa.Table:
    """A `compare tokens` table: most positions hardly move, some move a lot; lists and scalars agree with each other."""
    rng = np.random.default_rng(seed)
    n, v = n_texts * n_tokens, len(pieces)
    top = min(top, v)
    base_NV = np.log(rng.dirichlet(np.full(v, 0.05), n) + 1e-9).astype(np.float32)
    push_N = np.where(rng.random(n) < 0.15, rng.exponential(2.5, n), rng.exponential(0.05, n))[:, None]
    tuned_NV = base_NV + push_N * rng.normal(size=(n, v)).astype(np.float32)
    base_NV -= np.logaddexp.reduce(base_NV, axis=1, keepdims=True)
    tuned_NV -= np.logaddexp.reduce(tuned_NV, axis=1, keepdims=True)
    p_NV, q_NV = np.exp(base_NV), np.exp(tuned_NV)
    mid_NV = np.log((p_NV + q_NV) / 2)
    rows = np.arange(n)
    base_top, tuned_top = np.argsort(-base_NV, axis=1)[:, :top], np.argsort(-tuned_NV, axis=1)[:, :top]
    token_N = (tuned_NV + rng.gumbel(size=(n, v))).argmax(1)
    rank = lambda logp_NV, ids_N: (logp_NV > logp_NV[rows, ids_N][:, None]).sum(1)  # noqa: E731
    base_rank = rank(base_NV, tuned_top[:, 0])
    order = np.argsort(np.argsort(-base_NV, axis=1), axis=1)
    moved = q_NV - p_NV
    bucket = {
        "flow_1": (0, 1),
        "flow_2_3": (1, 3),
        "flow_4_10": (3, 10),
        "flow_11_100": (10, 100),
        "flow_over_100": (100, v + 1),
    }
    lists = lambda values: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), top)  # noqa: E731
    pick = lambda logp_NV, ids: np.take_along_axis(logp_NV, ids, axis=1).astype(np.float32)  # noqa: E731
    columns = {
        "text": np.repeat(np.arange(n_texts, dtype=np.int32), n_tokens),
        "position": np.tile(np.arange(n_tokens, dtype=np.int32), n_texts),
        "token_id": token_N.astype(np.int32),
        "token": [pieces[i] for i in token_N],
        "js_nats": np.maximum(0, 0.5 * (p_NV * (base_NV - mid_NV) + q_NV * (tuned_NV - mid_NV)).sum(1)),
        "kl_base_tuned_nats": (p_NV * (base_NV - tuned_NV)).sum(1),
        "kl_tuned_base_nats": (q_NV * (tuned_NV - base_NV)).sum(1),
        "tv": 0.5 * np.abs(moved).sum(1),
        "entropy_base_nats": -(p_NV * base_NV).sum(1),
        "entropy_tuned_nats": -(q_NV * tuned_NV).sum(1),
        "logp_base_nats": base_NV[rows, token_N],
        "logp_tuned_nats": tuned_NV[rows, token_N],
        "rank_base": rank(base_NV, token_N).astype(np.int32),
        "rank_tuned": rank(tuned_NV, token_N).astype(np.int32),
        "top1_base": base_top[:, 0].astype(np.int32),
        "top1_tuned": tuned_top[:, 0].astype(np.int32),
        "rank_base_of_tuned_top1": base_rank.astype(np.int32),
        "p_base_of_tuned_top1": p_NV[rows, tuned_top[:, 0]],
        "class": np.select([base_rank == 0, base_rank < 3], ["unshifted", "marginal"], "shifted"),
        "top_base_ids": lists(base_top.astype(np.int32)),
        "top_tuned_ids": lists(tuned_top.astype(np.int32)),
        "top_base_logp": lists(pick(base_NV, base_top)),
        "top_tuned_logp": lists(pick(tuned_NV, tuned_top)),
        "top_base_logp_tuned": lists(pick(tuned_NV, base_top)),
        "top_tuned_logp_base": lists(pick(base_NV, tuned_top)),
        **{name: (moved * ((order >= low) & (order < high))).sum(1) for name, (low, high) in bucket.items()},
    }
    table = pa.table(
        {
            name: pa.array(v.astype(np.float32)) if getattr(v, "dtype", None) == np.float64 else pa.array(v)
            for name, v in columns.items()
        }
    )
    texts = [
        {"text": i, "id": f"doc-{i}", "prompt": prompt or f"What does case {i} return?", "answer": "…"}
        for i in range(n_texts)
    ]
    metadata = {
        b"tokens": json.dumps({str(i): piece for i, piece in enumerate(pieces)}).encode(),
        b"texts": json.dumps(texts).encode(),
    }
    return table.replace_schema_metadata(metadata)


def noise_table(n_texts: int, n_tokens: int, *, n_vocabulary: int = 30_000, top: int = 10, seed: int = 0) -> pa.Table:
    """The columns of `law_table` filled with noise: the hardest table of its size to compress, and quick to make."""
    rng = np.random.default_rng(seed)
    n, pattern = n_texts * n_tokens, law_table(1, 2)
    token_N = rng.integers(0, n_vocabulary, n).astype(np.int32)
    fixed = {
        "text": np.repeat(np.arange(n_texts, dtype=np.int32), n_tokens),
        "position": np.tile(np.arange(n_tokens, dtype=np.int32), n_texts),
        "token_id": token_N,
        "token": [f" w{i}" for i in token_N],
        "class": rng.choice(["unshifted", "marginal", "shifted"], n),
        "js_nats": np.minimum(0.69, rng.exponential(0.05, n)).astype(np.float32),
    }
    columns = {}
    for name, kind in zip(pattern.column_names, pattern.schema.types, strict=True):
        if name in fixed:
            columns[name] = pa.array(fixed[name])
        elif pa.types.is_fixed_size_list(kind):
            ids = name.endswith("ids")
            flat = (
                rng.integers(0, n_vocabulary, n * top).astype(np.int32)
                if ids
                else -rng.exponential(3, n * top).astype(np.float32)
            )
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), top)
        elif pa.types.is_integer(kind):
            columns[name] = pa.array(rng.integers(0, n_vocabulary, n).astype(np.int32))
        else:
            columns[name] = pa.array(rng.random(n).astype(np.float32))
    pieces = {str(i): f" w{i}" for i in range(n_vocabulary)}
    return pa.table(columns).replace_schema_metadata({b"tokens": json.dumps(pieces).encode()})


def chart_panels(seed: int = 1) -> list[Panel]:
    """One panel of each kind that is not `texts`."""
    rng = np.random.default_rng(seed)
    x = np.arange(40)
    two = {
        side: 0.3 * np.exp(-x / 9) + shift + 0.01 * rng.random(40) for side, shift in (("base", 0.05), ("tuned", 0.11))
    }
    curve = pa.table(
        {
            "position": np.tile(x, 2),
            "js": np.concatenate(list(two.values())),
            "low": np.concatenate(list(two.values())) - 0.02,
            "high": np.concatenate(list(two.values())) + 0.02,
            "side": ["base"] * 40 + ["tuned"] * 40,
        }
    )
    js = np.sort(rng.exponential(0.05, 300))
    cdf = pa.table({"js_nats": js, "share": np.arange(1, 301) / 300})
    flow = pa.table(
        {
            "base_rank": ["1", "2–3", "4–10", "11–100", "> 100"],
            "moved": [-0.31, 0.2, 0.08, 0.02, 0.01],
            "lo": [-0.33, 0.18, 0.07, 0.015, 0.008],
            "hi": [-0.29, 0.22, 0.09, 0.025, 0.012],
        }
    )
    long = pa.table({"token type": [f"a long token type {i}" for i in range(10)], "share": np.linspace(0.9, 0.1, 10)})
    grid = pa.table(
        {"layer": np.repeat(np.arange(12), 16), "window": np.tile(np.arange(16), 12), "change": rng.normal(size=192)}
    )
    entropy = rng.exponential(1, 400)
    cloud = pa.table(
        {
            "entropy_base": entropy,
            "js.weird[0]": 0.1 * entropy + 0.05 * rng.random(400),
            "kind": np.where(entropy > 1, "open", "narrow"),
        }
    )
    wide = pa.table({"token": PIECES[:40] * 6, "count": np.arange(240), "mean_js_nats": rng.exponential(0.05, 240)})
    return [
        Panel(
            "How the shift is spread",
            "Share of positions with a divergence up to x.",
            "line",
            cdf,
            x="js_nats",
            y="share",
            x_title="JS (nats)",
            y_title="share of positions",
            log_x=True,
        ),
        Panel(
            "Where in the answer",
            "Mean divergence by position; bands are 95 % bootstrap intervals.",
            "line",
            curve,
            x="position",
            y="js",
            low="low",
            high="high",
            series="side",
            x_title="position (tokens)",
            y_title="mean JS (nats)",
        ),
        Panel(
            "Where the mass went",
            "Probability moved by the rank a token had in the base model.",
            "bar",
            flow,
            x="base_rank",
            y="moved",
            low="lo",
            high="hi",
            x_title="rank in the base model",
            y_title="probability moved",
        ),
        Panel(
            "Most shifted token types",
            "Share of their occurrences above 0.1 nats.",
            "bar",
            long,
            x="token type",
            y="share",
            y_title="share above 0.1 nats",
        ),
        Panel("Change by layer and window", "Tuned minus base.", "heat", grid, x="window", y="layer", color="change"),
        Panel(
            "Divergence and entropy",
            "Each dot is a position.",
            "points",
            cloud,
            x="entropy_base",
            y="js.weird[0]",
            series="kind",
            x_title="base entropy (nats)",
            y_title="JS (nats)",
        ),
        Panel("Token types", "By count.", "table", wide),
    ]


def models_result(table: pa.Table, *, prompt: str = "") -> Result:
    """A composite of two parts, with a heat map, charts, notes, provenance and a command."""
    charts = chart_panels()
    js = table["js_nats"].to_numpy()
    figures = {
        "js_mean_nats": Figure(float(js.mean()), "nats", len(js), float(js.mean() * 0.93), float(js.mean() * 1.08)),
        "js_share_above_0.1": Figure(float((js > 0.1).mean()), "share", len(js), 0.09, 0.13),
        "js_share_below_0.01": Figure(float((js < 0.01).mean()), "share", len(js), 0.7, 0.76),
        "kl_base_tuned_nats": Figure(0.2213, "nats", len(js), 0.19, 0.25),
        "tuned_top1_in_base_top3_share": Figure(0.9996, "share", len(js), 0.998, 1.0),
    }
    tokens = Result(
        "compare tokens",
        table,
        figures,
        verdict=[
            "The tuned model moved little and in few places: 11 % of positions carry most of the shift, mean JS 0.031 nats (0.029 to 0.033)."
        ],
        notes=["Noise floor of the base model against itself in two batch layouts: 3×10⁻⁷ nats."],
        panels=[
            *charts[:4],
            Panel(
                "The texts",
                "Each token is coloured by how far the two next-token laws are apart where it was written.",
                "texts",
                table,
            ),
        ],
    )
    layers = Result(
        "compare layers",
        pa.table({"layer": [0]}),
        {"window_stable": Figure(True, "", 12), "transport_terminal_delta": Figure(-0.0421, "nats", 12, -0.05, -0.03)},
        verdict=["The change sits in the last third of the layers."],
        panels=charts[4:],
    )
    return Result(
        "compare models",
        pa.table({"part": ["tokens", "layers"]}),
        {},
        parts=[tokens, layers],
        provenance={
            "base": {"name": "docs-base", "sha256": "4f1c…", "dtype": "float32"},
            "tuned": {"name": "docs-code", "sha256": "99ab…"},
            "command": f"shiftscope compare models docs-base docs-code --out runs/docs {prompt}".strip(),
            "seed": 0,
            "versions": {"torch": "2.13.0", "shiftscope": "0.1.0"},
        },
        verdict=[
            "docs-code has left docs-base in 11 % of positions and agrees almost exactly in 74 % of them.",
            "The shift is strongest in the first ten tokens of an answer and inside code; mean JS is 0.031 nats (95 % 0.029 to 0.033, n = 60,000).",
        ],
    )


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pa.Table]:
    return law_table


@pytest.fixture(scope="session")
def make_noise() -> Callable[..., pa.Table]:
    return noise_table


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    return models_result


@pytest.fixture(scope="session")
def panels() -> list[Panel]:
    return chart_panels()


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE
