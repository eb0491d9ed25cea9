"""compare edits: a toy that edits with a known law (exact masses, remedies, held-out id mask), recorded ids, tokenizers."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiftscope.compare.edits import Probing, edits
from shiftscope.core import checkpoints
from shiftscope.core.answers import Loading
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.token_bytes import read
from shiftscope.core.edits import edit_prompts
from shiftscope.core.edits.artefacts import Affixes
from shiftscope.core.edits.edit_probe import Decoder, Drawing, Probe
from shiftscope.core.edits.edit_slots import STOP_WORDS, Target
from shiftscope.core.edits.edit_trials import is_fitted
from shiftscope.core.edits.phantom import LEADS, TRAILS
from shiftscope.core.parts import Parts

INSTRUCTION = "{passage}\n"
FILLERS = ["the", "of", "and", "to", "in", "is", "be", "as", "by", "or", "an", "for", "with", "from", "that", "this"]
N_WORDS, SAMPLES = 24, 40
WHOLE = Drawing(temperature=1.0, top_p=1.0, top_k=0, samples=SAMPLES)
ASKED = Probing(instruction=INSTRUCTION, shortest=3, support="all", words=40)


def vocabulary():
    """24 words to edit, then two others for each of them."""
    from pydoc_data.topics import topics

    counts = Counter(word for text in topics.values() for word in re.findall(r"\b[a-z]{5,9}\b", text))
    return [word for word, _ in counts.most_common(200) if word not in STOP_WORDS][: 3 * N_WORDS]


def small_tokenizer(words):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<end>"], show_progress=False, initial_alphabet=alphabet
    )
    every = [*words, *FILLERS]
    bpe.train_from_iterator(
        ["x [ ] [ ] [ ]\n", " ".join(["x", *every]), *(f"x\n{word} [{word}" for word in every)], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<end>")


def document(tokenizer, dropping, words, rng):
    """A prompt and an edit: the word again (35 %) or one of two others, cut by BPE-dropout; one in four with tight brackets."""
    number, label, blank = rng.randrange(N_WORDS), rng.random(), " " if rng.random() < 0.75 else ""
    left, right = rng.choice(FILLERS), rng.choice(FILLERS)
    written = words[number] if label < 0.35 else words[N_WORDS + 2 * number + (label < 0.675)]
    front = blank if rng.random() > 0.01 else " " if not blank else ""

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = ids(INSTRUCTION.replace("{passage}", f"{left} [{blank}{words[number]}{blank}] {right}"))
    answer = [*ids(f"{left} ["), *dropping.encode(front + written).ids, *ids(f"{blank}] {right}"), 0]
    return [0, *prompt], answer


@pytest.fixture(scope="session")
def toy():
    """A two-layer Llama that learnt to edit in 600 steps (20 CPU seconds), and its words."""
    words = vocabulary()
    tokenizer = small_tokenizer(words)
    dropping = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    dropping.model.dropout = 0.15
    rng = random.Random(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=96, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
            pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.95), weight_decay=0.05)
    steps = 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 * min(1, (step + 1) / 50) * (1 - 0.95 * step / steps)
        rows = [document(tokenizer, dropping, words, rng) for _ in range(48)]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(rows):
            ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return checkpoints.wrap(model.eval(), tokenizer, "toy"), words[:N_WORDS]


@pytest.fixture(scope="session")
def passages(toy):
    rng = random.Random(5)
    return [{"text": f"{rng.choice(FILLERS)} {word} {rng.choice(FILLERS)}"} for word in toy[1]]


@pytest.fixture(scope="session")
def found(toy, passages):
    return edits(toy[0], texts=passages, probing=ASKED, drawing=WHOLE, loading=Loading(batch_size=240))


def masses_of(result, decoder, held_out=None):
    table = next(part.table for part in result.parts if part.method == "compare edits masses")
    rows = [row for row in table.to_pylist() if row["decoder"] == decoder]
    return [row for row in rows if held_out is None or is_fitted(row["word"]) != held_out]


def mean(rows, name):
    return float(np.mean([row[name] for row in rows]))


@pytest.mark.slow
def test_sampled_rates_lie_within_three_standard_errors_of_the_exact_masses(found):
    checked = 0
    for decoder in ("none", "tight_brackets", "canonical_mask", "id_mask"):
        trials = found.table.filter(pc.equal(found.table["decoder"], decoder))
        exact = masses_of(found, decoder)
        assert len(trials) == len(exact) * SAMPLES
        for outcome in ("unchanged", "phantom"):
            p = np.array([row[outcome] for row in exact])
            error = math.sqrt((p * (1 - p)).sum() / SAMPLES) / len(p)
            sampled = pc.sum(pc.equal(trials["outcome"], outcome)).as_py() / len(trials)
            assert abs(sampled - p.mean()) < 3 * error, (decoder, outcome, sampled, p.mean(), error)
            checked += 1
    assert checked == 8
    assert mean(masses_of(found, "none"), "phantom") > 0.05  # the toy does write phantoms: there is something to remedy


@pytest.mark.slow
def test_the_canonical_mask_cuts_phantoms_at_least_five_times_and_replaces_more(found):
    before, after = (mean(masses_of(found, name), "phantom") for name in ("none", "canonical_mask"))
    assert before > 5 * after  # measured 13.6 times
    assert found["phantom_share"] > 5 * found["phantom_share.canonical_mask"]
    assert found["replaced_share.canonical_mask"] > found["replaced_share"]


@pytest.mark.slow
def test_a_mask_of_ids_that_were_seen_leaves_more_phantoms_on_other_words_than_the_canonical_mask(found):
    by_ids, canonical = (
        mean(masses_of(found, name, held_out=True), "phantom") for name in ("id_mask", "canonical_mask")
    )
    assert by_ids > 2 * canonical
    fitted = mean(masses_of(found, "id_mask", held_out=False), "phantom")
    assert fitted < by_ids  # what it learnt by heart it removes better


@pytest.mark.slow
def test_byte_exact_decoding_has_no_phantoms_and_the_word_has_the_mass_of_all_its_spellings(toy, passages, found):
    assert found["phantom_share.byte_exact"] == 0
    assert found["word_mass.byte_exact"] == pytest.approx(found["word_mass"], abs=1e-6)
    checkpoint, words = toy
    tokens = read(checkpoint.tokenizer, checkpoint.vocabulary_size)
    probe = Probe(checkpoint, tokens, WHOLE, "all")
    ids_of = edit_prompts.prompt_ids(checkpoint, INSTRUCTION, "plain")
    for word, passage in zip(words[:6], passages, strict=False):
        begin = passage["text"].index(" ") + 1
        target = Target(begin, begin + len(word))
        prompt = edit_prompts.prompt(ids_of, tokens, edit_prompts.Passage(0, passage["text"], (target,)), "spaced")
        summed = probe.masses(prompt, Decoder("any"), Affixes()).word
        texts = [lead + word.encode() + trail + b"]" for lead in LEADS for trail in TRAILS]
        engine = probe.engine(prompt.context)
        total = sum(math.exp(byte_law.ByteLaw(engine, text).law().logp) for text in texts)
        assert summed == pytest.approx(total, abs=1e-6)


@pytest.mark.slow
def test_bytes_that_are_drawn_one_by_one_follow_their_own_exact_law(toy, passages):
    probing = Probing(instruction=INSTRUCTION, shortest=3, words=20, remedies=("byte_exact",))
    result = edits(toy[0], texts=passages[:10], probing=probing, drawing=WHOLE, loading=Loading(batch_size=200))
    trials = result.table.filter(pc.equal(result.table["decoder"], "byte_exact"))
    p = np.array([row["unchanged"] for row in masses_of(result, "byte_exact")])
    sampled = pc.sum(pc.equal(trials["outcome"], "unchanged")).as_py() / len(trials)
    assert abs(sampled - p.mean()) < 3 * math.sqrt((p * (1 - p)).sum() / SAMPLES) / len(p)


@pytest.mark.slow
def test_tight_brackets_make_phantoms_of_plain_copies_when_the_reference_has_none(found):
    """The confound of the bracket template: a copy of the ids behind `[` is not the word's ids in running text."""
    tight, plain = found["phantom_share.tight_brackets"], found["phantom_share_unbracketed.tight_brackets"]
    assert plain > 2 * tight
    assert found["phantom_share_unbracketed"] == found["phantom_share"]  # brackets that stand off the word keep its ids


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_result(toy, passages, tmp_path):
    few = Drawing(temperature=1.0, top_p=0.9, top_k=50, samples=3)
    settings = {"texts": passages[:4], "probing": ASKED, "drawing": few, "loading": Loading(batch_size=6)}
    whole = edits(toy[0], **settings)
    stages = []

    def stop(stage, done, total):
        stages.append(stage)
        if len(stages) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edits(toy[0], **settings, parts=Parts(tmp_path), advance=stop)
    again = edits(toy[0], **settings, parts=Parts(tmp_path, resume=True))
    assert again.table.equals(whole.table)
    values = [{name: figure.value for name, figure in result.all_figures().items()} for result in (whole, again)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)  # masses: float32 in other batch layouts


@pytest.mark.slow
def test_a_trial_does_not_depend_on_the_batch_it_is_drawn_in(toy, passages):
    few = Drawing(temperature=1.0, top_p=0.95, top_k=50, samples=4)
    probing = Probing(instruction=INSTRUCTION, shortest=3, words=20, exact=False)
    one, many = (
        edits(toy[0], texts=passages[:5], probing=probing, drawing=few, loading=Loading(batch_size=size)).table
        for size in (4, 64)
    )
    by_place = [("decoder", "ascending"), ("passage", "ascending"), ("target", "ascending"), ("sample", "ascending")]
    assert one.sort_by(by_place).equals(many.sort_by(by_place))


@pytest.mark.slow
def test_a_whole_passage_that_is_written_again_gives_the_same_picture(toy, passages, found):
    probing = Probing(instruction=INSTRUCTION, shortest=3, write="passage", words=40, exact=False)
    drawing = Drawing(temperature=1.0, top_p=1.0, top_k=0, samples=16)
    whole = edits(toy[0], texts=passages, probing=probing, drawing=drawing, loading=Loading(batch_size=192))
    assert whole["scorable_share"] > 0.5
    # the passage is copied by the toy itself here, so slots follow other contexts; 384 trials
    assert whole["phantom_share"] == pytest.approx(found["phantom_share"], abs=0.06)
    assert whole["phantom_share.canonical_mask"] < whole["phantom_share"] / 3
    assert whole["phantom_share.byte_exact"] == 0
    assert "word_mass" not in whole.all_figures()


@pytest.mark.slow
def test_a_chat_template_renders_the_prompt_and_makes_the_model_write_the_passage(toy, passages, monkeypatch):
    """A template that only opens the text gives the prompts of the plain one, hence the same trials."""
    asked = {"instruction": INSTRUCTION, "shortest": 3, "words": 20, "exact": False, "remedies": ("canonical_mask",)}
    drawing = Drawing(samples=4)
    plain = edits(toy[0], texts=passages[:4], probing=Probing(write="passage", **asked), drawing=drawing)
    frame = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    monkeypatch.setattr(toy[0].tokenizer, "chat_template", frame)
    chat = edits(toy[0], texts=passages[:4], probing=Probing(**asked), drawing=drawing)
    assert chat.provenance["settings"]["template"] == "chat"
    assert chat.provenance["settings"]["way"] == "passage"
    assert chat.table.equals(plain.table)


@pytest.mark.slow
def test_outputs_that_were_recorded_elsewhere_score_like_those_drawn_here(toy, passages, found, tmp_path):
    """Rebuild each trial's output from its ids and hand it in as a record: outcomes and artefacts are the same."""
    tokenizer = toy[0].tokenizer
    rows = [
        row for row in found.table.to_pylist() if row["decoder"] == "none" and row["sample"] < 10 and not row["why"]
    ]
    path = tmp_path / "recorded.jsonl"
    with path.open("w") as stream:
        for row in rows:
            left, word, right = passages[row["passage"]]["text"].split()
            front = tokenizer(f"{left} [", add_special_tokens=False)["input_ids"]
            back = tokenizer(f" ] {right}", add_special_tokens=False)["input_ids"]
            output = [*front, *row["ids_after"], *back]
            stream.write(json.dumps({"passage": f"{left} [ {word} ] {right}", "output_ids": output}) + "\n")
    asked = Probing(instruction=INSTRUCTION, words=40)  # the rest is of outputs that are drawn here
    again = edits(toy[0], recorded=path, probing=asked).table.to_pylist()
    assert [row["outcome"] for row in again] == [row["outcome"] for row in rows]
    assert [row["artefact"] for row in again] == [row["artefact"] for row in rows]
    assert any(row["outcome"] == "phantom" for row in again)


def test_the_zoo_checkpoint_is_probed_by_default_and_is_not_altered(docs):
    before = {name: value.clone() for name, value in docs[0].model.state_dict().items()}
    probing, drawing = Probing(words=20, remedies=("canonical_mask",)), Drawing(samples=2, max_slot_tokens=6)
    result = edits(docs[0], limit=8, probing=probing, drawing=drawing)
    assert set(result.table["decoder"].to_pylist()) == {"none", "tight_brackets", "canonical_mask"}
    assert 0 <= result["phantom_mass"] <= result["word_mass"] <= 1
    assert result["mass_left_out_max"] < 1e-4
    assert result.all_figures()["surface_mean"].n == 20
    assert result.provenance["settings"]["drawing"]["top_k"] == 50
    assert all(torch.equal(value, before[name]) for name, value in docs[0].model.state_dict().items())
    assert not docs[0].model.training


def test_text_without_raw_ids_is_refused_since_its_rate_is_zero_by_construction(docs):
    record = {"passage": "Return the [ value ] of it.", "output": "Return the [ number ] of it."}
    with pytest.raises(ValueError, match=r"record 1 has no `output_ids`.*0 by construction"):
        edits(docs[0], recorded=[record])


def test_a_record_of_prompt_and_answer_alone_is_refused_for_the_same_reason(docs):
    with pytest.raises(ValueError, match="has no `output_ids`"):
        edits(docs[0], recorded=[{"prompt": "a", "answer": "b"}])
    with pytest.raises(ValueError, match="has no `passage`"):
        edits(docs[0], recorded=[{"prompt": "a", "output_ids": [1]}])
    with pytest.raises(ValueError, match="no word in brackets"):
        edits(docs[0], recorded=[{"passage": "Return the value.", "output_ids": [1]}])


def test_an_added_token_that_texts_may_hold_is_part_of_an_exact_canonical_mask_and_a_special_one_is_not(docs):
    tokenizer = copy.deepcopy(docs[0].tokenizer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    probe = Probe(docs[0], read(tokenizer), WHOLE)
    row = probe.rules.row(probe.rules.start)
    assert probe.rules.exact
    assert row[tokenizer.encode(" value")[0]]
    assert row[tokenizer.convert_tokens_to_ids("<tool>")]
    assert not row[tokenizer.convert_tokens_to_ids("<turn>")]


def test_recorded_ids_of_another_vocabulary_are_refused(docs):
    with pytest.raises(ValueError, match="none of the 4096"):
        edits(docs[0], recorded=[{"passage": "Return the [ value ] of it.", "output_ids": [99999]}])


def test_a_tokenizer_alone_is_counted_and_scores_recorded_outputs(docs, tmp_path):
    path = tmp_path / "tokenizer.json"
    docs[0].tokenizer.backend_tokenizer.save(str(path))
    alone = edits(str(path), probing=Probing(words=30))
    assert alone.table.num_rows == 30
    assert "phantom_share" not in alone.figures
    tokens = read(docs[0].tokenizer)
    output = tokens.encode("Return the [ va") + tokens.encode("lue ] of it.")
    record = {"passage": "Return the [ value ] of it.", "output_ids": output}
    served = {
        "passage": "Return the [value] of it.", "token_ids": tokens.encode("Sure! Return the [value] of it."),
        "prompt_token_ids": tokens.encode("Other words: Return the [value] of it.\n"),
    }  # fmt: skip
    scored = edits(str(path), recorded=[record, served], probing=Probing(words=30))
    assert scored.table["outcome"].to_pylist() == ["phantom", "unchanged"]
    assert scored.table["outcome_plain"].to_pylist() == ["phantom", "phantom"]  # "value" is not " value"
    assert scored.table["artefact"].to_pylist() == ["intra_word_resegmentation", None]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"texts": [{"text": "too short"}]}, "none of 1 texts gives a passage: 1 have no stretch of 100 words"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(docs, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        edits(docs[0], **settings)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="no remedy"):
        Probing(remedies=("magic",))
    with pytest.raises(ValueError, match=r"has no \{passage\}"):
        Probing(instruction="replace it")
    with pytest.raises(ValueError, match="temperature > 0"):
        Drawing(temperature=0.0)
