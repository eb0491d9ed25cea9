"""docs-anyorder: a tokenizer that opens texts, a joint loss that is the model's own density, a checkpoint as its card says."""

import json

import pytest
import torch

from shiftscope.core.corpus import read
from shiftscope.core.denoising import any_subset, holes
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.zoo import anyorder, docs


@pytest.fixture(scope="module")
def model():
    return any_subset.load("docs-anyorder")


@pytest.fixture(scope="module")
def card():
    return json.loads((anyorder.CHECKPOINT / "card.json").read_text(encoding="utf-8"))["figures"]


def test_a_text_opens_with_end_and_comes_back_exact(model):
    words = model.tokenizer
    ids = words("def f(x):\n    return 'naïve'")["input_ids"]
    assert ids[0] == words.eos_token_id == words.bos_token_id
    assert words.decode(ids[1:]) == "def f(x):\n    return 'naïve'"
    assert words(anyorder.MASK, add_special_tokens=False)["input_ids"] == [model.mask_id]
    assert len(words) == anyorder.VOCABULARY_SIZE
    assert model.context_length == anyorder.WINDOW


def test_the_training_loss_is_the_joint_density_of_the_hidden_tokens(model):
    ids_BN = torch.randint(2, 1024, (3, 12), generator=torch.Generator().manual_seed(0))
    hidden_BN = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.6
    with torch.no_grad():
        loss = float(anyorder.joint_loss(model.model, ids_BN, hidden_BN))
    texts = [
        Gapped(row, ids.tolist(), tuple(hidden.nonzero()[:, 0].tolist()))
        for row, (ids, hidden) in enumerate(zip(ids_BN, hidden_BN, strict=True))
    ]
    # the loss knows the mask token among its answers, the model's law does not: its mass is far below this tolerance
    assert loss == pytest.approx(anyorder.nll_nats(model, texts), abs=1e-3)


def test_fit_learns_a_repeating_stream_and_leaves_the_model_in_eval():
    words = anyorder.tokenizer(["return the value of the key and the name of the file " * 20])
    model = anyorder.new_model(words, seed=0)
    assert sum(p.numel() for p in anyorder.new_model(words, seed=0).parameters()) == model.num_parameters()
    losses: list[float] = []
    stream = torch.arange(2, 10).repeat(100)
    anyorder.fit(model, stream, steps=25, seed=0, batch=4, after_step=lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert not model.training


def test_windows_are_held_out_text_with_so_many_hidden(model):
    texts = anyorder.windows(model.tokenizer, 5, 61)
    assert [len(text.ids) for text in texts] == [64] * 5
    assert {len(set(text.order)) for text in texts} == {61}
    again = anyorder.windows(model.tokenizer, 5, 61)
    assert [text.order for text in texts] == [text.order for text in again]


def test_shipped_prompts_have_holes_and_some_have_answers(model):
    texts = read(anyorder.CHECKPOINT / "prompts.jsonl")
    found = [holes.holed(model, text) for text in texts]
    assert len(texts) == 24
    assert [one.known for one in found] == [number % 4 == 3 for number in range(24)]
    held_out = set(docs.documentation("held out"))
    for one in found:
        assert len(one.hidden) >= 4
        if one.known:
            assert holes.plain(model.tokenizer, list(one.ids), one.added) in held_out


def test_the_checkpoint_is_small(card):
    assert sum(path.stat().st_size for path in anyorder.CHECKPOINT.iterdir()) < 6e6
    assert card["parameters"]["value"] == pytest.approx(1.26e6, rel=0.01)


def test_the_card_meets_what_the_method_promises(card):
    """Calls saved on real text, the sequential sampler's likelihood kept, and the baseline that keeps no law worse."""
    for name, most in (("hidden_95", 0.82), ("hidden_50", 0.65)):
        nll = {how: card[f"{name}_{how}_nll"]["value"] for how in anyorder.DECODERS}
        assert card[f"{name}_sequential_calls"]["value"] == 1
        assert card[f"{name}_self_calls"]["value"] <= most
        assert card[f"{name}_self_calls"]["value"] < card[f"{name}_published_calls"]["value"] < 1
        assert card[f"{name}_ngram_calls"]["value"] < 1
        assert abs(nll["self"] - nll["sequential"]) < 0.1
        assert abs(nll["ngram"] - nll["sequential"]) < 0.1
        assert abs(nll["published"] - nll["sequential"]) < 0.1
        assert nll["independent"] > nll["sequential"] + 0.3


@pytest.mark.slow
def test_the_checkpoint_measures_what_its_card_says(model, card):
    """A sixth of the windows of the card: likelihood within its noise, the bound on every text, calls by both drafts."""
    for name, hidden in anyorder.SHARES.items():
        texts = anyorder.windows(model.tokenizer, 16, hidden)
        assert anyorder.nll_nats(model, texts) == pytest.approx(card[f"{name}_held_out_nll"]["value"], abs=0.4)
        for how in ("self", "ngram", "independent"):
            one = anyorder.decoded(model, texts, anyorder.DECODERS[how])
            assert one.most_calls <= 1
            assert one.calls == pytest.approx(card[f"{name}_{how}_calls"]["value"], abs=0.05)
            assert one.nll_nats == pytest.approx(card[f"{name}_{how}_nll"]["value"], abs=0.4)
