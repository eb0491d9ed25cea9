"""covers: just the sequences that spell a text, found by listing them all; grown lazily they are those found at once."""

import hashlib
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from shiftscope.core import checkpoints
from shiftscope.core.bytes import canonical, covers, token_bytes
from shiftscope.core.bytes.byte_law import Engine, engine_of
from shiftscope.core.bytes.token_tree import Node, path_of

TEXTS = [b"a", b"ab a", b"a\n\n", b"b  a", b"a's", b"\n\n\na", b"a b\n "]
WITNESSES = ["", "a", "b", " ", "\n", "1", "'", " a", "\na", "s", "'s", "\n\n"]
SUPPORTS = ["canonical", "unmasked", "all"]


class HashedTree:
    """A tree whose laws are drawn at random, by a hash of the context; some tokens have no probability at all."""

    def __init__(self, size):
        self.root, self.size = Node(None, -1), size

    def child(self, node, token):
        return Node(node, token)

    def law(self, path):
        seed = int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[:4], "big")
        generator = np.random.default_rng(seed)
        p = generator.dirichlet([0.7] * self.size) * (generator.random(self.size) < 0.8)
        with np.errstate(divide="ignore"):
            return np.log(p / p.sum())

    def laws(self, nodes):
        return [self.law(path_of(node)) for node in nodes]

    def logp(self, steps):
        return [float(self.law(path_of(node))[token]) for node, token in steps]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE with the rules of GPT-2 over few bytes, so that all sequences can be listed."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=22, show_progress=False, special_tokens=["<end>"])
    backend.train_from_iterator(["ab  ab\n\na\n b 1a'sa\n\n\nba  b\n\n" * 5], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="module")
def engines(tokenizer):
    tokens = token_bytes.read(tokenizer)
    rules = {support: canonical.validity(tokens, support) for support in SUPPORTS}
    return {s: Engine(HashedTree(tokens.size), tokens, rules[s], (0,), s) for s in SUPPORTS}


def is_begun(tokens, path):
    """Whether these tokens begin the encoding of some text: they are asked for with what may follow."""
    whole = b"".join(tokens.spelled[token] for token in path).decode()
    return any(tokens.encode(whole + witness)[: len(path)] == list(path) for witness in WITNESSES)


def listed(engine, text):
    """Every allowed sequence that spells a beginning of text: byte it ends at and path, by trying every token."""
    tokens, found = engine.tokens, [(0, ())]
    for done, path in found:
        for token, spelled in enumerate(tokens.spelled):
            if spelled and text[done:].startswith(spelled):
                longer = (*path, token)
                if engine.support == "all" or is_begun(tokens, longer):
                    found.append((done + len(spelled), longer))
    return set(found)


def is_reaching(engine, place, text):
    """Whether a text ends here, or one token could go beyond its end."""
    rest = text[place:]
    return not rest or any(s is not None and len(s) > len(rest) and s.startswith(rest) for s in engine.tokens.spelled)


def path_of_seed(seed):
    return () if seed.parent is None else (*path_of_seed(seed.parent), seed.token)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("text", TEXTS)
def test_spelt_and_reaching_are_the_sequences_that_trying_every_token_lists(engines, support, text):
    """Oracle: every segmentation for `all`; for the others those whose encoding the tokenizer itself begins so."""
    engine = engines[support]
    seeds = covers.spelt(engine, text)
    assert seeds[0].parent is None
    assert [seed.start for seed in seeds] == sorted(seed.start for seed in seeds)
    found = [(seed.start, path_of_seed(seed)) for seed in seeds]
    assert len(found) == len(set(found))
    expected = listed(engine, text)
    assert set(found) == expected
    reaching = {(seed.start, path_of_seed(seed)) for seed in covers.reaching(engine, text)}
    assert reaching == {(place, path) for place, path in expected if is_reaching(engine, place, text)}
    whole = {path for place, path in reaching if place == len(text)}
    assert tuple(engine.tokens.encode(text.decode())) in whole


def test_canonical_contexts_are_few_among_all_that_spell_a_text(engines):
    counts = {support: len(covers.spelt(engine, b"ab  ab\n\na")) for support, engine in engines.items()}
    assert counts["canonical"] == counts["unmasked"] < counts["all"] / 2


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_placed_context_has_the_sum_of_its_steps_and_one_without_probability_is_left_out(engines, support, text):
    engine = engines[support]
    seeds = covers.spelt(engine, text)
    placed = {path_of(context.node): context for context in covers.placed(engine, seeds)}
    for seed in seeds:
        path = path_of_seed(seed)
        logp = sum(engine.tree.law(path[:count])[token] for count, token in enumerate(path))
        assert (path in placed) == (logp > -math.inf)
        if path in placed:
            context = placed[path]
            assert (context.start, context.state) == (seed.start, seed.state)
            assert context.logp == pytest.approx(logp, abs=1e-12)
    assert set(placed) <= {path_of_seed(seed) for seed in seeds}


def test_contexts_left_out_for_their_probability_do_occur(engines):
    seeds = [seed for text in TEXTS for seed in covers.spelt(engines["all"], text)]
    assert 0 < len(covers.placed(engines["all"], seeds)) < len(seeds)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("text", TEXTS)
def test_contexts_woken_one_by_one_from_the_root_are_those_placed_at_once(engines, support, text):
    """Identity: lazily, by `children` of each context woken, or all together, by `reaching` and `placed`.

    The ends of a sleeper are those of all sequences through it, whatever their probability.
    """
    engine = engines[support]
    ends = [
        (path_of_seed(seed), (seed.start, seed.state))
        for seed in covers.spelt(engine, text)
        if seed.start == len(text) or covers.reaches(engine, (seed.start, seed.state), text)
    ]
    (root,) = covers.placed(engine, covers.spelt(engine, b""))
    awake = [root]
    for context in awake:
        stops = range(context.start + 1, len(text) + 1)
        for sleeper in covers.children(engine, context, text, stops):
            begun = (*path_of(sleeper.parent), sleeper.token)
            assert set(sleeper.ends) == {end for path, end in ends if path[: len(begun)] == begun} != set()
            awake.append(sleeper.woken(engine))
    lazily = {path_of(c.node): c for c in awake if c.start == len(text) or covers.continues(engine, text[c.start :])}
    at_once = {path_of(context.node): context for context in covers.placed(engine, covers.reaching(engine, text))}
    if support == "canonical":  # a sleeper that no allowed token takes beyond the end is not grown at all
        fitting = {
            path
            for path, c in at_once.items()
            if c.start == len(text) or covers.reaches(engine, (c.start, c.state), text)
        }
        assert fitting <= set(lazily) <= set(at_once)
    else:
        assert set(lazily) == set(at_once)
    for path, context in lazily.items():
        assert (context.start, context.state) == (at_once[path].start, at_once[path].state)
        assert context.logp == pytest.approx(at_once[path].logp, abs=1e-9)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("text", TEXTS)
def test_ends_grown_byte_by_byte_are_those_of_the_whole_text(engines, support, text):
    """Identity: followed without the model, sequences end where those that cover the text end; by the rules alone."""
    engine = engines[support]
    ends = ((0, engine.rules.start),)
    for count in range(1, len(text) + 1):
        begun = text[:count]
        ends = covers.grown(engine, ends, begun)
        seeds = covers.spelt(engine, begun)
        expected = {
            (seed.start, seed.state)
            for seed in seeds
            if seed.start == count or covers.reaches(engine, (seed.start, seed.state), begun)
        }
        assert len(ends) == len(set(ends))
        assert set(ends) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_a_context_reaches_beyond_a_text_where_an_allowed_token_does(engines, text):
    """Oracle: every token of the vocabulary tried; `continues` is the same question without the rules."""
    for support, engine in engines.items():
        spelled = engine.tokens.spelled
        for seed in covers.spelt(engine, text):
            rest = text[seed.start :]
            longer = [t for t, s in enumerate(spelled) if s is not None and len(s) > len(rest) and s.startswith(rest)]
            assert covers.continues(engine, rest) == bool(longer)
            if support == "canonical":
                longer = [token for token in longer if engine.rules.allows(seed.state, token)]
            assert covers.reaches(engine, (seed.start, seed.state), text) == bool(longer)


def test_all_contexts_of_a_text_cost_a_model_one_forward_of_one_position_each(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    engine = engine_of(checkpoints.wrap(model, tokenizer), "all")
    seeds = covers.reaching(engine, b"ab  ab")
    contexts = covers.placed(engine, seeds)
    stood_on = {path_of_seed(seed)[:count] for seed in seeds for count in range(1, len(path_of_seed(seed)) + 1)}
    assert len(contexts) == len(seeds) > 5
    assert (engine.tree.forwards, engine.tree.positions) == (1, len(stood_on))


def test_a_text_with_too_many_spellings_is_refused_in_a_sentence(engines):
    text = b"ab  ab\n\na" * 4
    with pytest.raises(ValueError, match="more than 20000 token sequences spell the text: use support canonical"):
        covers.spelt(engines["all"], text)
    assert 0 < len(covers.spelt(engines["canonical"], text)) < 3 * len(text)


def test_a_text_that_no_token_continues_has_no_context_that_reaches_its_end(engines):
    for engine in engines.values():
        assert covers.reaching(engine, b"az") == []
        assert {seed.start for seed in covers.spelt(engine, b"az")} == {0, 1}
