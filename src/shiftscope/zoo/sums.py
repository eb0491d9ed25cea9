"""Sums: a task small enough to train in a minute, where what reinforcement changes is known position by position.

A prompt is four digits, '3 1 4 2 ='. The answer keeps a running sum modulo 5, one step a digit, each step five tokens
long: a word for reading, the digit copied, a word for telling, the running sum, a semicolon between steps:
'take 3 gives 3 ; see 1 makes 4 ; add 4 now 3 ; use 2 so 0'. The two words are synonyms drawn anew each time.
The base corpus subtracts instead of adding in half of the steps, so a base model knows the task's form and guesses its
operation; a tuned model that is right has to change its law at the running sums (`decisions`) and nowhere else.

- `sums-base`: trained on that corpus.
- `sums-rlvr`: base tuned by GRPO on the verified final sum, with a KL leash to the base.
- `sums-sft`: base tuned on correct traces that also prefer one synonym of each kind.

Source: arXiv 2603.22446, replicated at small scale. Digits run from 1 to 9, for which chance agreement of a half-wrong
corpus is 0.231; a Qwen3 of two blocks of width 64 and a semicolon between steps are choices of ours.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from shiftscope.core import divergence, grpo
from shiftscope.zoo import card

MODULUS = 5
N_DIGITS = 4
DIGITS = tuple("123456789")
READ = ("take", "add", "read", "see", "use", "with")
TELL = ("gives", "makes", "total", "now", "so", "is")
PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
VOCABULARY = (PAD, UNKNOWN, END, *"0123456789", "=", ";", *READ, *TELL)
N_CARD, SEED_CARD = 2000, 5  # prompts and seed behind the cards' figures
N_SHIPPED = 200  # prompts that come with each checkpoint
SFT_STYLE_SHARE = 0.7  # how often the supervised traces use the first synonym of each kind

_STEP = r"[a-z]+ (\d) [a-z]+ (\d)"
_ANSWER = re.compile(" ; ".join([_STEP] * N_DIGITS))


# ---- the task -------------------------------------------------------------------------------------------------------
def prompts(n: int, *, seed: int) -> list[dict[str, str]]:
    """n rows {'prompt', 'answer', 'reference'}: four digits, one correct trace and the final running sum as text."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        digits = [DIGITS[i] for i in _draw(len(DIGITS), N_DIGITS, generator)]
        prompt = " ".join(digits) + " ="
        rows.append({"prompt": prompt, "answer": correct_trace(prompt, generator), "reference": final_sum(prompt)})
    return rows


def correct_trace(prompt: str, generator: torch.Generator, *, style_share: float = 0.0) -> str:
    """An answer whose every running sum is right.

    generator: draws the synonyms, uniformly; with probability style_share the first of its kind is taken instead.
    """
    return _trace(prompt, [1] * N_DIGITS, generator, style_share)


def half_wrong_trace(prompt: str, generator: torch.Generator) -> str:
    """An answer of the base corpus: each step adds or, as often, subtracts."""
    return _trace(prompt, [1 - 2 * i for i in _draw(2, N_DIGITS, generator)], generator, 0.0)


def final_sum(prompt: str) -> str:
    """The right final running sum of a prompt, as text."""
    return str(sum(_digits(prompt)) % MODULUS)


def verify(prompt: str, answer: str, reference: str | None = None) -> float:
    """1.0 when the answer has its four steps and the last running sum is right, else 0.0.

    reference: the right final sum as text; None works it out from the prompt. Running sums on the way and the copied
    digits are not looked at: only the outcome is rewarded.
    """
    steps = _ANSWER.fullmatch(_plain(answer))
    wanted = final_sum(prompt) if reference is None else reference.strip()
    return 0.0 if steps is None else float(steps.groups()[-1] == wanted)


def decisions(answer: str) -> list[int]:
    """Positions (0-based, in tokens of the answer) of the running sums: where right and wrong part."""
    return [i for i, piece in enumerate(_plain(answer).split()) if piece.isdigit() and i % 5 == 3]


def _plain(answer: str) -> str:
    """The answer without white space at its ends and without the end token, which some decoders leave in."""
    return answer.strip().removesuffix(END).strip()


def _trace(prompt: str, signs: Sequence[int], generator: torch.Generator, style_share: float) -> str:
    total, steps = 0, []
    for digit, sign in zip(_digits(prompt), signs, strict=True):
        total = (total + sign * digit) % MODULUS
        steps.append(f"{_word(READ, generator, style_share)} {digit} {_word(TELL, generator, style_share)} {total}")
    return " ; ".join(steps)


def _digits(prompt: str) -> list[int]:
    digits = [int(piece) for piece in re.findall(r"\d", prompt)]
    if len(digits) != N_DIGITS:
        raise ValueError(f"the prompt {prompt!r} has {len(digits)} digits; a sum has {N_DIGITS}, as in '3 1 4 2 ='")
    return digits


def _word(words: Sequence[str], generator: torch.Generator, style_share: float) -> str:
    styled = float(torch.rand((), generator=generator)) < style_share
    return words[0] if styled else words[_draw(len(words), 1, generator)[0]]


def _draw(below: int, n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(below, (n,), generator=generator).tolist()


# ---- model and tokenizer --------------------------------------------------------------------------------------------
def tokenizer() -> Any:
    """One token a word, its leading space included; text and ids map to each other both ways, whatever the spacing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = (PAD, UNKNOWN, END)
    vocabulary = {word if word in special else "▁" + word: i for i, word in enumerate(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()])
    words.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


def new_model(*, seed: int) -> Any:
    """A Qwen3 of two blocks of width 64 (0.13 M weights) with fresh weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(VOCABULARY),
                hidden_size=64,
                intermediate_size=192,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                head_dim=16,
                max_position_embeddings=64,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=VOCABULARY.index(END),
                pad_token_id=VOCABULARY.index(PAD),
            )
        )


@torch.no_grad()
def sample(model: Any, tokenizer: Any, texts: Sequence[str], *, seed: int) -> list[str]:
    """One answer to each prompt at temperature 1, as text, until the end token or 24 tokens."""
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    ids_BT = tokenizer(list(texts), return_tensors="pt")["input_ids"].to(device)
    written, cache = [], None
    step_BT = ids_BT
    for _ in range(24):
        out = model(step_BT, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        step_BT = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
        written.append(step_BT)
    rows = torch.cat(written, dim=1).tolist()
    end = tokenizer.eos_token_id
    return [tokenizer.decode(row[: row.index(end)] if end in row else row) for row in rows]


def accuracy(model: Any, tokenizer: Any, *, n: int, seed: int) -> float:
    """Share of n sampled answers that `verify` holds for right."""
    rows = prompts(n, seed=seed)
    answers = sample(model, tokenizer, [row["prompt"] for row in rows], seed=seed)
    return sum(verify(row["prompt"], answer) for row, answer in zip(rows, answers, strict=True)) / n


@torch.no_grad()
def shift(base: Any, tuned: Any, tokenizer: Any, *, n: int, seed: int) -> dict[str, tuple[float, str]]:
    """How far tuned's next-token law left base's along n answers sampled from tuned: figures name -> (value, unit).

    Over all positions of the answers (the end token left out): mean JS, shares of JS below 0.01 and above 0.1, the
    share of the latter at `decisions`, and how often tuned's most probable token is among base's three there.
    """
    rows = prompts(n, seed=seed)
    answers = sample(tuned, tokenizer, [row["prompt"] for row in rows], seed=seed)
    whole = [(row["prompt"], a) for row, a in zip(rows, answers, strict=True) if _ANSWER.fullmatch(_plain(a))]
    ids_NT = tokenizer([f"{prompt} {answer}" for prompt, answer in whole], return_tensors="pt")["input_ids"]
    first = N_DIGITS + 1
    logp_NTV, logq_NTV = (m(ids_NT[:, :-1]).logits[:, first - 1 :].float().log_softmax(-1) for m in (base, tuned))
    js_NT = divergence.js_nats(logp_NTV, logq_NTV)
    high_NT = js_NT > 0.1
    figures = {
        "js_mean_nats": (js_NT.mean().item(), "nats"),
        "js_share_below_0.01": ((js_NT < 0.01).float().mean().item(), "share"),
        "js_share_above_0.1": (high_NT.float().mean().item(), "share"),
    }
    if high_NT.any():  # shares of nothing are left out
        at_decisions = high_NT[:, decisions(whole[0][1])].sum() / high_NT.sum()
        in_top3 = (divergence.rank(logp_NTV, logq_NTV.argmax(-1)) < 3)[high_NT].float().mean()
        figures["decision_share_of_js_above_0.1"] = (at_decisions.item(), "share")
        figures["tuned_top1_in_base_top3_share_of_js_above_0.1"] = (in_top3.item(), "share")
    return figures


# ---- recipes --------------------------------------------------------------------------------------------------------
def train_base(folder: str | Path, *, seed: int = 0) -> Path:
    """Train `sums-base` on 30 000 half-wrong traces (1 000 steps of 128, about a CPU minute) and save it in folder."""
    generator = torch.Generator().manual_seed(seed)
    texts = [(row["prompt"], half_wrong_trace(row["prompt"], generator)) for row in prompts(30_000, seed=seed + 1)]
    model, words = new_model(seed=seed), tokenizer()
    loss = fit(model, words, texts, steps=1000, batch=128, peak_rate=3e-3, seed=seed)
    return _save(
        folder,
        model,
        about="four digits summed modulo 5 step by step; trained on traces that subtract in half of the steps",
        recipe="shiftscope.zoo.sums:train_base",
        figures={"accuracy": (accuracy(model, words, n=N_CARD, seed=SEED_CARD), "share"), "loss": (loss, "nats")},
    )


def train_sft(folder: str | Path, base: str | Path, *, seed: int = 0) -> Path:
    """Train `sums-sft` from the base in a folder: 120 steps on correct traces with a preference among the synonyms."""
    model, words = _loaded(base)
    generator = torch.Generator().manual_seed(seed + 2)
    texts = [
        (row["prompt"], correct_trace(row["prompt"], generator, style_share=SFT_STYLE_SHARE))
        for row in prompts(8000, seed=seed + 3)
    ]
    fit(model, words, texts, steps=120, batch=128, peak_rate=2e-3, seed=seed)
    return _save_tuned(
        folder,
        base,
        model,
        words,
        about="sums-base after 120 supervised steps on correct traces that prefer one synonym of each kind",
        recipe="shiftscope.zoo.sums:train_sft",
    )


def train_rlvr(folder: str | Path, base: str | Path, *, leash: float = 0.02, seed: int = 1) -> Path:
    """Train `sums-rlvr` from the base in a folder: trl's GRPO on the verified final sum, about 75 CPU seconds.

    Seeds differ: 1 reaches an accuracy of 0.99, 0 stays at 0.76 and is no better with 150 rollouts.
    leash: factor of the KL to the base; 0 gives the control without it, where the synonyms drift too. Needs trl.
    """
    settings = grpo.Settings(
        rollouts=90,
        prompts_per_rollout=32,
        samples=8,
        learning_rate=4e-4,
        decay=0.3,
        leash=leash,
        max_new_tokens=24,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as work:
        grpo.tune(base, prompts(4000, seed=seed + 4), verify, work, settings=settings)
        model, words = _loaded(work)
    return _save_tuned(
        folder,
        base,
        model,
        words,
        about=f"sums-base tuned by GRPO on the verified final sum, with a KL leash of {leash} to the base",
        recipe="shiftscope.zoo.sums:train_rlvr",
    )


def _loaded(folder: str | Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _save_tuned(folder: str | Path, base: str | Path, model: Any, words: Any, *, about: str, recipe: str) -> Path:
    figures = {"accuracy": (accuracy(model, words, n=N_CARD, seed=SEED_CARD), "share")}
    figures |= shift(_loaded(base)[0], model, words, n=400, seed=SEED_CARD)
    return _save(folder, model, about=about, recipe=recipe, figures=figures)


def _save(folder: str | Path, model: Any, **described: Any) -> Path:
    """The checkpoint with its card, and the prompts that comparisons use when they are given none."""
    lines = [{"prompt": row["prompt"], "reference": row["reference"]} for row in prompts(N_SHIPPED, seed=SEED_CARD)]
    verifier = "shiftscope.zoo.sums:verify"
    return card.save(Path(folder), model, tokenizer(), verifier=verifier, prompts=lines, **described)


# ---- training on text -----------------------------------------------------------------------------------------------
def fit(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], *, steps: int, batch: int, peak_rate: float, seed: int
) -> float:
    """Train model on (prompt, answer) pairs by next-token loss on the answers and the end token; returns the last loss.

    peak_rate: AdamW's learning rate after 5 % of warm-up, from where it falls to zero along a cosine.
    """
    ids_NT = tokenizer([f"{prompt} {answer} {END}" for prompt, answer in texts], return_tensors="pt")["input_ids"]
    first = len(texts[0][0].split())
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    last = math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min((step + 1) / (0.05 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        rows_BT = ids_NT[torch.randint(len(ids_NT), (batch,), generator=generator)]
        logits_BTV = model(rows_BT[:, :-1]).logits[:, first - 1 :].float()
        loss = cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, first:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
    model.eval()
    return last
