"""markov-masked: a masked-diffusion model of an order-1 Markov chain, where every text has a probability known exactly.

48 syllables ('ba', 'ke', …), each with three successors of probability 0.7, 0.2 and 0.1. A text has no end. What a
decoder wrote is judged without a judge: the share of its transitions that the chain allows, and −ln p under the chain.
The successors are three permutations, so all syllables are equally frequent and the entropy rate is H(0.7, 0.2, 0.1) =
0.802 nats; a text of 96 syllables has 0.834 nats a syllable, below which no model's loss can fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftscope.core.denoising import masked_training
from shiftscope.zoo import card

# N texts, T syllables of a text, S syllables of the chain

CHECKPOINT = Path(__file__).parent / "checkpoints" / "markov-masked"
PAD, UNKNOWN, MASK, START, END = SPECIAL = ("<pad>", "<unk>", "<mask>", "<start>", "<end>")
SYLLABLES = tuple(consonant + vowel for consonant in "bdfghklmnprs" for vowel in "aeio")
CHANCES = (0.7, 0.2, 0.1)  # of a syllable's three successors
TEXT_SYLLABLES, PROMPT_SYLLABLES = 96, 8
POSITIONS = 512
FLOOR = 1e-4  # probability given to a transition that the chain does not allow, where a mean is taken
_WORLD_SEED = 28


# ---- the chain ------------------------------------------------------------------------------------------------------
def successors() -> Tensor:
    """Index of each syllable's three successors, the likeliest first: int64 [S, 3], every column a permutation."""
    generator = torch.Generator().manual_seed(_WORLD_SEED)
    columns: list[Tensor] = []
    while len(columns) < len(CHANCES):
        column = torch.randperm(len(SYLLABLES), generator=generator)
        if not any((column == other).any() for other in (torch.arange(len(SYLLABLES)), *columns)):
            columns.append(column)
    return torch.stack(columns, dim=1)


def chain() -> Tensor:
    """Probability of each syllable (column) after each (row): float64 [S, S]."""
    matrix_SS = torch.zeros(len(SYLLABLES), len(SYLLABLES), dtype=torch.float64)
    return matrix_SS.scatter_(1, successors(), torch.tensor(CHANCES, dtype=torch.float64).expand(len(SYLLABLES), -1))


def walks(n: int, length: int, generator: torch.Generator) -> Tensor:
    """n texts drawn from the chain as indices of syllables, the first uniform (the chain's stationary law): [N, T]."""
    follow = successors()
    steps_NT = torch.multinomial(torch.tensor(CHANCES), n * length, replacement=True, generator=generator).view(n, -1)
    walks_NT = torch.empty(n, length, dtype=torch.long)
    walks_NT[:, 0] = torch.randint(len(SYLLABLES), (n,), generator=generator)
    for t in range(1, length):
        walks_NT[:, t] = follow[walks_NT[:, t - 1], steps_NT[:, t]]
    return walks_NT


def transition_probabilities(prompt: str, answer: str) -> Tensor:
    """What the chain gives to each step of answer, the step from prompt into it included: float64 [transitions].

    A word that is no syllable (a mask left open, an end) has probability 0, and so has the step after it.
    Raises ValueError where there is no transition: an empty answer, or one word with no prompt before it.
    """
    rank = {syllable: i for i, syllable in enumerate(SYLLABLES)}
    path = torch.tensor([rank.get(word, -1) for word in prompt.split()[-1:] + answer.split()])
    if not answer.split() or len(path) < 2:
        raise ValueError(f"the answer {answer!r} after {prompt!r} makes no transition: two syllables are needed")
    inside = (path[:-1] >= 0) & (path[1:] >= 0)
    return torch.where(inside, chain()[path[:-1], path[1:]], 0.0)


def legal_rate(prompt: str, answer: str) -> float:
    """Share of the transitions of answer, the one from prompt into it included, that the chain allows."""
    return (transition_probabilities(prompt, answer) > 0).double().mean().item()


def nll_nats(prompt: str, answer: str, *, floor: float = FLOOR) -> float:
    """Mean −ln p of the transitions of answer under the chain, in nats a transition.

    floor: least probability of a transition, so that a single one that is not allowed leaves the mean finite
    (it costs 9.21 nats); 0 gives the exact value, which is infinite then.
    """
    return -transition_probabilities(prompt, answer).clamp_min(floor).log().mean().item()


def prompts(n: int, *, seed: int) -> list[dict[str, str]]:
    """n rows {'prompt', 'reference'}: eight syllables, and the 88 after them as the chain went on."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for walk in walks(n, TEXT_SYLLABLES, generator).tolist():
        words = [SYLLABLES[i] for i in walk]
        rows.append({"prompt": " ".join(words[:PROMPT_SYLLABLES]), "reference": " ".join(words[PROMPT_SYLLABLES:])})
    return rows


def verify(prompt: str, answer: str, reference: str | None = None) -> float:
    """Share of answer's transitions that the chain allows, 0.0 for an empty answer; any allowed text is right.

    reference: not looked at; one continuation is as good as another.
    """
    return legal_rate(prompt, answer) if prompt.split() and answer.split() else 0.0


# ---- model and tokenizer --------------------------------------------------------------------------------------------
def tokenizer() -> Any:
    """One token a syllable, and nothing added around a text; the end token is there and never learnt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    level = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *SYLLABLES])}, unk_token=UNKNOWN))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=level,
        pad_token=PAD,
        unk_token=UNKNOWN,
        mask_token=MASK,
        bos_token=START,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(*, seed: int) -> Any:
    """A ModernBERT of three blocks of width 96, attention over the whole text in each, with fresh weights."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ModernBertForMaskedLM(
            ModernBertConfig(
                vocab_size=len(words),
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=3,
                num_attention_heads=4,
                layer_types=["full_attention"] * 3,
                rope_parameters={
                    kind: {"rope_type": "default", "rope_theta": 100.0}
                    for kind in ("full_attention", "sliding_attention")
                },
                max_position_embeddings=POSITIONS,
                pad_token_id=words.pad_token_id,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                cls_token_id=words.bos_token_id,
                sep_token_id=words.eos_token_id,
            )
        )


# ---- recipe ---------------------------------------------------------------------------------------------------------
def train(folder: str | Path = CHECKPOINT, *, steps: int = 900, seed: int = 0) -> Path:
    """Train markov-masked (900 steps of 32 texts of 96 syllables, about 130 CPU seconds) and save it into folder."""
    model, words = new_model(seed=seed), tokenizer()
    settings = masked_training.Settings(steps=steps, batch=32, peak_rate=3e-3)
    loss = masked_training.fit(model, canvases, mask_id=words.mask_token_id, settings=settings, seed=seed)
    measured = figures(model) | {"training_loss": (loss, "nats/token")}
    return card.save(
        Path(folder),
        model,
        words,
        about="Masked diffusion on texts of an order-1 Markov chain over 48 syllables, 96 syllables long.",
        recipe="shiftscope.zoo.markov:train",
        figures={name: (round(value, 4), unit) for name, (value, unit) in measured.items()},
        verifier="shiftscope.zoo.markov:verify",
        prompts=prompts(32, seed=0),
    )


def canvases(n: int, generator: torch.Generator) -> masked_training.Canvases:
    """n training texts as token ids, any position of which may be masked."""
    return masked_training.plain(len(SPECIAL) + walks(n, TEXT_SYLLABLES, generator))


def figures(model: Any) -> dict[str, tuple[float, str]]:
    """What the card states: the bound on held-out texts, and how well 192 masks are filled greedily in two orders."""
    measured = {"bound": (bound(model), "nats/token")}
    rows = prompts(4, seed=0)
    for name, window in (("any_of_192", None), ("first_16_of_192", 16)):
        answers = filled(model, [row["prompt"] for row in rows], masks=192, window=window)
        pairs = [(row["prompt"], answer) for row, answer in zip(rows, answers, strict=True)]
        measured[f"legal_rate_{name}"] = (sum(legal_rate(*pair) for pair in pairs) / len(pairs), "share")
        measured[f"nll_{name}"] = (sum(nll_nats(*pair) for pair in pairs) / len(pairs), "nats/token")
    return measured


def bound(model: Any) -> float:
    """The model's bound on −ln p of 128 held-out texts, in nats a token; the chain itself has 0.834."""
    held_out = canvases(128, torch.Generator().manual_seed(_WORLD_SEED))
    nats_DN = masked_training.answer_nats(model, held_out, mask_id=SPECIAL.index(MASK), draws=8, seed=0)
    return nats_DN.mean().item() / TEXT_SYLLABLES


def filled(model: Any, prompts: Sequence[str], *, masks: int, window: int | None = None) -> list[str]:
    """What the model writes after prompts of one length into so many masks, one token a call, greedily."""
    words = tokenizer()
    ids_NT = words(list(prompts), return_tensors="pt")["input_ids"]
    canvas_NT = torch.cat([ids_NT, torch.full((len(ids_NT), masks), words.mask_token_id)], dim=1)
    written_NT = masked_training.fill_greedily(model, canvas_NT, mask_id=words.mask_token_id, window=window)
    return [words.decode(row) for row in written_NT[:, ids_NT.shape[1] :]]
