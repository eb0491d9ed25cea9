"""Claims about `compare layers`: oracles for its curves, exact zeros where nothing changed, and the published ordering."""

from __future__ import annotations

import copy
import itertools
import math
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from shiftscope.compare.layers import Depth, Watching, layers, summarise
from shiftscope.core import checkpoints, divergence
from shiftscope.core.answers import Loading
from shiftscope.core.layers import preference
from shiftscope.core.parts import Parts
from shiftscope.zoo import styles

TEXTS = styles.probe_prompts(48, seed=1)
FIRST_FIGURES = ("alpha_terminal_delta", "alpha_elsewhere_delta", "alpha_localisation", "alpha_noise_floor")


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("styles-base")


def altered(base, blocks, scale=0.02, seed=0):
    """The base with noise on the weights of some blocks (0-based)."""
    model = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in blocks:
            for parameter in model.transformer.h[block].parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return checkpoints.wrap(model, base.tokenizer, "altered")


@pytest.fixture(scope="module")
def late(base):
    return altered(base, (4, 5))


@pytest.fixture(scope="module")
def changed(base, late):
    return layers(base, late, texts=TEXTS)


def column(result, name):
    return np.array([np.nan if value is None else value for value in result.table[name].to_pylist()], dtype=float)


# --- the curves -------------------------------------------------------------------------------------------------------


def test_alpha_is_the_slope_of_the_singular_values_of_the_answers_states(base):
    """Oracle: the library's own hidden states, numpy's singular values and numpy's line."""
    result = layers(base, base, texts=TEXTS)
    ids = torch.tensor(base.tokenizer([text["prompt"] + text["answer"] for text in TEXTS])["input_ids"])
    with torch.no_grad():
        states = base.model(input_ids=ids, output_hidden_states=True).hidden_states[:-1]  # the last one is normed
    for layer, state in enumerate(states):
        rows = state[:, -styles.ANSWER_TOKENS :].flatten(0, 1).double().numpy()
        sigma = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        rank = result.table["rank_base"][layer].as_py()
        k = np.arange(math.ceil(0.1 * rank), math.floor(0.9 * rank) + 1)
        slope, _ = np.polyfit(np.log(k), np.log(sigma[k - 1]), 1)
        assert column(result, "alpha_base")[layer] == pytest.approx(-slope, abs=1e-6)


def test_transport_is_the_mean_distance_between_adjacent_lens_laws(base):
    result = layers(base, base, texts=TEXTS)
    ids = torch.tensor(base.tokenizer([text["prompt"] + text["answer"] for text in TEXTS])["input_ids"])
    with torch.no_grad():
        output = base.model(input_ids=ids, output_hidden_states=True)
        normed = [*map(base.model.transformer.ln_f, output.hidden_states[:-1]), output.hidden_states[-1]]
        logp = [base.model.lm_head(state[:, -styles.ANSWER_TOKENS :]).double().log_softmax(-1) for state in normed]
    expected = [float(divergence.fisher_rao(a, b).mean()) for a, b in itertools.pairwise(logp)]
    assert result.table["transport_base"][0].as_py() is None
    assert column(result, "transport_base")[1:] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_against_a_second_copy_of_itself_changes_by_exactly_nothing(base):
    result = layers(base, checkpoints.load("styles-base"), texts=TEXTS)
    for name in ("alpha", "transport"):
        for end in ("", "_low", "_high"):
            assert not np.nan_to_num(column(result, f"{name}_delta{end}")).any()
        assert result[f"{name}_terminal_delta"] == 0
    assert result["window_stable"] is True
    assert "nothing changed" in result.verdict[0]
    assert "alpha_localisation" not in result.figures
    assert any("no layer changed" in note for note in result.notes)


def test_nothing_changes_below_the_first_block_that_did(changed):
    assert np.abs(np.nan_to_num(column(changed, "alpha_delta")[:5])).max() < 1e-9
    assert np.abs(np.nan_to_num(column(changed, "transport_delta")[:5])).max() < 1e-9
    assert np.abs(column(changed, "alpha_delta")[5:]).min() > 1e-4
    assert np.abs(column(changed, "transport_delta")[5:]).min() > 1e-4
    assert changed["alpha_localisation"] == changed["transport_localisation"] == 1


def test_measuring_leaves_both_models_bit_equal(base, late):
    ids = torch.tensor(base.tokenizer([text["prompt"] for text in TEXTS])["input_ids"])
    with torch.no_grad():
        before = [one.model(input_ids=ids).logits for one in (base, late)]
        layers(base, late, texts=TEXTS[:8], preferences=styles.preference_pairs(4, seed=0))
        after = [one.model(input_ids=ids).logits for one in (base, late)]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert all(p.grad is None and p.requires_grad for one in (base, late) for p in one.model.parameters())


def test_transport_does_not_depend_on_batches_and_nothing_on_the_order_of_texts(base, late, changed):
    small = layers(base, late, texts=TEXTS, loading=Loading(batch_size=7))
    assert column(small, "transport_delta")[1:] == pytest.approx(column(changed, "transport_delta")[1:], abs=1e-5)
    shuffled = layers(base, late, texts=TEXTS[::-1])
    assert column(shuffled, "alpha_delta") == pytest.approx(column(changed, "alpha_delta"), abs=1e-9)


def test_intervals_hold_the_values_and_shrink_with_more_texts(base, late, changed):
    for name in ("alpha_base", "alpha_tuned", "alpha_delta", "transport_delta"):
        value, low, high = (column(changed, f"{name}{end}")[1:] for end in ("", "_low", "_high"))
        assert ((low <= value) & (value <= high)).all()
    more = layers(base, late, texts=styles.probe_prompts(192, seed=1), loading=Loading(batch_size=192))
    widths = [
        result.figures["transport_terminal_delta"].high - result.figures["transport_terminal_delta"].low
        for result in (changed, more)
    ]
    assert widths[1] < 0.7 * widths[0]  # four times the texts: half the width


# --- settings ---------------------------------------------------------------------------------------------------------


def test_some_layers_and_fewer_tokens(base, late, changed):
    some = layers(base, late, texts=TEXTS, depth=Depth(layers=(2, 6), max_tokens=3))
    assert some.table["layer"].to_pylist() == [2, 6]
    assert column(some, "alpha_delta")[1] == pytest.approx(column(changed, "alpha_delta")[6], abs=1e-12)
    assert 0 < column(some, "transport_tuned")[1] != column(changed, "transport_tuned")[6]
    whole = layers(base, late, texts=TEXTS, depth=Depth(max_tokens=styles.ANSWER_TOKENS))
    assert whole.table.equals(changed.table)
    assert any("coherence and curvature are left out" in note for note in some.notes)


def test_too_few_tokens_are_flagged(base, changed):
    assert not any(changed.table["too_few_tokens"].to_pylist())  # 480 tokens, 64 directions
    few = layers(base, base, texts=TEXTS[:16])
    assert all(few.table["too_few_tokens"].to_pylist())
    assert any("biased upwards" in note for note in few.notes)


def test_with_one_word_nothing_can_be_fitted_and_the_figures_are_absent(base):
    result = layers(base, base, texts=[{"prompt": "What colour is Rex?", "answer": " Well now"}])
    assert "alpha_terminal_delta" not in result.figures
    assert "window_stable" not in result.figures
    assert result.figures["transport_terminal_delta"].value == 0
    assert any(note.startswith("alpha_terminal_delta is left out") for note in result.notes)


def test_gradient_shares_come_only_with_pairs(base, late, changed):
    assert "gradient_terminal_share" not in changed.figures
    assert any("no preference pairs were given" in note for note in changed.notes)
    pairs = styles.preference_pairs(12, seed=3)
    result = layers(base, late, texts=TEXTS, preferences=pairs)
    for side in ("base", "tuned"):
        shares = column(result, f"gradient_share_{side}")
        assert np.isnan(shares[0])
        assert shares[1:].sum() == pytest.approx(1)
    assert result["gradient_terminal_share"] == pytest.approx(column(result, "gradient_share_tuned")[5:].sum())
    assert result.figures["gradient_terminal_share"].n == 12
    assert any(panel.title == "Where the preference gradient falls" for panel in result.panels)


def test_half_precision_is_noted_and_its_rounding_kept_out(base):
    model = copy.deepcopy(base.model).to(torch.bfloat16)
    short = checkpoints.wrap(model, base.tokenizer, "short")
    result = layers(short, short, texts=TEXTS)
    assert any("short ran in bfloat16" in note for note in result.notes)
    assert not np.nan_to_num(column(result, "alpha_delta")).any()
    assert min(result.table["rank_base"].to_pylist()) < 64


def test_the_score_comes_last_and_is_called_a_convention(base, late, changed):
    names = list(changed.figures)
    assert names[: len(FIRST_FIGURES)] == list(FIRST_FIGURES)
    assert names[-1] == "spinal_score"
    assert changed.figures["spinal_score"].unit == "(convention)"
    assert any("weights are a convention" in note for note in changed.notes)


def test_an_interrupted_run_goes_on_and_gives_the_same(base, late, changed, tmp_path):
    settings = {"texts": TEXTS, "loading": Loading(batch_size=20)}
    whole = layers(base, late, **settings)
    layers(base, late, **settings, parts=Parts(tmp_path))
    for part in sorted(tmp_path.glob("pass-000001.*")):
        part.unlink()
    assert layers(base, late, **settings, parts=Parts(tmp_path, resume=True)).table.equals(whole.table)


def test_a_saved_result_can_be_read_back(changed, tmp_path):
    changed.save(tmp_path)
    assert (tmp_path / "summary.json").is_file()
    assert {"layer", "alpha_base", "alpha_tuned", "alpha_delta", "transport_base", "r2_base", "rank_base", "n"} <= set(
        changed.table.column_names
    )


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ({"layers": (3, 9)}, "states 0 to 6"),
        ({"layers": (0, 1)}, "leave out the last third"),
        ({"window_low": 0.9, "window_high": 0.1}, "fractions of the ranks"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(base, depth, message):
    with pytest.raises(ValueError, match=message):
        layers(base, base, texts=TEXTS[:2], depth=Depth(**depth))


def test_models_of_different_depth_cannot_be_paired(base):
    config = copy.deepcopy(base.model.config)
    config.n_layer = 2
    shallow = checkpoints.wrap(type(base.model)(config).eval(), base.tokenizer, "shallow")
    with pytest.raises(ValueError, match="6 blocks and shallow has 2"):
        layers(base, shallow, texts=TEXTS[:2])


def test_states_that_are_not_numbers_are_named(base, late):
    broken = checkpoints.wrap(copy.deepcopy(late.model), base.tokenizer, "broken")
    with torch.no_grad():
        broken.model.transformer.h[2].mlp.c_fc.bias[0] = torch.nan
    with pytest.raises(
        ValueError, match=r"broken gives states that are not numbers .* at layer 3 in text 0, answer position 0"
    ):
        layers(base, broken, texts=TEXTS[:2])


# --- what the summary makes of known curves ---------------------------------------------------------------------------


def planted(alpha_delta, transport_delta, *, texts=30, noise=0.0, seed=0, alpha=1.0, transport=0.5):
    """Rows of a model with six blocks whose tuned side differs by so much: [7, 4 windows] and [7]."""
    generator = np.random.default_rng(seed)
    tables = []
    for layer in range(7):
        own = noise * generator.standard_normal((texts, 1))
        base_alpha = np.broadcast_to(alpha + own, (texts, 4))
        carried = np.full(texts, np.nan if layer == 0 else transport)
        tables.append(
            pa.table(
                {
                    "text": range(texts), "batch": [0] * texts, "layer": [layer] * texts, "blocks": [6] * texts, "tokens": [500] * texts,
                    "alpha_base": pa.FixedSizeListArray.from_arrays(pa.array(base_alpha.ravel()), 4),
                    "r2_base": [0.9] * texts, "rank_base": [64] * texts, "transport_base": carried,
                    "alpha_tuned": pa.FixedSizeListArray.from_arrays(pa.array((base_alpha + alpha_delta[layer]).ravel()), 4),
                    "r2_tuned": [0.9] * texts, "rank_tuned": [64] * texts, "transport_tuned": carried + transport_delta[layer],
                }
            )
        )  # fmt: skip
    return pa.concat_tables(tables)


def test_a_rise_in_the_last_blocks_alone_is_localised_and_stable():
    result = summarise(
        planted(np.repeat([[0.0]] * 5 + [[0.2], [0.4]], 4, axis=1), [0, 0, 0, 0, 0, -0.1, -0.3], noise=0.1)
    )
    assert result["alpha_terminal_delta"] == pytest.approx(0.3)
    assert result["alpha_elsewhere_delta"] == 0
    assert result["transport_terminal_delta"] == pytest.approx(-0.2)
    assert result["align_delta"] == pytest.approx(0.5)
    assert result["alpha_localisation"] == 1
    assert result["window_stable"] is True
    assert result.verdict[1].startswith("Contraction localised in blocks 5–6: yes")
    assert "window-stable: yes" in result.verdict[1]
    assert "fell by 0.2" in result.verdict[-1]


def test_a_change_that_is_alike_everywhere_is_not_localised():
    result = summarise(planted(np.full((7, 4), 0.2), [0.1] * 7))
    assert result["alpha_localisation"] == pytest.approx(0.5)
    assert result.verdict[1].startswith("Contraction localised in blocks 5–6: no")


def test_a_sign_that_hangs_on_the_window_is_said_so():
    delta = np.zeros((7, 4))
    delta[5:] = [0.2, 0.5, 0.1, -0.2]
    result = summarise(planted(delta, [0.0] * 7))
    assert result["window_stable"] is False
    assert "window-stable: no (ranks 0.3–0.9 give -0.2)" in result.verdict[1]
    windows = next(panel.table for panel in result.panels if panel.title == "Does it hang on the window?")
    assert windows["terminal_delta"].to_pylist() == pytest.approx([0.2, 0.5, 0.1, -0.2])


def test_a_change_smaller_than_two_halves_of_the_texts_is_said_so():
    delta = np.zeros((7, 4))
    delta[5:] = 0.01
    result = summarise(planted(delta, [0.0] * 7, noise=1.0))
    assert result["alpha_noise_floor"] > 0.01
    assert any("two random halves" in sentence for sentence in result.verdict)


def test_a_straight_path_is_coherent_and_a_bent_one_is_not():
    straight = summarise(planted(np.zeros((7, 4)), [0.0] * 7))
    assert straight["coherence_base"] == pytest.approx(1)
    assert straight["curvature_base"] == pytest.approx(0, abs=1e-6)
    delta = np.zeros((7, 4))
    delta[5] = 3.0  # up and down again
    bent = summarise(planted(delta, [0.0] * 7))
    assert bent["coherence_tuned"] < -0.5
    assert bent["curvature_tuned"] > math.pi / 2


def test_the_order_of_the_rows_does_not_matter():
    rows = planted(np.full((7, 4), 0.2), [0.1] * 7, noise=0.5)
    mixed = rows.take(np.random.default_rng(0).permutation(len(rows)))
    assert summarise(mixed).table.equals(summarise(rows).table)
    assert summarise(mixed).figures == summarise(rows).figures


# --- watching a run ---------------------------------------------------------------------------------------------------


def saved(base, folder, scale):
    late = altered(base, (4, 5), scale)
    late.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def test_watching_gives_one_row_per_checkpoint_in_order_of_steps(base, tmp_path, monkeypatch):
    monkeypatch.setattr("shiftscope.core.layers.runs.SETTLED_S", -1.0)
    for step, scale in ((100, 0.04), (20, 0.01), (3, 0.0)):
        saved(base, tmp_path / "run" / f"checkpoint-{step}", scale)
    saved(
        base, tmp_path / "written", 0.08
    )  # before: a model is not to be copied while another thread watches its states
    later = threading.Timer(0.5, (tmp_path / "written").rename, (tmp_path / "run" / "checkpoint-200",))
    later.start()
    parts = Parts(tmp_path / "parts")
    result = layers(
        base, str(tmp_path / "run"), texts=TEXTS, watching=Watching(True, patience_s=2.0, poll_s=0.1), parts=parts
    )
    later.join()
    assert result.table["step"].to_pylist() == [3, 20, 100, 200]
    assert result.table["alpha_terminal_delta"][0].as_py() == 0
    alone = layers(base, str(tmp_path / "run" / "checkpoint-200"), texts=TEXTS)
    assert result["alpha_terminal_delta"] == pytest.approx(alone["alpha_terminal_delta"], abs=1e-12)
    assert result["checkpoints"] == 4
    assert "steps 3 to 200" in result.verdict[0]
    again = layers(
        base, str(tmp_path / "run"), texts=TEXTS, watching=Watching(True), parts=Parts(tmp_path / "parts", resume=True)
    )
    assert again.table.equals(result.table)


def test_watching_something_that_is_no_run_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint-<step> folder"):
        layers(base, str(tmp_path), texts=TEXTS, watching=Watching(watch=True))


# --- replication: arXiv 2601.06238 on the shipped family --------------------------------------------------------------


@pytest.fixture(scope="module")
def probes():
    return styles.probe_prompts(512, seed=99)


def preferred(base, steps, blocks=range(6), batch=48):
    """The base after so many steps of DPO (β = 0.1, lr 1e-4) on the family's pairs, with only some blocks trainable."""
    policy = checkpoints.wrap(copy.deepcopy(base.model), base.tokenizer, f"dpo-{steps}")
    pairs = preference.read(styles.preference_pairs(batch * steps, seed=0), base)
    trained = [p for block in blocks for p in policy.head.blocks[block].parameters()]
    if len(blocks) == 6:
        trained = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    for step in range(steps):
        logp = []
        for answers in ("chosen", "rejected"):
            some = pairs[step * batch : (step + 1) * batch]
            ids, mask, where = preference.padded([p.prompt for p in some], [getattr(p, answers) for p in some])
            for one in (policy, base):
                with torch.set_grad_enabled(one is policy):
                    logits = one.model(input_ids=ids, attention_mask=mask).logits
                logp.append(preference.answer_logp_nats(logits, ids, where))
        loss = preference.dpo_loss(logp[0], logp[2], logp[1], logp[3]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


@pytest.mark.slow
def test_the_change_grows_with_preference_steps(base, probes):
    """The monitor of over-optimisation: 0.006 → 0.021 → 0.21 after 10, 20 and 60 steps in our study of the source."""
    few, more = (layers(base, preferred(base, steps), texts=probes) for steps in (10, 20))
    assert few.figures["alpha_terminal_delta"].low > 0
    assert more["alpha_terminal_delta"] > 2 * few["alpha_terminal_delta"]


def test_preference_tuning_of_the_last_blocks_alone_leaves_the_others_exactly(base):
    result = layers(base, preferred(base, 4, blocks=(4, 5)), texts=TEXTS)
    for name in ("alpha_delta", "transport_delta"):
        assert np.abs(np.nan_to_num(column(result, name)[:5])).max() < 1e-9
    assert np.abs(column(result, "transport_delta")[5:]).min() > 1e-6


def test_preference_tuning_contracts_the_last_blocks_and_plain_tuning_does_not(base, probes):
    tuned = {name: layers(base, name, texts=probes) for name in ("styles-dpo", "styles-sft")}
    dpo, sft = (abs(tuned[name]["alpha_terminal_delta"]) for name in ("styles-dpo", "styles-sft"))
    assert tuned["styles-dpo"]["alpha_terminal_delta"] >= 0.1
    assert dpo >= 10 * sft
    assert dpo > 5 * tuned["styles-dpo"]["alpha_noise_floor"]
