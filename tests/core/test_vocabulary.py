"""Claims about bridged vocabularies: ids of equal strings meet, everything else is spelled, nothing is tokenised again."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shiftscope.core import checkpoints, lockstep, vetoing, vocabulary
from shiftscope.core.lockstep import Job
from shiftscope.core.vetoing import Veto

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@dataclass
class Known:
    """As much of a checkpoint as a bridge looks at."""

    tokenizer: PreTrainedTokenizerFast
    vocabulary_size: int
    name: str = "known"
    model: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    )


def byte_level(more: list[str], special: list[str], eos: str, padding: int = 0, name: str = "known") -> Known:
    """A byte-level tokenizer with all single bytes, some longer tokens and some special ones."""
    words = [*BYTES, *more]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, additional_special_tokens=special)
    return Known(fast, len(fast) + padding, name)


@pytest.fixture(scope="module")
def student():
    return byte_level(["Ġthe", "ing", "Ã©", "Ġqué"], ["<think>"], "<end>", padding=3, name="student")


@pytest.fixture(scope="module")
def teacher():
    return byte_level(["ing", "Ġt", "he", "Ġteacher", "Ġqu"], [], "<stop>", padding=5, name="teacher")


def test_tokens_of_equal_string_meet_and_padding_meets_nothing(student, teacher):
    found = vocabulary.bridge(student, teacher)
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    assert found.shared == len(BYTES) + 1
    assert found.own_of_V[theirs["ing"]] == ours["ing"]
    assert found.own_of_V[theirs["Ġteacher"]] == -1
    assert (found.own_of_V[len(teacher.tokenizer) :] == -1).all()
    assert not found.readable_V[len(student.tokenizer) :].any()
    assert not found.is_identity


def test_what_the_other_lacks_is_spelled_in_its_longest_tokens_and_parts_of_characters_survive(student, teacher):
    found = vocabulary.bridge(student, teacher)
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    assert found.spell(ours["Ġthe"]) == (theirs["Ġt"], theirs["he"])
    assert found.spell(ours["Ã©"]) == (theirs["Ã"], theirs["©"])
    assert found.spell(ours["Ġqué"]) == (theirs["Ġqu"], theirs["é"])
    assert teacher.tokenizer.decode(list(found.spell(ours["<think>"]))) == "<think>"
    for text in BYTES:
        assert found.spell(ours[text]) == (theirs[text],)


def test_the_ends_of_text_stand_for_each_other(student, teacher):
    found = vocabulary.bridge(student, teacher)
    assert found.own_of_V[teacher.tokenizer.eos_token_id] == student.tokenizer.eos_token_id
    assert found.spell(student.tokenizer.eos_token_id) == (teacher.tokenizer.eos_token_id,)


def test_one_vocabulary_is_bridged_by_the_identity_whatever_its_padding(student):
    padded = byte_level(["Ġthe", "ing", "Ã©", "Ġqué"], ["<think>"], "<end>", padding=9)
    found = vocabulary.bridge(student, padded)
    assert found.own_of_V.tolist()[: student.vocabulary_size] == list(range(student.vocabulary_size))
    assert (found.own_of_V[student.vocabulary_size :] == -1).all()
    assert vocabulary.identity(5, 5).is_identity


def test_vocabularies_without_a_common_token_are_refused(student):
    words = Tokenizer(models.WordLevel({"alpha": 0, "beta": 1}, unk_token="alpha"))
    other = Known(PreTrainedTokenizerFast(tokenizer_object=words), 2, "words")
    with pytest.raises(ValueError, match="student and words share no token"):
        vocabulary.bridge(student, other)


def test_two_tokenizers_write_one_text_and_each_reads_it_in_its_own_ids(student, teacher):
    """Oracle: every step's laws again, from scratch, on the text so far spelled in each model's ids."""
    sides = [real(known, seed) for seed, known in enumerate((teacher, student))]
    found = vocabulary.bridge(sides[1], sides[0])
    with torch.no_grad():  # a student that often writes what the teacher has to spell
        spelled = [token for token, ids in enumerate(found.spelling) if len(ids) > 1]
        sides[1].model.lm_head.weight[spelled] *= 4
    veto = Veto(p_min=0.01, temperature=1.0, top_p=1.0)
    policy = vetoing.vetoing(veto, own_of_V=found.own_of_V, readable_V=found.readable_V)
    jobs = [Job(number, (5, 6 + number), (7, 8, 9)[: 1 + number]) for number in range(3)]
    arguments = {"ends": (sides[1].tokenizer.eos_token_id,), "max_new_tokens": 24, "seed": 4, "spell": found.spell}
    written = lockstep.write(*sides, jobs, policy, **arguments)
    assert [w.ids for w in written] == [w.ids for w in lockstep.write(*sides, jobs, policy, **arguments, block=5)]
    assert sum(len(found.spell(token)) > 1 for one in written for token in one.ids) > 0
    for job, one in zip(jobs, written, strict=True):
        logits = sides[1].model(torch.tensor([[*job.checker_context, *one.ids]])).logits[0].detach()
        logp = logits[len(job.checker_context) - 1 : -1].log_softmax(-1)[torch.arange(len(one.ids)), list(one.ids)]
        torch.testing.assert_close(torch.from_numpy(one.steps["logp_student_nats"]), logp, atol=1e-4, rtol=1e-4)
        for place in range(len(one.ids)):
            spelled = [other for token in one.ids[:place] for other in found.spell(token)]
            whole = sides[0].model(torch.tensor([[*job.drafter_context, *spelled]])).logits[0, -1].detach()
            assert one.steps["top_teacher"][place] == found.own_of_V[whole.argmax()]
            lost = vetoing.pool(whole[None], temperature=1.0, top_p=1.0, top_k=20, own_of_V=found.own_of_V).lost_B
            assert abs(float(lost) - one.steps["lost"][place]) < 1e-4


def real(known: Known, seed: int) -> checkpoints.Checkpoint:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=known.vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.15,
        bos_token_id=None, eos_token_id=known.tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return checkpoints.wrap(LlamaForCausalLM(config).eval(), known.tokenizer, known.name)
