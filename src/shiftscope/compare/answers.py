"""Are the answers good, and is B better than A? A judge scores every answer by aspect; two files are compared in pairs.

One question gives helpfulness, clarity, factuality, depth and engagement, from 1 to 5; safety is asked apart. The judge is
any OpenAI-compatible endpoint or a Python function. An aspect that has no meaning for a query, a reply that cannot be read
and a judge that does not answer are counted apart; none of them is ever a score. `generate urial` writes such files.

Source: arXiv 2312.01552 (the judge of just-eval); the words of the question are ours.
Deviation: "N/A" counts as no score (there it counts as 5); every mean has a bootstrap interval over prompts; a difference
is that of the same prompts, with a sign-flip permutation test.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from shiftscope.core import corpus, statistics
from shiftscope.core.answers import Advance, identified
from shiftscope.core.corpus import Text
from shiftscope.core.endpoint import Asking
from shiftscope.core.judge import (
    ASPECTS,
    HIGHEST,
    LOWEST,
    REGULAR,
    SAFETY,
    Judge,
    Opinion,
    load,
    opinion,
    prompt_hash,
    question,
)
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread

Source = str | Path | Sequence[Mapping[str, Any]]
NOT_SCORED = {
    "not applicable": "the judge says that the aspect has no meaning for the query",
    "unparsed": "the judge's reply could not be read",
    "unanswered": "the judge did not reply",
}
BATCH = 32  # questions of one part
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("side", pa.string()), ("id", pa.string()), ("prompt", pa.string()),
        ("answer", pa.string()), ("words", pa.int32()), ("aspect", pa.string()), ("score", pa.float64()),
        ("status", pa.string()), ("reason", pa.string()), ("problem", pa.string()), ("reply", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Judging:
    """What a judge is asked.

    aspects: of the five regular ones. safety: `marked` asks records with "safety": true about safety alone and the others
    about the aspects; `all` asks every record both; `none` leaves it out. attempts: readings of a judge that answers
    off-format, each told what was wrong. max_tokens: longest reply. permutations: of the test. judge_seed: of bootstrap
    and test.
    """

    aspects: tuple[str, ...] = REGULAR
    safety: Literal["marked", "all", "none"] = "marked"
    attempts: int = 3
    max_tokens: int = 1024
    permutations: int = 10_000
    judge_seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.aspects if name not in REGULAR]
        if unknown or not self.aspects or len(set(self.aspects)) < len(self.aspects):
            raise ValueError(f"aspects are {', '.join(self.aspects) or 'none'}: choose from {', '.join(REGULAR)}")
        if min(self.attempts, self.max_tokens, self.permutations) < 1:
            raise ValueError(
                f"attempts {self.attempts}, max_tokens {self.max_tokens}, permutations {self.permutations}: each must be "
                f"at least 1"
            )


@dataclass(frozen=True)
class Question:
    """One question to the judge: about the answer of one side to one prompt."""

    text: Text
    side: str
    aspects: tuple[str, ...]


def answers(
    a: Source,
    b: Source | None = None,
    *,
    judge: str | Judge | Callable[[str], str],
    limit: int | None = None,
    judging: Judging = Judging(),
    asking: Asking = Asking(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Let a judge score the answers in a file, or compare two files of answers to the same prompts.

    a, b: jsonl or parquet with a prompt (or messages) and an answer per record; two files are paired by id, else by order.
    judge: an endpoint http://host:port/v1#model, or module:function, a Python function of the question that returns its
        reply.
    limit: only the first records of each file.
    Returns a Result whose table has one row per answer and aspect; without a score, it says why.
    Raises ValueError for records without an answer, files that do not pair, and a spec that names no judge.
    """
    if b is None:
        unread(judging, Judging(), "a second file of answers", "permutations")
    if not (isinstance(judge, str) and judge.startswith(("http://", "https://"))):
        unread(judging, Judging(), "a judge at an endpoint", "max_tokens")
        unread(asking, Asking(), "a judge at an endpoint")
    asked_of = judge if isinstance(judge, Judge) else load(judge, asking=asking, max_tokens=judging.max_tokens)
    sides, notes = _sides(a, b, limit)
    settings = {
        "judge": asked_of.name,
        "question_sha256": prompt_hash(),
        "settings": {"a": identified(a), "b": identified(b), "limit": limit, "judging": asdict(judging)},
        "versions": {"shiftscope": version("shiftscope")},
    }
    parts = parts or Parts()
    parts.settle(settings)
    questions = [
        Question(text, side, aspects)
        for side, texts in sides.items()
        for text, marked in texts
        for aspects in _aspects(marked, judging)
    ]
    groups = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    rows = parts.map(
        "judge", groups, lambda group: {"scores": judged(asked_of, group, judging.attempts)}, final=True,
        advance=None if advance is None else lambda done, total: advance("judging", done, total),
    )["scores"]  # fmt: skip
    return summarise(rows, judging=judging, provenance=settings, notes=notes)


def _aspects(marked: bool, judging: Judging) -> list[tuple[str, ...]]:
    """The questions that a record gets, each a set of aspects."""
    if judging.safety == "all":
        return [judging.aspects, SAFETY]
    return [SAFETY if marked and judging.safety == "marked" else judging.aspects]


def _read(source: Source, limit: int | None) -> list[tuple[Text, bool]]:
    """The records of a file with an answer each, and whether they are marked as a matter of safety."""
    texts = corpus.read(source, limit)
    name = str(source) if isinstance(source, str | Path) else "the given records"
    for text in texts:
        if text.answer is None:
            raise ValueError(f"{name}, record {text.text + 1} has no `answer`: there is nothing to judge")
    marks = [bool(record.get("safety", False)) for record in itertools.islice(corpus.records(source), len(texts))]
    return list(zip(texts, marks, strict=True))


def _sides(a: Source, b: Source | None, limit: int | None) -> tuple[dict[str, list[tuple[Text, bool]]], list[str]]:
    """The answers of each side, numbered alike; with two files, the records that both have.

    Raises ValueError where an id occurs twice, where no id is in both, and where prompts under one id differ.
    """
    first = _read(a, limit)
    if b is None:
        return {"a": first}, []
    second = _read(b, limit)
    by_id = {side: {text.id: (text, mark) for text, mark in texts} for side, texts in (("a", first), ("b", second))}
    for side, texts in (("a", first), ("b", second)):
        if len(by_id[side]) < len(texts):
            twice = Counter(text.id for text, _ in texts).most_common(1)[0][0]
            raise ValueError(f"id {twice!r} occurs twice in {side}: answers are paired by id, so each must be its own")
    common = [text.id for text, _ in first if text.id in by_id["b"]]
    if not common:
        raise ValueError(
            f"no id of a (such as {first[0][0].id!r}) is in b (such as {second[0][0].id!r}): nothing pairs"
        )
    sides: dict[str, list[tuple[Text, bool]]] = {"a": [], "b": []}
    for number, name in enumerate(common):
        (text_a, mark_a), (text_b, mark_b) = by_id["a"][name], by_id["b"][name]
        if text_a.prompt != text_b.prompt:
            raise ValueError(
                f"id {name!r} is {text_a.prompt[:60]!r} in a and {text_b.prompt[:60]!r} in b: pairs need the same prompt"
            )
        for side, text in (("a", text_a), ("b", text_b)):
            numbered = Text(number, name, text.prompt, text.answer, text.reference, text.messages)
            sides[side].append((numbered, mark_a or mark_b))
    left = (len(first) - len(common), len(second) - len(common))
    return sides, [f"{left[0]} answers of a and {left[1]} of b have no partner and are left out"] if any(left) else []


def judged(judge: Judge, questions: Sequence[Question], attempts: int) -> pa.Table:
    """One row per question and aspect, scored or with the reason why not."""

    def ask(item: Question) -> Opinion:
        text = item.text
        asked = question(text.prompt, text.answer or "", item.aspects, text.messages[:-1])
        return opinion(judge, asked, item.aspects, attempts)

    rows = []
    for item, found in zip(questions, judge.map(ask, questions), strict=True):
        text, answer = item.text, item.text.answer or ""
        for aspect in item.aspects:
            score, status = found.scores.get(aspect), found.status(aspect)
            failed = status in ("unparsed", "unanswered")
            rows.append(
                {
                    "text": text.text, "side": item.side, "id": text.id, "prompt": text.prompt, "answer": answer,
                    "words": len(answer.split()), "aspect": aspect, "score": score.value if score else None,
                    "status": status, "reason": score.reason if score else None,
                    "problem": found.problem if failed else None, "reply": found.reply if status == "unparsed" else None,
                }
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ROWS)


def sign_flip_p_value(differences_N: ArrayLike, groups_N: ArrayLike, *, permutations: int, seed: int) -> float:
    """Two-sided p value of a mean difference: how often random signs of the groups' sums reach it. In (0, 1].

    Exact over all sign patterns where there are no more of them than permutations; else their share plus one over n.
    """
    sums_G, _ = statistics.group_sums(differences_N, groups_N)
    sums_G = np.abs(sums_G[sums_G != 0])
    total = abs(float(np.sum(np.asarray(differences_N, dtype=np.float64))))
    if len(sums_G) < 30 and 2 ** len(sums_G) <= permutations:
        signs_SG = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sums_G)))).reshape(2 ** len(sums_G), -1)
        return float(np.mean(np.abs(signs_SG @ sums_G) >= total - 1e-9))
    generator, reached = np.random.default_rng(seed), 0
    for start in range(0, permutations, 1000):
        signs_SG = generator.choice((-1.0, 1.0), (min(1000, permutations - start), len(sums_G)))
        reached += int((np.abs(signs_SG @ sums_G) >= total - 1e-9).sum())
    return (reached + 1) / (permutations + 1)


def summarise(
    rows: pa.Table,
    *,
    judging: Judging = Judging(),
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Figures, panels and verdict of the scores; the order of the rows does not matter."""
    found = sorted(rows.to_pylist(), key=lambda row: (row["text"], row["side"], row["aspect"]))
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(row["prompt"] for row in found))}
    for row in found:
        row["group"] = prompts[row["prompt"]]
    sides = sorted({row["side"] for row in found})
    aspects = [name for name in ASPECTS if any(row["aspect"] == name for row in found)]
    figures, means, more = {}, [], list(notes)
    for side in sides:
        mine = [row for row in found if row["side"] == side]
        suffix = f"_{side}" if len(sides) > 1 else ""
        for aspect in aspects:
            own = [row for row in mine if row["aspect"] == aspect]
            kept = [row for row in own if row["status"] == "scored"]
            if kept:
                mean = _mean([row["score"] for row in kept], kept, judging, "points")
                figures[f"{aspect}{suffix}"] = mean
                means.append(
                    {"aspect": aspect, "answers": side, "mean": mean.value, "low": mean.low, "high": mean.high}
                )
            more += _missing(aspect, side if suffix else "", own, kept)
        once = list({row["text"]: row for row in mine}.values())
        figures[f"answer_words{suffix}"] = _mean([row["words"] for row in once], once, judging, "words")
        counts = Counter(row["status"] for row in mine)
        for status in ("scored", *NOT_SCORED):
            figures[f"{status.replace(' ', '_')}{suffix}"] = Figure(counts[status], "count", len(mine))
    for aspect in aspects if len(sides) > 1 else ():
        figures |= _difference(aspect, found, judging)
    problems = Counter(row["problem"] for row in found if row["problem"])
    more += [f"{count} scores are missing for this reason: {problem}" for problem, count in problems.most_common(3)]
    verdict = _verdict(figures, aspects, sides)
    return Result("compare answers", rows, figures, provenance or {}, verdict, more, _panels(found, means, aspects))


def _mean(values: Sequence[float], rows: Sequence[Mapping[str, Any]], judging: Judging, unit: str) -> Figure:
    return statistics.mean_figure(values, [row["group"] for row in rows], unit=unit, seed=judging.judge_seed)


def _missing(aspect: str, side: str, own: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the answers without a score could change: the mean if all of them were worst, or best."""
    lost = sum(row["status"] in ("unparsed", "unanswered") for row in own)
    name = f"{aspect} of {side}" if side else aspect
    if not lost:
        return (
            []
            if kept or not own
            else [f"{name} has no mean: the judge finds it applicable to none of {len(own)} answers"]
        )
    if not kept:
        return [f"{name} has no mean: none of {len(own)} answers was scored"]
    total, n = sum(row["score"] for row in kept), len(kept) + lost
    worst, best = (total + LOWEST * lost) / n, (total + HIGHEST * lost) / n
    return [
        f"{lost} of {len(own)} scores of {name} are missing: with them the mean would lie within {worst:.3g} and {best:.3g}"
    ]


def _difference(aspect: str, found: Sequence[Mapping[str, Any]], judging: Judging) -> dict[str, Figure]:
    """B minus A over the prompts where both are scored: mean, test, and who is better how often."""
    scores = {(row["side"], row["text"]): row for row in found if row["aspect"] == aspect and row["status"] == "scored"}
    pairs = [(scores["a", text], row) for (side, text), row in scores.items() if side == "b" and ("a", text) in scores]
    if not pairs:
        return {}
    gaps = np.array([b["score"] - a["score"] for a, b in pairs])
    rows, groups = [b for _, b in pairs], [b["group"] for _, b in pairs]
    p_value = sign_flip_p_value(gaps, groups, permutations=judging.permutations, seed=judging.judge_seed)
    return {
        f"{aspect}_b_minus_a": _mean(gaps.tolist(), rows, judging, "points"),
        f"{aspect}_p_value": Figure(p_value, "probability", len(pairs)),
        f"{aspect}_b_better_share": _mean((gaps > 0).tolist(), rows, judging, "share"),
        f"{aspect}_equal_share": _mean((gaps == 0).tolist(), rows, judging, "share"),
        f"{aspect}_a_better_share": _mean((gaps < 0).tolist(), rows, judging, "share"),
    }


def _verdict(figures: Mapping[str, Figure], aspects: Sequence[str], sides: Sequence[str]) -> list[str]:
    if len(sides) == 1:
        said = [f"{name} {float(figures[name].value):.3g}" for name in aspects if name in figures]
        n = figures["scored"].n
        return [f"On a scale from 1 to 5: {', '.join(said)}." if said else f"None of {n} scores could be had."]
    tested = [name for name in aspects if f"{name}_b_minus_a" in figures]
    if not tested:
        return ["No answer was scored on both sides: nothing can be compared."]
    sentences, level = [], 0.05 / len(tested)
    sure = [name for name in tested if float(figures[f"{name}_p_value"].value) <= level]
    for side, sign in (("B", 1), ("A", -1)):
        better = [name for name in sure if sign * float(figures[f"{name}_b_minus_a"].value) > 0]
        if better:
            gains = [f"{name} (by {abs(float(figures[f'{name}_b_minus_a'].value)):.2g} points)" for name in better]
            sentences.append(f"{side} is better in {', '.join(gains)}.")
    rest = [name for name in tested if name not in sure]
    if rest:
        sentences.append(
            f"No difference beyond chance in {', '.join(rest)} (sign-flip test, {len(tested)} aspects corrected)."
        )
    return sentences


def _panels(found: Sequence[Mapping[str, Any]], means: list[dict[str, Any]], aspects: Sequence[str]) -> list[Panel]:
    panels = []
    if means:
        several = len({row["answers"] for row in means}) > 1
        panels.append(
            Panel(
                "Scores by aspect", "Means from 1 to 5 with 95 % intervals over prompts.", "bar",
                pa.Table.from_pylist(means), x="aspect", y="mean", low="low", high="high",
                series="answers" if several else "", x_title="aspect", y_title="mean score (1 to 5)",
            )
        )  # fmt: skip
    counts = Counter((row["aspect"], row["side"], row["status"]) for row in found)
    table = [
        {"aspect": aspect, "answers": side} | {s: counts[aspect, side, s] for s in ("scored", *NOT_SCORED)}
        for aspect in aspects
        for side in sorted({row["side"] for row in found})
    ]
    caption = "; ".join(f"{status}: {meaning}" for status, meaning in NOT_SCORED.items())
    panels.append(Panel("What was scored", f"{caption}.", "table", pa.Table.from_pylist(table)))
    lowest = sorted((row for row in found if row["status"] == "scored"), key=lambda row: row["score"])[:30]
    if lowest:
        columns = ("side", "aspect", "score", "reason", "prompt", "answer")
        shown = pa.Table.from_pylist([{name: row[name] for name in columns} for row in lowest])
        panels.append(Panel("The lowest scores", "With the judge's reasons.", "table", shown))
    return panels
