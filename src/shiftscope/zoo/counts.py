"""counts-masked: a masked-diffusion model that counts to 31, where the prompt alone says how long the answer is.

A prompt is a start and a step, '5 2'; the answer '5 7 9 … 31' goes on to the last number not above 31, then ends. The
model was trained on canvases of 4 to 64 tokens filled up with end tokens, so it knows at any canvas length which masks
lie behind the end; that is what lets a decoder lengthen or shorten its canvas. Answers have 1 to 32 numbers, 12.5 in
the mean; a canvas that is too short cannot hold them.

Source: arXiv 2601.22527 for the effect; the task is a small one of ours. All 64 prompts are trained on: what is tested
is the decoder, not the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shiftscope.core.denoising import masked_training
from shiftscope.zoo import card

CHECKPOINT = Path(__file__).parent / "checkpoints" / "counts-masked"
PAD, UNKNOWN, MASK, START, END = SPECIAL = ("<pad>", "<unk>", "<mask>", "<start>", "<end>")
LARGEST = 31
STEPS = (1, 2)
SHORTEST_CANVAS, LONGEST_CANVAS = 4, 64
PROMPT_TOKENS = 3  # the start token, the start and the step
CANVASES = (4, 8, 16, 32, 64)  # lengths that the card has figures for
_PAIRS = tuple((start, step) for start in range(LARGEST + 1) for step in STEPS)


# ---- the task -------------------------------------------------------------------------------------------------------
def prompts(n: int = len(_PAIRS), *, seed: int) -> list[dict[str, str]]:
    """n different rows {'prompt', 'reference'}: a start and a step, and the numbers that answer them."""
    if not 0 < n <= len(_PAIRS):
        raise ValueError(f"{n} prompts were asked for; there are {len(_PAIRS)}: a start of 0 to {LARGEST}, a step")
    generator = torch.Generator().manual_seed(seed)
    pairs = [_PAIRS[i] for i in torch.randperm(len(_PAIRS), generator=generator)[:n].tolist()]
    return [{"prompt": f"{start} {step}", "reference": right_answer(f"{start} {step}")} for start, step in pairs]


def right_answer(prompt: str) -> str:
    """The right answer: from the prompt's start in its steps to the last number not above 31."""
    pieces = prompt.split()
    if (
        len(pieces) != 2
        or not all(piece.isdecimal() for piece in pieces)
        or (int(pieces[0]), int(pieces[1])) not in _PAIRS
    ):
        raise ValueError(f"the prompt {prompt!r} is no start of 0 to {LARGEST} and step of 1 or 2, as in '5 2'")
    return " ".join(str(number) for number in range(int(pieces[0]), LARGEST + 1, int(pieces[1])))


def verify(prompt: str, answer: str, reference: str | None = None) -> float:
    """1.0 when answer, up to its first end token, is exactly the right numbers, else 0.0.

    reference: the right answer as text; None works it out from the prompt. The end token itself is not asked for.
    """
    wanted = right_answer(prompt) if reference is None else reference
    return float(answer.split(END)[0].split() == wanted.split())


# ---- model and tokenizer --------------------------------------------------------------------------------------------
def tokenizer() -> Any:
    """One token a number; a start token is put before a text, as before every prompt in training."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *map(str, range(LARGEST + 1))])}
    level = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    level.post_processor = processors.TemplateProcessing(f"{START} $A", special_tokens=[(START, vocabulary[START])])
    return PreTrainedTokenizerFast(
        tokenizer_object=level,
        pad_token=PAD,
        unk_token=UNKNOWN,
        mask_token=MASK,
        bos_token=START,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=PROMPT_TOKENS + LONGEST_CANVAS,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(*, seed: int) -> Any:
    """A BERT of two blocks of width 96 without dropout, a position for each token of the longest canvas."""
    from transformers import BertConfig, BertForMaskedLM

    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(words),
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=PROMPT_TOKENS + LONGEST_CANVAS,
                type_vocab_size=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=words.pad_token_id,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
            )
        )


# ---- recipe ---------------------------------------------------------------------------------------------------------
def train(folder: str | Path = CHECKPOINT, *, steps: int = 2500, seed: int = 0) -> Path:
    """Train counts-masked (2 500 steps of 32 canvases, about 110 CPU seconds) and save it into folder."""
    model, words = new_model(seed=seed), tokenizer()
    settings = masked_training.Settings(steps=steps, batch=32, peak_rate=2e-3)
    loss = masked_training.fit(model, canvases, mask_id=words.mask_token_id, settings=settings, seed=seed)
    measured = figures(model) | {"training_loss": (loss, "nats/token")}
    return card.save(
        Path(folder),
        model,
        words,
        about="Masked diffusion on counting from a start to 31 in steps of 1 or 2, end tokens to the canvas's end.",
        recipe="shiftscope.zoo.counts:train",
        figures={name: (round(value, 4), unit) for name, (value, unit) in measured.items()},
        verifier="shiftscope.zoo.counts:verify",
        prompts=prompts(seed=0),
    )


def canvases(n: int, generator: torch.Generator) -> masked_training.Canvases:
    """n training canvases of one length, which is uniform on 4 to 64; prompts drawn alike, long answers cut.

    One length a batch leaves no padding to compute: half the work of a length for every row.
    """
    drawn = [_PAIRS[i] for i in torch.randint(len(_PAIRS), (n,), generator=generator).tolist()]
    length = int(torch.randint(SHORTEST_CANVAS, LONGEST_CANVAS + 1, (), generator=generator))
    first = len(SPECIAL)  # the id of 0
    questions = [(SPECIAL.index(START), first + start, first + step) for start, step in drawn]
    answers = [range(first + start, first + LARGEST + 1, step) for start, step in drawn]
    return masked_training.supervised(questions, answers, [length] * n, end_id=SPECIAL.index(END))


def figures(model: Any) -> dict[str, tuple[float, str]]:
    """What the card states: the bound on fresh canvases, and per canvas length the share of right answers."""
    measured = {"bound": (bound(model), "nats/token")}
    rows = prompts(seed=0)
    for length in CANVASES:
        answers = filled(model, [row["prompt"] for row in rows], masks=length)
        right = [verify(row["prompt"], text) for row, text in zip(rows, answers, strict=True)]
        measured[f"exact_match_canvas_{length}"] = (sum(right) / len(right), "share")
    return measured


def bound(model: Any) -> float:
    """The model's bound on −ln p of answers with their end tokens, over 16 batches of 32 canvases, in nats a token."""
    generator, bounds = torch.Generator().manual_seed(32), []
    for _ in range(16):
        rows = canvases(32, generator)
        nats_DN = masked_training.answer_nats(model, rows, mask_id=SPECIAL.index(MASK), draws=4, seed=0)
        bounds.append((nats_DN / rows.answer_BT.sum(-1)).mean().item())
    return sum(bounds) / len(bounds)


def filled(model: Any, prompts: Sequence[str], *, masks: int) -> list[str]:
    """What the model writes into so many masks after each prompt, one token a call, greedily; end tokens are kept."""
    words = tokenizer()
    ids_NT = words(list(prompts), return_tensors="pt")["input_ids"]
    canvas_NT = torch.cat([ids_NT, torch.full((len(ids_NT), masks), words.mask_token_id)], dim=1)
    written_NT = masked_training.fill_greedily(model, canvas_NT, mask_id=words.mask_token_id)
    return [words.decode(row) for row in written_NT[:, ids_NT.shape[1] :]]
