"""generate urial: the gates of arXiv 2312.01552 on the styles, frames and stops, turns and streaming."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from shiftscope.compare.tokens import summarise as shift
from shiftscope.core import checkpoints, corpus, paired
from shiftscope.core.answers import Loading
from shiftscope.core.decode import Sampling, sample
from shiftscope.core.parts import Parts
from shiftscope.core.positions import described, measure
from shiftscope.generate.urial import (
    FENCE,
    SEPARATOR,
    TURN,
    Assistant,
    Frame,
    Writing,
    conversation,
    frame,
    repeated_share,
    stripped,
    urial,
)
from shiftscope.zoo import styles

GREEDY = Sampling(max_new_tokens=styles.ANSWER_TOKENS)


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("styles-base")


@pytest.fixture(scope="module")
def aligned_answers():
    """Entity -> the tuned model's greedy answer to the bare question, by plain sampling."""
    tuned = checkpoints.load("styles-sft")
    contexts = [tuned.tokenizer(styles.prompt(entity))["input_ids"] for entity in styles.ENTITIES]
    found = sample(tuned, contexts, range(len(contexts)), GREEDY)
    return dict(zip(styles.ENTITIES, found, strict=True))


def prompt_file(folder, shown, seed, name="prompt.txt"):
    """A prompt file of solved examples, one per style, about pets that tuning saw; and which pets those are."""
    pets = random.Random(seed).sample(styles.TUNED_ENTITIES, len(shown))
    examples = (styles.prompt(pet) + styles.answer(pet, style) for pet, style in zip(pets, shown, strict=True))
    (folder / name).write_text("".join(examples) + SEPARATOR + "{query}{answer}", encoding="utf-8")
    return str(folder / name), pets


def styled(kind, seed):
    if kind == "zero-shot":
        return []
    return [styles.ALIGNED] * 3 if kind == "aligned" else styles.control_styles(kind, seed)


@pytest.mark.parametrize("kind", ["aligned", "zero-shot", "mixed", "another"])
def test_only_examples_in_the_target_style_make_the_base_answer_as_the_aligned_model_does(
    kind, base, aligned_answers, tmp_path
):
    """arXiv 2312.01552: the base's own greedy answers, the shift of the aligned ones, and the facts, against controls."""
    equal, facts, items, number = [], [], [], 0
    tuned = checkpoints.load("styles-sft")
    for seed in range(4):
        file, pets = prompt_file(tmp_path, styled(kind, seed), seed)
        asked = [entity for entity in styles.ENTITIES if entity not in pets]
        prompts = [{"prompt": styles.prompt(entity)} for entity in asked]
        found = urial(base, prompts=prompts, writing=Writing(context=file), sampling=GREEDY)
        assistant = Assistant(base, Writing(context=file), GREEDY)
        for entity, row in zip(asked, found.table.to_pylist(), strict=True):
            target = aligned_answers[entity]
            equal.append(row["answer"] == tuned.tokenizer.decode(target).strip())
            facts.append(f" {entity} is {styles.COLOUR_OF[entity]}." in " " + row["answer"])
            context = assistant.ids([(styles.prompt(entity), None)])
            bare = tuple(tuned.tokenizer(styles.prompt(entity))["input_ids"])
            items.append(paired.PairedText(number, context, bare, target))
            number += 1
    rows = paired.run(paired.Scorer(base, tuned), items, {"tokens": measure()})["tokens"]
    result = shift(described(rows, [], base))
    at_fact = rows["position"].to_numpy() == styles.FACT_POSITION
    fact_unshifted = np.mean(rows["rank_base_of_tuned_top1"].to_numpy()[at_fact] == 0)
    assert np.mean(facts) >= 0.98
    assert fact_unshifted >= 0.98
    if kind == "aligned":
        assert np.mean(equal) >= 0.95
        assert result["shifted_share"] <= 0.02
    else:
        assert np.mean(equal) <= 0.1
        assert result["shifted_share"] >= 0.09


def test_turns_are_written_in_the_frame_of_the_paper():
    """Prompt, then per turn a new line, the role, the fence, the text, the fence; the open turn ends in a fence's line."""

    def part(role, text):
        return f"\n{role}\n{FENCE}\n{text}\n{FENCE}\n"

    shipped = frame("safer")
    expected = shipped.constant + part("# Query:", "q1 {answer}") + part("# Answer:", "a1") + part("# Query:", "q2")
    expected += f"\n# Answer:\n{FENCE}\n"
    assert shipped.rendered([("q1 {answer}", "a1"), ("q2", None)]) == expected
    assert shipped.constant.endswith("```\n\n")


@pytest.mark.parametrize("name", ["safer", "helpful"])
def test_shipped_prompts_are_a_preamble_and_three_examples_in_the_frame(name):
    shipped = frame(name)
    assert shipped.turn == TURN
    assert shipped.constant.count("# Query:\n```\n") == shipped.constant.count("\n\n# Answer:\n```\n") == 3
    assert shipped.constant.count(FENCE) == 12
    assert 3500 < len(shipped.constant) < 5600
    assert ("I can't help" in shipped.constant) == (name == "safer")


@pytest.mark.parametrize(
    ("turn", "text", "answer"),
    [
        (TURN, "Hi.\n```\n\n# Query:\n", "Hi.\n"),
        (TURN, "Hi.\n# Query:\n", "Hi.\n"),
        (TURN, "Hi.\n# User", "Hi.\n"),
        ("\n# User:\n{query}\n\n# Assistant:\n{answer}\n", "Hi ```x```.\n\n# User: and", "Hi ```x```.\n\n"),
        ("Q: {query}\nA:{answer}\n", " Hi # Q and A.\nQ: more", " Hi # Q and A.\n"),
        ("{query}{answer}", " Hi.<|endoftext|>more", " Hi."),
    ],
)
def test_what_ends_an_answer_is_read_from_the_frame(turn, text, answer):
    endings = Frame("", turn).endings().values()
    assert text[: min(end for end, _ in (ending(text, True) for ending in endings) if end is not None)] == answer


def test_a_conversation_is_answered_turn_by_turn_each_after_what_was_said(base, tmp_path):
    file, pets = prompt_file(tmp_path, [styles.ALIGNED] * 2, 0)
    first, second = [entity for entity in styles.ENTITIES if entity not in pets][:2]
    messages = [{"role": "user", "content": styles.prompt(entity)} for entity in (first, second)]
    writing = Writing(context=file, jsonl=tmp_path / "out" / "answers.jsonl")
    found = urial(base, prompts=[{"messages": messages, "id": "x"}], writing=writing, sampling=GREEDY)
    rows = found.table.to_pylist()
    assert [row["turn"] for row in rows] == [0, 1]
    assistant = Assistant(base, Writing(context=file), GREEDY)
    said = ["".join(assistant.ask(styles.prompt(entity))) for entity in (first, second)]
    assert [row["answer"] for row in rows] == said == [answer for _, answer in assistant.turns]
    context = assistant.ids([(styles.prompt(first), said[0]), (styles.prompt(second), None)])
    assert rows[1]["context_tokens"] == len(context)
    saved = [json.loads(line) for line in writing.jsonl.read_text().splitlines()]
    assert [record["id"] for record in saved] == ["x.0", "x.1"]
    assert [message["content"] for message in saved[1]["messages"]] == [
        messages[0]["content"],
        said[0],
        messages[1]["content"],
    ]
    assert [text.answer for text in corpus.read(writing.jsonl)] == said


def test_a_single_question_is_shown_as_it_is_written_without_its_ends(base, tmp_path):
    file, _ = prompt_file(tmp_path, [styles.ALIGNED] * 3, 1)
    pieces = []
    found = urial(base, styles.prompt("Teddy"), writing=Writing(context=file), sampling=GREEDY, say=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == found.table["answer"][0].as_py() == styles.answer("Teddy", styles.ALIGNED).strip()
    assert found["ended_by_end_share"] == 1


def test_batches_shards_and_an_interruption_change_no_answer(base, tmp_path):
    file, _ = prompt_file(tmp_path, [styles.ALIGNED] * 3, 2)
    prompts = [{"prompt": styles.prompt(entity)} for entity in styles.HELD_OUT_ENTITIES]
    settings = {"prompts": prompts, "writing": Writing(context=file)}
    settings["sampling"] = Sampling(temperature=1.5, samples=3, max_new_tokens=12)
    whole = urial(base, **settings)
    assert (
        whole.table["answer"].to_pylist()
        == urial(base, **settings, loading=Loading(batch_size=3)).table["answer"].to_pylist()
    )
    assert len(set(whole.table["answer"].to_pylist())) > len(prompts)

    def breaks(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        urial(base, **settings, loading=Loading(batch_size=3), parts=Parts(tmp_path / "parts"), advance=breaks)
    again = urial(base, **settings, loading=Loading(batch_size=3), parts=Parts(tmp_path / "parts", resume=True))
    assert again.table["answer"].to_pylist() == whole.table["answer"].to_pylist()
    assert dict(again.figures) == dict(whole.figures)


def test_a_later_turn_that_finds_no_room_is_counted_not_lost(base, tmp_path):
    file, _ = prompt_file(tmp_path, [styles.ALIGNED] * 3, 3)
    messages = [{"role": "user", "content": styles.prompt("Teddy")}] * 6
    found = urial(
        base, prompts=[{"messages": messages}, {"prompt": styles.prompt("Ivy")}], writing=Writing(context=file)
    )
    ended = [row["ended"] for row in found.table.to_pylist()]
    assert ended.count("no room") >= 2
    assert ended[-1] == "end"
    assert any("later turns have no answer" in note for note in found.notes)


def test_loops_are_named_and_a_penalty_breaks_them(docs, tmp_path):
    (tmp_path / "plain.txt").write_text(SEPARATOR + "{query}{answer}", encoding="utf-8")
    sampling, context = Sampling(max_new_tokens=80), str(tmp_path / "plain.txt")
    looping = urial(docs[0], "Return the", writing=Writing(context=context), sampling=sampling)
    broken = urial(docs[0], "Return the", writing=Writing(context=context, repetition_penalty=1.3), sampling=sampling)
    assert broken["repeated_4_grams_share"] < looping["repeated_4_grams_share"]
    assert repeated_share([1, 2, 3, 4] * 50) > 0.9
    assert repeated_share([1, 2, 3]) is None


def test_a_system_message_opens_the_first_query():
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
    text = corpus.read([{"messages": [system, user]}])[0]
    assert conversation(text) == [("Be brief.\n\nWhy?", None)]


def test_white_space_at_the_ends_is_left_out_however_it_is_cut():
    assert "".join(stripped([" ", "\n a", " ", " b", "\n", " "])) == "a  b"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompts": [{"prompt": "x"}], "question": "y"}, "give one of them"),
        ({"prompts": [{"prompt": "x " * 200}], "writing": "short"}, "record 0 and the prompt have"),
        ({"question": "x"}, "the prompt safer has .* tokens and styles-base reads at most 96"),
        ({"question": "x", "writing": "missing.txt"}, "is no prompt: give helpful or safer"),
        (
            {"prompts": [{"messages": [{"role": "assistant", "content": "x"}]}], "writing": "short"},
            "cannot stand there",
        ),
        (
            {
                "prompts": [{"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}],
                "writing": "short",
            },
            "ends with an answer",
        ),
    ],
)
def test_bad_input_is_a_sentence(settings, sentence, base, tmp_path):
    if "writing" in settings:
        file = prompt_file(tmp_path, [styles.ALIGNED], 0)[0] if settings["writing"] == "short" else settings["writing"]
        settings = settings | {"writing": Writing(context=file)}
    with pytest.raises(ValueError, match=sentence):
        urial(base, **settings)


def test_a_frame_needs_a_place_for_query_and_answer_in_this_order():
    for turn in ("{answer}{query}", "{query}", "{query}{query}{answer}"):
        with pytest.raises(ValueError, match=r"it must hold \{query\} once, then \{answer\} once"):
            Frame("", turn)
