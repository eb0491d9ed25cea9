"""Any-subset models: what each position may see, the joint density by one call, and the refusal of other models."""

import itertools
import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, XLNetConfig, XLNetLMHeadModel

from shiftscope.core.checkpoints import Opened
from shiftscope.core.denoising import any_subset
from shiftscope.core.denoising.any_subset import forbidden, rank_of, ranks, targets
from shiftscope.core.denoising.gapped import Gapped

WORDS, MASK = 5, 5  # five words and the mask


def tokenizer(**settings):
    words = {**{f"w{i}": i for i in range(WORDS)}, "<mask>": MASK}
    level = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=level, **{"mask_token": "<mask>", "model_max_length": 12, **settings}
    )


def xlnet(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"vocab_size": WORDS + 2, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0}
        ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
        return XLNetLMHeadModel(XLNetConfig(**sizes, **ids, initializer_range=0.35, **settings)).eval()


@pytest.fixture(scope="module")
def model():
    return any_subset.adapted(Opened("tiny", xlnet(), tokenizer()))


# ---- masks ----------------------------------------------------------------------------------------------------------
def test_visible_positions_come_first_then_hidden_ones_then_padding_each_from_the_left():
    hidden_BN = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
    assert ranks(hidden_BN, torch.tensor([6, 4])).tolist() == [[3, 0, 4, 1, 5, 2], [0, 2, 3, 1, 4, 5]]
    assert ranks(hidden_BN)[0].tolist() == rank_of(6, (0, 2, 4)) == [3, 0, 4, 1, 5, 2]
    assert rank_of(4, (3, 0)) == [3, 0, 1, 2]


def test_the_oracle_mask_lets_a_hidden_position_see_the_prompt_and_those_of_lower_rank():
    rank = torch.tensor([rank_of(5, (1, 3, 4))])
    sees = forbidden(rank, torch.tensor([2]), torch.tensor([5]))[0] == 0
    assert [set(row.nonzero()[:, 0].tolist()) for row in sees] == [{0, 2}, {0, 2}, {0, 2}, {0, 1, 2}, {0, 1, 2, 3}]


def test_the_draft_mask_lets_unknown_positions_see_what_is_known_and_none_of_each_other():
    rank = torch.tensor([rank_of(5, (1, 3, 4))])
    sees = forbidden(rank, torch.tensor([2]), torch.tensor([3]))[0] == 0  # position 1 is decoded
    assert [set(row.nonzero()[:, 0].tolist()) for row in sees] == [{0, 2}, {0, 2}, {0, 2}, {0, 1, 2}, {0, 1, 2}]


def test_a_position_asked_for_twice_is_refused_and_a_row_filled_up_asks_for_nothing():
    assert targets(torch.tensor([[2, -1]]), 4).tolist() == [[[0, 0, 1, 0], [0, 0, 0, 0]]]
    with pytest.raises(ValueError, match="asked for twice"):
        targets(torch.tensor([[1, 1]]), 4)


def test_hidden_positions_are_listed_from_the_left_and_filled_up():
    hidden_BN = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    assert any_subset.hidden_positions(hidden_BN).tolist() == [[0, 2], [2, -1]]


# ---- densities ------------------------------------------------------------------------------------------------------
ORDER, VISIBLE = (0, 2, 3, 5), {1: 2, 4: 0}


def text(words=(MASK,) * 4, order=ORDER, document=0):
    ids = [VISIBLE.get(place, MASK) for place in range(6)]
    for place, word in zip(order, words, strict=True):
        ids[place] = word
    return Gapped(document, ids, order)


@pytest.mark.parametrize("order", [ORDER, (5, 0, 3, 2)])
def test_the_joint_density_of_all_completions_sums_to_one(model, order):
    every = [text(words, order) for words in itertools.product(range(WORDS), repeat=4)]
    total = sum(float(logp_K.sum().exp()) for logp_K in model.joint_logp(every))
    assert total == pytest.approx(1, abs=1e-5)  # 625 terms of float32 networks


@pytest.mark.parametrize("order", [ORDER, (5, 0, 3, 2)])
def test_one_call_gives_what_separate_calls_give(model, order):
    """The draft mask with all lower ranks known, position by position, against the oracle mask once."""
    words = (3, 1, 4, 0)
    together = model.joint_logp([text(words, order)])[0]
    step = text(order=order)
    for place, word in enumerate(words):
        logp_V = model.draft([step], [1])[0, 0].double().log_softmax(-1)
        assert float(logp_V[word]) == pytest.approx(float(together[place]), abs=2e-6)  # float32 rounding
        assert step.ahead(1) == (order[place],)
        step.write(word, 0.0)
    assert step.record.calls == 4


def test_the_first_position_has_the_same_law_under_both_masks_and_later_ones_do_not(model):
    asked = text()
    drafted_KV = model.draft([asked], [3])[0].softmax(-1)
    judged_KV = model.judge([asked], [[1, 2, 3]], [3], [0])[0].softmax(-1)
    gap_K = (drafted_KV - judged_KV).abs().sum(-1)
    assert gap_K[0] < 1e-5
    assert gap_K[1:].min() > 1e-2


def test_judging_from_a_later_place_asks_for_fewer_positions(model):
    asked = text()
    whole_KV, later_KV = (model.judge([asked], [[1, 2, 3]], [3], [first])[0] for first in (0, 1))
    assert torch.allclose(whole_KV[1:], later_KV, atol=1e-5)
    assert asked.record.rows == 6 + 3 + 6 + 2
    assert asked.record.pairs == 6 * 9 + 6 * 8


def test_a_batch_of_unequal_texts_reads_each_as_alone(model):
    short = Gapped(1, [1, MASK, 3], (1,))
    together = model.draft([text(), short], [4, 1])
    assert torch.allclose(together[1, 0], model.draft([short], [1])[0, 0], atol=1e-5)
    assert torch.allclose(together[0], model.draft([text()], [4])[0], atol=1e-5)


def test_no_law_gives_the_mask_token_or_an_id_that_the_tokenizer_has_not(model):
    logits_KV = model.draft([text()], [4])[0]
    assert logits_KV.shape == (4, WORDS + 1)
    assert bool((logits_KV[:, MASK] == -torch.inf).all())


def test_measuring_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.model.train()
    model.joint_logp([text((0, 1, 2, 3))])
    assert model.model.training
    model.model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.model.parameters())


# ---- what is refused ------------------------------------------------------------------------------------------------
def test_a_text_without_a_visible_token_is_refused(model):
    with pytest.raises(ValueError, match="document 7 has no visible token"):
        model.draft([Gapped(7, [MASK, MASK], (0, 1))], [1])


def test_a_tokenizer_without_a_mask_and_a_network_without_orders_are_refused():
    with pytest.raises(ValueError, match="tiny names no mask token"):
        any_subset.adapted(Opened("tiny", xlnet(), tokenizer(mask_token=None)))
    with pytest.raises(ValueError, match="attn_type 'uni'"):
        any_subset.adapted(Opened("tiny", xlnet(attn_type="uni"), tokenizer()))


def test_models_of_other_kinds_are_named_with_what_reads_them(tmp_path):
    with pytest.raises(ValueError, match=r"'lists-base' cannot be loaded as an any-order.*generate bytes"):
        any_subset.load("lists-base")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ValueError, match=r"any-order.*generate masked"):
        any_subset.load(str(tmp_path))


def test_a_limit_is_the_tokenizers_own(model):
    assert model.context_length == 12
    assert any_subset.adapted(Opened("tiny", xlnet(), tokenizer(model_max_length=None))).context_length is None
