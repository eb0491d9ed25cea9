"""merge_pairs: which neighbours stay apart is just what merging them says, also where merges fire out of the order of their ranks."""

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shiftscope.core import checkpoints
from shiftscope.core.bytes import token_bytes
from shiftscope.core.bytes.merge_pairs import Merges


def own(tokens, first, second):
    """Whether the tokenizer's own model leaves two pieces apart."""
    pieces = tokens.backend.id_to_token(int(first)) + tokens.backend.id_to_token(int(second))
    return [token.id for token in tokens.backend.model.tokenize(pieces)] == [first, second]


def test_spines_give_the_pairs_that_the_merges_leave_apart():
    tokens = token_bytes.read(checkpoints.load("docs-base").tokenizer)
    merges = Merges(tokens)
    generator, ids = np.random.default_rng(0), np.flatnonzero(merges.reachable_V)
    short = [token for token in ids if len(merges.pieces[token]) < 4]  # short ones are in most conflicts
    seen = {True: 0, False: 0}
    for first, second in itertools.product(generator.choice(short, 30), generator.choice(ids, 60)):
        expected = own(tokens, first, second)
        assert merges.pair(int(first), int(second)) == expected
        seen[expected] += 1
    assert min(seen.values()) > 10


@pytest.mark.parametrize("seed", range(6))
def test_merges_whose_ranks_are_shuffled_are_decided_too(seed):
    """As in vocabularies whose later pieces have merges of earlier ranks: every pair of a small vocabulary, none left out."""
    letters, generator = "abc", np.random.default_rng(seed)
    texts = ["".join(generator.choice(list(letters), 40)) for _ in range(60)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=45, show_progress=False))
    vocabulary = tokenizer.get_vocab()
    merges = [(p[:at], p[at:]) for p in vocabulary for at in range(1, len(p)) if {p[:at], p[at:]} <= vocabulary.keys()]
    generator.shuffle(merges)
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(map(str, merge)) for merge in merges]))
    tokenizer.decoder = decoders.Fuse()
    tokens = token_bytes.read(tokenizer)
    found = Merges(tokens)
    made = {first + second: rank for rank, (first, second) in reversed(list(enumerate(merges)))}
    assert any(made.get(part, -1) > made[first + second] for first, second in merges for part in (first, second))
    reachable, seen = np.flatnonzero(found.reachable_V).tolist(), {True: 0, False: 0}
    for first, second in itertools.product(reachable, reachable):
        expected = own(tokens, first, second)
        assert found.pair(first, second) == expected, (found.pieces[first], found.pieces[second])
        seen[expected] += 1
    assert min(seen.values()) > 20


def test_a_piece_that_its_merges_do_not_make_is_never_reached():
    tokenizer = Tokenizer(
        models.BPE({"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5}, [("b", "c"), ("a", "b"), ("ab", "c")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    merges = Merges(token_bytes.read(tokenizer))
    assert merges.reachable_V.tolist() == [True, True, True, True, True, False]  # abc merges into a and bc
    assert not merges.row(5).any()
