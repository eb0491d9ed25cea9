"""The comparison of tokenizers: what arXiv 2601.09039 reports, with the control that tells bias from structure."""

from __future__ import annotations

import gettext
import importlib.util
import itertools
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from shiftscope import report
from shiftscope.cli import command
from shiftscope.compare.tokenizers import BYTES, tokenizers
from shiftscope.core.parts import Parts, ShardDone
from shiftscope.core.tokenizers import coding, segmentation, tokenizer_training
from shiftscope.core.tokenizers.rates import Measuring
from shiftscope.zoo import docs

SIZES = (1_000, 10_000, 100_000, 1_000_000)  # characters of training text


def foreign(text: str) -> str:
    """The same text in an alphabet that no training text has: every letter a Cyrillic one."""
    return text.translate({c: 0x430 + (c | 32) - 97 for c in range(128) if chr(c).isalpha()})


def catalogue(language: str) -> list[str]:
    """Names of countries, regions, languages and currencies in a language: pycountry's translations, 20 lines a text."""
    package = importlib.util.find_spec("pycountry").submodule_search_locations[0]
    found = []
    for path in sorted((Path(package) / "locales" / language / "LC_MESSAGES").glob("*.mo")):
        with path.open("rb") as stream:
            said = gettext.GNUTranslations(stream)._catalog.items()
        lines = [text for own, text in said if own and isinstance(text, str) and text != own]
        found += ["\n".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]
    return found


def rows(result, grouping: str = "all") -> dict[tuple[str, str], dict]:
    return {(row["tokenizer"], row["group"]): row for row in result.table.to_pylist() if row["grouping"] == grouping}


@pytest.fixture(scope="module")
def corpus():
    held_out = [text for text in docs.documentation("held out") if len(text) < 1500]
    records = [{"text": text, "domain": "docs", "language": "en"} for text in held_out[:120]]
    records += [{"text": text[:8_000], "domain": "code"} for text in docs.sources("held out")[:4]]
    return records + [{"text": foreign(text), "domain": "foreign", "language": "xx"} for text in held_out[120:160]]


@pytest.fixture(scope="module")
def trained():
    """BPE of 2048 ids, trained on ever more documentation."""
    texts = docs.documentation("train")
    random.Random(0).shuffle(texts)
    found = {}
    for size in SIZES:
        ends = list(itertools.accumulate(len(text) for text in texts))
        chosen = [text for text, end in zip(texts, ends, strict=True) if end <= size]
        found[str(size)] = tokenizer_training.trained("bpe", chosen, 2048, ["<e>"])
    return found


@pytest.fixture(scope="module")
def result(corpus, trained):
    smaller = {name: trained[name] for name in ("100000", "1000")}
    return tokenizers(smaller, texts=corpus, added=64, measuring=Measuring(coded_bytes=60_000))


def test_entropies_move_with_training_as_published_and_the_control_says_how_much_of_it_is_bias(trained):
    texts = docs.documentation("held out")
    orders, controls, equal = {}, {}, {}
    for tokens in segmentation.opened(trained):
        stream = segmentation.cut(tokens, texts).stream
        orders[tokens.name], controls[tokens.name] = coding.orders(stream), coding.orders(stream.shuffled())
        equal[tokens.name] = coding.orders(stream.sample(20_000), 2)[1].bits
    h = {k: [found[k - 1].bits for found in orders.values()] for k in range(1, 6)}
    assert h[1] == sorted(h[1])  # more training: unigram entropy rises
    for k in (3, 4, 5):
        assert h[k] == sorted(h[k], reverse=True)  # and the higher orders fall
    # but the shuffled stream, whose every H_k is H_1, falls below half of it too: mostly bias
    assert all(control[2].bits < 0.5 * control[0].bits for control in controls.values())
    assert all(control[3].bits < 0.5 for control in controls.values())
    assert not any(found[2].reliable for found in orders.values())
    # H_2 at an equal number of tokens falls, at full length it stays: the direction is the estimator's
    assert list(equal.values()) == sorted(equal.values(), reverse=True)
    assert abs(h[2][-1] - h[2][0]) < 0.25 * (equal["1000"] - equal["1000000"])
    gaps = [controls[name][1].bits - orders[name][1].bits for name in trained]
    assert all(gap > 1.5 for gap in gaps)  # what survives the control


def test_utilisation_saturates_and_the_renyi_one_stands_still(trained):
    texts = [{"text": text} for text in docs.documentation("held out")[-200:]]
    found = rows(tokenizers(trained, texts=texts, added=0, measuring=Measuring(order=1, coded_bytes=1)))
    eta = [found[name, "all texts"]["utilisation"] for name in trained]
    renyi = [found[name, "all texts"]["renyi_utilisation"] for name in trained]
    assert eta == sorted(eta)
    assert eta[2] - eta[0] > 2 * (eta[3] - eta[2])  # 100 000 characters give most of it
    assert renyi[3] - renyi[2] < 0.5 * (eta[3] - eta[2])


def test_more_training_helps_its_own_domain_and_not_a_foreign_alphabet(result):
    by_domain = rows(result, "domain")
    fall = {
        domain: by_domain["100000", domain]["tokens_per_char"] / by_domain["1000", domain]["tokens_per_char"]
        for domain in ("docs", "code", "foreign")
    }
    assert fall["docs"] < 0.65  # 0.615 -> 0.361 tokens per character over all held-out documentation
    assert fall["code"] < 0.65  # documentation quotes code
    assert fall["foreign"] > 0.9
    assert by_domain["100000", "foreign"]["tokens_per_char"] > 4 * by_domain["100000", "docs"]["tokens_per_char"]
    assert any("as many tokens per character for foreign as for" in sentence for sentence in result.verdict)


def test_training_on_english_brings_little_to_turkish_and_nothing_to_russian_or_chinese(trained):
    """More English, other languages: tokens per character, and what the order of tokens tells, from 1 000 to 10^6 characters."""
    texts = {language: catalogue(language) for language in ("tr", "ru", "zh_CN")} | {
        "en": docs.documentation("held out")
    }
    sizes = {language: sum(map(len, some)) for language, some in texts.items()}
    assert min(sizes.values()) > 20_000
    spent, found = {}, {}
    for language, some in texts.items():
        streams = [segmentation.cut(tokens, some).stream for tokens in segmentation.opened(trained)]
        spent[language] = [len(stream.ids_N) / sizes[language] for stream in streams]
        found[language] = [[order.bits for order in coding.orders(stream)[1:]] for stream in (streams[0], streams[-1])]
    fall = {language: rates[-1] / rates[0] for language, rates in spent.items()}
    assert fall["en"] < 0.55  # the baseline, its own language: 0.62 -> 0.32 tokens per character
    assert 0.75 < fall["tr"] < 0.9  # 0.91 -> 0.75, nearly all of it by 100 000 characters
    assert abs(spent["tr"][3] - spent["tr"][2]) < 0.01
    for language in ("ru", "zh_CN"):
        assert fall[language] > 0.99  # 1.87 and 2.58, bytes of UTF-8 all along
        assert spent[language][-1] > 5 * spent["en"][-1]
        for first, last in zip(*found[language], strict=True):
            assert abs(first - last) < 0.03  # H_2 to H_5 do not move
            assert last > 1  # and stay away from 0
    assert found["en"][1][3] < 0.5 * found["en"][0][3]  # where English has H_5 fall


def test_tokens_help_every_code_over_raw_bytes_only_where_the_vocabulary_fits_the_text(result):
    by_domain = rows(result, "domain")
    for domain, helped in (("docs", True), ("foreign", False)):
        ours, raw = by_domain["100000", domain], by_domain[BYTES, domain]
        assert (ours["lz78_bits_per_char"] < 0.9 * raw["lz78_bits_per_char"]) == helped
        assert (ours["ngram2_bits_per_char"] < 0.9 * raw["ngram2_bits_per_char"]) == helped
    assert result["lz78_gain.100000"] > result["lz78_gain.1000"]


def test_a_merge_that_the_corpus_lacks_is_worth_adding(result):
    assert result["added_merges_saving.1000"] > result["added_merges_saving.100000"] > 0
    kinds = {panel.title: panel for panel in result.panels}
    own = kinds["What its own merges bring on these texts"].table.to_pylist()
    assert {row["tokenizer"] for row in own} == {"100000", "1000"}


def test_unreliable_entropies_are_left_out_with_the_reason_and_stand_in_the_table(result):
    assert "h1_bits.100000" in result.figures
    assert "h4_bits.100000" not in result.figures
    assert any("H_4" in note and "plug-in bias" in note for note in result.notes)
    row = rows(result)["100000", "all texts"]
    assert row["h4_bits"] is not None
    assert row["h4_shuffled_bits"] is not None
    assert row["equal_n"] == row["tokens"]  # it has the fewest tokens; the other is measured at as many
    assert rows(result)["1000", "all texts"]["equal_n"] == row["tokens"]


def test_a_tokenizer_against_itself_differs_in_nothing(corpus):
    same = docs.train_tokenizer([record["text"] for record in corpus[:10]], 400)
    found = tokenizers({"a": same, "b": same}, texts=corpus[:30], added=0, measuring=Measuring(order=2))
    assert found["cut_agreement.a.b"] == found["vocabulary_overlap.a.b"] == found["texts_cut_alike.a.b"] == 1.0
    assert found["differing_characters.a.b"] == 0.0
    first, second = (rows(found)[name, "all texts"] for name in "ab")
    assert {**first, "tokenizer": ""} == {**second, "tokenizer": ""}


def test_order_of_texts_changes_no_count(corpus):
    one, other = (
        tokenizers(["docs-base"], texts=texts, added=0, measuring=Measuring(order=3))
        for texts in (corpus[:40], corpus[:40][::-1])
    )
    a, b = (rows(found)["docs-base", "all texts"] for found in (one, other))
    for name in ("tokens", "used", "utilisation", "h1_bits", "h2_bits", "h3_bits", "h3_distinct"):
        assert a[name] == pytest.approx(b[name], rel=1e-12)


def test_a_lossy_tokenizer_gets_no_bits_per_character_unless_asked(corpus):
    made = tokenizer_training.trained("wordpiece", [record["text"] for record in corpus[:20]], 600, ["<e>"])
    refused = tokenizers({"wp": made}, texts=corpus[:20], added=8)
    assert rows(refused)["wp", "all texts"]["lz78_bits_per_char"] is None
    assert "lz78_bits_per_char.wp" not in refused.figures
    assert any("does not give back 20 of 20 texts" in note for note in refused.notes)
    assert any("has no merges whose own gain" in note for note in refused.notes)
    asked = tokenizers({"wp": made}, texts=corpus[:20], added=0, measuring=Measuring(lossy=True))
    assert asked["lz78_bits_per_char.wp"] > 0


def test_tokenizers_of_different_families_are_compared_and_drawn(corpus, tmp_path):
    made = tokenizer_training.trained("wordpiece", [record["text"] for record in corpus[:20]], 600, ["<e>"])
    made.save(str(tmp_path / "words.json"))
    found = tokenizers(["docs-base", str(tmp_path / "words.json")], texts=corpus[:20] + corpus[-5:], added=16)
    assert 0 < found["vocabulary_overlap.docs_base.words"] < 1
    assert 0 < found["differing_characters.docs_base.words"] < 1
    assert {"Tokens per character by domain", "Tokens per character by language"} <= {p.title for p in found.panels}
    assert report.write(found, tmp_path / "page.html").stat().st_size > 10_000
    found.save(tmp_path / "out")


def test_texts_that_vanish_are_left_out_by_group_and_refused_as_a_whole():
    eraser = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    eraser.normalizer, eraser.pre_tokenizer = normalizers.Replace("z", ""), pre_tokenizers.Whitespace()
    texts = [{"text": "a a a", "domain": "kept"}, {"text": "zzz", "domain": "lost"}]
    found = tokenizers({"eraser": eraser}, texts=texts, added=0)
    assert ("eraser", "lost") not in rows(found, "domain")
    assert any("turns the texts of domain lost into no token" in note for note in found.notes)
    with pytest.raises(ValueError, match="into no token at all"):
        tokenizers({"eraser": eraser}, texts=texts[1:])


def test_a_comparison_in_parts_and_shards_is_the_whole_one_and_resumes(corpus, tmp_path, monkeypatch):
    made = {name: docs.train_tokenizer([r["text"] for r in corpus[:n]], 400) for name, n in (("a", 10), ("b", 30))}
    settings = {"texts": corpus[::8], "added": 8, "measuring": Measuring(order=2, coded_bytes=5_000)}
    seen = []
    whole = tokenizers(made, **settings, advance=lambda *place: seen.append(place))
    assert seen[-1] == ("measuring tokenizers", len(seen), len(seen))
    for shard in (0, 1):
        with pytest.raises(ShardDone):
            tokenizers(made, **settings, parts=Parts(tmp_path, resume=True, shard=(shard, 2)))
    with monkeypatch.context() as patched:
        patched.setattr(segmentation, "cut", None)  # all is on disk: no text is cut again
        merged = tokenizers(made, **settings, parts=Parts(tmp_path, resume=True))
    assert merged.table.equals(whole.table)
    assert merged.figures == whole.figures
    assert (merged.notes, merged.verdict) == (whole.notes, whole.verdict)
    with pytest.raises(ValueError, match=r"were made with .*added = 8"):
        tokenizers(made, **settings | {"added": 9}, parts=Parts(tmp_path, resume=True))


def test_every_domain_and_language_has_figures_of_its_own(result):
    names = {
        "tokens_per_char.100000.domain.docs",
        "tokens_per_char.1000.domain.code",
        "bytes_per_token.1000.language.xx",
        "differing_characters.100000.1000.domain.code",
        "tokens_per_char_ratio.1000.domain",
    }
    assert names <= set(result.figures)
    for name in names:
        figure = result.figures[name]
        assert figure.low <= figure.value <= figure.high


def test_entropies_and_codes_are_shown_for_every_domain_and_language_beside_raw_bytes(result):
    tables = {panel.title: panel.table.to_pylist() for panel in result.panels if panel.kind == "table"}
    groups = {("domain", "docs"), ("domain", "code"), ("domain", "foreign"), ("language", "en"), ("language", "xx")}
    for title, each in (("Entropies by domain and language", 5), ("Universal codes", 1)):
        some = [row for row in tables[title] if row["grouping"] != "all"]
        assert {(row["grouping"], row["group"]) for row in some} == groups
        assert len(some) == each * 3 * len(groups)
    for row in tables["Entropies by domain and language"]:
        assert row["gap"] == pytest.approx(row["shuffled"] - row["H_k"])
        assert row["reliable"] == (10 * row["distinct k-grams"] <= row["windows"])


def test_how_unevenly_groups_are_charged_is_the_ratio_of_the_extremes_and_their_gini_index(result):
    for name in ("1000", "100000"):
        spent = sorted(row["tokens_per_char"] for (own, _), row in rows(result, "domain").items() if own == name)
        assert result[f"tokens_per_char_ratio.{name}.domain"] == pytest.approx(spent[-1] / spent[0])
        # of three values: the mean absolute difference of all nine pairs over twice the mean
        gini = 4 * (spent[2] - spent[0]) / 9 / (2 * sum(spent) / 3)
        assert result[f"tokens_per_char_gini.{name}.domain"] == pytest.approx(gini)
    assert result["tokens_per_char_gini.1000.domain"] < result["tokens_per_char_gini.100000.domain"]
    assert not any(name.endswith(".raw_bytes.domain") for name in result.figures)


def test_characters_cut_differently_in_all_texts_are_the_sum_over_domains(result, corpus):
    characters = {}
    for record in corpus:
        characters[record["domain"]] = characters.get(record["domain"], 0) + len(record["text"])
    named = "differing_characters.100000.1000"
    total = sum(result[f"{named}.domain.{domain}"] * count for domain, count in characters.items())
    assert total == pytest.approx(result[named] * sum(characters.values()))


def test_files_are_called_by_their_names_and_folders_too_unless_two_share_one(corpus, tmp_path):
    made = docs.train_tokenizer([record["text"] for record in corpus[:10]], 400)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        made.backend_tokenizer.save(str(tmp_path / folder / "tokenizer.json"))
        made.backend_tokenizer.save(str(tmp_path / folder / "same.json"))
    few, settings = corpus[:4], {"added": 0, "measuring": Measuring(order=1)}
    paths = [str(tmp_path / folder / "tokenizer.json") for folder in "ab"]
    found = tokenizers(paths, texts=few, **settings)
    assert {"a/tokenizer.json", "b/tokenizer.json"} < set(found.table["tokenizer"].to_pylist())
    assert [one["name"] for one in found.provenance["tokenizers"]] == paths
    same = [str(tmp_path / folder / "same.json") for folder in "ab"]
    assert set(same) < set(tokenizers(same, texts=few, **settings).table["tokenizer"].to_pylist())


def test_bad_input_is_one_sentence(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    for wrong, sentence in (
        ({"names": ["docs-base"], "texts": [str(tmp_path / "empty.jsonl")]}, "no text in .*empty.jsonl"),
        ({"names": ["docs-base"], "texts": []}, "no text in the given records"),
        ({"names": [], "texts": [{"text": "a"}]}, "no tokenizer was given"),
        ({"names": {"x": object()}, "texts": [{"text": "a"}]}, "a tokenizer of an unknown kind"),
        ({"names": ["docs-base"], "texts": [{"text": "a"}], "added": -1}, "added is -1"),
    ):
        with pytest.raises(ValueError, match=sentence) as found:
            tokenizers(wrong.pop("names"), **wrong)
        assert "\n" not in str(found.value)


def test_help_names_every_setting():
    shown = command("compare", "tokenizers", tokenizers).__signature__.parameters
    assert {"names", "texts", "added", "order", "alpha", "equal_n", "lossy"} <= set(shown)
    for name, parameter in shown.items():
        assert parameter.annotation.__metadata__[0].help, name


def test_groups_whose_names_give_one_figure_name_are_numbered_and_said():
    records = [{"text": "int main", "domain": "C++"}, {"text": "var x = new List()", "domain": "C#"}]
    result = tokenizers(["sums-base"], texts=[*records, {"text": "if a:", "domain": "a b"}], added=0)
    rows = {row["group"]: row for row in result.table.to_pylist() if row["tokenizer"] == "sums-base"}
    by_name = {"C_": "C#", "C__2": "C++", "a_b": "a b"}
    named = {name: figure for name, figure in result.figures.items() if name.startswith("tokens_per_char.")}
    for suffix, group in by_name.items():
        value = next(figure.value for name, figure in named.items() if name.endswith(f".domain.{suffix}"))
        assert value == rows[group]["tokens_per_char"]
    assert "figures whose names end in .domain.C__2 are those of the domain 'C++'" in result.notes
