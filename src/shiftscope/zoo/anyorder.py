"""docs-anyorder: a small any-subset model of the standard library's documentation, which fills holes in any order.

An XLNet of 1.3 million parameters, trained on windows of the documentation (the split of `zoo/docs.py`) to predict the
hidden tokens of a random subset one after the other, with the joint loss under the oracle mask. A text opens with END,
so that there is always something visible.

Source: arXiv 2504.20456 (objective, stratified masking rate). Deviations: a share hidden of 10 to 97 % serves holes of
every size with one model; trained from scratch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, XLNetConfig, XLNetLMHeadModel

from shiftscope.core.checkpoints import Opened
from shiftscope.core.denoising import any_subset
from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.denoising.masking_rate import MaskingRate, hide
from shiftscope.core.denoising.speculation import Speculation, fill
from shiftscope.core.tokenizers.tokenizer_training import trained
from shiftscope.zoo import card, docs

# B windows, N positions, K positions asked for

CHECKPOINT = Path(__file__).parent / "checkpoints" / "docs-anyorder"
END, MASK = docs.END, "<|mask|>"
VOCABULARY_SIZE, WINDOW = 1024, 96
RATE = MaskingRate(start=0.15, low=0.10, high=0.97, warm_up=150)
STEPS = 1200
MEASURED = 64  # tokens of the held-out windows that the card's figures are measured on
SHARES = {"hidden_95": 61, "hidden_50": 32}  # tokens of them that are hidden
DECODERS = {
    "sequential": Speculation("sequential"),
    "self": Speculation(k=5),
    "published": Speculation(k=5, bonus=False, ahead=0),
    "ngram": Speculation(draft="ngram", k=5),
    "independent": Speculation("independent", k=2),
}


def train(folder: str | Path = CHECKPOINT, *, steps: int = STEPS, seed: int = 0) -> Path:
    """Train tokenizer and docs-anyorder, and save them into folder: about ten minutes on one core.

    steps: batches of 20 windows of 96 tokens; 1 200 are three passes over the documentation.
    """
    texts = docs.documentation("train")
    words = tokenizer(texts)
    model = new_model(words, seed=seed)
    fit(model, docs.pack(words, texts), steps=steps, seed=seed)
    return save(folder, model, words)


def save(folder: str | Path, model: Any, words: Any) -> Path:
    """Write a trained model with its tokenizer, prompts and a card whose figures are measured on the stored weights."""
    model = model.to(torch.float16).float()
    opened = any_subset.adapted(Opened("docs-anyorder", model, words))
    about = (
        "A small any-subset model (XLNet) of the documentation of Python's standard library: fills hidden tokens in any "
        "order. Learnt from text under the PSF licence, which is not part of the checkpoint; Python 3.11, float16."
    )
    measured = figures(opened) | {"parameters": (model.num_parameters(), "count")}
    return card.save(
        Path(folder), model, words, about=about, recipe="shiftscope.zoo.anyorder:train", dtype=torch.float16,
        figures={name: (round(value, 4), unit) for name, (value, unit) in measured.items()}, prompts=prompts(words),
    )  # fmt: skip


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that opens a text with END; MASK stands for a hidden token."""
    from tokenizers.processors import TemplateProcessing

    bpe = trained("bpe", texts, VOCABULARY_SIZE, [END, MASK])
    opening = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, bpe.token_to_id(END))])
    bpe.post_processor = opening
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, mask_token=MASK, model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def new_model(words: Any, *, seed: int) -> XLNetLMHeadModel:
    """The untrained model."""
    torch.manual_seed(seed)  # transformers initialises from the global generator; nothing else here uses it
    end = words.eos_token_id
    config = XLNetConfig(
        vocab_size=len(words), d_model=160, n_layer=4, n_head=5, d_inner=448, dropout=0.0, pad_token_id=end,
        bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    return XLNetLMHeadModel(config)


def fit(
    model: Any,
    stream: Tensor,
    *,
    steps: int,
    seed: int,
    batch: int = 20,
    peak_rate: float = 2e-3,
    after_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train model in place on random windows of stream with the joint loss of random subsets; leaves it in eval.

    AdamW, 60 steps of warm-up, then a cosine to a twentieth. after_step: called with the step and its loss in nats per
    hidden token.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(steps):
        warm, done = min(1.0, (step + 1) / 60), step / steps
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        start_B = torch.randint(len(stream) - WINDOW, (batch,), generator=generator)
        ids_BN = stream[start_B[:, None] + torch.arange(WINDOW)]
        loss = joint_loss(model, ids_BN, hide(RATE.shares(step, batch, generator), WINDOW, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if after_step is not None:
            after_step(step, loss.item())
    model.eval()


def joint_loss(model: Any, ids_BN: Tensor, hidden_BN: Tensor) -> Tensor:
    """Mean −log p in nats of the hidden tokens, each given the visible ones and the hidden ones before it."""
    rank_BN, visible_B = any_subset.ranks(hidden_BN), (~hidden_BN).sum(-1)
    position_BK = any_subset.hidden_positions(hidden_BN)
    everything_B = torch.full_like(visible_B, ids_BN.shape[1])
    logits_BKV = model(
        input_ids=ids_BN,
        perm_mask=any_subset.forbidden(rank_BN, visible_B, everything_B),
        target_mapping=any_subset.targets(position_BK, ids_BN.shape[1]),
        use_mems=False,
    ).logits
    wanted_BK = torch.where(position_BK >= 0, ids_BN.gather(1, position_BK.clamp(min=0)), -100)
    return cross_entropy(logits_BKV.flatten(0, 1), wanted_BK.flatten())


# ---- what it measures -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Measured:
    """What one decoder did: network calls and −log p (nats, the model's joint law) per hidden token, and the most calls of
    one text per hidden token."""

    calls: float
    most_calls: float
    nll_nats: float


def windows(words: Any, n: int, hidden: int, *, seed: int = 0) -> list[Gapped]:
    """n windows of 64 tokens spread over the held-out documentation, a random subset of each hidden (ids are the true ones)."""
    stream = docs.pack(words, docs.documentation("held out"))
    starts = torch.linspace(0, len(stream) - MEASURED, n).long()
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(MEASURED, generator=generator)[:hidden].sort().values.tolist() for _ in range(n)]
    return [
        Gapped(number, stream[start : start + MEASURED].tolist(), tuple(order))
        for number, (start, order) in enumerate(zip(starts.tolist(), orders, strict=True))
    ]


def decoded(model: AnySubsetLM, texts: Sequence[Gapped], how: Speculation) -> Measured:
    """Fill copies of the texts and score what was written; the hidden tokens of the texts given are not looked at."""
    blank = [
        Gapped(text.document, [model.mask_id if i in text.order else t for i, t in enumerate(text.ids)], text.order)
        for text in texts
    ]
    fill(model, blank, how)
    tokens = sum(len(text.order) for text in blank)
    calls, most = sum(t.record.calls for t in blank), max(t.record.calls / len(t.order) for t in blank)
    return Measured(calls / tokens, most, nll_nats(model, blank))


def nll_nats(model: AnySubsetLM, texts: Sequence[Gapped]) -> float:
    """Mean −log p of the hidden tokens as they stand in the texts, by one call."""
    copies = [Gapped(text.document, text.ids, text.order) for text in texts]
    return -float(torch.cat(model.joint_logp(copies)).mean())


def figures(model: AnySubsetLM, *, n: int = 96) -> dict[str, tuple[float, str]]:
    """What the card states, for 95 % and 50 % of the tokens of held-out windows hidden: cost and likelihood by decoder."""
    found = {}
    for name, hidden in SHARES.items():
        texts = windows(model.tokenizer, n, hidden)
        found[f"{name}_held_out_nll"] = (nll_nats(model, texts), "nats/token")
        for decoder, how in DECODERS.items():
            one = decoded(model, texts, how)
            found[f"{name}_{decoder}_calls"] = (one.calls, "calls/token")
            found[f"{name}_{decoder}_nll"] = (one.nll_nats, "nats/token")
    return found


def prompts(words: Any, n: int = 24) -> list[dict[str, str]]:
    """Held-out documentation with holes: every fourth with the words that stood there as an answer, to be scored."""
    rows: list[dict[str, str]] = []
    texts = [text for text in docs.documentation("held out") if _short(words, text)]
    for text in texts[:: len(texts) // n][:n]:
        pieces = _PIECE.findall(text)
        first, last = len(pieces) // 3, len(pieces) // 3 + 4 + len(rows) % 5
        hole, scored = "".join(pieces[first:last]), len(rows) % 4 == 3
        size = "" if scored else str(len(words(hole, add_special_tokens=False)["input_ids"]))
        row = {"prompt": f"{''.join(pieces[:first])}[[{size}]]{''.join(pieces[last:])}"}
        rows.append({**row, "answer": hole} if scored else row)
    return rows


_PIECE = re.compile(r"\s*\S+")


def _short(words: Any, text: str) -> bool:
    """Whether a text can be a prompt: some sentences that fit into a window with their hole."""
    n_tokens = len(words(text, verbose=False)["input_ids"])
    return "[[" not in text and 20 <= len(_PIECE.findall(text)) <= 40 and n_tokens < WINDOW - 8
