"""The adapter gives a plain forward's logits, whatever the family, the batch, or the part of the text that is computed."""

import pytest
import torch
import transformers

from shiftscope.core.checkpoints import Opened
from shiftscope.core.denoising.bidirectional import Window
from shiftscope.core.denoising.masked_model import adapted

V, MASK = 40, 3
SIZES = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "bert": ("BertForMaskedLM", "BertConfig", {}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {"pad_token_id": 1}),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {"embedding_size": 32}),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2Config", {}),
    "modernbert-sliding": (
        "ModernBertForMaskedLM", "ModernBertConfig", {"local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "llama-both-ways": ("LlamaForCausalLM", "LlamaConfig", {"is_causal": False, "num_key_value_heads": 2}),
}  # fmt: skip


class Words:
    """A tokenizer as far as the adapter needs one."""

    mask_token_id, eos_token_id = MASK, 2

    def get_vocab(self):
        return {str(token): token for token in range(V)}


def tiny(name):
    network, config, more = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {**SIZES, **more, "bos_token_id": 1, "eos_token_id": 2}
        return adapted(Opened(name, getattr(transformers, network)(getattr(transformers, config)(**sizes)), Words()))


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name != "deberta"])
def windowed(request):
    """The families whose attention goes through the attention interface."""
    return tiny(request.param)


def text(length, seed=0):
    ids = torch.randint(4, V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [MASK if place in (5, 9) else token for place, token in enumerate(ids)]


def seen(logits_KV):
    return logits_KV[:, [token for token in range(V) if token != MASK]]


def test_logits_are_those_of_a_plain_forward(model):
    ids = text(20)
    model.model.eval()
    with torch.no_grad():
        plain = model.model(input_ids=torch.tensor([ids])).logits[0, [5, 9]]
    found = model.logits([ids], [[5, 9]])[0]
    torch.testing.assert_close(seen(found), seen(plain), rtol=0, atol=1e-6)  # the same sums, perhaps in another order


def test_texts_of_one_call_do_not_see_each_other(model):
    together = model.logits([text(20), text(12, 1)], [[5, 9], [9]])
    alone = [model.logits([text(20)], [[5, 9]])[0], model.logits([text(12, 1)], [[9]])[0]]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(seen(one), seen(other), rtol=0, atol=1e-5)  # rounding of a padded product


def test_a_window_over_the_whole_text_is_the_whole_text(windowed):
    ids, window = text(20), Window()
    window.cover(torch.arange(20))
    whole = windowed.logits([ids], [[5, 9]], window=window)[0]
    assert torch.equal(whole, windowed.logits([ids], [[5, 9]])[0])
    some = [4, 5, 9]
    window.touch(torch.tensor(some))
    again = windowed.logits([[ids[place] for place in some]], [[5, 9]], positions=[some], window=window)[0]
    torch.testing.assert_close(seen(again), seen(whole), rtol=0, atol=1e-5)


def test_a_kept_row_is_stale_until_it_is_computed_again(windowed):
    ids, window = text(20), Window()
    window.cover(torch.arange(20))
    windowed.logits([ids], [[5]], window=window)
    ids[9] = 17  # filled since
    truth = windowed.logits([ids], [[5]])[0]
    window.touch(torch.tensor([5]))
    stale = windowed.logits([[ids[5]]], [[5]], positions=[[5]], window=window)[0]
    window.touch(torch.tensor([5, 9]))
    renewed = windowed.logits([[ids[5], ids[9]]], [[5]], positions=[[5, 9]], window=window)[0]
    gap = (seen(stale) - seen(truth)).abs().max(), (seen(renewed) - seen(truth)).abs().max()
    assert gap[1] < gap[0]  # what remains is the other rows' view of the mask


def test_measuring_leaves_the_model_as_it_was(model):
    network = model.model
    network.train()
    before = network.config._attn_implementation, {name: value.clone() for name, value in network.state_dict().items()}
    model.logits([text(20)], [[5, 9]])
    assert network.training
    assert network.config._attn_implementation == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in network.state_dict().items())
    network.eval()


def test_attention_is_put_back_after_an_error(model):
    before = model.model.config._attn_implementation
    with pytest.raises(IndexError):
        model.logits([[V + 5]], [[0]])
    assert model.model.config._attn_implementation == before


def test_positions_start_behind_the_padding_where_the_family_says_so(model):
    limit = model.model.config.max_position_embeddings
    assert model.context_length == limit - (2 if model.name == "roberta" else 0)


def test_families_say_whether_a_window_can_be_kept(windowed):
    assert windowed.windows
    assert not tiny("deberta").windows
