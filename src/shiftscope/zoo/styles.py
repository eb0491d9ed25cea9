"""The styles family: one toy fact per question, told in a hundred styles; SFT and DPO each prefer one of them.

Answers: does an instrument see that tuning moved the style tokens (opener and closer) and left the facts alone, and
does it tell preference tuning from plain fine-tuning?
Source: arXiv 2312.01552 and arXiv 2601.06238; the corpus is our own, made small enough that the truth is known.
A document is four lines, each a question and its answer in one style: "What colour is Rex? Look here: Rex is brown.
Over.\\n". A style is a prefix of three tokens and a suffix of two, drawn independently; the answer is always ten tokens.
Deviation: one architecture (GPT-2, six blocks, width 64) for the whole family, so that every pair can be compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

# B batch, T positions, V vocabulary

CHECKPOINTS = Path(__file__).parent / "checkpoints"
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
PREFIX_POSITIONS, ENTITY_POSITION, FACT_POSITION, SUFFIX_POSITIONS, ANSWER_TOKENS = (0, 1, 2), 3, 5, (7, 8), 10
OPENER_POSITION, CLOSER_POSITION = 0, 7  # the two positions where a style is chosen; the rest of it then follows


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


POSITIONS = 96  # six lines of fifteen tokens, and some


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


def train_base(folder: Path, seed: int = 0, *, steps: int = 600) -> dict[str, object]:
    """Train the base on random-style documents (48 a step, AdamW at 2e-3) and save it; returns its card."""
    words, model = tokenizer(), fresh_model(seed)
    texts = documents(48 * steps, seed)
    batches = (_ids(words, texts[48 * i : 48 * (i + 1)]) for i in range(steps))
    _fit(model, ((ids_BT, ids_BT) for ids_BT in batches), lr=2e-3)
    about = "GPT-2 of six blocks trained on facts about 32 pets, told in 100 styles at random"
    return _save(folder, model, "styles-base", about, "train_base", base_figures(model))


def train_sft(folder: Path, seed: int = 0, *, base: Path = CHECKPOINTS / "styles-base", steps: int = 40) -> dict:
    """Fine-tune the base on single questions answered in the aligned style (entities 0-23, lr 5e-4), and save it."""
    words, model = tokenizer(), AutoModelForCausalLM.from_pretrained(base)
    _fit(model, (_answered(words, preference_pairs(48, seed * steps + i)) for i in range(steps)), lr=5e-4)
    about = "styles-base after 40 steps of SFT on one style; pets 24-31 were never tuned on"
    return _save(folder, model, "styles-sft", about, "train_sft", base_figures(model))


def base_figures(model: PreTrainedModel) -> dict[str, dict[str, object]]:
    """What a checkpoint of the family does: loss on fresh documents, facts right, greedy answers in the aligned style.

    Every share is over the greedy answers to all 32 entities (or the eight held out).
    """
    words = tokenizer()
    ids_BT = _ids(words, documents(256, seed=10_000))
    with torch.no_grad():
        loss = float(model(input_ids=ids_BT, labels=ids_BT).loss)
    rows = {
        "zero_shot": (ENTITIES, [prompt(e) for e in ENTITIES]),
        "few_shot": (ENTITIES, [few_shot(e, [ALIGNED] * 3, seed=i) for i, e in enumerate(ENTITIES)]),
        "held_out": (HELD_OUT_ENTITIES, [prompt(e) for e in HELD_OUT_ENTITIES]),
    }
    figures: dict[str, dict[str, object]] = {"text_nats_per_token": {"value": round(loss, 4), "unit": "nats/token"}}
    for row, (entities, contexts) in rows.items():
        answers = greedy_answers(model, contexts)
        aligned = [text == answer(entity, ALIGNED) for entity, text in zip(entities, answers, strict=True)]
        facts = [f" {e} is {COLOUR_OF[e]}." in text for e, text in zip(entities, answers, strict=True)]
        figures[f"aligned_share_{row}"] = {"value": sum(aligned) / len(aligned), "unit": "share"}
        figures[f"fact_right_share_{row}"] = {"value": sum(facts) / len(facts), "unit": "share"}
    return figures


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


def _ids(words: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    return torch.tensor(words(list(texts))["input_ids"])


def _answered(words: PreTrainedTokenizerFast, pairs: Sequence[dict[str, str]], key: str = "chosen") -> tuple:
    """Ids of prompt and answer, and the same ids as labels with the prompt masked."""
    ids_BT = _ids(words, [pair["prompt"] + pair[key] for pair in pairs])
    labels_BT = ids_BT.clone()
    labels_BT[:, :-ANSWER_TOKENS] = -100
    return ids_BT, labels_BT


def _fit(model: PreTrainedModel, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> None:
    """Next-token training, one AdamW step a batch; leaves the model in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    for ids_BT, labels_BT in batches:
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _save(folder, model, name, about, recipe, figures) -> dict[str, object]:
    card = {
        "name": name, "about": about, "licence": "Apache-2.0; trained on text made by the recipe itself",
        "recipe": f"shiftscope.zoo.styles:{recipe}", "figures": figures,
    }  # fmt: skip
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (Path(folder) / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card
