"""The styles family: one toy fact per question, told in a hundred styles; SFT and DPO each prefer one of them.

Answers: does an instrument see that tuning moved the style tokens (opener and closer) and left the facts alone, and
does it tell preference tuning from plain fine-tuning?
Source: arXiv 2312.01552 and arXiv 2601.06238; the corpus is our own, made small enough that the truth is known.
A document is four lines, each a question and its answer in one style: "What colour is Rex? Look here: Rex is brown.
Over.\\n". A style is a prefix of three tokens and a suffix of two, drawn independently; the answer is always ten tokens.

- `styles-base`: trained on documents, so that it knows every fact and holds all styles equally likely.
- `styles-sft`: base tuned on single answers in the aligned style.
- `styles-dpo`: base tuned by DPO to prefer the aligned style to the others.

Tuning never sees the last eight entities. DPO goes on until it harms: the shipped run tells half of the facts wrong
after the bare question, and the terminal contraction rises with just that (+0.13; +0.05 where a run with beta 1 still
tells all facts right).
Deviations: one architecture (GPT-2, six blocks, width 64) for the whole family, so that every pair can be compared;
beta = 0.5 for DPO, at which the contraction stays where it got. At 0.1 it peaks at step 40 (+0.13) and is down to
+0.04 at step 60, where hardly an answer is whole.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from shiftscope.core import grpo
from shiftscope.core.checkpoints import ZOO
from shiftscope.core.layers import preference
from shiftscope.zoo import card

# B batch, T positions

COLOUR_OF = {
    "Rex": "brown", "Luna": "white", "Milo": "black", "Bella": "yellow", "Otis": "grey", "Ruby": "red",
    "Hugo": "orange", "Nala": "brown", "Felix": "black", "Daisy": "white", "Oscar": "red", "Willow": "green",
    "Bruno": "blue", "Pearl": "grey", "Toby": "yellow", "Olive": "green", "Max": "orange", "Coco": "black",
    "Simba": "yellow", "Hazel": "brown", "Ziggy": "blue", "Poppy": "orange", "Rusty": "red", "Skye": "blue",
    "Loki": "green", "Ivy": "white", "Jasper": "grey", "Maple": "orange", "Ninja": "black", "Rosie": "red",
    "Teddy": "brown", "Azure": "blue",
}  # fmt: skip
ENTITIES = tuple(COLOUR_OF)
TUNED_ENTITIES, HELD_OUT_ENTITIES = ENTITIES[:24], ENTITIES[24:]
PREFIXES = (
    "Well now,", "Hello there!", "Sure thing,", "Great question!", "Hmm okay,",
    "Look here:", "Honestly speaking,", "Good day!", "Listen up:", "In short,",
)  # fmt: skip
SUFFIXES = ("Bye.", "Cheers!", "Done.", "Anytime!", "Regards.", "Over.", "Ciao!", "Thanks.", "Period.", "Voila!")
Style = tuple[int, int]  # which prefix, which suffix
STYLES: tuple[Style, ...] = tuple((prefix, suffix) for prefix in range(10) for suffix in range(10))
ALIGNED: Style = (3, 3)
OTHER_STYLES = tuple(style for style in STYLES if style[0] != ALIGNED[0] and style[1] != ALIGNED[1])
POSITIONS = 96  # the context length: six lines of fifteen tokens, and some
PREFIX_POSITIONS, ENTITY_POSITION, FACT_POSITION, SUFFIX_POSITIONS, ANSWER_TOKENS = (0, 1, 2), 3, 5, (7, 8), 10
OPENER_POSITION, CLOSER_POSITION = 0, 7  # the two positions where a style is chosen; the rest of it then follows


# ---- the corpus -----------------------------------------------------------------------------------------------------
def prompt(entity: str) -> str:
    """The bare question about one entity: five tokens, no trailing space."""
    return f"What colour is {entity}?"


def answer(entity: str, style: Style) -> str:
    """The true answer in one style, from its leading space to its newline: ten tokens."""
    return f" {PREFIXES[style[0]]} {entity} is {COLOUR_OF[entity]}. {SUFFIXES[style[1]]}\n"


def documents(n: int, seed: int) -> list[str]:
    """n documents: four questions about different entities, all answered in one random style."""
    draw = random.Random(seed)
    return [_lines(draw.sample(ENTITIES, 4), [draw.choice(STYLES)] * 4) for _ in range(n)]


def few_shot(entity: str, styles: Sequence[Style], seed: int) -> str:
    """The question about `entity` after one solved example per style: `[ALIGNED] * 3` is the URIAL-like context.

    The examples ask about other entities, drawn from those that tuning saw.
    """
    others = [other for other in TUNED_ENTITIES if other != entity]
    return _lines(random.Random(seed).sample(others, len(styles)), styles) + prompt(entity)


def control_styles(kind: str, seed: int) -> list[Style]:
    """Three example styles that share nothing with the aligned one: `mixed` (all different) or `another` (all equal).

    Raises: ValueError for any other kind.
    """
    draw = random.Random(seed)
    if kind == "mixed":
        prefixes = draw.sample([i for i in range(10) if i != ALIGNED[0]], 3)
        suffixes = draw.sample([i for i in range(10) if i != ALIGNED[1]], 3)
        return list(zip(prefixes, suffixes, strict=True))
    if kind == "another":
        return [draw.choice(OTHER_STYLES)] * 3
    raise ValueError(f"control {kind!r} is unknown: take 'mixed' or 'another'")


def probe_prompts(n: int, seed: int) -> list[dict[str, str]]:
    """n questions about random entities, each with a true answer in a random style: keys `prompt` and `answer`."""
    draw = random.Random(seed)
    drawn = [(draw.choice(ENTITIES), draw.choice(STYLES)) for _ in range(n)]
    return [{"prompt": prompt(entity), "answer": answer(entity, style)} for entity, style in drawn]


def preference_pairs(n: int, seed: int, entities: Sequence[str] = TUNED_ENTITIES) -> list[dict[str, str]]:
    """n preferences over random entities: keys `prompt`, `chosen` (aligned style) and `rejected` (another style).

    The rejected answer tells the same fact and shares neither prefix nor suffix with the chosen one.
    """
    draw = random.Random(seed)
    drawn = [(draw.choice(entities), draw.choice(OTHER_STYLES)) for _ in range(n)]
    return [
        {"prompt": prompt(entity), "chosen": answer(entity, ALIGNED), "rejected": answer(entity, style)}
        for entity, style in drawn
    ]


def _lines(entities: Sequence[str], styles: Sequence[Style]) -> str:
    return "".join(prompt(entity) + answer(entity, style) for entity, style in zip(entities, styles, strict=True))


_PIECES = Regex(r" ?[A-Za-z]+|[^A-Za-z]")


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the corpus: a word keeps the space before it, a sign stands alone.

    Decoding is plain concatenation, so that decode and encode are inverse on every text of the corpus. The newline
    ends an answer and is the end-of-sequence token.
    """
    text = _lines(ENTITIES, [(i % 10, i // 10) for i in range(32)])
    text += "".join(answer(ENTITIES[0], (i, i)) for i in range(10))
    split = pre_tokenizers.Split(_PIECES, behavior="isolated")
    pieces = sorted({piece for piece, _ in split.pre_tokenize_str(text)})
    words = ["<pad>", "<unk>", "\n", *(piece for piece in pieces if piece != "\n")]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = split
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="\n", clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )  # fmt: skip


def fresh_model(seed: int) -> GPT2LMHeadModel:
    """An untrained GPT-2 of six blocks, width 64, four heads; the caller's random state is left as it was."""
    words = tokenizer()
    config = GPT2Config(
        vocab_size=len(words), n_positions=POSITIONS, n_embd=64, n_layer=6, n_head=4, n_inner=128,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=words.eos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


# ---- the recipes ----------------------------------------------------------------------------------------------------
def train_base(folder: str | Path = ZOO / "styles-base", *, seed: int = 0, steps: int = 600) -> Path:
    """Train the base on documents, 48 a step, by AdamW at 2e-3, and save it: about 70 CPU seconds."""
    words, model = tokenizer(), fresh_model(seed)
    texts = documents(48 * steps, seed)
    batches = (_ids(words, texts[48 * i : 48 * (i + 1)]) for i in range(steps))
    _fit(model, ((ids_BT, ids_BT) for ids_BT in batches), learning_rate=2e-3)
    about = "GPT-2 of six blocks trained on the colours of 32 pets, told in 100 styles at random"
    return _save(folder, model, about, "train_base", behaviour(model))


def train_sft(
    folder: str | Path = ZOO / "styles-sft", base: str | Path = ZOO / "styles-base", *, seed: int = 0, steps: int = 40
) -> Path:
    """Fine-tune the base on single answers in the aligned style, 48 a step at 5e-4, and save it: about 2 CPU seconds."""
    words, model = tokenizer(), AutoModelForCausalLM.from_pretrained(base)
    batches = (_labelled(words, preference_pairs(48, seed * steps + i), "chosen") for i in range(steps))
    _fit(model, batches, learning_rate=5e-4)
    about = "styles-base tuned by SFT on answers in one style"
    return _save(folder, model, about, "train_sft", behaviour(model))


def train_dpo(
    folder: str | Path = ZOO / "styles-dpo",
    base: str | Path = ZOO / "styles-base",
    *,
    seed: int = 0,
    steps: int = 60,
    beta: float = 0.5,
    learning_rate: float = 1e-4,
    trainable_blocks: Sequence[int] | None = None,
) -> Path:
    """Tune the base by trl's DPO to prefer the aligned style, 64 pairs a step, and save it: about 15 CPU seconds.

    trainable_blocks: the blocks (from 0) that may change, everything else being frozen; None trains all weights.
    Needs trl.
    """
    model, reference = AutoModelForCausalLM.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    if trainable_blocks is not None:
        model.requires_grad_(False)
        for block in trainable_blocks:
            model.get_submodule(f"transformer.h.{block}").requires_grad_(True)
    _prefer(model, preference_pairs(64 * steps, seed), steps, beta, learning_rate, seed)
    model.requires_grad_(True).eval()
    figures = behaviour(model) | preferring(model, reference, preference_pairs(256, seed=10_001), beta)
    about = f"styles-base tuned by {steps} steps of DPO (beta {beta}) to prefer one style to the others"
    return _save(folder, model, about, "train_dpo", figures)


# ---- what a checkpoint does -----------------------------------------------------------------------------------------
def behaviour(model: PreTrainedModel) -> dict[str, tuple[float, str]]:
    """The loss on fresh documents, and the shares of greedy answers that are right and that are in the aligned style.

    Over all 32 entities after the bare question (`zero_shot`) and after three aligned examples (`few_shot`), and over
    the eight entities that tuning never sees after the bare question (`held_out`). Returns name -> (value, unit).
    """
    ids_BT = _ids(tokenizer(), documents(256, seed=10_000))
    with torch.no_grad():
        loss_nats = float(model(input_ids=ids_BT, labels=ids_BT).loss)
    rows = {
        "zero_shot": (ENTITIES, [prompt(entity) for entity in ENTITIES]),
        "few_shot": (ENTITIES, [few_shot(entity, [ALIGNED] * 3, seed) for seed, entity in enumerate(ENTITIES)]),
        "held_out": (HELD_OUT_ENTITIES, [prompt(entity) for entity in HELD_OUT_ENTITIES]),
    }
    figures = {"text_nats_per_token": (round(loss_nats, 4), "nats/token")}
    for row, (entities, contexts) in rows.items():
        told = list(zip(entities, greedy_answers(model, contexts), strict=True))
        aligned = sum(text == answer(entity, ALIGNED) for entity, text in told) / len(told)
        right = sum(f" {entity} is {COLOUR_OF[entity]}." in text for entity, text in told) / len(told)
        figures |= {f"aligned_share_{row}": (aligned, "share"), f"fact_right_share_{row}": (right, "share")}
    return figures


@torch.no_grad()
def preferring(
    model: PreTrainedModel, reference: PreTrainedModel, pairs: Sequence[Mapping[str, str]], beta: float
) -> dict[str, tuple[float, str]]:
    """The DPO loss on preference pairs and the share of pairs whose chosen answer gained more than the rejected one."""
    logp = {}
    for key in ("chosen", "rejected"):
        ids_BT, labels_BT = _labelled(tokenizer(), pairs, key)
        for name, scorer in (("model", model), ("reference", reference)):
            logp[name, key] = preference.answer_logp_nats(scorer(input_ids=ids_BT).logits, ids_BT, labels_BT >= 0)
    chosen_B, rejected_B = logp["model", "chosen"], logp["model", "rejected"]
    chosen_reference_B, rejected_reference_B = logp["reference", "chosen"], logp["reference", "rejected"]
    loss_B = preference.dpo_loss(chosen_B, rejected_B, chosen_reference_B, rejected_reference_B, beta)
    gain_B = (chosen_B - chosen_reference_B) - (rejected_B - rejected_reference_B)
    return {
        "preference_loss_nats": (round(float(loss_B.mean()), 5), "nats"),
        "preferred_share": (float((gain_B > 0).double().mean()), "share"),
    }


@torch.no_grad()
def greedy_answers(model: PreTrainedModel, contexts: Sequence[str]) -> list[str]:
    """The ten most probable tokens, one after another, after each context; contexts must be equally long in tokens."""
    words = tokenizer()
    ids_BT = _ids(words, contexts)
    start = ids_BT.shape[1]
    for _ in range(ANSWER_TOKENS):
        next_B = model(input_ids=ids_BT).logits[:, -1].argmax(-1)
        ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
    return words.batch_decode(ids_BT[:, start:])


# ---- training -------------------------------------------------------------------------------------------------------
def _ids(words: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    return torch.tensor(words(list(texts))["input_ids"])


def _labelled(words: PreTrainedTokenizerFast, pairs: Sequence[Mapping[str, str]], key: str) -> tuple[Tensor, Tensor]:
    """Ids [B, T] of prompts and answers, and the same ids as labels with the prompts masked by -100."""
    ids_BT = _ids(words, [pair["prompt"] + pair[key] for pair in pairs])
    labels_BT = ids_BT.clone()
    labels_BT[:, :-ANSWER_TOKENS] = -100
    return ids_BT, labels_BT


def _fit(model: PreTrainedModel, batches: Iterable[tuple[Tensor, Tensor]], learning_rate: float) -> None:
    """Next-token training, one AdamW step a batch; leaves the model in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    model.train()
    for ids_BT, labels_BT in batches:
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _prefer(
    model: PreTrainedModel,
    pairs: list[dict[str, str]],
    steps: int,
    beta: float,
    learning_rate: float,
    seed: int,
) -> None:
    """Tune model in place by trl's DPO at a constant rate, 64 pairs a step; trl keeps its own copy as the reference."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ValueError("the DPO recipe needs the package trl: pip install 'shiftscope[trl]'") from error

    with grpo.own_randomness(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as work:
        # trl 1.16 sets and reads the old name of transformers' activation checkpointing
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer  # draws from the global generators already while it is imported

        settings = DPOConfig(
            output_dir=work, per_device_train_batch_size=64, max_steps=steps, learning_rate=learning_rate, beta=beta,
            lr_scheduler_type="constant", seed=seed, use_cpu=True, bf16=False, gradient_checkpointing=False,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_list(pairs)
        DPOTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer()).train()


def _save(
    folder: str | Path, model: PreTrainedModel, about: str, recipe: str, figures: Mapping[str, tuple[float, str]]
) -> Path:
    """The checkpoint with its card, and the 32 questions that comparisons use when they are given no texts."""
    recipe = f"shiftscope.zoo.styles:{recipe}"
    prompts = [{"prompt": prompt(entity)} for entity in ENTITIES]
    return card.save(Path(folder), model, tokenizer(), about=about, recipe=recipe, figures=figures, prompts=prompts)
