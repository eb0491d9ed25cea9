"""Claims about traces in the student's words: their two limits are the models alone, and they teach more than either."""

from __future__ import annotations

import copy
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from shiftscope.adapt.traces import IGNORED, Collecting, chosen, traces
from shiftscope.compare.traces import traces as scored
from shiftscope.core import checkpoints, decode
from shiftscope.core.answers import Loading
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.vetoing import Veto
from shiftscope.zoo import sums

SUMS = "shiftscope.zoo.sums:verify"
PROMPTS = [{"prompt": row["prompt"], "reference": row["reference"]} for row in sums.prompts(6, seed=3)]
SHORT = Collecting(samples=4, max_new_tokens=24, seed=2)


@pytest.fixture(scope="module")
def pair():
    return checkpoints.load("sums-rlvr"), checkpoints.load("sums-base")


def written(pair, out, *, veto=None, collecting=SHORT, **more):
    result = traces(*pair, prompts=PROMPTS, out=out, verifier=SUMS, veto=veto or Veto(), collecting=collecting, **more)
    return result, [json.loads(line) for line in (out / "traces.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- replication ------------------------------------------------------------------------------------------------------
OWN, FOREIGN = sums.READ[:4], sums.TELL[:4]  # the student's words and the teacher's


def toy_trace(prompt: str, generator: torch.Generator, wrong: float, words: tuple[str, ...]) -> str:
    """Running sums modulo 5, each behind a synonym; with probability `wrong` a running sum is drawn at random."""
    total, steps = 0, []
    for digit in prompt.split()[:-1]:
        total = (total + int(digit)) % sums.MODULUS
        if float(torch.rand((), generator=generator)) < wrong:
            total = int(torch.randint(sums.MODULUS, (1,), generator=generator))
        steps.append(f"{words[int(torch.randint(len(words), (1,), generator=generator))]} {total}")
    return " ".join(steps)


def right(prompt: str, answer: str, reference: str | None = None) -> float:
    words = answer.replace(sums.END, "").split()
    return float(len(words) == 2 * sums.N_DIGITS and words[-1] == reference)


def toy_model(seed: int, wrong: float, words: tuple[str, ...], rare: tuple[str, ...], share: float, steps: int):
    """A model of toy traces; `rare` words stand in a share of the documents."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for row in sums.prompts(8000, seed=1):
        chosen_words = rare if float(torch.rand((), generator=generator)) < share else words
        texts.append((row["prompt"], toy_trace(row["prompt"], generator, wrong, chosen_words)))
    model = sums.new_model(seed=seed)
    sums.fit(model, sums.tokenizer(), texts, steps=steps, batch=64, peak_rate=3e-3, seed=0)
    return checkpoints.wrap(model, sums.tokenizer(), f"toy {seed}")


def tuned(student, lines, epochs: int):
    """The student after supervised tuning on the ids and labels of traces."""
    model = copy.deepcopy(student.model).train()
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-4), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(lines), generator=generator).tolist()
        for start in range(0, len(lines), 8):
            batch = [lines[i] for i in order[start : start + 8]]
            longest = max(len(line["input_ids"]) for line in batch)
            ids, labels = (
                torch.tensor([line[name] + [pad] * (longest - len(line[name])) for line in batch])
                for name, pad in (("input_ids", 0), ("labels", IGNORED))
            )
            logits = model(ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return checkpoints.wrap(model.eval(), student.tokenizer)


def accuracy(checkpoint, rows) -> float:
    contexts = [checkpoint.tokenizer(row["prompt"])["input_ids"] for row in rows]
    ids = decode.sample(checkpoint, contexts, range(len(rows)), Sampling(temperature=0.7, max_new_tokens=12, seed=3))
    answers = checkpoint.tokenizer.batch_decode([list(answer) for answer in ids])
    return float(np.mean([right(r["prompt"], a, r["reference"]) for r, a in zip(rows, answers, strict=True)]))


@pytest.mark.slow
def test_vetoed_traces_teach_more_than_the_teachers_own_and_than_the_students_own(tmp_path):
    """One seed of the toy of arXiv 2509.22230's claim: right as the teacher's, plain as the student's."""
    student = toy_model(0, 0.45, OWN, FOREIGN, 0.002, 900)
    teacher = toy_model(50, 0.0, FOREIGN, OWN, 0.1, 500)
    asked, held_out = sums.prompts(24, seed=12345), sums.prompts(1000, seed=999)
    before, success, improbable, after = accuracy(student, held_out), {}, {}, {}
    for name, p_min in (("direct", 0.0), ("vetoed", 0.01), ("own", 2.0)):
        collecting = Collecting(max_new_tokens=12, max_fallback=1.0)
        result = traces(
            teacher, student, prompts=asked, out=tmp_path / name, verifier=right, veto=Veto(p_min=p_min),
            collecting=collecting, loading=Loading(batch_size=384),
        )  # fmt: skip
        lines = [
            json.loads(line) for line in (tmp_path / name / "traces.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        success[name], improbable[name] = result["success_share"], result["kept_improbable_share"]
        after[name] = [accuracy(tuned(student, lines, epochs), held_out) for epochs in (3, 15)]
    assert improbable["vetoed"] <= 0.005 < 0.1 < improbable["direct"]
    assert success["vetoed"] >= 1.8 * success["own"]
    assert after["vetoed"][0] >= after["direct"][0] + 0.1
    assert after["vetoed"][1] >= after["direct"][1]
    assert after["vetoed"][0] >= after["own"][0] - 0.02  # 1.3 standard errors of 1000 answers
    assert after["vetoed"][1] >= after["own"][1]
    assert before < after["vetoed"][0]
    assert before + 0.1 < after["vetoed"][1]  # after 3 epochs: 0.09 on one processor, above 0.1 on another


# ---- limits -----------------------------------------------------------------------------------------------------------
def test_without_a_veto_traces_are_the_teachers_own_samples(pair, tmp_path):
    result, lines = written(pair, tmp_path, veto=Veto(p_min=0, top_k=27, top_p=1.0, temperature=1.0))
    contexts = [pair[0].tokenizer(row["prompt"])["input_ids"] for row in PROMPTS for _ in range(4)]
    sampled = decode.sample(pair[0], contexts, range(24), Sampling(temperature=1.0, max_new_tokens=24, seed=2))
    assert [tuple(row) for row in result.table["token"].to_pylist()] == sampled
    assert result["fallback_share"] == 0
    assert result["first_trial_share"] == 1
    assert lines


def test_with_everything_vetoed_the_student_speaks_alone_and_the_limit_on_that_rejects_all(pair, tmp_path):
    result, lines = written(pair, tmp_path, veto=Veto(p_min=2.0))
    assert lines == []
    assert result["fallback_share"] == 1
    assert set(result.table["reason"].to_pylist()) == {"student spoke too often"}
    _, allowed = written(
        pair,
        tmp_path,
        veto=Veto(p_min=2.0),
        collecting=Collecting(samples=4, max_new_tokens=24, seed=2, max_fallback=1.0),
    )
    assert allowed
    assert all(line["fallback_share"] == 1 for line in allowed)


# ---- what is written --------------------------------------------------------------------------------------------------
def test_labels_mask_the_prompt_and_hold_the_generated_ids_with_their_end(pair, tmp_path):
    result, lines = written(pair, tmp_path)
    words = pair[1].tokenizer
    kept = result.table.filter(pc.equal(result.table["reason"], "kept"))
    assert len(lines) == len(kept) == result["kept_traces"]
    for line, row in zip(lines, kept.to_pylist(), strict=True):
        prompt = words(line["prompt"])["input_ids"]
        assert line["input_ids"] == [*prompt, *row["token"]]
        assert line["labels"] == [*[IGNORED] * len(prompt), *row["token"]]
        assert line["labels"][-1] == words.eos_token_id
        assert sums.verify(line["prompt"], line["answer"], line["reference"]) == 1
        assert line["answer"] == words.decode(row["token"][:-1])


def test_the_student_finds_in_them_what_the_record_says(pair, tmp_path):
    result, _lines = written(pair, tmp_path)
    again = scored(pair[1], traces=str(tmp_path / "traces.jsonl"))
    kept = result.table.filter(pc.equal(result.table["reason"], "kept"))
    recorded = -np.concatenate([np.array(row) for row in kept["logp_student_nats"].to_pylist()])
    np.testing.assert_allclose(again.table["surprisal_nats"].to_numpy(), recorded, atol=1e-4)
    assert again["improbable_share"] == pytest.approx(result["kept_improbable_share"])
    assert again["surprisal_mean_nats"] == pytest.approx(result["kept_surprisal_mean_nats"], abs=1e-4)


def test_the_teachers_tokens_keep_the_promise_and_a_floor_makes_the_students_keep_it_too(pair, tmp_path):
    for floor in (False, True):
        result, _ = written(pair, tmp_path, veto=Veto(p_min=0.168, floor_fallback=floor))
        p = np.exp(np.concatenate([np.array(row) for row in result.table["logp_student_nats"].to_pylist()]))
        own, token, top = (
            np.concatenate([np.array(row) for row in result.table[name].to_pylist()])
            for name in ("switched", "token", "top_student")
        )
        assert own.any()
        assert (p[~own] >= 0.168 - 1e-6).all()
        assert (own & (p < 0.168 - 1e-6) & (token != top)).any() != floor


def test_blocks_and_batches_write_the_same_traces(pair, tmp_path):
    _, lines = written(pair, tmp_path / "a")
    block = Collecting(samples=4, max_new_tokens=24, seed=2, block=5)
    _, others = written(pair, tmp_path / "b", collecting=block, loading=Loading(batch_size=5))
    assert [line["input_ids"] for line in lines] == [line["input_ids"] for line in others]


def test_an_interrupted_run_goes_on(pair, tmp_path):
    whole, _ = written(pair, tmp_path / "a", loading=Loading(batch_size=6))
    seen = []

    def failing(prompt: str, answer: str, reference: str | None) -> float:
        seen.append(prompt)
        if len(seen) == 20:
            raise RuntimeError("gone")
        return sums.verify(prompt, answer, reference)

    arguments = {
        "prompts": PROMPTS, "out": tmp_path / "b", "verifier": failing, "collecting": SHORT, "loading": Loading(batch_size=6)
    }  # fmt: skip
    with pytest.raises(ValueError, match="gone"):
        traces(*pair, **arguments, parts=Parts(tmp_path / "parts"))
    result = traces(*pair, **arguments, parts=Parts(tmp_path / "parts", resume=True))
    assert len(seen) == 20 + 6
    assert result.summary()["figures"] == whole.summary()["figures"]


def test_the_shortest_accepted_traces_are_kept_and_the_length_shift_is_recorded():
    rows = [
        ("right", 9, True, 1.0, 0), ("right", 5, True, 1.0, 0), ("wrong", 3, True, 0.0, 0), ("cut", 2, False, 1.0, 0),
        ("own", 4, True, 1.0, 3),
    ]  # fmt: skip
    table = pa.table(
        {
            "text": [0] * 5, "tokens": [length for _, length, *_ in rows], "ended": [row[2] for row in rows],
            "score": [row[3] for row in rows],
            "switched": [[True] * row[4] + [False] * (row[1] - row[4]) for row in rows],
            "logp_student_nats": [[-1.0] * row[1] for row in rows],
        }
    )  # fmt: skip
    reasons = chosen(table, Collecting(), judged=True)["reason"].to_pylist()
    assert reasons == ["longer than the kept one", "kept", "wrong", "no end", "student spoke too often"]
    assert chosen(table, Collecting(per_prompt=2), judged=True)["reason"].to_pylist()[:2] == ["kept", "kept"]
    assert chosen(table, Collecting(), judged=False)["reason"].to_pylist()[2] == "kept"


def test_the_page_draws_it(pair, tmp_path):
    from shiftscope import report

    result, _ = written(pair, tmp_path)
    report.write(result, tmp_path / "report.html")
    report.terminal(result)
    texts = next(panel.table for panel in result.panels if panel.kind == "texts")
    assert set(texts["source"].to_pylist()) <= {"student", "teacher"}
    assert result.verdict[0].startswith(f"{result['kept_traces']} traces are kept of 24 tries")


# ---- bad input --------------------------------------------------------------------------------------------------------
def test_bad_input_is_one_sentence(pair, tmp_path):
    with pytest.raises(ValueError, match="samples is 0"):
        Collecting(samples=0)
    with pytest.raises(ValueError, match="max_fallback is 2"):
        Collecting(max_fallback=2)
    with pytest.raises(ValueError, match="is not a file"):
        traces(*pair, prompts=str(tmp_path / "none.jsonl"), out=tmp_path)
    with pytest.raises(ValueError, match="leaves no room"):
        traces(*pair, prompts=[{"prompt": "1 " * 70}], out=tmp_path)


def test_a_teacher_whose_words_the_student_lacks_is_refused(pair, tmp_path):
    with pytest.raises(
        ValueError, match=r"% of the probability of docs-base is on tokens that sums-base has not|share no token"
    ):
        traces("docs-base", pair[1], prompts=PROMPTS, out=tmp_path, collecting=SHORT)
