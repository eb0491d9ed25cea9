"""Spans that two tokenizers cut differently, against cutting by hand."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from shiftscope.core.tokenizers import disagreement, tokenizer_training
from shiftscope.core.tokenizers.segmentation import cut, opened
from shiftscope.zoo import docs


def words(pieces: str) -> Tokenizer:
    """A WordPiece model that knows the given pieces and splits at blanks."""
    vocabulary = {piece: number for number, piece in enumerate(["[UNK]", *pieces.split()])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def test_only_the_shortest_differing_spans_are_named():
    texts = ["abcd ab", "cd abcd"]
    first, second = opened({"first": words("ab ##cd cd"), "second": words("ab ##c ##d cd")})
    ours, theirs = cut(first, texts), cut(second, texts)
    found = list(disagreement.differences(ours, theirs, texts))
    assert [(d.begin, d.end, d.first, d.second) for d in found] == [
        (2, 4, ("cd",), ("c", "d")),
        (12, 14, ("cd",), ("c", "d")),
    ]
    # inner cuts of either: ab|cd, after abcd; in the second also c|d; and the same in the second text
    assert disagreement.cut_agreement(ours, theirs) == (4 / 6, 6)
    assert disagreement.most_common(found, texts, 5) == [("cd", found[0], 2)]


def test_a_tokenizer_agrees_with_itself():
    (tokens,) = opened(["docs-base"])
    texts = docs.documentation("held out")[:20]
    one = cut(tokens, texts)
    assert list(disagreement.differences(one, one, texts)) == []
    assert disagreement.cut_agreement(one, one)[0] == 1.0
    overlap = disagreement.overlap(tokens, tokens, one, one)
    assert (overlap.shared, overlap.of_first, overlap.of_second) == (overlap.either, 1.0, 1.0)


def test_differences_and_agreements_make_up_the_text():
    texts = docs.documentation("held out")[:30]
    small = tokenizer_training.trained("bpe", texts[:5], 400, ["<e>"])
    first, second = opened({"docs-base": "docs-base", "small": small})
    ours, theirs = cut(first, texts), cut(second, texts)
    whole = "".join(texts)
    for difference in disagreement.differences(ours, theirs, texts):
        assert "".join(difference.first) == "".join(difference.second) == whole[difference.begin : difference.end]
        assert difference.first != difference.second


def test_tokens_of_different_families_are_matched_by_their_bytes():
    texts = ["the the the cat cat " * 20]
    first = tokenizer_training.trained("bpe", texts, 300, ["<e>"])
    second = tokenizer_training.trained("unigram", texts, 300, ["<e>"])
    tokens = opened({"bpe": first, "unigram": second})
    cuts = [cut(one, texts) for one in tokens]
    overlap = disagreement.overlap(*tokens, *cuts)
    assert overlap.shared >= 256  # every byte is a token of both
    assert 0 < overlap.of_first <= 1


def test_an_unknown_way_to_spell_is_refused_not_guessed():
    made = Tokenizer(models.BPE({"##a": 0, "a": 1}, [], continuing_subword_prefix="##"))
    tokens = opened({"inside": made, "docs-base": "docs-base"})
    cuts = [cut(one, ["a a"]) for one in tokens]
    with pytest.raises(ValueError, match="marks pieces inside a word"):
        disagreement.overlap(*tokens, *cuts)
