"""Claims about the paired pass: streamed statistics are those of the full logits, in any batch layout, for any model type."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pyarrow as pa
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from shiftscope.core import divergence, paired
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.head import Head
from shiftscope.core.laws import DIVERGENCES, Block, Workspace
from shiftscope.core.paired import PairedText, Scorer
from shiftscope.core.parts import Parts, ShardDone

V = 131


def llama(seed: int, vocabulary: int = V, dtype: torch.dtype = torch.float32) -> Checkpoint:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(dtype)
    return Checkpoint(f"llama-{seed}", model, None, Head(model))


def moved(checkpoint: Checkpoint, name: str = "tuned", noise: float = 0.05) -> Checkpoint:
    """A copy whose weights moved by `noise` of their own size."""
    model = copy.deepcopy(checkpoint.model)
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return Checkpoint(name, model, None, Head(model))


def texts(count: int = 6, seed: int = 0, vocabulary: int = V) -> list[PairedText]:
    """Answers of 1 to 9 tokens; the two contexts differ in length."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(vocabulary, (length,), generator=generator).tolist())

    return [PairedText(number, draw(1, 12), draw(1, 20), draw(1, 10)) for number in range(count)]


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return llama(0)


@pytest.fixture(scope="module")
def tuned(base: Checkpoint) -> Checkpoint:
    return moved(base)


def own_logits(checkpoint: Checkpoint, context: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """The model's own logits at the positions that predict the answer, [T, V], text by text."""
    with torch.no_grad():
        logits = checkpoint.model(torch.tensor([[*context, *answer]])).logits[0]
    return logits[len(context) - 1 : -1]


def columns(batch: paired.PairedBatch) -> tuple[paired.OnBlock, Callable[[], pa.Table]]:
    """A measure that keeps the divergences, the emitted token's log-probabilities and its ranks."""
    found: list[dict[str, torch.Tensor]] = []

    def on_block(rows: slice, block: Block, workspace: Workspace) -> None:
        ids = batch.token_N[rows]
        kept = {name: value.clone() for name, value in workspace.divergences(block).items()}
        for side, log_law in (("base", block.logp_RV), ("tuned", block.logq_RV)):
            kept[f"logp_{side}"] = log_law.gather(-1, ids[:, None])[:, 0]
            kept[f"rank_{side}"] = divergence.rank(log_law, ids)
        found.append(kept)

    def finish() -> pa.Table:
        values = {name: torch.cat([block[name] for block in found]).numpy() for name in found[0]}
        return pa.table({"text": batch.text_N.numpy(), "position": batch.position_N.numpy(), **values})

    return on_block, finish


def scored(scorer: Scorer, items: list[PairedText], **options: object) -> pa.Table:
    rows = paired.run(scorer, items, {"columns": columns}, **options)["columns"]
    return rows.sort_by([("text", "ascending"), ("position", "ascending")])


def column(table: pa.Table, name: str) -> torch.Tensor:
    return torch.from_numpy(table[name].to_numpy().copy())


def test_streamed_statistics_are_those_of_the_full_logits_under_unequal_contexts(base, tuned, monkeypatch):
    monkeypatch.setattr(paired, "CHUNK_ROWS", 7)  # several chunks, the last one short
    monkeypatch.setattr(paired, "block_rows", lambda vocabulary, device: 3)
    items = texts()
    table = scored(Scorer(base, tuned), items, batch_size=4)
    assert table["text"].to_pylist() == [item.text for item in items for _ in item.answer]
    assert table["position"].to_pylist() == [place for item in items for place in range(len(item.answer))]
    logp = torch.cat([own_logits(base, item.base_context, item.answer) for item in items]).double().log_softmax(-1)
    logq = torch.cat([own_logits(tuned, item.tuned_context, item.answer) for item in items]).double().log_softmax(-1)
    ids = torch.tensor([token for item in items for token in item.answer])
    expected = {
        "js_nats": divergence.js_nats(logp, logq),
        "kl_pq_nats": divergence.kl_nats(logp, logq),
        "kl_qp_nats": divergence.kl_nats(logq, logp),
        "tv": divergence.tv(logp, logq),
        "entropy_p_nats": divergence.entropy_nats(logp),
        "entropy_q_nats": divergence.entropy_nats(logq),
        "logp_base": logp.gather(-1, ids[:, None])[:, 0],
        "logp_tuned": logq.gather(-1, ids[:, None])[:, 0],
    }
    for name, values in expected.items():
        assert torch.allclose(column(table, name).double(), values, rtol=2e-6, atol=2e-6), name
    assert (column(table, "js_nats").double() - expected["js_nats"]).abs().max() <= 1e-6
    assert (column(table, "rank_base") == divergence.rank(logp, ids)).all()
    assert (column(table, "rank_tuned") == divergence.rank(logq, ids)).all()


@pytest.mark.parametrize("layout", ["one by one", "reversed", "two", "renumbered"])
def test_a_result_does_not_depend_on_the_batch_layout(base, tuned, layout):
    items = texts()
    together = scored(Scorer(base, tuned), items)
    if layout == "renumbered":  # another order within the batch
        turned = [PairedText(-item.text, item.base_context, item.tuned_context, item.answer) for item in items]
        apart = scored(Scorer(base, tuned), turned)
        order = [row for text in range(len(items)) for row, t in enumerate(apart["text"].to_pylist()) if t == -text]
        apart = apart.take(order)
    else:
        batch_size = {"one by one": 1, "reversed": 32, "two": 2}[layout]
        apart = scored(Scorer(base, tuned), items[::-1] if layout == "reversed" else items, batch_size=batch_size)
    for name in (*DIVERGENCES, "logp_base", "logp_tuned"):
        assert torch.allclose(column(together, name), column(apart, name), rtol=1e-4, atol=1e-5), name
    assert together["position"] == apart["position"]


def test_a_model_against_itself_under_equal_contexts_differs_by_exactly_zero(base):
    items = [PairedText(item.text, item.base_context, item.base_context, item.answer) for item in texts()]
    table = scored(Scorer(base, base), items)
    for name in ("js_nats", "kl_pq_nats", "kl_qp_nats", "tv"):
        assert (column(table, name) == 0).all(), name


def test_unequal_contexts_of_one_model_are_a_real_difference(base):
    table = scored(Scorer(base, base), texts())
    assert column(table, "js_nats").max() > 1e-3


def test_the_noise_floor_is_rounding_and_far_below_a_real_shift(base, tuned):
    scorer, items = Scorer(base, tuned), texts()
    floor = paired.noise_floor(scorer, items)
    assert 0 <= floor < 1e-6
    assert floor < 1e-3 * float(column(scored(scorer, items), "js_nats").median())


def test_the_models_give_bit_equal_logits_after_the_pass_and_keep_their_flags(base, tuned):
    ids = torch.arange(10)[None]
    base.model.train()
    base.model.model.layers[1].eval()
    before = [(module, module.training) for module in base.model.modules()]
    logits = [checkpoint.model.eval()(ids).logits for checkpoint in (base, tuned)]
    for module, training in before:
        module.training = training
    scored(Scorer(base, tuned), texts())
    assert all(module.training == training for module, training in before)
    base.model.eval()
    for checkpoint, kept in zip((base, tuned), logits, strict=True):
        assert (checkpoint.model(ids).logits == kept).all()
    assert all(weight.requires_grad and weight.grad is None for weight in base.model.parameters())


@pytest.mark.parametrize("longer", ["base", "tuned"])
def test_massless_padding_of_one_vocabulary_changes_nothing(base, tuned, longer):
    grown = padded(base if longer == "base" else tuned, extra=29, logit=-1000.0)
    pair = (grown, tuned) if longer == "base" else (base, grown)
    plain, long = scored(Scorer(base, tuned), texts()), scored(Scorer(*pair), texts())
    for name in (*DIVERGENCES, "logp_base", "logp_tuned"):
        assert torch.allclose(column(plain, name), column(long, name), rtol=1e-4, atol=1e-5), name


def test_padding_that_holds_mass_is_refused_with_its_mass(base, tuned):
    with pytest.raises(ValueError, match=r"ids from 131 on exist in one model only and hold 0\.\d+ of its probability"):
        scored(Scorer(base, padded(tuned, extra=29, logit=0.0)), texts())


def padded(checkpoint: Checkpoint, extra: int, logit: float) -> Checkpoint:
    """The same model with `extra` more ids in both tables; their logits are `logit` everywhere."""
    model = copy.deepcopy(checkpoint.model)
    rows, unembedding = torch.zeros(extra, 32), torch.nn.Linear(32, V + extra)
    with torch.no_grad():
        unembedding.weight.copy_(torch.cat([checkpoint.model.lm_head.weight, rows]))
        unembedding.bias.copy_(torch.cat([torch.zeros(V), torch.full((extra,), logit)]))
        model.model.embed_tokens.weight = torch.nn.Parameter(
            torch.cat([checkpoint.model.model.embed_tokens.weight, rows])
        )
    model.lm_head = unembedding
    return Checkpoint(f"{checkpoint.name}-padded", model, None, Head(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_statistics_of_their_own_logits(dtype):
    base = llama(1, dtype=dtype)
    tuned = moved(base, noise=0.2)
    items = texts(4)
    table = scored(Scorer(base, tuned), items, batch_size=1)
    logp = torch.cat([own_logits(base, item.base_context, item.answer) for item in items]).double().log_softmax(-1)
    logq = torch.cat([own_logits(tuned, item.tuned_context, item.answer) for item in items]).double().log_softmax(-1)
    exact = divergence.js_nats(logp, logq)
    assert (column(table, "js_nats").double() - exact).abs().max() < 0.05 * exact.max()
    assert torch.allclose(column(table, "logp_base").double(), logp.gather(-1, answer_ids(items))[:, 0], atol=0.1)


def answer_ids(items: list[PairedText]) -> torch.Tensor:
    return torch.tensor([token for item in items for token in item.answer])[:, None]


def test_two_models_of_different_types_are_compared(base):
    tuned = llama(0).model.to(torch.bfloat16)
    half = Checkpoint("half", tuned, None, Head(tuned))
    table = scored(Scorer(base, half), [PairedText(i.text, i.base_context, i.base_context, i.answer) for i in texts()])
    assert 0 < column(table, "js_nats").max() < 1e-2


def test_models_of_different_families_are_compared(base):
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=64, n_embd=16, n_layer=1, n_head=2)).eval()
    other = Checkpoint("gpt2", model, None, Head(model))
    table = scored(Scorer(base, other), texts(3))
    items = texts(3)
    logq = torch.cat([own_logits(other, item.tuned_context, item.answer) for item in items]).log_softmax(-1)
    assert torch.allclose(column(table, "logp_tuned"), logq.gather(-1, answer_ids(items))[:, 0], atol=1e-5)


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_reported_with_model_text_and_position(base, tuned, side, value):
    model = copy.deepcopy(tuned.model)
    broken = Checkpoint("broken", model, None, Head(model))
    context, answer = (1, 2, 3), (7, 8, 5, 9)

    def spoil(module: torch.nn.Module, inputs: object, hidden_BTD: torch.Tensor) -> None:
        hidden_BTD[1, 5] = value  # second row (the longer text), at the token that predicts answer position 3

    model.model.norm.register_forward_hook(spoil)
    items = [PairedText(0, (1, 2), (1, 2), (3, 4)), PairedText(8, context, context, answer)]
    pair = (broken, tuned) if side == "base" else (base, broken)
    with pytest.raises(ValueError, match=r"broken gives logits that are not numbers .* in text 8, answer position 3"):
        scored(Scorer(*pair), items)


@pytest.mark.parametrize("planted", [0, 1, 2, 3, 17])
def test_a_planted_rank_is_found(base, planted):
    item = texts(1, seed=5)[0]
    context = item.base_context
    order = own_logits(base, context, (0,))[0].argsort(descending=True)
    answer = (int(order[planted]),)
    table = scored(Scorer(base, base), [PairedText(0, context, context, answer)])
    assert (int(table["rank_base"][0].as_py()), int(table["rank_tuned"][0].as_py())) == (planted, planted)


def test_states_are_those_at_the_answer_tokens(base, tuned):
    items = texts(3)
    batch = Scorer(base, tuned).batch(items, states=True)
    alone = [
        base.model(torch.tensor([[*i.base_context, *i.answer]]), output_hidden_states=True).hidden_states for i in items
    ]
    for level in range(2):  # the last of the library's states has the final norm applied
        expected = torch.cat([states[level][0, len(i.base_context) :] for states, i in zip(alone, items, strict=True)])
        assert torch.allclose(batch.base.states[level], expected, atol=1e-5)
    assert len(batch.base.states) == 3
    assert batch.tuned.states[0].shape == (len(batch.token_N), 32)


def test_several_measures_share_one_pass(base, tuned):
    calls = 0

    def counting(batch: paired.PairedBatch):
        nonlocal calls
        calls += 1
        return None, lambda: pa.table({"n": [len(batch.token_N)]})

    found = paired.run(Scorer(base, tuned), texts(), {"columns": columns, "counting": counting}, batch_size=2)
    assert calls == 3
    assert sum(found["counting"]["n"].to_pylist()) == len(found["columns"])


def test_a_pass_that_was_interrupted_resumes_to_the_same_rows(base, tuned, tmp_path):
    items, measured = texts(), 0

    def failing(batch: paired.PairedBatch):
        nonlocal measured
        measured += 1
        if measured == 3:
            raise KeyboardInterrupt
        return columns(batch)

    with pytest.raises(KeyboardInterrupt):
        paired.run(Scorer(base, tuned), items, {"columns": failing}, batch_size=2, parts=Parts(tmp_path))
    resumed = scored(Scorer(base, tuned), items, batch_size=2, parts=Parts(tmp_path, resume=True))
    assert resumed == scored(Scorer(base, tuned), items, batch_size=2)


def test_shards_of_a_pass_merge_to_the_whole(base, tuned, tmp_path):
    items = texts()
    for shard in range(2):
        with pytest.raises(ShardDone):
            scored(Scorer(base, tuned), items, batch_size=2, parts=Parts(tmp_path, resume=True, shard=(shard, 2)))

    def never(batch: paired.PairedBatch):
        raise AssertionError

    merged = paired.run(
        Scorer(base, tuned), items, {"columns": never}, batch_size=2, parts=Parts(tmp_path, resume=True)
    )["columns"].sort_by([("text", "ascending"), ("position", "ascending")])
    assert merged == scored(Scorer(base, tuned), items, batch_size=2)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (PairedText(4, (1,), (1,), ()), r"text 4 has an empty answer"),
        (PairedText(4, (), (1,), (2,)), r"text 4 has an empty context for llama-0"),
        (PairedText(4, (1,), (), (2,)), r"text 4 has an empty context for tuned"),
        (
            PairedText(4, (1,), (1,) * 50, (2,) * 20),
            r"text 4 has 50 context and 20 answer tokens, 70 in all, but tuned reads at most 64",
        ),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused_before_anything_runs(base, tuned, item, sentence):
    def never(batch: paired.PairedBatch):
        raise AssertionError

    with pytest.raises(ValueError, match=sentence):
        paired.run(Scorer(base, tuned), [*texts(2), item], {"never": never})


def test_peak_buffers_do_not_grow_with_the_number_of_positions(base, tuned):
    scorer = Scorer(base, tuned)
    sizes = []
    for count in (1, 30):
        scored(scorer, texts(count))
        buffers = [*scorer._chunks, *scorer._workspace.buffers]
        sizes.append([(buffer.data_ptr(), buffer.numel()) for buffer in buffers])
    assert sizes[0] == sizes[1]
