"""Latent classes of corpora: planted mixes recovered, refusal without a shift, the gates with their baselines, bad input."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from shiftscope.compare.domains import Latent, domains
from shiftscope.core.corpora import latent, matching, planting

WORDS = {  # two unlike kinds of text in every class
    "a": ("apple pear plum fig quince", "steel bolt rivet hinge weld"),
    "b": ("tide wave reef shore gull", "verse rhyme sonnet stanza ode"),
    "c": ("flour yeast dough oven crust", "pawn rook bishop knight check"),
}
FAST = Latent(resamples=20)


def corpora(mixture_KR: np.ndarray, seed: int = 0, size: int = 120) -> list[list[dict[str, str]]]:
    """Domains of short texts of six words, with the true class of each in the field `kind`."""
    generator = np.random.default_rng(seed)
    found = []
    for d, share_K in enumerate(mixture_KR.T):
        records = []
        for number in range(size):
            kind = generator.choice(list(WORDS), p=share_K)
            words = WORDS[kind][generator.integers(2)].split()
            records.append({"id": f"{d}-{number}", "text": " ".join(generator.choice(words, 6)), "kind": kind})
        found.append(records)
    return found


MIXTURE = np.array([[0.8, 0.1, 0.1, 0.4], [0.1, 0.8, 0.1, 0.2], [0.1, 0.1, 0.8, 0.4]])


@pytest.fixture(scope="module")
def planted() -> Any:
    return domains(corpora(MIXTURE), classes=3, truth="kind", finding=FAST)


def test_classes_of_unlike_texts_are_found_by_how_they_shift_together(planted):
    assert planted["accuracy"] > planted["majority_accuracy"] + 0.1
    assert planted["mixture_error"] < 0.1
    assert planted["directions_beyond_chance"] == 2
    assert planted["usable_shift"]
    words = next(panel for panel in planted.panels if panel.title == "The classes").table["words"].to_pylist()
    joined = [set(line.split(", ")) for line in words]
    assert any({"apple", "steel"} & line and not {"tide", "pawn"} & line for line in joined)


def test_the_mixture_is_in_the_figures_with_intervals_and_sums_to_one(planted):
    for d in range(4):
        shares = [planted.figures[f"share_of_class_{k}_in_domain_{d + 1}"] for k in (1, 2, 3)]
        assert sum(float(share.value) for share in shares) == pytest.approx(1)
        assert all(share.low <= share.value <= share.high for share in shares)
    kept = json.loads(planted.table.schema.metadata[b"mixture"])
    assert np.shape(kept["mixture"]) == (3, 4)


def test_every_text_is_in_the_table_with_probabilities_that_sum_to_one(planted):
    table = planted.table
    assert table.num_rows == 480
    assert np.sum([table[f"p_class_{k}"].to_numpy() for k in (1, 2, 3)], 0) == pytest.approx(np.ones(480))
    best = np.argmax([table[f"p_class_{k}"].to_numpy() for k in (1, 2, 3)], 0) + 1
    assert (best == table["class"].to_numpy()).all()


def test_the_top_texts_of_a_class_come_from_its_own_kinds(planted):
    table = next(panel for panel in planted.panels if panel.title.startswith("Top texts")).table.to_pylist()
    vocabulary = {word: kind for kind, pair in WORDS.items() for line in pair for word in line.split()}
    for k in (1, 2, 3):
        kinds = [vocabulary[row["text"].split()[0]] for row in table if row["class"] == k]
        assert len(set(kinds)) == 1
        assert len(kinds) == 6


def test_both_solvers_agree_where_the_pseudo_inverse_is_tame(planted):
    found = domains(corpora(MIXTURE), classes=3, truth="kind", finding=Latent(resamples=20, solver="pinv"))
    assert found["accuracy"] == pytest.approx(planted["accuracy"], abs=0.02)
    assert found["mixture_error"] == planted["mixture_error"]


@pytest.mark.parametrize("seed", range(3))
def test_where_classes_have_texts_of_their_own_anchors_are_nearer_the_truth_than_nmf(seed):
    given = corpora(MIXTURE, seed)
    faithful = domains(given, classes=3, truth="kind", finding=Latent(resamples=20, seed=seed))
    found = domains(given, classes=3, truth="kind", finding=Latent(resamples=20, seed=seed, factorizer="anchor"))
    assert found["accuracy"] > max(0.92, float(faithful["accuracy"]) + 0.03)
    assert found["mixture_error"] < min(0.07, float(faithful["mixture_error"]))


def test_the_truth_never_reaches_the_classes(planted):
    blind = domains(corpora(MIXTURE), classes=3, finding=FAST)
    assert blind.table.to_pylist() == planted.table.to_pylist()
    assert "accuracy" not in blind.figures


def test_domains_may_be_named_in_a_field_of_one_file(tmp_path, planted):
    lines = [
        json.dumps(record | {"source": f"domain {d + 1}"}) for d, one in enumerate(corpora(MIXTURE)) for record in one
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    found = domains([str(tmp_path / "all.jsonl")], classes=3, by="source", finding=FAST)
    assert found.table["class"].to_pylist() == planted.table["class"].to_pylist()


def test_identical_domains_have_no_usable_shift_and_no_classes_are_printed():
    """A one-sided 1 % test: of 25 pairs of equal domains at most two pass (probability of more: 0.002)."""
    even = np.full((3, 3), 1 / 3)
    found = [domains(corpora(even, seed, 60), classes=2, finding=FAST) for seed in range(25)]
    refused = [one for one in found if not one["usable_shift"]]
    assert len(refused) >= 23
    assert refused[0].verdict[0].startswith("No usable shift")
    assert "class" not in refused[0].table.column_names
    assert refused[0].table.num_rows == 180
    assert not any(name.startswith("share_of") for name in refused[0].figures)


def test_texts_without_words_and_repeated_ids_are_kept_and_named():
    some = corpora(MIXTURE)
    some[0][0]["text"] = "!"
    some[1][1]["id"] = some[1][0]["id"]
    found = domains(some, classes=3, finding=FAST)
    assert found.table.num_rows == 480
    assert found.table["class"][0].as_py() is None
    assert found.table["class"].null_count == 1
    assert any("1 texts have no feature" in note for note in found.notes)
    assert any("ids occur more than once" in note for note in found.notes)


def test_more_classes_than_the_shift_can_bear_are_said_to_be_too_many():
    found = domains(corpora(MIXTURE), classes=4, finding=FAST)
    assert any("speaks for 3 classes, not 4" in sentence for sentence in found.verdict)


def test_text_files_and_vectors_are_read_too(tmp_path):
    files = []
    for d, one in enumerate(corpora(MIXTURE, size=40)):
        files.append(str(tmp_path / f"d{d}.txt"))
        Path(files[-1]).write_text("\n".join(record["text"] for record in one))
    found = domains(files, classes=3, finding=FAST)
    assert sorted(set(found.table["domain"].to_pylist())) == ["d0", "d1", "d2", "d3"]
    assert len(found.provenance["corpora"]["d0"]["sha256"]) == 64


def test_the_page_can_be_drawn(tmp_path, planted):
    from shiftscope import report

    page = report.write(planted, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What each domain is mixed of" in page
    assert "Top texts of every class" in page


@pytest.mark.parametrize(
    ("given", "settings", "sentence"),
    [
        (corpora(MIXTURE)[:1], {"classes": 2}, "there is one domain"),
        (corpora(MIXTURE), {"classes": 5}, "5 classes and 4 domains"),
        (corpora(MIXTURE), {"classes": 1}, "1 classes and 4 domains"),
        ([*corpora(MIXTURE)[:2], corpora(MIXTURE)[2][:3]], {"classes": 2}, "domain 3 has 3 usable texts"),
        (corpora(MIXTURE), {"classes": 3, "by": "year"}, "record 1 has no field 'year'"),
        (corpora(MIXTURE), {"classes": 2, "truth": "kind"}, "--truth names 3 classes and --classes is 2"),
        (corpora(MIXTURE), {"classes": 3, "finding": Latent(clusters=2)}, "2 clusters"),
        ([np.full((9, 3), np.nan), np.ones((9, 3))], {"classes": 2}, "values that are not finite"),
        ([np.ones((9, 3)), np.ones((9, 4))], {"classes": 2}, "have 3, 4 dimensions"),
        ([np.ones((9, 3)), ["a text"] * 9], {"classes": 2}, "holds vectors and others hold texts"),
        ([["?", "!"] * 9, ["."] * 9], {"classes": 2}, "no words of two letters"),
    ],
)
def test_bad_input_is_named_in_one_sentence(given, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        domains(given, **settings)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="factorizer is 'svd'"):
        Latent(factorizer="svd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="folds 1"):
        Latent(folds=1)


def scores(
    features: np.ndarray, truth_N: np.ndarray, domain_N: np.ndarray, classes: int, **settings: Any
) -> list[float]:
    """Accuracy and mixture error found; then of k-means on the features; of each domain's majority, and of even mixes."""
    n_domains = int(domain_N.max()) + 1
    found = domains(
        [features[domain_N == d] for d in range(n_domains)], classes=classes, finding=Latent(resamples=20, **settings)
    )
    order_N = np.argsort(domain_N, kind="stable")
    truth_N, domain_N = truth_N[order_N], domain_N[order_N]
    accuracy, naming = matching.matched(found.table["class"].to_numpy() - 1, truth_N, classes)
    true_KR = latent.cluster_shares(truth_N, domain_N, classes, n_domains)
    estimate_KR = np.empty_like(true_KR)
    estimate_KR[naming] = json.loads(found.table.schema.metadata[b"mixture"])["mixture"]
    near_N = KMeans(classes, n_init=10, random_state=0).fit_predict(features[order_N])
    near, near_naming = matching.matched(near_N, truth_N, classes)
    near_KR = latent.cluster_shares(near_naming[near_N], domain_N, classes, n_domains)
    majority = float(true_KR.max(0)[domain_N].mean())
    errors = [float(np.abs(mixture_KR - true_KR).mean()) for mixture_KR in (estimate_KR, near_KR, 1 / classes)]
    return [accuracy, errors[0], near, errors[1], majority, errors[2]]


def digits(pairs: list[tuple[int, ...]], n_domains: int, alpha: float, condition: float, seed: int) -> tuple[Any, ...]:
    images, digit_N = load_digits(return_X_y=True)
    class_of = {digit: k for k, group in enumerate(pairs) for digit in group}
    truth_N = np.array([class_of[digit] for digit in digit_N.tolist()])
    generator = np.random.default_rng(seed)
    mixture_KR = planting.planted_mixture(len(pairs), n_domains, alpha=alpha, condition=condition, generator=generator)
    rows, domain_N = planting.planted_domains(truth_N, mixture_KR, generator)
    return images[rows] / 16, truth_N[rows], domain_N, len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pairs",
    [[(0, 1), (2, 7), (3, 4), (5, 6), (8, 9)], [(0, 6), (1, 8), (2, 5), (3, 7), (4, 9)]],
)
def test_classes_of_two_unlike_digits_gate_a(pairs):
    """Accuracy at least 0.85 and 0.30 above k-means, mixture within 0.05: mean over planted shifts."""
    found = np.mean([scores(*digits(pairs, 8, 1, 6, seed), seed=seed) for seed in range(5)], 0)
    accuracy, error, near, near_error, majority, even_error = found
    assert accuracy >= 0.85
    assert accuracy >= near + 0.30
    assert accuracy >= majority + 0.10
    assert error <= 0.05
    assert error < min(near_error, even_error) / 2


@pytest.mark.slow
def test_odd_and_even_digits_gate_b():
    pairs = [(1, 3, 5, 7, 9), (0, 2, 4, 6, 8)]
    found = np.mean([scores(*digits(pairs, 5, 1, 6, seed), seed=seed) for seed in range(3)], 0)
    accuracy, error, near, near_error, majority, even_error = found
    assert accuracy >= 0.85
    assert accuracy >= max(near, majority) + 0.05
    assert error <= 0.07
    assert error < min(near_error, even_error) / 2


@pytest.mark.slow
def test_ten_digits_in_twelve_domains_gate_c():
    """Here k-means knows the classes too, and domains are dominated by few digits: both baselines are beaten all the same.

    The note's figures: 0.915 and 0.019, k-means 0.701 and 0.055, each domain's majority 0.737.
    """
    pairs = [(digit,) for digit in range(10)]
    found = np.mean([scores(*digits(pairs, 12, 0.5, 8, seed), seed=seed, clusters=10) for seed in range(3)], 0)
    accuracy, error, near, near_error, majority, even_error = found
    assert accuracy >= 0.85
    assert accuracy >= max(near, majority) + 0.10
    assert error <= 0.03
    assert error < min(near_error, even_error) / 1.5


PACKAGES = (("tkinter", "email"), ("asyncio", "lib2to3"), ("unittest", "xml"), ("distutils", "multiprocessing"))


def chunks() -> tuple[list[str], np.ndarray]:
    """25-line pieces of the standard library; a class is two unrelated packages."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts, labels = [], []
    for k, pair in enumerate(PACKAGES):
        for package in pair:
            if not (library / package).is_dir():
                pytest.skip(f"this Python's standard library has no {package}")
            for file in sorted((library / package).rglob("*.py")):
                lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
                pieces = ["\n".join(lines[start : start + 25]) for start in range(0, len(lines) - 24, 25)]
                texts += pieces
                labels += [k] * len(pieces)
    return texts, np.array(labels)


@pytest.mark.slow
def test_classes_of_unrelated_packages_gate_d():
    """Texts: mean accuracy over five planted shifts at least 0.68, and 0.20 above k-means on latent semantics."""
    texts, label_N = chunks()
    found = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        mixture_KR = planting.planted_mixture(4, 6, alpha=2, condition=6, generator=generator)
        rows, domain_N = planting.planted_domains(label_N, mixture_KR, generator)
        given = [[{"text": texts[i], "kind": str(label_N[i])} for i in rows[domain_N == d]] for d in range(6)]
        one = domains(given, classes=4, truth="kind", finding=Latent(resamples=20, seed=seed))
        words = TfidfVectorizer(max_features=6000).fit_transform([texts[i] for i in rows])
        rows_NC = TruncatedSVD(50, random_state=0).fit_transform(words)
        near_N = KMeans(4, n_init=10, random_state=seed).fit_predict(rows_NC)
        near = matching.matched(near_N, label_N[rows], 4)[0]
        found.append([one["accuracy"], one["mixture_error"], near, one["majority_accuracy"]])
    accuracy, error, near, majority = np.mean(found, 0)
    assert accuracy >= 0.68
    assert accuracy >= near + 0.20
    assert accuracy >= majority + 0.05
    assert error <= 0.10
