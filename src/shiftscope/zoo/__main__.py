"""Train the shipped checkpoints again: `python -m shiftscope.zoo [NAME …]` (all of them: about 45 minutes on two cores).

Each recipe writes weights, tokenizer, prompts and a card with the figures that it measured; a checkpoint that starts from
another is trained after it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shiftscope.zoo import FOLDER, anyorder, counts, docs, lists, markov, styles, sums

RECIPES = {
    "sums-base": lambda: sums.train_base(FOLDER / "sums-base"),
    "sums-sft": lambda: sums.train_sft(FOLDER / "sums-sft", FOLDER / "sums-base"),
    "sums-rlvr": lambda: sums.train_rlvr(FOLDER / "sums-rlvr", FOLDER / "sums-base"),
    "styles-base": lambda: styles.train_base(FOLDER / "styles-base"),
    "styles-sft": lambda: styles.train_sft(FOLDER / "styles-sft", FOLDER / "styles-base"),
    "styles-dpo": lambda: styles.train_dpo(FOLDER / "styles-dpo", FOLDER / "styles-base"),
    "lists-base": lambda: lists.train(FOLDER / "lists-base"),
    "docs-base": lambda: docs.train_base(FOLDER / "docs-base"),
    "docs-anyorder": lambda: anyorder.train(FOLDER / "docs-anyorder"),
    "docs-code": lambda: docs.train_code(FOLDER / "docs-code", base=FOLDER / "docs-base"),
    "markov-masked": lambda: markov.train(FOLDER / "markov-masked"),
    "counts-masked": lambda: counts.train(FOLDER / "counts-masked"),
}


def main(names: Sequence[str]) -> None:
    """Train the named checkpoints, or all. Raises ValueError for a name that has no recipe, before any training."""
    unknown = sorted(set(names) - RECIPES.keys())
    if unknown:
        raise ValueError(f"there is no recipe for {', '.join(unknown)}: the zoo has {', '.join(RECIPES)}")
    for name in names or RECIPES:
        print(f"training {name} …", flush=True)
        RECIPES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
