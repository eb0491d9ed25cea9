"""docs-base and docs-code: a small Llama that read the standard library's documentation, then also its source code.

The pair is a real, everyday shift: a model continued on another register of the same subject. `train_base` trains a
byte-level BPE on both registers and a 2.6 million parameter Llama on docstrings and `pydoc_data` topics; `train_code`
continues it on source files. Modules are split by a hash of their name, the same split for both registers, so that
nothing held out was seen by either checkpoint or by the tokenizer.

The corpus is read from the interpreter that runs the recipe (PSF licence) and is not shipped: the weights only learnt
from it. A recipe gives the same texts for the same Python version. Left out are tests, tables that were generated,
files that depend on the build, and packages that some distributions install apart.
"""

from __future__ import annotations

import ast
import math
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiftscope.zoo import card

# B windows, T positions

Part = Literal["all", "train", "held out"]
END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY_SIZE, WINDOW = 4096, 256
CHECKPOINTS = Path(__file__).parent / "checkpoints"
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data", "encodings"}
_INSTALLED_APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"}


def documentation(part: Part = "all") -> list[str]:
    """Documentation texts: a line that names the object with its signature, an empty line, and its docstring.

    part: "train", "held out" (about a tenth, whole modules) or "all". Topics of `pydoc_data` count as modules. A
    held-out docstring that a training module repeats is dropped; so are docstrings under 40 characters.
    """
    train, held_out = _documentation()
    return list({"train": train, "held out": held_out, "all": train + held_out}[_checked(part)])


def sources(part: Part = "all") -> list[str]:
    """Source files of the standard library as texts, in the order of their names; the split is `documentation`'s."""
    _checked(part)
    return [text for name, text in _modules().items() if part == "all" or is_held_out(name) == (part == "held out")]


OPENINGS = (
    "Return the", "Return a list of", "Return True if", "This module provides", "This function is", "This method",
    "Open a file and", "The default value is", "If the argument", "Raise an error if", "Create a new", "Remove all",
    "Convert the string", "A class that", "Called when the", "Read at most", "Write the", "Wait until the",
    "Parse the", "An iterator over", "Set the name of", "The first element", "Compare two", "Use this to",
)  # fmt: skip


def prompts(n: int, *, seed: int) -> list[dict[str, str]]:
    """n rows {'prompt', 'answer'}: held-out documentation cut within its first sentence, and how it goes on.

    The prompt ends after four to ten words of the docstring, without a space; the answer opens with that space.
    """
    generator = torch.Generator().manual_seed(seed)
    openings = [text for text in documentation("held out") if len(_first_line(text).split()) > 10]
    if not 0 < n <= len(openings):
        raise ValueError(f"{n} prompts were asked for; the held-out documentation of this Python has {len(openings)}")
    chosen = torch.randperm(len(openings), generator=generator)[:n].tolist()
    n_words = torch.randint(4, 11, (n,), generator=generator).tolist()
    cuts = [_cut(openings[i], words) for i, words in zip(chosen, n_words, strict=True)]
    return [{"prompt": openings[i][:cut], "answer": openings[i][cut:]} for i, cut in zip(chosen, cuts, strict=True)]


def is_held_out(module: str) -> bool:
    """Whether a module (or a `pydoc_data` topic) belongs to the held-out tenth: by a hash of its name alone."""
    return zlib.crc32(module.encode()) % 10 == 0


def train_tokenizer(texts: list[str], vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the pre-tokenizer of GPT-2; every byte is a token, so that any text comes back exact.

    No token is added around a text. Between documents stands END, which is also the beginning-of-text token; PAD only
    fills batches.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def train_base(folder: str | Path = CHECKPOINTS / "docs-base", *, steps: int = 1800, seed: int = 0) -> Path:
    """Train tokenizer and docs-base, and save them into folder: about 15 minutes on one core.

    steps: batches of 8 windows of 256 tokens. 1 800 are seven passes over the documentation: by then the loss on
    training text (2.6 nats per token) is far below the one on held-out text (3.8), and more passes widen the gap.
    """
    train_texts = [*documentation("train"), *sources("train")]
    tokenizer = train_tokenizer(train_texts)
    torch.manual_seed(seed)  # transformers initialises from the global generator; nothing below uses it
    model = LlamaForCausalLM(_configuration(tokenizer))
    fit(model, pack(tokenizer, documentation("train")), steps=steps, horizon=2600, peak_rate=2e-3, seed=seed)
    about = "A small Llama trained on the documentation of Python's standard library (docstrings and help topics)."
    return _save(folder, model, tokenizer, about, "train_base")


def train_code(
    folder: str | Path = CHECKPOINTS / "docs-code",
    *,
    base: str | Path = CHECKPOINTS / "docs-base",
    steps: int = 600,
    seed: int = 0,
) -> Path:
    """Continue docs-base on source code and save docs-code into folder: about 5 minutes on one core."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    fit(model, pack(tokenizer, sources("train")), steps=steps, peak_rate=1e-3, seed=seed)
    about = "docs-base continued on the source code of Python's standard library."
    return _save(folder, model, tokenizer, about, "train_code")


def pack(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts as one stream of token ids, int64, with END before each text and at the end."""
    end = tokenizer.eos_token_id
    ids = [end]
    for text_ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [*text_ids, end]
    return torch.tensor(ids)


def fit(
    model: Any,
    stream: Tensor,
    *,
    steps: int,
    peak_rate: float,
    seed: int,
    batch: int = 8,
    horizon: int | None = None,
    after_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train model in place on windows of stream, each epoch from a new offset and in a new order; leaves it in eval.

    AdamW with a warm-up to peak_rate and a cosine from there. horizon: the step at which the cosine reaches its
    twentieth; None: at the last. A horizon beyond the last step ends on a higher rate.
    after_step: called with the step and its loss in nats per token.
    """
    generator = torch.Generator().manual_seed(seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.95))
    model.train()
    windows = _batches(stream, batch, generator)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * _rate(step, steps if horizon is None else horizon)
        loss = _token_nats(model, next(windows)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if after_step is not None:
            after_step(step, loss.item())
    model.eval()


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Any, texts: list[str], *, windows: int = 64) -> tuple[float, float]:
    """(nats per token, bits per byte) over windows of 257 tokens spread evenly over the texts; the first is given."""
    stream = pack(tokenizer, texts)
    starts = torch.linspace(0, len(stream) - WINDOW - 1, windows).long()
    windows_BT = stream[starts[:, None] + torch.arange(WINDOW + 1)]
    nats_BT = torch.cat([_token_nats(model, rows) for rows in windows_BT.split(8)]).double()
    special = set(tokenizer.all_special_ids)
    predicted = windows_BT[:, 1:].flatten().tolist()
    # a byte-level piece has one character per byte
    n_bytes = sum(len(tokenizer.convert_ids_to_tokens(i)) for i in predicted if i not in special)
    return nats_BT.mean().item(), nats_BT.sum().item() / math.log(2) / n_bytes


def _save(folder: str | Path, model: Any, tokenizer: Any, about: str, recipe: str) -> Path:
    model = model.to(torch.float16).float()  # measured as stored
    figures = {}
    for name, texts in (("docs", documentation("held out")), ("code", sources("held out"))):
        nats, bits = held_out_loss(model, tokenizer, texts)
        figures[f"{name}_nats_per_token"] = (round(nats, 4), "nats/token")
        figures[f"{name}_bits_per_byte"] = (round(bits, 4), "bits/byte")
    figures["parameters"] = (model.num_parameters(), "count")
    about += " Learnt from text under the PSF licence, which is not part of the checkpoint; Python 3.11, float16."
    recipe = f"shiftscope.zoo.docs:{recipe}"
    rows = [{"prompt": opening} for opening in OPENINGS]
    return card.save(
        Path(folder), model, tokenizer, about=about, recipe=recipe, figures=figures, dtype=torch.float16, prompts=rows
    )


def _configuration(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _token_nats(model: Any, windows_BT: Tensor) -> Tensor:
    """Cross-entropy in nats of each token but the first of each window."""
    logits_BTV = model(input_ids=windows_BT[:, :-1], use_cache=False).logits.float()
    target_BT = windows_BT[:, 1:]
    nats = functional.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), reduction="none")
    return nats.view_as(target_BT)


def _rate(step: int, steps: int, warm_up: int = 100) -> float:
    """Share of the peak learning rate: linear over the warm-up, then a cosine from 1 to 0.05."""
    warm_up = min(warm_up, steps // 4)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def _batches(stream: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Windows of 257 tokens for ever: every epoch cuts the stream at a random offset and shuffles the windows."""
    if len(stream) < (batch + 2) * WINDOW:
        raise ValueError(f"the stream has {len(stream)} tokens; a batch of {batch} needs {(batch + 2) * WINDOW}")
    while True:
        offset = int(torch.randint(WINDOW, (1,), generator=generator))
        starts = torch.arange(offset, len(stream) - WINDOW, WINDOW)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for chosen in starts.split(batch)[: len(starts) // batch]:
            yield stream[chosen[:, None] + torch.arange(WINDOW + 1)]


@cache
def _modules() -> dict[str, str]:
    """Module name -> source, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        build = parts[0].startswith(("config-", "_sysconfigdata", "__phello__"))
        if build or parts[0] in _INSTALLED_APART or not _LEFT_OUT.isdisjoint(parts) or parts == ("html", "entities"):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        modules[name] = path.read_text(encoding="utf-8")
    return dict(sorted(modules.items()))


@cache
def _documentation() -> tuple[list[str], list[str]]:
    """(train, held out), no docstring twice."""
    from pydoc_data.topics import topics

    entries = [(f"pydoc_data.topics.{name}", name, text.strip()) for name, text in sorted(topics.items())]
    for module, source in _modules().items():
        entries += [(module, heading, text) for heading, text in _docstrings(module, source)]
    entries.sort(key=lambda entry: is_held_out(entry[0]))  # training modules first: stable within a side
    sides: tuple[list[str], list[str]] = ([], [])
    seen = set()
    for module, heading, text in entries:
        if len(text) >= 40 and text not in seen:
            seen.add(text)
            sides[is_held_out(module)].append(f"{heading}\n\n{text}")
    return sides


def _docstrings(module: str, source: str) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of the module, its classes and its functions, in the order of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escape sequences that a newer Python will refuse
        stack: list[tuple[str, Any]] = [(module, ast.parse(source))]
    while stack:
        name, node = stack.pop()
        text = ast.get_docstring(node)
        if text:
            yield _heading(name, node), text.strip()
        documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        inner = [child for child in node.body if isinstance(child, documented)]
        stack += [(f"{name}.{child.name}", child) for child in reversed(inner)]


def _heading(name: str, node: Any) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}({', '.join(map(ast.unparse, node.bases))})"
    return name if isinstance(node, ast.Module) else f"{name}({ast.unparse(node.args)})"


def _first_line(text: str) -> str:
    """The first line of the docstring, under its heading."""
    return text.split("\n\n", 1)[1].split("\n", 1)[0]


def _cut(text: str, words: int) -> int:
    """Where the docstring's word of that number ends, in characters of text."""
    start = text.index("\n\n") + 2
    return start + [match.end() for match in re.finditer(r"\S+", _first_line(text))][words - 1]


def _checked(part: str) -> str:
    if part not in ("all", "train", "held out"):
        raise ValueError(f"{part!r} is no part of the corpus: choose 'all', 'train' or 'held out'")
    return part
