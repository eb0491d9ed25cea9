from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from shiftscope.core.result import Panel
from shiftscope.report import texts


def panel(table: pa.Table) -> Panel:
    return Panel("Texts", "", "texts", table)


def test_packed_columns_give_back_the_table(make_table) -> None:
    table = make_table(3, 40)
    packed = texts.pack(panel(table))
    columns = {name: texts.unpack(column) for name, column in packed["columns"].items()}
    # float16 keeps 11 bits: a relative error of at most 2**-11
    for name in ("js_nats", "kl_base_tuned_nats", "logp_base_nats", "flow_1"):
        np.testing.assert_allclose(columns[name], table[name].to_numpy(), rtol=2**-11, atol=6e-8)
    for name in ("position", "rank_base", "rank_tuned", "rank_base_of_tuned_top1"):
        np.testing.assert_array_equal(columns[name], table[name].to_numpy())
    assert [packed["pieces"][i] for i in columns["token"]] == table["token"].to_pylist()
    assert [packed["columns"]["class"]["words"][i] for i in columns["class"]] == table["class"].to_pylist()


def test_top_lists_keep_the_first_five_and_name_the_same_tokens(make_table) -> None:
    table = make_table(2, 30)
    packed = texts.pack(panel(table))
    names = {int(i): piece for i, piece in json.loads(table.schema.metadata[b"tokens"]).items()}
    ids = texts.unpack(packed["columns"]["top_base_ids"])
    assert ids.shape == (60, texts.TOP)
    expected = [[names[i] for i in row[: texts.TOP]] for row in table["top_base_ids"].to_pylist()]
    assert [[packed["pieces"][i] for i in row] for row in ids] == expected
    cross = np.array(table["top_base_logp_tuned"].to_pylist())[:, : texts.TOP]
    np.testing.assert_allclose(texts.unpack(packed["columns"]["top_base_logp_tuned"]), cross, rtol=2**-11, atol=6e-8)


def test_the_order_of_the_rows_does_not_matter(make_table) -> None:
    table = make_table(3, 20)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(60)))
    assert texts.pack(panel(shuffled)) == texts.pack(panel(table))


def test_impossible_tokens_keep_minus_infinity(make_table) -> None:
    table = make_table(1, 4)
    where = table.column_names.index("logp_base_nats")
    table = table.set_column(where, "logp_base_nats", pa.array([-np.inf, -1.0, -2.0, 0.0], pa.float32()))
    column = texts.pack(panel(table))["columns"]["logp_base_nats"]
    np.testing.assert_array_equal(texts.unpack(column), [-np.inf, -1, -2, 0])


@pytest.mark.parametrize(("highest", "type_"), [(255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4")])
def test_whole_numbers_take_the_least_width_that_holds_them(highest: int, type_: str) -> None:
    column = texts._typed(np.array([0, 1, highest], np.int64))
    assert column["type"] == type_
    np.testing.assert_array_equal(texts.unpack(column), [0, 1, highest])


def test_two_hundred_answers_of_three_hundred_tokens_fit_even_when_nothing_compresses(make_noise) -> None:
    packed = texts.script_json(texts.pack(panel(make_noise(200, 300))))
    assert len(packed) < 7_000_000  # the page's limit of 8 MB less the 1 MB of the chart runtime


def test_too_many_positions_drop_whole_texts_evenly(make_noise, monkeypatch) -> None:
    monkeypatch.setattr(texts, "POSITION_LIMIT", 500)
    packed = texts.pack(panel(make_noise(40, 50)))
    assert packed["total_texts"] == 40
    assert packed["total_positions"] == 2000
    assert [entry["text"] for entry in packed["texts"]] == list(range(0, 40, 4))
    assert packed["starts"][-1] == 500


def test_only_four_columns_are_needed() -> None:
    table = pa.table(
        {
            "text": [0, 0],
            "position": [0, 1],
            "token": ["a", "b"],
            "js_nats": [0.0, 0.5],
            "swapped": [False, True],
            "source": ["base", "tuned"],
        }
    )
    packed = texts.pack(panel(table))
    assert texts.unpack(packed["columns"]["swapped"]).tolist() == [0, 1]
    assert packed["columns"]["source"]["words"] == ["base", "tuned"]
    with pytest.raises(ValueError, match=r"lacks the columns \['js_nats'\]"):
        texts.pack(panel(table.drop_columns(["js_nats"])))


def test_an_empty_table_packs() -> None:
    table = pa.table(
        {
            "text": pa.array([], pa.int32()),
            "position": pa.array([], pa.int32()),
            "token": pa.array([], pa.string()),
            "js_nats": pa.array([], pa.float32()),
        }
    )
    assert texts.pack(panel(table))["starts"] == [0]


@pytest.mark.parametrize(
    "text", ["</script><img src=x onerror=alert(1)>", "<!-- <script>", "\u2028\u2029", "]]>", "&lt;", "\ud800", '"\\']
)
def test_no_markup_survives_in_the_data_and_json_gives_it_back(text: str) -> None:
    written = texts.script_json({"prompt": text})
    assert not set("<>&\u2028\u2029") & set(written)
    assert written.isascii()
    assert json.loads(written) == {"prompt": text}
