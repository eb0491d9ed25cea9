"""Correct a structure on texts it was not made from: where votes differ or nothing fits, ask why, and change what is wrong.

Source: arXiv 2405.02363, section 3.3; the words of the prompts are ours.
Deviations: agreement that nothing fits is a missing attribute, not a new attribute of that name; a duplicate is replaced by
the unified keyword instead of joined by it; the number of texts is a budget, and full coverage ends it early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shiftscope.core.slices.assignment import NONE, RESERVED, Criteria, Sorted, Voting, by_votes, clipped, request_of
from shiftscope.core.slices.conversation import Asker, Question, Unfit, json_object, one_of, phrase

DIAGNOSES = ("hallucination", "hard_case", "redundant", "missing")
WINDOW = 20  # texts that must be covered before refinement ends early


@dataclass(frozen=True)
class Refining:
    """How the structure is corrected. refine_texts: texts that it may look at (0: no refinement). refine_votes: of each text
    and dimension. coverage: it ends once this share of the last 20 texts fitted everywhere and changed nothing.
    """

    refine_texts: int = 40
    refine_votes: int = 3
    coverage: float = 1.0

    def __post_init__(self) -> None:
        if self.refine_texts < 0 or self.refine_votes < 1 or not 0 < self.coverage <= 1:
            raise ValueError(
                f"refine_texts {self.refine_texts}, refine_votes {self.refine_votes}, coverage {self.coverage}: need texts of "
                f"0 or more, 1 vote or more and a coverage in (0, 1]"
            )


@dataclass
class Refined:
    """Corrected criteria. changes: made, as sentences; texts: looked at; sortings: of them, by dimension; covered: how many
    sortings found a fitting attribute before any change they led to.
    """

    criteria: dict[str, list[str]]
    changes: list[str] = field(default_factory=list)
    texts: int = 0
    sortings: int = 0
    covered: int = 0


def refine(
    asker: Asker, texts: Sequence[str], criteria: Criteria, refining: Refining, voting: Voting, *, seed: int = 0
) -> Refined:
    """Correct the criteria on texts drawn without replacement, one after the other."""
    found = Refined({dimension: list(known) for dimension, known in criteria.items()})
    order = np.random.default_rng([seed, 3]).permutation(len(texts))[: refining.refine_texts]
    votes = replace(voting, votes=refining.refine_votes)
    calm: list[bool] = []
    for pick in order:
        before = len(found.changes)
        row = by_votes(asker, [texts[pick]], found.criteria, votes, seed=seed + 1)[0]
        fits = [outcome.attribute not in RESERVED for outcome in row.values()]
        found.texts, found.sortings, found.covered = (
            found.texts + 1, found.sortings + len(fits), found.covered + sum(fits),
        )  # fmt: skip
        for dimension, outcome in row.items():
            if len(outcome.ballots) > 1 or set(outcome.ballots) == {NONE}:
                _correct(asker, texts[pick], dimension, outcome, voting, found, seed)
        calm = [*calm[1 - WINDOW :], all(fits) and len(found.changes) == before]
        if len(calm) == WINDOW and sum(calm) >= refining.coverage * WINDOW:
            break
    return found


def _correct(
    asker: Asker, text: str, dimension: str, outcome: Sorted, voting: Voting, found: Refined, seed: int
) -> None:
    """One diagnosis, and the change it asks for where a second question confirms it."""
    known = found.criteria[dimension]
    task = (
        f"Task: diagnose\nDimension: {dimension}\nAttributes: {'; '.join(known)}\nVotes: {'; '.join(outcome.ballots)}\n"
        f'Sorting the text gave these votes ("{NONE}": nothing fits). Why? hallucination: a vote is wrong; hard_case: the text '
        f"is unclear; redundant: the votes name attributes of one meaning (keyword: the name for all of them); missing: an "
        f"attribute is missing (keyword: its name).\n"
        f'Form of the answer: {{"diagnosis": "…", "keyword": "…"}}\n\n<text>\n{clipped(text, voting.text_words)}\n</text>'
    )
    parse: Callable[[str], tuple[str, str]] = diagnosis
    said = asker.check([Question(request_of(task, voting, seed=seed), parse)])[0].found
    if said is None or said[0] not in ("redundant", "missing"):
        return
    kind, keyword = said
    doubles = [name for name in outcome.ballots if name in known] if kind == "redundant" else []
    if (kind == "missing" and keyword in known) or (kind == "redundant" and len(doubles) < 2):
        return
    if not _confirmed(asker, dimension, known, keyword, doubles, voting, seed):
        return
    renamed = [keyword if name in doubles else name for name in known]
    found.criteria[dimension] = list(dict.fromkeys(renamed if doubles else [*known, keyword]))
    found.changes.append(
        f"{dimension}: {' and '.join(doubles)} became {keyword}" if doubles else f"{dimension}: {keyword} was missing"
    )


def _confirmed(
    asker: Asker, dimension: str, known: Sequence[str], keyword: str, doubles: Sequence[str], voting: Voting, seed: int
) -> bool:
    question = (
        f"Replaces: {'; '.join(doubles)}\nDo these mean the same, and is the new attribute a name for all of them?"
        if doubles
        else "Does the new attribute belong to this dimension, at the granularity of the others?"
    )
    task = (
        f"Task: validate\nDimension: {dimension}\nAttributes: {'; '.join(known)}\nNew: {keyword}\n{question}\n"
        f'Form of the answer: {{"answer": "yes"}} or {{"answer": "no"}}'
    )
    request = request_of(task, voting, seed=seed)
    return asker.check([Question(request, lambda said: one_of(said, "answer", ("yes", "no")))])[0].found == "yes"


def diagnosis(said: str) -> tuple[str, str]:
    """The diagnosis and its keyword ('' where it needs none) of an answer. Raises Unfit for another kind."""
    kind = one_of(said, "diagnosis", DIAGNOSES)
    if kind not in ("redundant", "missing"):
        return kind, ""
    return kind, keyword_of(json_object(said).get("keyword"))


def keyword_of(value: object) -> str:
    """A keyword that an attribute may have. Raises Unfit for one that is reserved."""
    keyword = phrase(value)
    if keyword in RESERVED:
        raise Unfit(f"{keyword!r} is no attribute: name what is missing")
    return keyword
