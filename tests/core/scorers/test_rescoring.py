"""Claims about scoring the same tokens twice: oracles for every column, and what a server's words are taken to mean."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core import divergence, paired
from shiftscope.core.endpoint import Reply
from shiftscope.core.paired import PairedText
from shiftscope.core.parts import Parts
from shiftscope.core.scorers import rescoring
from shiftscope.core.scorers.logged import Logged
from shiftscope.core.scorers.rescoring import Heard, Names, Serving
from shiftscope.core.scorers.served import Place

SHIFT = 3  # of a text's number and its place among the items
TEXTS = (
    ("Return the", " name of the file."),
    ("If the object is", " not a list, raise an error."),
    ("def open(path", "):"),
)


@pytest.fixture(scope="module")
def items(docs):
    encode = lambda text: tuple(docs[0].tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    pairs = [(encode(prompt), encode(answer)) for prompt, answer in TEXTS]
    return [PairedText(SHIFT + number, prompt, prompt, answer) for number, (prompt, answer) in enumerate(pairs)]


@pytest.fixture(scope="module")
def laws(docs, items):
    """Per model the law of every answer token, by one plain forward a text: {text: float64 [N, V]}."""
    found = []
    for checkpoint in docs:
        of_text = {}
        for item in items:
            ids, start = [*item.tuned_context, *item.answer], len(item.tuned_context)
            with torch.no_grad():
                logits = checkpoint.model(torch.tensor([ids])).logits[0, start - 1 : -1]
            of_text[item.text] = logits.double().log_softmax(-1)
        found.append(of_text)
    return found


def joined(of_text, table):
    """The laws in the order of a table's rows, and its tokens."""
    where = zip(table["text"].to_pylist(), table["position"].to_pylist(), strict=True)
    return torch.stack([of_text[text][place] for text, place in where]), torch.tensor(table["token_id"].to_pylist())


def close(column, expected, atol=2e-5):
    """Float32 forwards in another batch layout and a float32 column."""
    np.testing.assert_allclose(column.to_numpy(), np.asarray(expected), atol=atol)


# --- two models and files ---------------------------------------------------------------------------------------------


def test_two_models_rows_are_the_definitions_on_plain_forwards(docs, items, laws):
    table = paired.run(paired.Scorer(*docs), items, {"rows": rescoring.measure}, batch_size=2)["rows"]
    (p, tokens), (q, _) = (joined(of_text, table) for of_text in laws)
    close(table["logp_model_nats"], p.gather(-1, tokens[:, None])[:, 0])
    close(table["logp_against_nats"], q.gather(-1, tokens[:, None])[:, 0])
    close(table["entropy_model_nats"], -(p.exp() * p).sum(-1))
    close(table["entropy_against_nats"], -(q.exp() * q).sum(-1))
    close(table["js_nats"], divergence.js_nats(p, q))
    close(table["tv"], divergence.tv(p, q))
    close(table["kl_model_against_nats"], (p.exp() * (p - q)).sum(-1))
    close(table["kl_against_model_nats"], (q.exp() * (q - p)).sum(-1))
    assert set(table["problem"].to_pylist()) == {""}
    written = {item.text: list(item.answer) for item in items}
    for text, answer in written.items():
        assert table.filter(pa.array(table["text"].to_numpy() == text))["token_id"].to_pylist() == answer


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_files_numbers_stand_beside_the_models_own(docs, items, laws, batch_size):
    written = [tuple(-0.25 * (place + 1) for place in range(len(item.answer))) for item in items]
    logps = [()] * SHIFT + written  # a file's records are found by the number of their text
    told = []
    table = rescoring.from_file(
        docs[0], Logged([], items, logps), batch_size=batch_size, parts=Parts(), advance=lambda *at: told.append(at)
    )
    p, tokens = joined(laws[0], table)
    close(table["logp_model_nats"], p.gather(-1, tokens[:, None])[:, 0])
    close(table["entropy_model_nats"], -(p.exp() * p).sum(-1))
    assert table["logp_against_nats"].to_pylist() == [-0.25 * (place + 1) for place in table["position"].to_pylist()]
    assert len(table) == sum(len(item.answer) for item in items)
    assert told[-1][0] == told[-1][1] == -(-3 // batch_size)


# --- a server ---------------------------------------------------------------------------------------------------------


class Told:
    """An endpoint without a network: it says what a law says, listing the k most probable tokens and the one asked for.

    lost: texts (by their first ids) that it does not score, with its reason.
    """

    def __init__(self, checkpoint, lost=()):
        self.checkpoint, self.lost, self.asked = checkpoint, [list(ids) for ids in lost], []

    def map(self, function, items):
        return [function(item) for item in items]

    def score(self, prompt, *, top_k):
        self.asked.append(prompt)
        ids = self.checkpoint.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        if any(ids[: len(start)] == start for start in self.lost):
            return Reply(None, "too busy", 1)
        with torch.no_grad():
            logp = self.checkpoint.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [Place(ids[0], None, None)]
        for token, row in zip(ids[1:], logp, strict=False):
            values, listed = row.topk(top_k)
            top = {**dict(zip(listed.tolist(), values.tolist(), strict=True)), token: float(row[token])}
            places.append(Place(token, None, float(row[token]), tuple(top.items())))
        return Reply(tuple(places), None, 1)


def test_a_servers_rows_hold_its_numbers_true_bounds_and_the_reason_where_there_are_none(docs, items, laws):
    server = Told(docs[1], lost=[items[1].tuned_context])
    table = rescoring.from_endpoint(docs[0], server, Serving(top_k=5), items, batch_size=2, parts=Parts())
    lost = table["text"].to_numpy() == items[1].text
    assert table["problem"].to_pylist() == ["too busy" if one else "" for one in lost]
    for name in table.column_names[6:-1]:
        if name not in ("problem", "id_named"):
            assert table[name].is_null().to_pylist() == lost.tolist(), name
    assert table["logp_against_nats"].is_null().to_pylist() == lost.tolist()
    assert table["logp_model_nats"].null_count == table["entropy_model_nats"].null_count == 0
    assert table["id_named"].to_pylist() == (~lost).tolist()

    scored = table.filter(pa.array(~lost))
    (p, tokens), (q, _) = (joined(of_text, scored) for of_text in laws)
    close(scored["logp_against_nats"], q.gather(-1, tokens[:, None])[:, 0])
    listed = torch.zeros_like(q, dtype=torch.bool).scatter_(-1, q.topk(5).indices, True)
    listed.scatter_(-1, tokens[:, None], True)
    close(scored["tail_mass_against"], q.exp().masked_fill(listed, 0).sum(-1))
    for name, true in (
        ("js_{}_nats", divergence.js_nats(p, q)),
        ("tv_{}", divergence.tv(p, q)),
        ("kl_against_model_{}_nats", divergence.kl_nats(q, p)),
    ):
        low, high = (scored[name.format(end)].to_numpy() for end in ("low", "high"))
        assert (low <= true.numpy() + 2e-5).all()
        assert (high >= true.numpy() - 2e-5).all()


def test_text_or_ids_are_sent_as_asked_for(docs, items):
    server, names = Told(docs[0]), Names(docs[0])
    rescoring.listen(server, Serving(), items[0], names)
    rescoring.listen(server, Serving(send="text"), items[0], names)
    assert server.asked == [(*items[0].tuned_context, *items[0].answer), "".join(TEXTS[0])]
    strange = tuple(Place(token, "~", -1.0) for token in server.asked[0])
    told = SimpleNamespace(score=lambda sent, top_k: Reply(strange, None, 1))
    with pytest.raises(ValueError, match="the tokenizers differ"):  # ids would mean other texts there; a text would not
        rescoring.listen(told, Serving(), items[0], names)
    assert rescoring.listen(told, Serving(send="text"), items[0], names)[0].problem == ""


def test_each_answer_token_has_its_place_or_a_reason(docs, items):
    item, names = items[0], Names(docs[0])
    ids, start = (*item.tuned_context, *item.answer), len(item.tuned_context)
    places = [Place(token, None, -1.0) for token in ids]
    places[start] = Place(ids[start], None, None)
    places[start + 1] = Place(ids[start + 1], None, -math.inf)
    places[start + 3] = Place(ids[start + 3] + 1, None, -1.0)
    server = SimpleNamespace(
        score=lambda sent, top_k: Reply(tuple(places), None, 1),
        score_stepwise=lambda sent, first, pieces, top_k: Reply(None, f"token {first}: gone", 1),
    )
    heard = rescoring.listen(server, Serving(top_k=7), item, names)
    assert [one.problem for one in heard] == [
        "not among the 7 tokens that the server lists",
        "the server holds this token to be impossible",
        "",
        *["the server read other tokens from here on"] * (len(item.answer) - 3),
    ]
    assert [one.place for one in heard] == [*places[start : start + 3], *[None] * (len(item.answer) - 3)]
    walked = rescoring.listen(server, Serving(stepwise=True), item, names)
    assert [(one.place, one.problem) for one in walked] == [(None, f"token {start}: gone")] * len(item.answer)


# --- tokens by id and by text -----------------------------------------------------------------------------------------

PIECES = ["<s>", "a", "b", "b", " c", "dd", "é", "~"]  # 2 and 3 have the same text


class Letters:
    """A tokenizer of eight tokens."""

    bos_token_id = 0

    def __len__(self):
        return len(PIECES)

    def decode(self, ids, **_):
        return "".join(PIECES[token] for token in ids)

    def batch_decode(self, rows, **_):
        return [self.decode(row) for row in rows]


LETTERS = Names(SimpleNamespace(name="letters", tokenizer=Letters(), vocabulary_size=len(PIECES)))
sequences = st.lists(st.integers(1, 7), min_size=1, max_size=8)


def by(name, ids):
    return [Place(token, None, -1.0) if name == "id" else Place(None, PIECES[token], -1.0) for token in ids]


def test_texts_of_tokens_and_the_ids_of_texts_that_only_one_has():
    assert list(LETTERS.pieces.values()) == PIECES
    assert LETTERS.ids == {piece: token for token, piece in enumerate(PIECES) if piece != "b"}
    assert LETTERS.decode([1, 4, 6]) == "a cé"
    assert [LETTERS.id_of(place) for place in (Place(2, "a", 0.0), Place(None, "a", 0.0), Place(None, "b", 0.0))] == [2, 1, None]  # fmt: skip


@given(sequences, st.sampled_from(["id", "piece"]), st.booleans(), st.data())
def test_places_are_kept_up_to_the_first_token_that_the_server_read_otherwise(ids, named, begun, data):
    places = by(named, ids)
    wrong = data.draw(st.integers(0, len(ids)))
    if wrong < len(ids):
        places[wrong] = by(named, [6 if ids[wrong] != 6 else 7])[0]
    given_back = [*by(named, [0]), *places] if begun else places  # some put a begin-of-text token in front
    found = rescoring.align(given_back, ids, LETTERS, of_text=True)
    assert found == [*places[:wrong], *[None] * (len(ids) - wrong)]


@given(sequences, st.integers(0, 10))
def test_a_shorter_and_a_longer_reading_still_give_one_place_for_every_token(ids, count):
    read = [*ids, *[1] * 10][:count]
    found = rescoring.align(by("id", read), ids, LETTERS, of_text=True)
    upto = min(count, len(ids))
    assert found == [*by("id", ids[:upto]), *[None] * (len(ids) - upto)]


def test_a_begin_token_that_was_sent_is_not_skipped():
    ids = [0, 1, 4]
    assert rescoring.align(by("id", ids), ids, LETTERS, of_text=True) == by("id", ids)
    assert rescoring.align(by("id", ids), ids, LETTERS, of_text=False) == by("id", ids)
    assert rescoring.align([], [1, 4], LETTERS, of_text=True) == [None, None]


def test_another_tokenizer_is_told_when_most_of_at_least_three_tokens_have_another_text():
    ids = [1, 2, 4, 5, 1, 2]
    same = [Place(token, PIECES[token], -1.0) for token in ids]
    other = [Place(token, "x", -1.0) for token in ids]
    assert rescoring.align([*other[:3], *same[3:]], ids, LETTERS, of_text=False)
    with pytest.raises(
        ValueError,
        match=r"reads token 1 as 'x', letters reads it as 'a' \(4 of 6 differ\): the tokenizers differ; serve the same "
        r"checkpoint, or use --send text",
    ):
        rescoring.align([*other[:4], *same[4:]], ids, LETTERS, of_text=False)
    assert rescoring.align(other[:2], ids[:2], LETTERS, of_text=False)  # two alone may be a detokenizer's spaces
    spaced = [Place(token, PIECES[token].strip(), -1.0) for token in [4] * 4]
    assert rescoring.align(spaced, [4] * 4, LETTERS, of_text=False)
    mangled = [Place(6, "\ufffd", -1.0)] * 4  # no ASCII: texts of single bytes differ between servers
    assert rescoring.align(mangled, [6] * 4, LETTERS, of_text=False)


laws_of_eight = st.lists(st.floats(0.01, 1), min_size=8, max_size=8).map(lambda p: np.log(np.array(p) / sum(p)))


@given(laws_of_eight, st.integers(1, 7), st.integers(0, 7), st.sampled_from(["id", "piece"]))
def test_no_unlisted_token_is_more_probable_than_the_cap(logq, k, own, named):
    """Servers that name texts keep the last of two tokens of one text, the less probable one."""
    top = {int(token): float(logq[token]) for token in np.argsort(-logq)[:k]}
    top.setdefault(own, float(logq[own]))
    listed = {token if named == "id" else PIECES[token]: value for token, value in top.items()}
    place = Place(own if named == "id" else None, PIECES[own], float(logq[own]), tuple(listed.items()))
    ids, values, cap = rescoring.listings([Heard(place)], LETTERS)
    found = {token: value for token, value in zip(ids[0].tolist(), values[0].tolist(), strict=True) if token >= 0}
    assert found == {token: value for token, value in top.items() if named == "id" or PIECES[token] != "b"}
    assert all(logq[token] <= cap[0] for token in range(8) if token not in found)
    if named == "id" and k > 1:
        assert cap[0] == min(value for token, value in top.items() if token != own)


def test_rows_of_unequal_length_are_filled_up_and_what_is_not_scored_lists_nothing():
    place = Place(1, None, -2.0, ((1, -2.0), (4, -0.5)))
    heard = [Heard(place), Heard(place, "impossible"), Heard(None, "lost")]
    ids, values, cap = rescoring.listings(heard, LETTERS)
    assert ids.tolist() == [[1, 4], [-1, -1], [-1, -1]]
    assert values.tolist() == [[-2.0, -0.5], [-math.inf] * 2, [-math.inf] * 2]
    assert cap.tolist() == [-0.5, 0.0, 0.0]  # nothing is known of the last two
    assert rescoring.listings([Heard(None, "lost")], LETTERS)[0].tolist() == [[-1]]


def test_an_id_that_the_model_does_not_have_is_refused():
    place = Place(1, None, -2.0, ((8, -2.0),))
    with pytest.raises(
        ValueError, match="the endpoint lists token 8, but letters has ids 0 to 7: the tokenizers differ"
    ):
        rescoring.listings([Heard(place)], LETTERS)


# --- the table and the settings ---------------------------------------------------------------------------------------


def test_rows_are_put_in_order_and_carry_their_texts(docs):
    ids = docs[0].tokenizer(" name of the file", add_special_tokens=False)["input_ids"][:4]
    rows = pa.table({"text": [1, 0, 1, 0], "position": [1, 1, 0, 0], "token_id": ids, "tv": [0.1, 0.2, 0.3, 0.4]})
    table = rescoring.named(rows, docs[0], [{"text": 0, "prompt": "p"}])
    assert table["tv"].to_pylist() == [0.4, 0.2, 0.3, 0.1]
    assert table["token"].to_pylist() == [docs[0].tokenizer.decode([ids[place]]) for place in (3, 1, 2, 0)]
    assert json.loads(table.schema.metadata[b"texts"]) == [{"text": 0, "prompt": "p"}]


def test_settings_of_a_server_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="top_k is 0: it must be at least 1"):
        Serving(top_k=0)
    with pytest.raises(ValueError, match="--stepwise walks along token ids: it cannot be combined with --send text"):
        Serving(send="text", stepwise=True)
