"""token_tree: any tree of contexts in one cache gives the laws of plain forwards, whatever was forgotten before."""

import gc

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from shiftscope.core import checkpoints
from shiftscope.core.bytes.token_tree import ROWS, TokenTree, path_of

OPENING = (1, 5)
CLOSE = 1e-12  # float64, sums in another order
V, PLACES = 37, 24


def gpt2(places=PLACES):
    """A random model in float64, so that equal means equal to rounding; sharp enough that contexts differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=places)
        model = GPT2LMHeadModel(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model():
    return gpt2()


def tree_of(model, opening=OPENING):
    return TokenTree(checkpoints.wrap(model, None), opening)


def plain(model, ids):
    """The law after these ids by a forward of them alone, without a cache."""
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0, -1].double().log_softmax(-1).numpy()


def branching(tree, generator, count, held, deepest=PLACES - 1):
    """Grow random contexts below those held, in whatever order."""
    vocabulary = tree._head.weight.shape[0]
    for _ in range(count):
        parent = held[int(generator.integers(len(held)))]
        if parent.depth < deepest:
            held.append(tree.child(parent, int(generator.integers(vocabulary))))
    return list(dict.fromkeys(held))


def test_a_branching_tree_gives_the_laws_of_plain_forwards_in_every_architecture(tiny):
    """Oracle: each context alone through the whole model; grown in three rounds, so that the cache is used too."""
    tree, generator = tree_of(tiny), np.random.default_rng(0)
    held = [tree.root]
    for _ in range(3):
        held = branching(tree, generator, 10, held, deepest=tree.limit - 1)
        tree.evaluate()
    assert len({node.depth for node in held}) > 3
    laws = tree.laws(held)
    expected = [plain(tiny, (*OPENING, *path_of(node))) for node in held]
    # float32 with parameters of size 0.3: logits are tens, each rounded in another order
    np.testing.assert_allclose(np.exp(laws), np.exp(expected), atol=1e-4)
    assert np.abs(np.exp(laws) - np.exp(laws[0])).max(-1)[1:].min() > 1e-3  # the contexts do differ


def test_what_waits_is_computed_in_one_forward_and_nothing_twice(model):
    tree = tree_of(model)
    assert (tree.forwards, tree.positions) == (0, 0)  # the check of the architecture is not counted
    first = tree.child(tree.root, 3)
    leaves = [tree.child(first, token) for token in range(6)]
    assert tree.child(first, 4) is leaves[4]
    tree.laws([leaves[2]])
    assert (tree.forwards, tree.positions) == (1, 7)
    tree.laws([*leaves, first, tree.root])
    tree.logp([(first, 4)])
    assert (tree.forwards, tree.positions) == (1, 7)
    tree.laws([tree.child(leaves[0], 9)])
    assert (tree.forwards, tree.positions) == (2, 8)


def test_steps_over_several_blocks_are_the_entries_of_the_laws_in_the_order_asked(model):
    tree, generator = tree_of(model), np.random.default_rng(1)
    nodes = branching(tree, generator, 2 * ROWS + 60, [tree.root])
    assert len(nodes) > 2 * ROWS
    steps = [(nodes[int(k)], int(generator.integers(V))) for k in generator.integers(len(nodes), size=3 * ROWS)]
    laws = dict(zip(nodes, tree.laws(nodes), strict=True))
    found = tree.logp(steps)
    np.testing.assert_allclose(found, [laws[node][token] for node, token in steps], atol=CLOSE)
    np.testing.assert_allclose([np.exp(law).sum() for law in laws.values()], 1, atol=CLOSE)
    for node in nodes[:: ROWS // 2]:
        np.testing.assert_allclose(laws[node], plain(model, (*OPENING, *path_of(node))), atol=CLOSE)


def test_contexts_nobody_holds_give_their_places_back_and_the_others_keep_their_laws(model):
    tree, generator = tree_of(model), np.random.default_rng(2)
    kept = branching(tree, generator, 12, [tree.root])
    most = 0
    for _ in range(8):
        forgotten = branching(tree, generator, 90, list(kept))
        tree.evaluate()
        most = max(most, len(tree._slots))
        del forgotten
        gc.collect()
        kept = branching(tree, generator, 2, kept)  # those that stay are scattered over the cache
        np.testing.assert_allclose(
            tree.laws(kept), [plain(model, (*OPENING, *path_of(node))) for node in kept], atol=CLOSE
        )
    assert 256 <= most < 400 < tree.positions
    assert tree._cache.layers[0].keys.shape[2] == len(tree._slots)


def test_a_context_forgotten_before_it_was_computed_costs_nothing(model):
    tree = tree_of(model)
    gone = tree.child(tree.root, 3)
    del gone
    gc.collect()
    tree.evaluate()
    assert (tree.forwards, tree.positions) == (0, 0)


def test_texts_after_further_opening_ids_share_no_context_with_others_and_leave_the_opening_out(model):
    tree = tree_of(model)
    stem, same = tree.after([7, 8]), tree.child(tree.child(tree.root, 7), 8)
    assert stem is not same
    below = tree.child(tree.child(stem, 9), 2)
    assert (path_of(stem), path_of(below), path_of(same)) == ((), (9, 2), (7, 8))
    assert path_of(tree.root) == ()
    laws = tree.laws([stem, same, below])
    np.testing.assert_allclose(laws[0], laws[1], atol=CLOSE)
    np.testing.assert_allclose(laws[2], plain(model, (*OPENING, 7, 8, 9, 2)), atol=CLOSE)


def test_the_tree_reads_up_to_its_limit_and_refuses_a_longer_text_in_a_sentence(model):
    tree = tree_of(model)
    path = [int(token) for token in np.random.default_rng(3).integers(V, size=PLACES - len(OPENING))]
    nodes = [tree.root]
    for token in path:
        nodes.append(tree.child(nodes[-1], token))
    np.testing.assert_allclose(tree.laws([nodes[-1]])[0], plain(model, (*OPENING, *path)), atol=CLOSE)
    beyond = tree.child(nodes[-1], 0)
    with pytest.raises(
        ValueError, match=f"needs {PLACES + 1} tokens, model in memory reads at most {PLACES} in a tree"
    ):
        tree.laws([beyond])


def test_models_a_tree_cannot_hold_are_refused_in_a_sentence(model):
    with pytest.raises(ValueError, match="needs at least one token in front of every text"):
        tree_of(model, ())

    def deaf(_, arguments, named):
        """Causal attention over all that is cached, as of an architecture that builds its mask itself."""
        return arguments, {**named, "attention_mask": None}

    blind = gpt2()
    checkpoint = checkpoints.wrap(blind, None)
    blind.transformer.register_forward_pre_hook(deaf, with_kwargs=True)
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel\) in a tree of contexts differs .* not take a mask of its own"
    ):
        TokenTree(checkpoint, OPENING)

    broken = gpt2()
    tree = tree_of(broken)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="gives logits that are not numbers"):
        tree.laws([tree.child(tree.root, 3)])


def test_a_text_beyond_the_limit_takes_no_other_with_it(model):
    tree = tree_of(model)
    node = tree.root
    for _ in range(PLACES - len(OPENING) + 1):
        node = tree.child(node, 3)
    beside = tree.child(tree.root, 9)
    with pytest.raises(ValueError, match="reads at most"):
        tree.laws([beside])
    del node
    np.testing.assert_allclose(tree.laws([beside])[0], plain(model, (*OPENING, 9)), atol=CLOSE)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("Bloom", {"n_layer": 2, "n_head": 4}),
        ("Falcon", {"alibi": True, "num_hidden_layers": 2, "num_attention_heads": 4}),
        ("Mamba", {"num_hidden_layers": 2}),
        (
            "Lfm2",
            {
                "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_key_value_heads": 2,
                "layer_types": ["conv", "full_attention"],
            },
        ),
    ],
)  # fmt: skip
def test_a_model_whose_code_stumbles_over_the_mask_or_the_cache_is_refused_in_a_sentence(kind, sizes):
    config = getattr(transformers, f"{kind}Config")(vocab_size=V, hidden_size=32, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        strange = AutoModelForCausalLM.from_config(config).float().eval()
    with pytest.raises(
        ValueError, match=rf"{kind}ForCausalLM\) cannot be read as a tree of contexts: its layers do not"
    ):
        tree_of(strange)
