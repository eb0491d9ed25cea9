"""Tuning-free alignment: a base checkpoint answers like an assistant because a constant prompt shows it how.

A preamble and three solved examples, all in one manner, stand before the question; the model goes on in that manner. No
weight is changed, so this is how to try a checkpoint in the middle of a run, and the baseline that tuning has to beat.
Single and several turns; answers can be read as they are written (`Assistant`, and the command with one question).

Source: arXiv 2312.01552 (URIAL); the structure of the prompt is the authors', the words are ours.
Deviation: an answer ends where its own fence closes (the authors read on to the next query and delete every fence, which
also breaks code blocks inside an answer; ours stay). The repetition penalty counts only the answer's own tokens: the
examples are there to be imitated. `compare answers` judges what is written here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from shiftscope.core import answers, completion, corpus, statistics, streaming
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Text
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse
from shiftscope.core.streaming import Ending, Written, closing_fence, stop_strings

PROMPTS = Path(__file__).parent / "prompts"
FENCE, QUERY, ANSWER = "```", "{query}", "{answer}"
TURN = "\n# Query:\n```\n{query}\n```\n\n# Answer:\n```\n{answer}\n```\n"
SEPARATOR = "=== turn ===\n"
OTHER_STOPS = ("# User", "<|endoftext|>")  # where base models write that another document begins
NO_ROOM = "no room"  # how an answer ended that the conversation left no room for
ENDED = {
    "fence": "its fence closed", "stop": "a stop string", "end": "end of text", "length": "cut at the length allowed",
    NO_ROOM: "no room for an answer",
}  # fmt: skip
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("id", pa.string()), ("sample", pa.int32()), ("turn", pa.int32()),
        ("prompt", pa.string()), ("answer", pa.string()), ("ids", pa.list_(pa.int32())), ("ended", pa.string()),
        ("context_tokens", pa.int32()), ("constant_tokens", pa.int32()), ("repeated_share", pa.float64()),
    ]
)  # fmt: skip

Turn = tuple[str, str | None]
"""A query and its answer; None where the model is to write it."""


@dataclass(frozen=True)
class Writing:
    """How a base model is shown what to do, and what becomes of the answers.

    context: the constant prompt: `safer` (one of its examples is a refusal), `helpful`, or a file of your own. The file
    is taken as it is; after a line `=== turn ===` it may give the frame of a turn, with {query} and {answer} in it.
    stop: further texts that end an answer. repetition_penalty: against loops; 1 is none, the authors use 1.1 to 1.15.
    jsonl: also write prompts and answers here, for `compare answers` and `compare tokens`.
    """

    context: str = "safer"
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    jsonl: Path | None = None

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}: it must be above 0 (1 is none)")


@dataclass(frozen=True)
class Frame:
    """The constant text before every conversation, and how one turn of it is written."""

    constant: str
    turn: str = TURN

    def __post_init__(self) -> None:
        query, answer = self.turn.find(QUERY), self.turn.find(ANSWER)
        if not 0 <= query < answer or self.turn.count(QUERY) + self.turn.count(ANSWER) != 2:
            raise ValueError(f"the frame of a turn is {self.turn!r}: it must hold {QUERY} once, then {ANSWER} once")

    @property
    def pieces(self) -> tuple[str, str, str]:
        """What stands before the query, between it and the answer, and after the answer."""
        before, _, rest = self.turn.partition(QUERY)
        between, _, after = rest.partition(ANSWER)
        return before, between, after

    def rendered(self, turns: Sequence[Turn]) -> str:
        """The conversation as text: turns with an answer are closed, the one without is open for it."""
        before, between, after = self.pieces
        closed = (before + q + between + ("" if a is None else a + after) for q, a in turns)
        return self.constant + "".join(closed)

    def endings(self, stops: Sequence[str] = ()) -> Mapping[str, Ending]:
        """What ends an answer: the label of the next query (`stop`), and its own `fence` where the frame has one."""
        before, between, _ = self.pieces
        lines = [line.strip() for line in before.splitlines() if line.strip() and not line.startswith(FENCE)]
        label = (lines[-1].rstrip(":") if lines[-1].startswith("#") else lines[-1]) if lines else ""
        found = {"stop": stop_strings(*filter(None, [label]), *OTHER_STOPS, *stops)}
        return found | ({"fence": closing_fence(FENCE)} if between.rstrip().endswith(FENCE) else {})


def frame(context: str) -> Frame:
    """The frame of a shipped prompt or of a prompt file. Raises ValueError where there is none, or it is no UTF-8 text."""
    shipped = sorted(file.stem for file in PROMPTS.glob("*.txt"))
    path = PROMPTS / f"{context}.txt" if context in shipped else Path(context)
    if not path.is_file():
        raise ValueError(f"{context!r} is no prompt: give {' or '.join(shipped)}, or a text file of your own")
    try:
        constant, separator, turn = path.read_bytes().decode("utf-8").replace("\r\n", "\n").partition(SEPARATOR)
    except UnicodeDecodeError as error:
        raise ValueError(f"{context} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    return Frame(constant, turn) if separator else Frame(constant)


@dataclass
class Assistant:
    """A base checkpoint that answers; the constant prompt is read once and kept.

    `for piece in assistant.ask("…"): print(piece, end="")` streams an answer and remembers the conversation in `turns`.
    """

    model: str | Checkpoint
    writing: Writing = field(default_factory=Writing)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=1024))
    loading: Loading = field(default_factory=Loading)
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoint = opened(self.model, dtype=self.loading.dtype, device=self.loading.device)
        self.frame = frame(self.writing.context)
        self.endings = self.frame.endings(self.writing.stop)
        pair = zip(*(self.ids([(query, None)]) for query in ("a", "Z")), strict=False)
        constant = [first for first, _ in takewhile(lambda ids: ids[0] == ids[1], pair)]
        limit = self.checkpoint.context_length
        if limit is not None and len(constant) >= limit:
            raise ValueError(
                f"the prompt {self.writing.context} has {len(constant)} tokens and {self.checkpoint.name} reads at most "
                f"{limit}: take a model that reads more, or give a shorter prompt file with --context"
            )
        self.prefix = completion.read(self.checkpoint, constant) if constant else None

    def ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """A conversation in tokens, up to where its open turn begins to be answered."""
        return corpus.context_ids(self.checkpoint, Text(0, "0", self.frame.rendered(turns)))

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether a context leaves room for an answer."""
        limit = self.checkpoint.context_length
        return limit is None or len(ids) < limit

    def stream(self, contexts: Sequence[Sequence[int]], documents: Sequence[int]) -> Iterator[streaming.Piece]:
        """One answer after each context, piece by piece."""
        return streaming.stream(
            self.checkpoint, contexts, documents, sampling=self.sampling, endings=self.endings,
            repetition_penalty=self.writing.repetition_penalty, prefix=self.prefix,
        )  # fmt: skip

    def ask(self, question: str) -> Iterator[str]:
        """The answer to the next question of the conversation, piece by piece; it is remembered once it is whole."""
        said = []
        for piece in stripped(piece.text for piece in self.stream([self.ids([*self.turns, (question, None)])], [0])):
            said.append(piece)
            yield piece
        self.turns.append((question, "".join(said)))


def stripped(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in pieces, without white space at its ends."""
    held, started = "", False
    for piece in pieces:
        text = held + piece if started else (held + piece).lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        if body:
            started = True
            yield body


def urial(
    model: str | Checkpoint,
    question: str | None = None,
    *,
    prompts: Texts = None,
    limit: int | None = None,
    writing: Writing = Writing(),
    sampling: Sampling = Sampling(max_new_tokens=1024),
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Let a base checkpoint answer questions like an assistant, by a constant prompt and without training.

    model: the checkpoint (path, hub id, zoo name, or a loaded Checkpoint).
    question: one question, whose answer is shown as it is written.
    prompts: jsonl, parquet or txt with a prompt or chat messages per record; a user's message without an answer is
        answered in its turn. Without question and prompts, those that ship with the checkpoint.
    limit: only the first records.
    say: what takes the pieces of a single answer as they are written.
    Returns a Result whose table has one row per answer.
    Raises ValueError, in one sentence, for malformed prompts, a prompt beyond the context, and NaN logits.
    """
    if question is not None and prompts is not None:
        raise ValueError("both a question and --prompts are given: give one of them")
    if question is not None:
        refuse("--prompts", limit=(limit, None))
    assistant = Assistant(model, writing, sampling, loading)
    given = [{"prompt": question}] if question is not None else prompts
    parts, kept = parts or Parts(), {name: value for name, value in asdict(writing).items() if name != "jsonl"}
    settings = answers.provenance(
        assistant.checkpoint, prompts=given, limit=limit, writing=kept | asdict(assistant.frame),
        sampling=asdict(sampling), loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    texts = answers.corpus_of(given, assistant.checkpoint, limit, option="prompts")
    _check(assistant, texts)
    groups = [texts[start : start + loading.batch_size] for start in range(0, len(texts), loading.batch_size)]
    alone = say if question is not None and sampling.samples == 1 else None
    rows = parts.map(
        "urial", groups, lambda group: {"answers": written(assistant, group, alone)}, final=True,
        advance=None if advance is None or alone else lambda done, total: advance("answering", done, total),
    )["answers"]  # fmt: skip
    if writing.jsonl is not None:
        save_jsonl(rows, texts, writing.jsonl)
    return summarise(rows, texts, provenance=settings)


def conversation(text: Text) -> list[Turn]:
    """The turns of a record. Raises ValueError for roles other than user, assistant and a system message at the start.

    A system message opens the first query; neighbouring user messages are turns of their own.
    """
    turns: list[Turn] = []
    opening = ""
    for number, message in enumerate(text.messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"record {text.id}, message {number + 1} has no text as its content")
        if role == "system" and number == 0:
            opening = content + "\n\n"
        elif role == "user":
            turns.append(((opening if not turns else "") + content, None))
        elif role == "assistant" and turns and turns[-1][1] is None:
            turns[-1] = (turns[-1][0], content)
        else:
            raise ValueError(f"record {text.id}, message {number + 1} has the role {role!r}, which cannot stand there")
    turns = turns or [(text.prompt, None)]
    if turns[-1][1] is not None:
        raise ValueError(f"the conversation of record {text.id} ends with an answer: nothing is left to be written")
    return turns


def _check(assistant: Assistant, texts: Sequence[Text]) -> None:
    """Raises ValueError for the first conversation that is malformed, or too long before anything is written."""
    for text in texts:
        turns = conversation(text)
        known = list(takewhile(lambda turn: turn[1] is not None, turns))
        ids = assistant.ids([*known, turns[len(known)]])
        if not assistant.fits(ids):
            raise ValueError(
                f"record {text.id} and the prompt have {len(ids)} tokens and {assistant.checkpoint.name} reads at most "
                f"{assistant.checkpoint.context_length}, the answer included: shorten it, or give a shorter --context"
            )


def written(assistant: Assistant, texts: Sequence[Text], say: Callable[[str], None] | None = None) -> pa.Table:
    """The answers of a batch of conversations, one row each; all conversations take their next turn together."""
    samples, rows = assistant.sampling.samples, []
    talks = [(text, sample, conversation(text)) for text in texts for sample in range(samples)]
    constant = len(assistant.prefix.ids) if assistant.prefix else 0
    for turn in range(max(len(turns) for _, _, turns in talks)):
        open_talks = [talk for talk in talks if len(talk[2]) > turn and talk[2][turn][1] is None]
        contexts = [assistant.ids(turns[: turn + 1]) for _, _, turns in open_talks]
        fitting = [place for place, ids in enumerate(contexts) if assistant.fits(ids)]
        numbers = [open_talks[place][0].text * samples + open_talks[place][1] + (turn << 32) for place in fitting]
        pieces = assistant.stream([contexts[place] for place in fitting], numbers)
        done: dict[int, Written] = {}
        for piece in stripped(_texts(pieces, fitting, done)):
            if say:
                say(piece)
        for place, (text, sample, turns) in enumerate(open_talks):
            found = done.get(place, Written((), "", NO_ROOM))
            answer = found.text.strip()
            query, turns[turn] = turns[turn][0], (turns[turn][0], answer)
            rows.append(
                {
                    "text": text.text, "id": text.id, "sample": sample, "turn": turn, "prompt": query, "answer": answer,
                    "ids": list(found.ids), "ended": found.ended, "context_tokens": len(contexts[place]),
                    "constant_tokens": constant, "repeated_share": repeated_share(found.ids),
                }
            )  # fmt: skip
    rows.sort(key=lambda row: (row["text"], row["sample"], row["turn"]))
    return pa.Table.from_pylist(rows, schema=ROWS)


def _texts(pieces: Iterable[streaming.Piece], places: Sequence[int], done: dict[int, Written]) -> Iterator[str]:
    """The texts of the pieces; finished answers are put into `done` by their place."""
    for piece in pieces:
        if piece.written is not None:
            done[places[piece.row]] = piece.written
        yield piece.text


def repeated_share(ids: Sequence[int], n: int = 4) -> float | None:
    """Share of an answer's n-grams that stood in it before: near 1 for a loop. None where it has none."""
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else None


def save_jsonl(rows: pa.Table, texts: Sequence[Text], path: Path) -> None:
    """Write one record per answer: id, prompt, answer, and the messages before it where the record had some."""
    given = {text.text: text for text in texts}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for row in rows.to_pylist():
            text = given[row["text"]]
            name = "".join([text.id, *(f".{row[key]}" for key in ("sample", "turn") if _several(rows, key))])
            record: dict[str, Any] = {"id": name, "prompt": row["prompt"], "answer": row["answer"]}
            if text.reference is not None:
                record["reference"] = text.reference
            if row["turn"]:
                before = [r for r in rows.to_pylist() if (r["text"], r["sample"]) == (row["text"], row["sample"])]
                record["messages"] = _messages(text, {r["turn"]: r["answer"] for r in before}, row["turn"])
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _several(rows: pa.Table, column: str) -> bool:
    return len(rows) > 0 and max(rows[column].to_pylist()) > 0


def _messages(text: Text, written_answers: Mapping[int, str], turn: int) -> list[dict[str, str]]:
    found = []
    for number, (query, answer) in enumerate(conversation(text)[: turn + 1]):
        found.append({"role": "user", "content": query})
        if number < turn:
            said = written_answers[number] if answer is None else answer
            found.append({"role": "assistant", "content": said})
    return found


def summarise(rows: pa.Table, texts: Sequence[Text], *, provenance: Mapping[str, Any] | None = None) -> Result:
    """Figures, panels and verdict of the answers."""
    found = rows.to_pylist()
    groups, n = [row["text"] for row in found], len(found)
    ended = Counter(row["ended"] for row in found)
    figures = {"answers": Figure(n, "count", n)}
    measured: dict[str, tuple[list[int], str]] = {
        "answer_tokens_mean": ([len(row["ids"]) for row in found], "tokens"),
        "answer_words_mean": ([len(row["answer"].split()) for row in found], "words"),
        "empty_share": ([int(not row["answer"]) for row in found], "share"),
    }
    for key in ENDED:
        measured[f"ended_by_{key.replace(' ', '_')}_share"] = ([int(row["ended"] == key) for row in found], "share")
    for name, (values, unit) in measured.items():
        figures[name] = statistics.mean_figure(values, groups, unit=unit)
    looped = [(row["repeated_share"], row["text"]) for row in found if row["repeated_share"] is not None]
    if looped:
        own, groups = [pair[0] for pair in looped], [pair[1] for pair in looped]
        figures["repeated_4_grams_share"] = statistics.mean_figure(own, groups, unit="share")
    figures["constant_prompt_tokens"] = Figure(found[0]["constant_tokens"], "tokens", 1)
    by_themselves = n - ended["length"] - ended[NO_ROOM]
    verdict = [
        f"{by_themselves} of {n} answers ended by themselves; an answer has "
        f"{float(figures['answer_words_mean'].value):.3g} words on average."
    ]
    shown = [{"prompt": row["prompt"], "answer": row["answer"], "ended": ENDED[row["ended"]]} for row in found[:100]]
    bars = [{"ended": ENDED[key], "answers": ended[key]} for key in ENDED if ended[key]]
    panels = [
        Panel("Answers", "As they are read: up to what ended them.", "table", pa.Table.from_pylist(shown)),
        Panel(
            "How the answers ended", "What came first.", "bar", pa.Table.from_pylist(bars), x="ended", y="answers",
            x_title="ended by", y_title="answers",
        ),
    ]  # fmt: skip
    return Result("generate urial", rows, figures, provenance or {}, verdict, _notes(found, texts), panels)


def _notes(found: Sequence[Mapping[str, Any]], texts: Sequence[Text]) -> list[str]:
    notes = []
    cut = [row for row in found if row["ended"] == "length"]
    loops = sum((row["repeated_share"] or 0) > 0.5 for row in cut)
    if cut:
        hint = f"; {loops} of them repeat themselves: try --repetition-penalty 1.1" if loops else ""
        notes.append(f"{len(cut)} answers were cut at the length allowed{hint}")
    crowded = sum(row["ended"] == NO_ROOM for row in found)
    if crowded:
        notes.append(f"{crowded} later turns have no answer: the conversation before them fills the model's context")
    systems = sum(bool(text.messages) and text.messages[0].get("role") == "system" for text in texts)
    if systems:
        notes.append(f"{systems} conversations begin with a system message, which was put before their first question")
    return notes
