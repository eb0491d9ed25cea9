"""Any-subset speculative decoding: exact by enumeration whatever the draft, never more calls than tokens."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, XLNetConfig, XLNetLMHeadModel

from shiftscope.core import checkpoints
from shiftscope.core.denoising import any_subset, masked_model, speculation
from shiftscope.core.denoising.gapped import Gapped, MaskedNetwork
from shiftscope.core.denoising.speculation import Speculation, accepted, fill, law, residual
from shiftscope.zoo import markov

WORDS, MASK = 5, 5
ORDER, VISIBLE = (0, 2, 3, 5), {1: 2, 4: 0}
CELLS = list(itertools.product(range(WORDS), repeat=len(ORDER)))


def tokenizer():
    words = {**{f"w{i}": i for i in range(WORDS)}, "<mask>": MASK}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), mask_token="<mask>"
    )


@pytest.fixture(scope="module")
def model():
    sizes = {"vocab_size": WORDS + 1, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = XLNetLMHeadModel(
            XLNetConfig(**sizes, initializer_range=0.35, pad_token_id=0, bos_token_id=0, eos_token_id=0)
        )
    return any_subset.adapted(checkpoints.Opened("tiny", net.eval(), tokenizer()))


@pytest.fixture(scope="module")
def bert():
    """A random BERT, whose laws agree on no joint law: only the order fixed in advance says which one is meant."""
    sizes = {"vocab_size": WORDS + 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = BertForMaskedLM(
            BertConfig(**sizes, intermediate_size=64, max_position_embeddings=8, initializer_range=0.35)
        )
    lm = masked_model.adapted(checkpoints.Opened("bert", net.eval(), tokenizer()))
    return MaskedNetwork(lm.logits, lm.mask_id, lm.vocabulary_size)


def text(document, order=ORDER):
    return Gapped(document, [VISIBLE.get(place, MASK) for place in range(6)], order)


def filled(network, n, how, order=ORDER):
    found = []
    for start in range(0, n, 2000):
        batch = [text(document, order) for document in range(start, min(n, start + 2000))]
        fill(network, batch, how)
        found += batch
    return found


def p_value(texts, p_C):
    """Chi-square of the completions against their probabilities; cells that expect fewer than 5 are put together."""
    place = {cell: number for number, cell in enumerate(CELLS)}
    count_C = np.bincount([place[tuple(t.ids[i] for i in ORDER)] for t in texts], minlength=len(CELLS))
    expected_C = p_C / p_C.sum() * len(texts)
    rare = expected_C < 5
    observed = np.append(count_C[~rare], count_C[rare].sum())
    return chisquare(observed, np.append(expected_C[~rare], expected_C[rare].sum())).pvalue


@pytest.fixture(scope="module")
def joint(model):
    every = [text(0) for _ in CELLS]
    for one, words in zip(every, CELLS, strict=True):
        for place, word in zip(ORDER, words, strict=True):
            one.ids[place] = word
    return np.array([float(logp_K.sum().exp()) for logp_K in model.joint_logp(every)])


# ---- exactness ------------------------------------------------------------------------------------------------------
EXACT = {
    "sequential": Speculation("sequential"),
    "self, k 2": Speculation(k=2, bonus=False, ahead=0),
    "self, k 3": Speculation(k=3, bonus=False, ahead=0),
    "self, k 4": Speculation(k=4, ahead=0),
    "self, k 2, bonus": Speculation(k=2, ahead=0),
    "self, k 2, laws used again": Speculation(k=2, bonus=False),
    "self, k 3, bonus, laws used again": Speculation(k=3),
    "n-gram, k 3, bonus": Speculation(draft="ngram", k=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", EXACT.values(), ids=EXACT.keys())
def test_texts_have_the_joint_law_of_the_network(model, joint, how):
    """4 000 texts of 625 completions for each of three seeds; with a right sampler a p-value below 1e-3 is one in a thousand."""
    together = []
    for seed in range(3):
        texts = filled(model, 4000, replace(how, seed=seed))
        assert p_value(texts, joint) > 1e-3
        assert max(one.record.calls for one in texts) <= len(ORDER)
        together += texts
    assert p_value(together, joint) > 1e-3  # a small bias that each seed hides


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 4])
def test_unjudged_drafts_have_another_law_and_the_test_sees_it(model, joint, k):
    assert p_value(filled(model, 20_000, Speculation("independent", k=k)), joint) < 1e-20


@pytest.mark.slow
def test_a_refused_draft_drawn_anew_from_the_judges_law_itself_would_be_seen(model, joint, monkeypatch):
    """The test has teeth: what the draft already had must be taken off."""
    monkeypatch.setattr(speculation, "residual", lambda logp_BV, logq_BV: logp_BV)
    assert p_value(filled(model, 12_000, Speculation(k=3, ahead=0)), joint) < 1e-6


@pytest.mark.slow
def test_a_masked_model_judged_by_copies_has_the_law_of_its_fixed_order(bert):
    order = (3, 0, 5, 2)
    logp = {(): 0.0}  # along the order, prefix by prefix
    for length in range(len(order)):
        for prefix in [prefix for prefix in logp if len(prefix) == length]:
            one = text(0, order)
            for word in prefix:
                one.write(word, 0.0)
            own_V = bert.draft([one], [1])[0, 0].double().log_softmax(-1)
            logp |= {(*prefix, word): logp[prefix] + float(own_V[word]) for word in range(WORDS)}
    at = [order.index(place) for place in ORDER]
    ordered = np.array([np.exp(logp[tuple(cell[at.index(i)] for i in range(4))]) for cell in CELLS])
    assert ordered.sum() == pytest.approx(1, abs=1e-5)
    for seed in range(3):
        assert p_value(filled(bert, 4000, Speculation(k=3, seed=seed), order), ordered) > 1e-3
    assert p_value(filled(bert, 4000, Speculation("independent", k=4), order), ordered) < 1e-20


LAWS = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda p: sum(p) > 0.01)


@given(p=LAWS, q=LAWS)
@settings(max_examples=200, deadline=None)
def test_kept_drafts_and_their_replacements_have_the_law_of_the_judge(p, q):
    """By enumeration: Σ_x q(x)·min(1, p(x)/q(x)) at x, and the refused mass times the residual law."""
    p_V, q_V = (torch.tensor(x, dtype=torch.float64) / sum(x) for x in (p, q))
    kept_V = torch.minimum(p_V, q_V)
    anew_V = residual(p_V.log(), q_V.log()).exp()
    assert float(anew_V.sum()) == pytest.approx(1, abs=1e-9)
    assert torch.allclose(kept_V + (1 - kept_V.sum()) * anew_V, p_V, atol=1e-9)


def test_a_draft_is_kept_with_the_ratio_of_its_probabilities():
    logp_B, logq_B = torch.tensor([0.2, 0.5, 0.3, 0.0]).log(), torch.tensor([0.4, 0.1, 0.3, 0.5]).log()
    for u, expected in ((0.49, [1, 1, 1, 0]), (0.51, [0, 1, 1, 0]), (0.0, [1, 1, 1, 0])):
        assert accepted(logp_B, logq_B, torch.full((4,), u)).int().tolist() == expected


def test_where_both_laws_agree_a_refusal_by_rounding_draws_from_the_judge():
    logp_V = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    assert torch.equal(residual(logp_V, logp_V), logp_V)


# ---- cost and settings ----------------------------------------------------------------------------------------------
HOWS = [
    *(Speculation(k=k, bonus=bonus, ahead=ahead) for k in (2, 5) for bonus in (False, True) for ahead in (0, 3, 16)),
    *(Speculation(draft="ngram", k=k) for k in (1, 3)),
]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_no_text_takes_more_calls_than_it_has_hidden_tokens(model, how):
    texts = filled(model, 200, how)
    for one in texts:
        assert one.record.calls <= len(ORDER)
        assert sorted(one.record.position) == list(ORDER)
        assert sum(turn.written for turn in one.rounds) == len(ORDER)
        assert all(turn.kept <= turn.drafted <= how.k for turn in one.rounds)
    auxiliary = sum(one.record.auxiliary for one in texts)
    assert auxiliary == (sum(len(one.rounds) for one in texts) if how.draft == "ngram" else 0)


@pytest.mark.parametrize(
    "how", [Speculation(k=3), Speculation(k=2, ahead=0), Speculation(draft="ngram"), Speculation("sequential")], ids=str
)
def test_a_text_is_the_same_alone_and_in_a_batch(model, how):
    together = filled(model, 12, how)
    for number in (0, 5, 11):
        alone = text(number)
        fill(model, [alone], how)
        assert alone.ids == together[number].ids
        assert alone.rounds == together[number].rounds
        assert alone.record.logp_nats == pytest.approx(together[number].record.logp_nats, abs=1e-4)  # float32


def test_texts_of_unequal_length_are_filled_as_alone(model):
    long, short = text(3), Gapped(4, [1, MASK, MASK], (1, 2))
    fill(model, [long, short], Speculation())
    again, other = text(3), Gapped(4, [1, MASK, MASK], (1, 2))
    fill(model, [again], Speculation())
    fill(model, [other], Speculation())
    assert (long.ids, short.ids) == (again.ids, other.ids)


@pytest.mark.parametrize("how", [Speculation(temperature=0), Speculation(draft="ngram", temperature=0)], ids=str)
def test_greedy_rounds_write_what_greedy_position_by_position_writes(model, how):
    for order in (ORDER, (5, 3, 2, 0)):
        if how.draft == "self" or order == ORDER:
            one, other = text(0, order), text(0, order)
            fill(model, [one], how)
            fill(model, [other], Speculation("sequential", temperature=0))
            assert one.ids == other.ids


def test_the_recorded_probability_is_that_of_one_joint_call(model):
    for how in (Speculation(k=3), Speculation(draft="ngram", k=3), Speculation("sequential")):
        texts = filled(model, 8, how)
        for one, logp_K in zip(texts, model.joint_logp(texts), strict=True):
            assert sum(one.record.logp_nats) == pytest.approx(float(logp_K.sum()), abs=1e-4)  # float32 networks


def test_one_position_a_call_without_a_judge_is_the_sequential_sampler(model):
    one, other = (filled(model, 20, how) for how in (Speculation("independent", k=1), Speculation("sequential")))
    assert [t.ids for t in one] == [t.ids for t in other]


def test_temperature_and_top_p_shape_the_law_that_is_drawn_from():
    logits_V = torch.tensor([2.0, 1.0, 0.0, -torch.inf])
    assert law(logits_V, 0).exp().tolist() == [1, 0, 0, 0]
    assert torch.allclose(law(logits_V, 2.0), (logits_V.double() / 2).log_softmax(-1))
    assert law(logits_V, top_p=0.6).exp().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("given_settings", "sentence"),
    [
        ({"k": 1}, "k is 1: a round of two calls"),
        ({"k": 0, "method": "independent"}, "k is 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"method": "sequential", "draft": "ngram"}, "draft ngram is for method assd only"),
        ({"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_settings_out_of_range_are_refused_with_a_reason(given_settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Speculation(**given_settings)


def test_settings_say_what_law_they_keep():
    assert (
        Speculation().preserves
        == Speculation("sequential").preserves
        == Speculation(draft="ngram").preserves
        == "exact"
    )
    assert Speculation("independent").preserves == Speculation(temperature=0.5).preserves == "no"
    assert "use method assd" in Speculation("independent").law
    assert "every conditional law" in Speculation(top_p=0.9).law
    assert "Greedy" in Speculation(temperature=0).law


def test_the_ngram_draft_needs_an_order_that_ascends(model):
    with pytest.raises(ValueError, match="document 0 is decoded in an order that does not ascend"):
        fill(model, [text(0, (5, 0, 2, 3))], Speculation(draft="ngram"))


# ---- masked models --------------------------------------------------------------------------------------------------
def test_copies_are_counted_as_rows_of_one_call(bert):
    one = text(0)
    bert.draft([one], [4])
    bert.judge([one], [[1, 2, 3, 4]], [4], [1])
    assert (one.record.calls, one.record.rows) == (2, 6 + 3 * 6)


@pytest.mark.slow
def test_a_random_order_drafts_better_than_left_to_right_on_a_masked_model():
    """On a Markov language neighbours depend on each other, positions far apart hardly: spread drafts are kept."""
    lm = masked_model.load("markov-masked")
    network = MaskedNetwork(lm.logits, lm.mask_id, lm.vocabulary_size)
    shuffled = random.Random(0)
    opening = lm.tokenizer(" ".join(markov.SYLLABLES[:1]))["input_ids"][:1]
    calls = {}
    for name in ("left to right", "random"):
        texts = []
        for document in range(6):
            places = list(range(len(opening), len(opening) + 64))
            if name == "random":
                shuffled.shuffle(places)
            texts.append(Gapped(document, [*opening, *[lm.mask_id] * 64], tuple(places)))
        fill(network, texts, Speculation(k=8))
        calls[name] = np.mean([one.record.calls for one in texts])
    assert calls["random"] < 0.6 * calls["left to right"] < 0.6 * 64
