"""compare: what changed between A and B, where, and does it matter?"""

from __future__ import annotations

from shiftscope.compare.answers import answers
from shiftscope.compare.bytes import bytes_
from shiftscope.compare.corpora import corpora
from shiftscope.compare.decoders import decoders_
from shiftscope.compare.domains import domains
from shiftscope.compare.edits import edits
from shiftscope.compare.examples import examples
from shiftscope.compare.images import images
from shiftscope.compare.keys import keys
from shiftscope.compare.layers import layers
from shiftscope.compare.models import models
from shiftscope.compare.preservation import preservation
from shiftscope.compare.scorers import scorers
from shiftscope.compare.slices import slices
from shiftscope.compare.subpopulations import subpopulations
from shiftscope.compare.swaps import swaps
from shiftscope.compare.tokenizers import tokenizers
from shiftscope.compare.tokens import tokens
from shiftscope.compare.traces import traces
from shiftscope.compare.weights import weights

METHODS = {
    "models": models,
    "tokens": tokens,
    "bytes": bytes_,
    "layers": layers,
    "keys": keys,
    "swaps": swaps,
    "traces": traces,
    "scorers": scorers,
    "answers": answers,
    "tokenizers": tokenizers,
    "edits": edits,
    "corpora": corpora,
    "examples": examples,
    "domains": domains,
    "slices": slices,
    "subpopulations": subpopulations,
    "weights": weights,
    "images": images,
    "decoders": decoders_,
    "preservation": preservation,
}

__all__ = [
    "METHODS",
    "answers",
    "bytes_",
    "corpora",
    "decoders_",
    "domains",
    "edits",
    "examples",
    "images",
    "keys",
    "layers",
    "models",
    "preservation",
    "scorers",
    "slices",
    "subpopulations",
    "swaps",
    "tokenizers",
    "tokens",
    "traces",
    "weights",
]
