"""word_ends: words whose last token has the mark begin, go on and end as the tokenizer itself encodes them."""

import itertools

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shiftscope.core.bytes import token_bytes
from shiftscope.core.bytes.word_ends import WordEndValidity

CUTS = r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def ended_words(letters, cutter=None):
    """A small byte-level BPE with marked ends of words, trained on drawn words of some letters."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    cutter = cutter or pre_tokenizers.Split(Regex(CUTS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutter, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    generator = np.random.default_rng(0)
    texts = [" ".join("".join(generator.choice(list(letters), size)) for size in (2, 3, 4)) for _ in range(300)]
    size = 2 * len(letters) + 40
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["abc", "ab1'.s"])
def rules(request):
    return WordEndValidity(token_bytes.read(ended_words(request.param)))


def states(rules, depth):
    """Every state that so many tokens lead to, each with one path there."""
    found = {rules.start: ()}
    for _ in range(depth):
        for state, path in list(found.items()):
            for token in np.flatnonzero(rules.row(state)).tolist():
                found.setdefault(rules.step(state, token), (*path, token))
    return found


def test_a_row_holds_just_the_tokens_that_step_takes(rules):
    for state in list(states(rules, 2))[:60]:
        row = rules.row(state)
        taken = [rules.step(state, token) is not None for token in range(rules.tokens.size)]
        allowed = [rules.allows(state, token) for token in range(rules.tokens.size)]
        assert row.tolist() == taken == allowed


def test_every_token_sequence_that_closes_is_the_encoding_of_its_own_text_and_no_other_is(rules):
    """Over all sequences of up to two tokens that end with a mark: walked to a close, or encoded to something else."""
    tokens = rules.tokens
    usable = [token for token in range(tokens.size) if tokens.spelled[token]]
    judged = {True: 0, False: 0}
    for path in itertools.chain.from_iterable(itertools.product(usable, repeat=count) for count in (1, 2)):
        if not rules.final_V[path[-1]]:
            continue
        text = b"".join(tokens.spelled[token] for token in path).decode()
        own = tokens.backend.encode(text, add_special_tokens=False).ids
        state = rules.start
        for token in path:
            state = None if state is None else rules.step(state, token)
        closes = state is not None and rules.closes(state)
        assert closes == (own == list(path)), (text, path)
        judged[closes] += 1
    assert min(judged.values()) > 50


def test_a_text_is_closed_between_words_only(rules):
    for state, path in states(rules, 2).items():
        assert rules.closes(state) == (not path or bool(rules.final_V[path[-1]]))


def test_no_word_goes_on_from_a_token_after_which_it_could_never_end():
    tokens = token_bytes.read(ended_words("ab1'.s"))
    rules = WordEndValidity(tokens)
    open_digit = tokens.equal(b"1")[0]
    assert rules.step(rules.start, open_digit) is None  # a digit is a word of its own
    assert rules.closes(rules.step(rules.start, tokens.equal(b"1 ")[0]))
    begun = rules.step(rules.start, tokens.equal(b"a")[0])
    assert begun is not None
    assert not rules.closes(begun)
    assert rules.step(begun, tokens.equal(b"1 ")[0]) is None  # nor can a word of letters end in one


def test_a_tokenizer_whose_words_do_not_end_at_blanks_is_refused():
    whole = ended_words("ab", pre_tokenizers.Split(Regex(r"$x"), "isolated"))
    with pytest.raises(ValueError, match="does not cut at blanks: a pre-tokenizer that does is needed"):
        WordEndValidity(token_bytes.read(whole))
