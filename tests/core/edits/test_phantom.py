"""Phantom surface and mass: against enumeration, against plain forwards, and on a real vocabulary of 131 072 tokens."""

import functools
import importlib.util
import itertools
import math
import re
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from shiftscope.core import checkpoints, decode
from shiftscope.core.bytes import byte_law, canonical, token_bytes
from shiftscope.core.bytes.byte_law import ByteLaw, Engine
from shiftscope.core.bytes.token_tree import TokenTree
from shiftscope.core.edits import phantom
from shiftscope.core.edits.artefacts import LABELS
from shiftscope.core.edits.edit_slots import Cut, Spelled, judged
from shiftscope.core.edits.phantom import LEADS, TRAILS

WORDS = ["cat", "cats", "catch", "chat", "hat", "hats", "attach", "Cathy"]


@pytest.fixture(scope="module")
def stranger():
    """A random GPT-2 with bytes and a few merges, sharp enough that spellings differ in probability."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, show_progress=False, special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(["a", *WORDS]), "the [ cat ] hats ]", *WORDS], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(wrapped), n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            model.transformer.wte.weight.mul_(12)
    return checkpoints.wrap(model, wrapped, "stranger")


@pytest.fixture(scope="module")
def tokens(stranger):
    return token_bytes.read(stranger.tokenizer, stranger.vocabulary_size)


@pytest.fixture(scope="module")
def slot(stranger, tokens):
    """A tree, the context 'the [' in it, its ids, and the reference ' cat' of a prompt."""
    context = [0, *tokens.encode("the [")]
    spelled = Spelled.of(tokens.encode("the [ cat ]"), tokens.spelled)
    reference = spelled.slot(spelled.text.index(b"[") + 1, spelled.text.index(b"]"))
    assert isinstance(reference, Cut)
    tree = TokenTree(stranger, [0])
    return tree, tree.after(context[1:]), context, reference


@pytest.mark.parametrize("word", WORDS)
def test_spellings_are_those_that_enumeration_finds(tokens, word):
    text = word.encode()
    found = set()
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        places = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), len(text)]
        ways = [tokens.equal(text[a:b]) for a, b in itertools.pairwise(places)]
        found |= set(itertools.product(*ways))
    assert set(phantom.segmentations(tokens, text)) == found
    assert phantom.count(tokens, text) == len(found) > 1


def test_the_surface_leaves_out_the_canonical_spelling_alone(tokens):
    one = phantom.surface(tokens, "cats")
    assert (
        one.canonical
        == tuple(tokens.spelled[i] for i in tokens.encode("the cats of")[len(tokens.encode("the")) : -2])[
            : len(one.canonical)
        ]
    )
    assert one.ways == phantom.count(tokens, b"cats") + phantom.count(tokens, b" cats") - 1 == sum(one.labels)
    by_label = dict(zip(LABELS, one.labels, strict=True))
    assert by_label["whitespace_boundary_shift"] == 1
    assert by_label["plural_possessive_tail"] > 0


def test_a_text_that_cannot_be_spelt_has_no_spelling(tokens):
    assert phantom.count(tokens, b"") == 1
    assert list(phantom.segmentations(tokens, b"")) == [()]


def plain_law(checkpoint, ids):
    with torch.no_grad():
        return checkpoint.model(torch.tensor([ids])).logits[0, -1].double()


def brute_force(checkpoint, tokens, context, reference, shape=lambda logits: logits.log_softmax(-1)):
    """Unchanged and phantom mass from plain forwards over every spelling of every text."""
    laws = functools.cache(lambda ids: shape(plain_law(checkpoint, [*context, *ids])[None])[0].exp().numpy())
    found = Counter()
    for lead, trail in itertools.product(LEADS, TRAILS):
        text = lead + reference.word + trail + b"]"
        for last in range(len(text)):
            low, high = tokens.interval(text[last:])
            closing = tokens.ids_J[low:high]
            for ids in phantom.segmentations(tokens, text[:last]):
                p = math.prod(float(laws(ids[:place])[token]) for place, token in enumerate(ids))
                for token in closing.tolist():
                    spelled = Spelled.of([*ids, token], tokens.spelled)
                    outcome = judged(reference, spelled.slot(0, len(text) - 1))
                    found[outcome] += p * float(laws(ids)[token])
    return found


def test_masses_are_those_of_plain_forwards_over_every_spelling(stranger, tokens, slot):
    tree, root, context, reference = slot
    exact = phantom.masses(tree, root, tokens, reference, floor=0.0)
    expected = brute_force(stranger, tokens, context, reference)
    assert exact.left_out == 0
    assert exact.unchanged == pytest.approx(expected["unchanged"], rel=1e-3)  # float32 in two batch layouts
    assert exact.phantom == pytest.approx(expected["phantom"], rel=1e-3)
    assert exact.phantom > 0.2 * exact.unchanged > 0
    assert sum(exact.labels) == pytest.approx(exact.phantom)


def test_masses_follow_the_truncated_law_that_is_drawn_from(stranger, tokens, slot):
    tree, root, context, reference = slot
    shape = functools.partial(decode.shaped, temperature=1.5, top_p=0.9, top_k=60)
    exact = phantom.masses(tree, root, tokens, reference, shape=shape, floor=0.0)
    expected = brute_force(stranger, tokens, context, reference, shape)
    assert exact.unchanged == pytest.approx(expected["unchanged"], rel=1e-3)
    assert exact.phantom == pytest.approx(expected["phantom"], rel=1e-3)


def test_what_is_not_followed_is_bounded(tokens, slot):
    tree, root, _, reference = slot
    whole = phantom.masses(tree, root, tokens, reference, floor=0.0)
    rough = phantom.masses(tree, root, tokens, reference, floor=1e-5)
    assert 0 <= whole.word - rough.word <= rough.left_out
    assert rough.left_out > 0


def test_the_byte_law_of_all_sequences_gives_the_word_the_sum_of_its_spellings(stranger, tokens, slot):
    tree, root, context, reference = slot
    exact = phantom.masses(tree, root, tokens, reference, floor=0.0)
    rules = canonical.validity(tokens, "all")
    engine = Engine(tree, tokens, rules, decode.end_ids(stranger), "all", tuple(context), root)
    texts = [lead + reference.word + trail + b"]" for lead in LEADS for trail in TRAILS]
    total = sum(math.exp(byte_law.ByteLaw(engine, text).law().logp) for text in texts)
    assert exact.word == pytest.approx(total, rel=1e-3)  # float32 in two layouts
    assert phantom.byte_mass(ByteLaw(engine), reference, floor=0.0) == pytest.approx(total, rel=1e-3)


def test_under_the_canonical_mask_only_spellings_that_are_canonical_for_their_own_text_are_left(stranger, tokens, slot):
    tree, root, context, reference = slot
    rules = canonical.validity(tokens)
    allowed = phantom.canonical_in(rules, context, tokens.spelled_V)
    plain = phantom.masses(tree, root, tokens, reference, floor=0.0)
    masked = phantom.masses(tree, root, tokens, reference, allowed=allowed, floor=0.0)
    by_label = dict(zip(LABELS, masked.labels, strict=True))
    blanks = sum(by_label[name] for name in LABELS if name.startswith(("whitespace", "newline")))
    assert masked.phantom == pytest.approx(blanks)  # other blanks are another text; a new cut is gone
    assert sum(plain.labels) > sum(plain.labels[:3])  # without the mask there were some
    assert masked.unchanged > plain.unchanged
    assert allowed([])[0]  # the text may end
    assert allowed(tokens.encode(" c")) is not None


def test_ids_that_are_not_canonical_forbid_nothing(tokens):
    rules = canonical.validity(tokens)
    cat = tokens.encode(" cat")
    assert len(cat) == 1
    letters = [tokens.equal(bytes([byte]))[0] for byte in b" cat"]
    allowed = phantom.canonical_in(rules, tokens.encode("the ["), tokens.spelled_V)
    assert allowed(letters) is None
    assert rules.step(phantom.entered(rules, [0, *letters, *tokens.encode("the [")]), cat[0]) is not None


@pytest.mark.slow
def test_the_phantom_surface_of_tekken():
    """131 072 tokens, the 400 most frequent words of 3 to 14 letters in the help topics.

    The source measured a mean of 313.6 and a median of 78 other spellings with a word list of its own making.
    """
    from pydoc_data.topics import topics

    package = importlib.util.find_spec("mistral_common")
    tokens = token_bytes.read(Path(package.submodule_search_locations[0]) / "data" / "tekken_240911.json")
    counts = Counter(word for text in topics.values() for word in re.findall(r"[A-Za-z]{3,14}", text))
    found = [phantom.surface(tokens, word) for word, _ in counts.most_common(400)]
    assert None not in found
    ways = [one.ways for one in found]
    assert 200 < statistics.mean(ways) < 400  # measured 272
    assert 50 < statistics.median(ways) < 100  # measured 70
    totals = dict(zip(LABELS, np.array([one.labels for one in found]).sum(0).tolist(), strict=True))
    assert totals["intra_word_resegmentation"] > 0.8 * sum(ways)
    # a word that is one token with its space and without it shifts once and is detached once
    assert 300 < totals["whitespace_boundary_shift"] == totals["whitespace_detachment"] < 400
    order = sorted(totals, key=lambda label: -totals[label])
    assert order[:3] == ["intra_word_resegmentation", "plural_possessive_tail", "proper_noun_segmentation"]
    assert 0 < totals["acronym_split"] < totals["morphological_boundary"] < 400
    assert totals["same_bytes_other_id"] == 0
