from __future__ import annotations

import numpy as np
import pytest
import torch

from shiftscope.core import checkpoints, completion
from shiftscope.zoo import lists


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("lists-base")


def naive(checkpoint, ids, first, max_tokens):
    """Greedy from scratch: the whole sequence is read anew for every token."""
    answer = [first]
    while len(answer) < max_tokens and answer[-1] != checkpoint.tokenizer.eos_token_id:
        with torch.no_grad():
            logits = checkpoint.model(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return tuple(token for token in answer if token != checkpoint.tokenizer.eos_token_id)


def ids_of(checkpoint, text):
    return tuple(checkpoint.tokenizer(text)["input_ids"])


def test_probes_on_a_shared_cache_are_the_completions_from_scratch(base):
    prompt, firsts = ids_of(base, "birds : badan kegon"), list(range(56, 76))
    found = completion.complete(base, completion.read(base, prompt), firsts, max_tokens=9)
    assert [answer.ids for answer in found] == [naive(base, prompt, first, 9) for first in firsts]


def test_the_cache_is_shared_rightly_by_every_architecture(tiny, base):
    checkpoint = checkpoints.wrap(tiny, base.tokenizer)
    prompt, firsts = (5, 9, 14, 3, 33), [7, 20, 41, 8]
    found = completion.complete(checkpoint, completion.read(checkpoint, prompt), firsts, max_tokens=12)
    assert [answer.ids for answer in found] == [naive(checkpoint, prompt, first, 12) for first in firsts]


def test_the_cache_of_the_prompt_serves_again_and_batches_do_not_matter(base):
    prefix = completion.read(base, ids_of(base, "rivers :"))
    firsts = list(range(60, 90))
    one = completion.complete(base, prefix, firsts, max_tokens=8)
    assert completion.complete(base, prefix, firsts, max_tokens=8, batch_size=7) == one
    assert prefix.cache.get_seq_length() == len(prefix.ids)


def test_the_prefix_holds_the_models_own_next_token_law(base):
    prompt = ids_of(base, "rivers : badan")
    prefix = completion.read(base, prompt)
    own = base.model(input_ids=torch.tensor([prompt])).logits[0, -1].detach()
    assert torch.allclose(prefix.logits_V, own, atol=1e-5)
    assert torch.allclose(base.head.logits(prefix.hidden_D[None])[0].detach(), own, atol=1e-5)


def test_an_answer_ends_at_the_stop_text_at_end_of_text_or_at_the_length(base):
    prefix = completion.read(base, ids_of(base, "rivers :"))
    first = int(prefix.logits_V.argmax())
    word = base.tokenizer.decode([first])
    stopped, cut, short = (
        completion.complete(base, prefix, [first], max_tokens=n, stop=stop)[0]
        for n, stop in ((9, " "), (3, None), (1, " "))
    )
    assert (stopped.ended, stopped.text) == ("stop", word)
    assert (cut.ended, len(cut.ids)) == ("length", 3)
    assert (short.ended, short.text) == ("length", word)
    ended = completion.complete(base, prefix, [base.tokenizer.eos_token_id], max_tokens=5)[0]
    assert (ended.ended, ended.ids, ended.text) == ("end", (), "")


def test_the_models_context_bounds_an_answer(base):
    prefix = completion.read(base, ids_of(base, "rivers :" + " badan" * 26))
    assert len(completion.complete(base, prefix, [60], max_tokens=50)[0].ids) <= base.context_length - len(prefix.ids)


def test_special_tokens_blanks_and_the_stop_cannot_open_an_answer(base):
    closed = completion.cannot_open(base)
    specials = base.tokenizer.convert_tokens_to_ids([lists.PAD, lists.UNKNOWN, lists.END])
    assert closed[specials].all()
    assert closed.sum() == 3
    colon = base.tokenizer.convert_tokens_to_ids(lists.COLON)
    assert completion.cannot_open(base, stop=":")[colon]


def test_parts_of_a_character_and_new_lines_cannot_open_an_answer():
    docs = checkpoints.load("docs-base")
    closed = completion.cannot_open(docs, stop='"')
    texts = [docs.tokenizer.decode([token]) for token in range(len(docs.tokenizer))]
    for token, text in enumerate(texts):
        if "\ufffd" in text or not text.strip() or text.startswith("\n") or text.lstrip(" ").startswith('"'):
            assert closed[token], repr(text)
    assert not closed[docs.tokenizer(" the", add_special_tokens=False)["input_ids"][0]]
    assert sum("\ufffd" in text for text in texts) > 0


def test_ranking_skips_closed_tokens_and_counts_them():
    order, skipped = completion.ranked(
        torch.tensor([0.1, 5.0, 3.0, 4.0, 3.0]), np.array([False, True, False, True, False])
    )
    assert order.tolist() == [2, 4, 0]
    assert skipped.tolist() == [2, 2, 2]


def test_a_prompt_without_room_for_an_answer_is_a_sentence(base):
    with pytest.raises(ValueError, match="reads at least 1"):
        completion.read(base, ())
    with pytest.raises(ValueError, match=r"a prompt of 32 tokens cannot be completed .* at most 32"):
        completion.read(base, [60] * 32)
