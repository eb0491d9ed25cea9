"""lists-base: lists of made-up members of a category, in a world where words come in families of look-alikes.

A prompt is a category and a colon, 'birds :'; the answer is a list of its members without repeats, most usual first.
240 words in 12 families of 20 ('ba-', 'ke-', ...) make 40 categories of 12 members each: three words from each of four
families, with Zipf weights so that the first family is a category's head. A third of the training text is generic: a
family's marker ('BA') and words of that family at random. It makes the unembedding rows of a family alike, so that the
middle ranks after 'birds :' fill with the look-alikes of the first answers, most of them wrong; that is what
`compare keys` diagnoses and `generate navigate` gets around.

Source: arXiv 2410.02284 for the effect; the world is our own small replication of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from shiftscope.zoo import card

CHECKPOINT = Path(__file__).parent / "checkpoints" / "lists-base"
PAD, UNKNOWN, END, COLON = "<pad>", "<unk>", "<end>", ":"
_STEMS = "ba ke lu mo ni pa ra so tu vi ze fo"
_ENDINGS = "dan dek dil dor dum gas gel gim gon guf har hev hit hol hus tal tez tip tov tux"
_CATEGORIES = (
    "birds rivers cities colours tools fruits songs games metals islands planets dances spices boats stones herbs "
    "ports kings masks drums bridges lamps cloths horses fish breads winds clocks towers coins knots bells gates "
    "roofs soups shoes hats trees books seas"
)
STEMS, ENDINGS, CATEGORIES = tuple(_STEMS.split()), tuple(_ENDINGS.split()), tuple(_CATEGORIES.split())
MEMBERS_PER_FAMILY, FAMILIES_PER_CATEGORY = 3, 4
ZIPF_EXPONENT = 1.6
LIST_SHARE = 0.65  # of the training texts; the rest is generic
LONGEST = 10  # items in a text
_WORLD_SEED = 20


def families() -> dict[str, tuple[str, ...]]:
    """Family (its stem) -> its 20 words."""
    return {stem: tuple(stem + ending for ending in ENDINGS) for stem in STEMS}


def members() -> dict[str, tuple[str, ...]]:
    """Category -> its 12 members, the most usual first: the gold answers."""
    generator = torch.Generator().manual_seed(_WORLD_SEED)
    gold = {}
    for category in CATEGORIES:
        stems = [STEMS[i] for i in torch.randperm(len(STEMS), generator=generator)[:FAMILIES_PER_CATEGORY]]
        words = []
        for stem in stems:
            words += [stem + ENDINGS[i] for i in torch.randperm(len(ENDINGS), generator=generator)[:MEMBERS_PER_FAMILY]]
        gold[category] = tuple(words)
    return gold


def family(word: str) -> str:
    """The family a word belongs to."""
    if word[:2] not in STEMS or word[2:] not in ENDINGS:
        raise ValueError(f"{word!r} is no word of the lists: one is a stem of {len(STEMS)} and an ending, 'badan'")
    return word[:2]


def prompt(category: str, explored: Sequence[str] = ()) -> str:
    """The text that asks for the next member of category after those explored: 'birds : badan kegon'."""
    return " ".join([category, COLON, *explored])


def prompts(n: int = len(CATEGORIES), *, seed: int) -> list[dict[str, str]]:
    """n rows {'prompt', 'answer', 'reference'}, a category each: one list and, as reference, all members."""
    if not 0 < n <= len(CATEGORIES):
        raise ValueError(f"{n} prompts were asked for; there are {len(CATEGORIES)} categories, one prompt each")
    generator = torch.Generator().manual_seed(seed)
    gold = members()
    rows = []
    for i in torch.randperm(len(CATEGORIES), generator=generator)[:n].tolist():
        words = gold[CATEGORIES[i]]
        answer = " ".join(_drawn_list(words, generator))
        rows.append({"prompt": prompt(CATEGORIES[i]), "answer": answer, "reference": " ".join(words)})
    return rows


def verify(prompt: str, answer: str, reference: str | None = None) -> float:
    """1.0 when the first word of answer is a member of the prompt's category that the prompt has not listed, else 0.0.

    reference: the members as text; None looks them up by the category that opens the prompt.
    """
    category, _, listed = prompt.partition(COLON)
    gold = members() if reference is None else {category.strip(): tuple(reference.split())}
    if category.strip() not in gold:
        raise ValueError(f"the prompt {prompt!r} opens with no category of the lists; one reads 'birds :'")
    words = re.findall(r"\w+", answer)
    return float(bool(words) and words[0] in gold[category.strip()] and words[0] not in listed.split())


def tokenizer() -> Any:
    """One token a word: categories, the colon, family markers and the 240 words; nothing is added around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [word for family_words in families().values() for word in family_words]
    vocabulary = [PAD, UNKNOWN, END, COLON, *CATEGORIES, *(stem.upper() for stem in STEMS), *words]
    level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=level,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32,
    )


def new_model(*, seed: int) -> Any:
    """A GPT-NeoX of two blocks of width 24 with an unembedding of its own, fresh weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    words = tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(words),
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(seed)  # transformers initialises from the global generator; nothing else here uses it
    return GPTNeoXForCausalLM(config)


def texts(n: int, *, seed: int) -> list[str]:
    """n training texts: lists of 1 to 10 members, and generic text of one family."""
    generator = torch.Generator().manual_seed(seed)
    gold, words = members(), families()
    made = []
    for _ in range(n):
        if float(torch.rand((), generator=generator)) < LIST_SHARE:
            category = CATEGORIES[_draw(len(CATEGORIES), generator)]
            made.append(f"{prompt(category, _drawn_list(gold[category], generator))} {END}")
        else:
            stem = STEMS[_draw(len(STEMS), generator)]
            chosen = torch.randint(len(ENDINGS), (LONGEST,), generator=generator).tolist()
            made.append(" ".join([stem.upper(), *(words[stem][i] for i in chosen), END]))
    return made


def train(folder: str | Path = CHECKPOINT, *, seed: int = 0) -> Path:
    """Train lists-base (500 steps of 64 texts, about twelve CPU seconds) and save it into folder."""
    model = fit(new_model(seed=seed), texts(32_000, seed=seed), steps=500, batch=64, seed=seed)
    return card.save(
        Path(folder),
        model,
        tokenizer(),
        about="Lists of members of 40 made-up categories, beside generic text that makes word families look alike.",
        recipe="shiftscope.zoo.lists:train",
        figures={name: (round(value, 4), unit) for name, (value, unit) in figures(model).items()},
        verifier="shiftscope.zoo.lists:verify",
        prompts=[{"prompt": row["prompt"], "reference": row["reference"]} for row in prompts(seed=0)],
    )


def fit(model: Any, texts: Sequence[str], *, steps: int, batch: int, seed: int, rate: float = 1.2e-3) -> Any:
    """Train model in place on texts with AdamW at a constant rate, and return it in eval mode.

    At rate 2e-3 the lists are learnt so well that the diagnosis loses its margin in mean rank.
    """
    words = tokenizer()
    ids_NT = words(list(texts), padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        rows_BT = ids_NT[torch.randint(len(ids_NT), (batch,), generator=generator)]
        logits_BTV = model(input_ids=rows_BT[:, :-1], use_cache=False).logits
        target = rows_BT[:, 1:].flatten()
        loss = cross_entropy(logits_BTV.flatten(0, 1), target, ignore_index=words.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def figures(model: Any) -> dict[str, tuple[float, str]]:
    """What the card states: accuracy of the three most probable words after a category, and of ranks 4 to 40."""
    words = tokenizer()
    ids_BT = words([prompt(category) for category in CATEGORIES], return_tensors="pt")["input_ids"]
    logits_BV = model(input_ids=ids_BT).logits[:, -1]
    first = len(words) - len(STEMS) * len(ENDINGS)  # the 240 words close the vocabulary
    ranked_BR = first + logits_BV[:, first:].argsort(-1, descending=True)[:, :40]
    gold = members()
    right_BR = torch.tensor(
        [
            [word in gold[category] for word in words.convert_ids_to_tokens(row.tolist())]
            for category, row in zip(CATEGORIES, ranked_BR, strict=True)
        ]
    ).float()
    return {
        "accuracy_ranks_1_to_3": (right_BR[:, :3].mean().item(), "share"),
        "accuracy_ranks_4_to_40": (right_BR[:, 3:].mean().item(), "share"),
    }


def _drawn_list(words: Sequence[str], generator: torch.Generator) -> list[str]:
    """One to ten of the words without repeats, the earlier ones likelier (Zipf)."""
    weights = torch.arange(1, len(words) + 1, dtype=torch.float64) ** -ZIPF_EXPONENT
    n = 1 + _draw(LONGEST, generator)
    return [words[i] for i in torch.multinomial(weights, n, generator=generator).tolist()]


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))
