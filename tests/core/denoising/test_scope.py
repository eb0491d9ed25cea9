"""What a call computes, sees and may fill: windows that leave nothing out are the whole text, token for token."""

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from shiftscope.core.checkpoints import Opened
from shiftscope.core.denoising import masked_model
from shiftscope.core.denoising.scope import Scope, Sight
from shiftscope.core.masked import Filling, decode, prompted

PROMPTS = [[5, 11, 8], [9, 20, 31, 7, 6], [33]]
DRAWN = Filling(temperature=1.0, order="entropy", seed=3)


@pytest.fixture(scope="module")
def markov():
    return masked_model.load("markov-masked")


class Words:
    mask_token_id, eos_token_id = 3, 2

    def get_vocab(self):
        return {str(token): token for token in range(40)}


@pytest.fixture(scope="module", params=["LLaDA", "Dream", "ModernBert"])
def tiny(request):
    """Small random networks: laws that depend on everything, an output that is shifted, attention that slides."""
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "ModernBert":
            sliding = {"local_attention": 8, "global_attn_every_n_layers": 2}
            model = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**sizes, **sliding))
        else:
            sizes |= {"is_causal": False, "initializer_range": 0.3, "architectures": [f"{request.param}Model"]}
            model = LlamaForCausalLM(LlamaConfig(**sizes))
    return masked_model.adapted(Opened(request.param, model.eval(), Words()))


def written(model, scope, filling=DRAWN, prompts=PROMPTS, room=24, alone=False):
    canvases = [prompted(model, prompt, room, number) for number, prompt in enumerate(prompts)]
    for group in [[canvas] for canvas in canvases] if alone else [canvases]:
        decode(model, group, filling, scope, early_stop=False)
    return canvases


def ids(canvases):
    return [canvas.ids for canvas in canvases]


@pytest.mark.parametrize("filling", [Filling(), DRAWN, Filling(per_call=3)], ids=["greedy", "drawn", "three a call"])
def test_a_window_without_limits_renewed_in_every_call_is_the_full_decoder(tiny, filling):
    assert tiny.shift == (tiny.name == "Dream")
    window = written(tiny, Scope("window", inner=0, outer=0, refresh=1), filling)
    full = written(tiny, Scope(), filling, alone=True)
    assert ids(window) == ids(full)
    assert [canvas.record.rows for canvas in window] == [canvas.record.rows for canvas in full]
    assert [canvas.record.pairs for canvas in window] == [canvas.record.pairs for canvas in full]


def test_a_narrow_inner_window_renewed_in_every_call_is_the_full_decoder_with_fewer_candidates(markov):
    """The reference is the plain greedy loop over whole forwards, which knows no scopes."""
    from shiftscope.core.denoising.masked_training import fill_greedily

    canvases = written(markov, Scope("window", inner=4, outer=0, refresh=1), Filling(), prompts=[[9, 30], [12, 41]])
    start = torch.tensor([[*prompt, *[markov.mask_id] * 24] for prompt in ([9, 30], [12, 41])])
    assert ids(canvases) == fill_greedily(markov.model, start, mask_id=markov.mask_id, window=4).tolist()


def test_candidates_never_leave_the_inner_window(tiny):
    for canvas in written(tiny, Scope("window", inner=4, outer=8, refresh=5)):
        hidden = sorted(canvas.record.position)
        for place in canvas.record.position:
            assert place in hidden[:4]
            hidden.remove(place)


def test_blocks_are_finished_from_the_left(tiny):
    canvas = written(tiny, Scope("blocks", block=8), Filling(order="random"))[0]
    blocks = [(place - canvas.start) // 8 for place in canvas.record.position]
    assert blocks == sorted(blocks)
    assert canvas.record.position != sorted(canvas.record.position)
    one_block = written(tiny, Scope("blocks", block=99), DRAWN)
    assert ids(one_block) == ids(written(tiny, Scope(), DRAWN))


@pytest.mark.parametrize("scope", [Scope(), Scope("blocks", block=8), Scope("window", inner=4, outer=8, refresh=4)])
def test_a_text_is_the_same_alone_and_with_others(markov, scope):
    prompts = [[9, 30, 12], [12, 41], [20], [33, 7, 8, 15, 40]]
    assert ids(written(markov, scope, prompts=prompts)) == ids(written(markov, scope, prompts=prompts, alone=True))


def test_calls_of_a_phase_compute_candidates_and_what_was_filled_since():
    """R calls of one token: |D| + outer rows, then inner + 1, inner + 2, … as the filled ones are computed again."""
    sight, text = Sight(Scope("window", inner=4, outer=8, refresh=4)), [1, 1, *[0] * 20]
    rows, pairs = [], []
    for _ in range(8):
        view = sight.look(text, [place for place, token in enumerate(text) if token == 0], 2, 0)
        assert [text[place] for place in view.places] == view.ids
        rows.append(len(view.places))
        pairs.append(view.pairs)
        text[view.allowed[1]] = 1
        sight.filled([view.allowed[1]])
    assert rows == [10, 5, 6, 7, 14, 5, 6, 7]
    assert pairs == [100, 50, 60, 70, 196, 70, 84, 98]


def test_without_renewal_filled_positions_stay_as_they_were():
    sight, text = Sight(Scope("window", inner=4, outer=8, refresh=4, renew=False)), [1, 1, *[0] * 20]
    rows = []
    for _ in range(4):
        view = sight.look(text, [place for place, token in enumerate(text) if token == 0], 2, 0)
        rows.append(len(view.places))
        text[view.allowed[0]] = 1
        sight.filled(view.allowed[:1])
    assert rows == [10, 4, 4, 4]


def test_a_shifted_model_computes_the_left_neighbour_of_its_candidates():
    sight, text = Sight(Scope("window", inner=2, outer=4, refresh=9)), [1, 1, *[0] * 9]
    sight.look(text, list(range(2, 11)), 2, 1)
    view = sight.look(text, list(range(2, 11)), 2, 1)
    assert list(view.places) == [1, 2, 3]


def test_a_window_that_its_candidates_leave_is_computed_anew():
    sight, text = Sight(Scope("window", inner=4, outer=4, refresh=99)), [1, *[0] * 20]
    first = sight.look(text, list(range(1, 21)), 1, 0)
    for place in first.allowed[:3]:
        text[place] = 1
    sight.filled(first.allowed[:3])
    second = sight.look(text, list(range(4, 21)), 1, 0)
    assert first.fresh
    assert second.fresh
    assert second.allowed == [4, 5, 6, 7]


def test_a_cut_text_leaves_no_keys_behind(tiny):
    """A canvas that is cut in mid-phase goes on like one that was never longer but for the law of its last call."""
    scope = Scope("window", inner=4, outer=0, refresh=50)
    canvas = prompted(tiny, PROMPTS[0], 24, 0)
    sight = Sight(scope)
    view = sight.look(canvas.ids, canvas.hidden, canvas.start, tiny.shift)
    tiny.logits([view.ids], [view.wanted], positions=[view.places], window=view.window)
    del canvas.ids[15:]
    sight.cut(15)
    view = sight.look(canvas.ids, canvas.hidden, canvas.start, tiny.shift)
    assert view.window.positions_K.tolist() == list(range(15))
    assert view.pairs == len(view.places) * 15
    logits = tiny.logits([view.ids], [view.wanted], positions=[view.places], window=view.window)[0]
    assert logits.shape == (4, 40)


def test_a_call_is_whole_where_it_gives_the_laws_of_all_hidden_places_in_sight():
    sight, text = Sight(Scope("window", inner=4, outer=6, refresh=9)), [1, *[0] * 8]
    seen = []
    for place in range(1, 9):
        view = sight.look(text, list(range(place, 9)), 1, 0)
        seen.append((view.fresh, view.whole, len(view.wanted)))
        text[place] = 1
        sight.filled([place])
    assert seen == [
        (True, True, 6), (False, False, 4), (False, False, 4), (True, True, 5), (False, True, 4), (False, True, 3),
        (False, True, 2), (False, True, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "blocks", "block": 0}, "need at least 1 for block"),
        ({"refresh": 0}, "need at least 1 for block and refresh"),
        ({"block": 8}, "block is 8, and method window does not read it: use method blocks, or leave it out"),
        ({"method": "full", "inner": 8}, "inner is 8, and method full does not read it: use method window"),
        ({"method": "blocks", "renew": False}, "renew is False, and method blocks does not read it"),
        ({"inner": 70}, "inner is 70 and outer 64"),
        ({"inner": 0}, "inner is without limit and outer 64"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Scope(**{"method": "window", **settings})
