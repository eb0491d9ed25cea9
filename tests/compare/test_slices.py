from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict

import networkx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from shiftscope import cli
from shiftscope.compare.slices import Tasking, slices
from shiftscope.core.slices import overlap
from shiftscope.core.slices.slice_maps import Graphing
from shiftscope.core.slices.slices import SliceTable, from_rows
from shiftscope.core.slices.tagged import Tagging

SCENES, OBJECTS, PER_SCENE = 6, 6, 250
BY_CLASS, LOOSE = Tagging(subject="class"), Graphing(threshold=0.1)


def planted(seed: int) -> list[dict]:
    """Two classes in six scenes along a line: tags and words come from the scene or its neighbours, a few words from the class."""
    generator = np.random.default_rng(seed)

    def near(scene: int, n: int) -> list[int]:
        return np.clip(np.rint(scene + 1.1 * generator.standard_normal(n)), 0, SCENES - 1).astype(int).tolist()

    documents = []
    for subject in "ab":
        for scene in range(SCENES):
            for _ in range(PER_SCENE):
                tags = sorted({f"{s}{generator.integers(OBJECTS)}" for s in near(scene, 4)})
                words = np.zeros((SCENES + 1) * 20)
                for s in near(scene, 6):
                    words[20 * s + generator.integers(20)] += 1
                for telling in generator.random(6) < 0.75:
                    words[SCENES * 20 + generator.integers(10) + 10 * ((subject == "b") == telling)] += 1
                documents.append(
                    {"id": f"{len(documents)}", "class": subject, "tags": tags, "scene": scene, "words": words}
                )
    return documents


def accuracies(documents: list[dict]) -> list[float]:
    """Accuracy on class b in scene 0 of a classifier whose class a is from scene 0 and whose class b from scene k."""
    words = np.array([one["words"] for one in documents])
    is_b, scene = np.array([one["class"] == "b" for one in documents]), np.array([one["scene"] for one in documents])
    found = []
    for k in range(SCENES):
        train_b, test = np.flatnonzero(is_b & (scene == k)), np.flatnonzero(is_b & (scene == 0))
        if k == 0:
            train_b, test = test[: len(test) // 2], test[len(test) // 2 :]
        rows = np.concatenate([np.flatnonzero(~is_b & (scene == 0)), train_b])
        model = LogisticRegression(max_iter=500, class_weight="balanced").fit(words[rows], is_b[rows])
        found.append(float(model.predict(words[test]).mean()))
    return found


def by_scene(pairs: pa.Table) -> list[float]:
    """Mean distance of the slices of scene k from those of scene 0."""
    sums = np.zeros((SCENES, 2))
    for row in pairs.to_pylist():
        scenes = [int(row[end][2]) for end in ("first", "second")]
        if row["class"] == "b" and 0 in scenes:
            sums[max(scenes)] += row["distance"], 1
    return (sums[1:, 0] / sums[1:, 1]).tolist()


def part(result, name: str):
    return next(one for one in result.parts if one.method.endswith(name))


@pytest.fixture(scope="module")
def worlds() -> list[tuple[list[dict], list[float]]]:
    return [(documents, accuracies(documents)) for documents in map(planted, range(4))]


def test_the_default_distance_ranks_planted_shifts_by_what_they_cost_and_the_papers_does_not(worlds):
    correlations = {"commute": [], "spectral5": []}
    for documents, accuracy in worlds:
        assert accuracy[1] - accuracy[5] >= 0.6  # measured 0.73–0.79
        assert accuracy[0] > 0.7  # trained on one half of the scene, measured on the other
        for kind, found in correlations.items():
            result = slices(documents, tagging=BY_CLASS, graphing=Graphing(threshold=0.1, distance=kind))
            assert result["slices"] == 2 * SCENES * OBJECTS
            found.append(spearmanr(by_scene(part(result, "distances").table), accuracy[1:]).statistic)
    assert sum(rho <= -0.9 for rho in correlations["commute"]) >= 3  # measured -1.0, four times
    assert np.mean(correlations["spectral5"]) > -0.6


def test_shuffled_memberships_rank_nothing(worlds):
    found = []
    for seed, (documents, accuracy) in enumerate(worlds):
        table = from_rows(part(slices(documents, tagging=BY_CLASS, graphing=LOOSE), "members").table)
        table = table.only(table.classes()["b"])
        items = np.unique(np.concatenate(list(table.members.values())))
        for shuffle in range(10):
            generator = np.random.default_rng([seed, shuffle])
            sizes = generator.permutation(table.sizes_S)
            members = {
                name: np.sort(generator.choice(items, size, replace=False))
                for name, size in zip(table.names, sizes, strict=True)
            }
            distance = overlap.distances(overlap.weights(overlap.coefficients(SliceTable(table.ids, members)), 0))
            scene = np.array([int(name[2]) for name in members])
            mean = [
                overlap.between(distance, np.flatnonzero(scene == 0), np.flatnonzero(scene == k))
                for k in range(1, SCENES)
            ]
            found.append(spearmanr(mean, accuracy[1:]).statistic)
    assert abs(np.mean(found)) < 0.25  # 40 shuffles of 5 ranks: standard error 0.08


def test_distance_from_the_trained_slices_explains_where_a_measured_model_fails(worlds):
    documents, _ = worlds[0]
    words = np.array([one["words"] for one in documents])
    is_b, scene = np.array([one["class"] == "b" for one in documents]), np.array([one["scene"] for one in documents])
    rows = np.flatnonzero(np.where(is_b, scene == 0, scene == SCENES - 1))
    right = LogisticRegression(max_iter=500).fit(words[rows], is_b[rows]).predict(words) == is_b
    outcomes = [
        {"id": one["id"], "correct": float(r)}
        for n, (one, r) in enumerate(zip(documents, right, strict=True))
        if n not in set(rows.tolist())
    ]
    trained = tuple(f"b(0{n})" for n in range(OBJECTS))
    result = slices(documents, tagging=BY_CLASS, graphing=LOOSE, outcomes=outcomes, trained=trained)
    assert result["distance_outcome_spearman"] < -0.8
    assert result["outcome_worst_slice"] < result["outcome_average"]
    assert part(result, "outcomes").table["slice"][0].as_py() in result.verdict[1]


# ---- reading, tasks, notes ------------------------------------------------------------------------------------------
def test_every_slice_has_its_nearest_and_the_parts_hold_what_they_say(worlds):
    documents, _ = worlds[0]
    tasking = Tasking(test=("b(00)", "b(01)"), levels=3)
    result = slices(documents, classes=("a", "b"), tagging=BY_CLASS, graphing=LOOSE, tasking=tasking)
    rows = {row["slice"]: row for row in result.table.to_pylist()}
    pairs = part(result, "distances").table.to_pylist()
    own = {(row["first"], row["second"]): row["distance"] for row in pairs}
    for name, row in rows.items():
        distances = {(set(pair) - {name}).pop(): d for pair, d in own.items() if name in pair}
        assert row["nearest_distance"] == min(distances.values()) == distances[row["nearest"]]
    tasks = part(result, "tasks").table.to_pylist()
    assert len({row["task"] for row in tasks}) == 3
    assert {row["group"] for row in tasks if row["class"] == "a"} == {
        "a(00) + a(01)"
    }  # the anchor: the tested contexts
    tested = {row["id"] for row in tasks if row["split"] == "test"}
    assert not tested & {row["id"] for row in tasks if row["split"] == "train"}
    assert len(part(result, "members").table) == sum(row["items"] for row in rows.values())


def test_a_result_is_saved_with_its_parts_and_its_members_are_a_slice_table_again(worlds, tmp_path):
    documents, _ = worlds[0]
    light = [{key: one[key] for key in ("id", "class", "tags")} for one in documents]
    first = slices(light, tagging=BY_CLASS, graphing=LOOSE)
    first.save(tmp_path)
    again = slices(tmp_path / "members" / "table.parquet", graphing=LOOSE)
    assert again.table.equals(first.table)
    assert json.loads((tmp_path / "summary.json").read_text())["figures"]["slices"]["value"] == 72


def test_the_same_items_from_jsonl_parquet_and_a_pickle_give_the_same_table(worlds, tmp_path):
    light = [{key: one[key] for key in ("id", "class", "tags")} for one in worlds[0][0]]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(one) + "\n" for one in light))
    pq.write_table(pa.Table.from_pylist(light), tmp_path / "items.parquet")
    named: dict[str, set[str]] = {}
    for one in light:
        for tag in one["tags"]:
            named.setdefault(f"{one['class']}({tag})", set()).add(one["id"])
    (tmp_path / "items.pkl").write_bytes(pickle.dumps(named))
    tables = [
        slices(tmp_path / f"items.{kind}", tagging=tagging, graphing=LOOSE).table
        for kind, tagging in (("jsonl", BY_CLASS), ("parquet", BY_CLASS), ("pkl", Tagging()))
    ]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    with pytest.raises(ValueError, match="which only a file of tagged records reads"):
        slices(tmp_path / "items.pkl", tagging=BY_CLASS, graphing=LOOSE)


def chain(subject: str, n: int, shift: int) -> dict[str, list[int]]:
    return {f"{subject}({shift}-{k})": list(range(shift + 20 * k, shift + 20 * k + 30)) for k in range(n)}


def test_unconnected_slices_are_said_and_are_infinitely_far_never_a_number():
    result = slices(chain("c", 5, 0) | chain("c", 5, 1000))
    assert result["disconnected_classes_share"] == 1
    assert "1 classes fall into unconnected parts, infinitely far from each other: c." in result.verdict
    for row in part(result, "distances").table.to_pylist():
        apart = row["first"].split("-")[0] != row["second"].split("-")[0]
        assert np.isinf(row["distance"]) == apart
    assert set(result.table["component"].to_pylist()) == {0, 1}


def attribute_sets(seed: int = 0) -> dict[str, set[str]]:
    """A stand-in for the published attribute pickle: 337 subjects, about 5,000 named sets of image ids, most of them small.

    `shirt` is 14 groups of attributes that share no image with each other.
    """
    generator, found = np.random.default_rng(seed), defaultdict(set)
    for number in range(336):
        images = generator.integers(0, 100_000, 2000)
        for k in range(generator.integers(5, 25)):
            size = min(1500, int(generator.lognormal(2.2, 1.2)) + 1)
            found[f"s{number}(a{k})"].update(map(str, generator.choice(images, size).tolist()))
    for group in range(14):
        for k in range(3):
            start = 1_000_000 + 1000 * group + 15 * k
            found[f"shirt(g{group}-{k})"].update(map(str, range(start, start + 40)))
    return found


def test_a_pickle_of_attributes_keeps_what_counting_keeps_and_its_broken_graphs_give_no_numbers(tmp_path):
    named = attribute_sets()
    (tmp_path / "attributes.pkl").write_bytes(pickle.dumps(named))
    result = slices(tmp_path / "attributes.pkl")
    large = Counter(name.split("(")[0] for name, ids in named.items() if len(ids) >= 25)
    kept = {subject: count for subject, count in large.items() if count > 5}
    assert dict(Counter(result.table["class"].to_pylist())) == kept
    assert result["classes"] == len(kept) > 30
    shirt = [row for row in part(result, "distances").table.to_pylist() if row["class"] == "shirt"]
    apart = [row["first"].split("-")[0] != row["second"].split("-")[0] for row in shirt]
    assert [bool(np.isinf(row["distance"])) for row in shirt] == apart
    assert sum(apart) == 14 * 13 // 2 * 9
    components = {row["component"] for row in result.table.to_pylist() if row["class"] == "shirt"}
    assert len(components) == 14


def test_why_unconnected_slices_get_no_number_the_published_distance_depends_on_the_order_of_the_slices():
    table = SliceTable.of({name: ids for name, ids in attribute_sets().items() if name.startswith("shirt")})
    weight = overlap.weights(overlap.coefficients(table))
    order = np.random.default_rng(0).permutation(len(weight))
    back = np.argsort(order)

    def published(matrix: np.ndarray) -> np.ndarray:
        layout = networkx.spectral_layout(networkx.from_numpy_array(matrix), dim=5)
        return squareform(pdist([layout[n] for n in range(len(matrix))]))

    moved = published(weight[np.ix_(order, order)])[np.ix_(back, back)]
    assert np.abs(moved - published(weight)).max() > 0.5  # distances there are within about 2
    ours = overlap.distances(weight[np.ix_(order, order)])[np.ix_(back, back)]
    both = np.isfinite(ours)
    assert (both == np.isfinite(overlap.distances(weight))).all()
    assert np.allclose(ours[both], overlap.distances(weight)[both], atol=1e-9)


def test_the_picture_of_a_graph_puts_slices_near_that_share_items_and_names_them():
    result = slices(chain("c", 12, 0))
    panel = part(result, "distances").panels[0]
    assert (panel.kind, panel.label) == ("points", "slice")
    rows = {row["slice"]: (row["x"], row["y"]) for row in panel.table.to_pylist()}
    assert len(rows) == 12
    next_to = [np.hypot(*np.subtract(rows[f"0-{k}"], rows[f"0-{k + 1}"])) for k in range(11)]
    far = np.hypot(*np.subtract(rows["0-0"], rows["0-11"]))
    assert far > 3 * np.mean(next_to)


def test_the_papers_distance_is_refused_where_it_means_nothing_and_left_out_for_one_class_of_several():
    paper = Graphing(distance="spectral5")
    with pytest.raises(ValueError, match=r"no class has spectral5 distances; c: .* needs at least 12; use commute"):
        slices(chain("c", 8, 0), graphing=paper)
    result = slices(chain("c", 8, 0) | chain("d", 20, 1000), graphing=paper)
    assert any(note.startswith("c has no spectral5 distances") for note in result.notes)
    rows = part(result, "distances").table.to_pylist()
    assert all((row["distance"] is None) == (row["class"] == "c") for row in rows)
    assert len(rows) == 28 + 190  # nothing is lost
    with pytest.raises(ValueError, match="c has no spectral5 distances to rank tasks by"):
        slices(
            chain("c", 8, 0) | chain("d", 20, 1000),
            graphing=paper,
            tasking=Tasking(test=("c(0-0)",), anchor=("d(1000-0)",)),
        )


def test_training_conflict_is_a_part():
    generator = np.random.default_rng(0)
    steps = [
        {"composition": {"c": a, "d": 1 - a}, "change": {"c": 0.3 - a, "d": 0.1 * a + 0.001 * n}}
        for a, n in zip(generator.random(40).tolist(), generator.standard_normal(40).tolist(), strict=True)
    ]
    result = slices(chain("c", 8, 0), steps=steps)
    assert result["conflicts_share"] == 0.5  # d hurts c (0.3 of loss), and c hurts d (0.1)
    assert any("in conflict" in sentence for sentence in result.verdict)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tasking": Tasking(test=("c(0-0)",))}, "no one class with slices in"),
        ({"tasking": Tasking(test=("c(0-0)", "d(1000-0)"), anchor=("d(1000-1)",))}, "of several classes"),
        ({"tasking": Tasking(test=("c(no)",), anchor=("d(1000-0)",))}, r"no slice 'c\(no\)'"),
        ({"classes": ("e",)}, "there is no class 'e'"),
        ({"trained": ("c(0-0)",)}, "give its outcomes as well"),
        ({"outcomes": [{"id": 1}]}, "outcome 1 has no 'id' or no number 'correct'"),
        ({"outcomes": [{"id": 1, "correct": 1}, {"id": 1, "correct": 0}]}, "the id '1' is measured twice"),
        ({"graphing": Graphing(min_items=99)}, "at most 30 items"),
        ({"steps": []}, "there are no steps"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        slices(chain("c", 8, 0) | chain("d", 8, 1000), **settings)


def test_tasking_refuses_what_contradicts_itself():
    for settings in ({"levels": 0}, {"width": 0}, {"majority": ("a(b)", "b(a)")}, {"anchor": ("a(b)",)}):
        with pytest.raises(ValueError, match=r"must be at least 1|go together|give test as well"):
            Tasking(**settings)


def test_every_setting_is_described_on_the_command_line():
    for one in (slices, Tagging, Graphing, Tasking):
        described = cli.described_parameters(one)
        names = [
            name
            for name in cli.inspect.signature(one).parameters
            if name not in ("tagging", "graphing", "tasking", "parts", "advance")
        ]
        assert set(names) == set(described)
    cli.command("compare", "slices", slices)
