"""The structure of a collection of texts, found by a language model: dimensions, and the attributes of each.

Proposals are gathered over rounds of sampled texts, merged where they mean the same, and refined on further texts
(`core/slices/refinement.py`).

Source: arXiv 2405.02363, section 3.2; the words of the prompts are ours.
Deviations: a merge names the members it replaces, so that no attribute can vanish or appear in it; proposals are checked one
by one, so that a round costs one call instead of two; the number of dimensions is bounded, so that the cost is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shiftscope.core.slices.assignment import RESERVED, Voting, clipped, request_of
from shiftscope.core.slices.conversation import Asker, Question, Unfit, json_object, phrase, phrases
from shiftscope.core.slices.refinement import Refined, Refining, refine

TOKENS_PER_WORD = 1.4  # of a rough estimate
FRAME_WORDS = 90  # of a prompt without its texts


@dataclass(frozen=True)
class Discovery:
    """How the structure is found.

    dimension_rounds: rounds of proposals for dimensions. attribute_rounds: the same for the attributes of each dimension.
    round_texts: texts shown in each.
    proposals: dimensions asked for in a round. keep_share: a dimension stays that more than this share of rounds named.
    max_dimensions: at most so many, the most named ones. max_attributes: proposed for a dimension in one round.
    temperature: of all proposals.
    """

    dimension_rounds: int = 10
    attribute_rounds: int = 20
    round_texts: int = 20
    proposals: int = 5
    keep_share: float = 0.2
    max_dimensions: int = 6
    max_attributes: int = 10
    temperature: float = 0.7

    def __post_init__(self) -> None:
        least = (self.dimension_rounds, self.attribute_rounds, self.round_texts, self.proposals, self.max_dimensions)
        if min(least) < 1 or self.max_attributes < 2:
            raise ValueError("discovery needs 1 or more of every round, text and proposal, and 2 attributes or more")
        if not 0 <= self.keep_share < 1 or self.temperature < 0:
            raise ValueError(
                f"keep_share {self.keep_share} and temperature {self.temperature}: need a share in [0, 1) and a temperature "
                f"of 0 or more"
            )


@dataclass
class Structure:
    """What was found. criteria: dimension -> attributes; named: rounds that named each dimension; refined: what the
    refinement did, None without one; void: rounds without a fitting proposal.
    """

    criteria: dict[str, list[str]] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)
    refined: Refined | None = None
    void: int = 0


@dataclass(frozen=True)
class Cost:
    """At most how many calls and about how many tokens read each stage takes; answers asked again are not counted."""

    calls: Mapping[str, int]
    tokens: Mapping[str, int]

    @property
    def sentence(self) -> str:
        return f"at most {sum(self.calls.values()):,} calls, about {sum(self.tokens.values()):,} tokens read"


def cost(
    texts: Sequence[str],
    discovery: Discovery,
    refining: Refining,
    voting: Voting,
    criteria: Collection[str] | None = None,
) -> Cost:
    """What a run will take, before it starts. criteria: given dimensions; nothing is then discovered."""
    words = float(np.mean([min(len(text.split()), voting.text_words) for text in texts[:2000]]))
    one = TOKENS_PER_WORD * (words + FRAME_WORDS)
    dimensions = len(criteria) if criteria else discovery.max_dimensions
    calls, per_call = {"assign": len(texts) * dimensions * voting.votes}, {"assign": one}
    if not criteria:
        several = TOKENS_PER_WORD * (words * min(discovery.round_texts, len(texts)) + FRAME_WORDS)
        refined = min(refining.refine_texts, len(texts)) * dimensions
        calls |= {
            "dimensions": discovery.dimension_rounds + 1,
            "attributes": dimensions * (discovery.attribute_rounds + 2),
        }
        calls["refine"] = refined * (refining.refine_votes + 2)
        per_call |= {"dimensions": several, "attributes": several, "refine": one}
    return Cost(calls, {stage: math.ceil(count * per_call[stage]) for stage, count in calls.items()})


def discover(
    asker: Asker, texts: Sequence[str], discovery: Discovery, refining: Refining, voting: Voting, *, seed: int = 0
) -> Structure:
    """Find dimensions and attributes. Raises ValueError where the model's answers hold no structure."""
    found = Structure()
    _propose_dimensions(asker, texts, discovery, voting, seed, found)
    _propose_attributes(asker, texts, discovery, voting, seed, found)
    if refining.refine_texts:
        found.refined = refine(asker, texts, found.criteria, refining, voting, seed=seed)
        found.criteria = {
            dimension: _merged(asker, attributes, f"attributes of the dimension {dimension!r}", voting, seed + 2)
            for dimension, attributes in found.refined.criteria.items()
        }
    found.criteria = {dimension: known for dimension, known in found.criteria.items() if len(known) > 1}
    if not found.criteria:
        raise ValueError(f"{asker.backend.model} found no dimension with two attributes or more: try a larger model")
    return found


def _shown(texts: Sequence[str], count: int, words: int, key: Sequence[int]) -> str:
    picks = np.random.default_rng(list(key)).permutation(len(texts))[:count]
    return "\n".join(f"<text>\n{clipped(texts[pick], words)}\n</text>" for pick in picks)


def _propose_dimensions(
    asker: Asker, texts: Sequence[str], discovery: Discovery, voting: Voting, seed: int, found: Structure
) -> None:
    def parse(said: str) -> tuple[str, ...]:
        return phrases(said, "dimensions", most=discovery.proposals, max_words=3)

    questions = []
    for number in range(discovery.dimension_rounds):
        shown = _shown(texts, discovery.round_texts, voting.text_words, (seed, 1, number))
        task = (
            f"Task: dimensions\nName {discovery.proposals} aspects in which texts like these differ from each other. An "
            f"aspect is one lower-case keyword that could be a column of a table about them.\n"
            f'Form of the answer: {{"dimensions": ["keyword", …]}}\n\n{shown}'
        )
        questions.append(
            Question(request_of(task, voting, temperature=discovery.temperature, sample=number, seed=seed), parse)
        )
    replies = asker.check(questions)
    named = Counter(name for reply in replies if reply.found for name in reply.found if name not in RESERVED)
    found.void += sum(reply.found is None for reply in replies)
    least = int(discovery.dimension_rounds * discovery.keep_share) + 1
    found.named = {name: count for name, count in named.items() if count >= least}
    if not found.named:
        problems = sorted(
            {reply.problem for reply in replies if reply.problem}, key=lambda one: one.startswith("not asked")
        )
        problem = problems[0] if problems else "its proposals differ from round to round"
        if asker.failed and not asker.asked + asker.replayed:
            raise ValueError(f"{asker.backend.model} answered none of {len(replies)} questions: {problem}")
        raise ValueError(
            f"{asker.backend.model} named no dimension in {least} of {discovery.dimension_rounds} rounds ({problem}): "
            f"try a larger model, more rounds or a smaller --keep-share"
        )
    rounds: Counter[str] = Counter()  # of the merged names: the members' rounds, the largest
    for old, new in _renamed(asker, list(found.named), "dimensions of the collection", voting, seed).items():
        rounds[new] = max(rounds[new], found.named[old])
    found.criteria = {name: [] for name, _ in rounds.most_common(discovery.max_dimensions)}


def _propose_attributes(
    asker: Asker, texts: Sequence[str], discovery: Discovery, voting: Voting, seed: int, found: Structure
) -> None:
    def parse(said: str) -> tuple[str, ...]:
        return phrases(said, "attributes", most=discovery.max_attributes)

    rounds = [(place, number) for place in range(len(found.criteria)) for number in range(discovery.attribute_rounds)]
    names, questions = list(found.criteria), []
    for place, number in rounds:
        shown = _shown(texts, discovery.round_texts, voting.text_words, (seed, 2, place, number))
        task = (
            f"Task: attributes\nDimension: {names[place]}\nName the values that this dimension takes in these texts: at most "
            f"{discovery.max_attributes} key phrases of one to three words, all of one granularity.\n"
            f'Form of the answer: {{"attributes": ["phrase", …]}}\n\n{shown}'
        )
        questions.append(
            Question(request_of(task, voting, temperature=discovery.temperature, sample=number, seed=seed), parse)
        )
    for (place, _), reply in zip(rounds, asker.check(questions), strict=True):
        found.void += reply.found is None
        known = found.criteria[names[place]]
        known += [value for value in reply.found or () if value not in known and value not in RESERVED]
    for name, known in found.criteria.items():
        found.criteria[name] = _merged(asker, known, f"attributes of the dimension {name!r}", voting, seed + 1)


def _renamed(asker: Asker, names: Sequence[str], what: str, voting: Voting, seed: int) -> dict[str, str]:
    """The name that each name is known by once those that mean the same are put together."""
    if len(names) < 2:
        return {name: name for name in names}
    listed = "\n".join(f"- {name}" for name in names)
    task = (
        f"Task: merge\nThese are {what}. Put those together that mean the same or nearly so; leave out all that stand alone.\n"
        f'Form of the answer: {{"groups": [{{"name": "best keyword", "members": ["…", "…"]}}, …]}}, an empty list where none '
        f"belong together.\n\n{listed}"
    )
    request = replace(request_of(task, voting, seed=seed), max_tokens=max(voting.answer_tokens, 16 * len(names)))
    question: Question[dict[str, str]] = Question(request, lambda said: groups(said, names))
    renamed = asker.check([question])[0].found or {}
    return {name: renamed.get(name, name) for name in names}


def _merged(asker: Asker, names: Sequence[str], what: str, voting: Voting, seed: int) -> list[str]:
    return list(dict.fromkeys(_renamed(asker, names, what, voting, seed).values()))


def groups(said: str, names: Sequence[str]) -> dict[str, str]:
    """Which name replaces which, from the answer to a merge. Raises Unfit for members that are not among the names."""
    listed = json_object(said).get("groups")
    if not isinstance(listed, list):
        raise Unfit("`groups` must be a list")
    renamed: dict[str, str] = {}
    for group in listed:
        members = group.get("members") if isinstance(group, Mapping) else None
        if not isinstance(members, list) or len(members) < 2:
            raise Unfit("every group needs a `name` and two `members` or more")
        name, cleaned = phrase(group.get("name")), [phrase(member) for member in members]
        strange = [member for member in cleaned if member not in names or member in renamed]
        if strange or name in RESERVED:
            raise Unfit(f"{(strange or [name])[0]!r} is not in the list, or in two groups")
        if name in names and name not in cleaned:
            raise Unfit(f"the group {name!r} bears the name of an entry that is not in it")
        renamed |= dict.fromkeys(cleaned, name)
    if len(set(names)) > 2 and len({renamed.get(name, name) for name in names}) < 2:
        raise Unfit("everything is in one group: keep at least two apart")
    return renamed
