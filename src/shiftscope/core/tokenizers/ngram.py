"""What held-out text costs under smoothed n-grams: an entropy that a short stream cannot flatter.

A plug-in H_k is measured on the stream it was counted on; here counts come from some documents and the price is paid on
others, so that a larger vocabulary, thinly learnt, is dearer and not cheaper.

Source: Witten and Bell 1991 (the weight of the shorter context is the number of different symbols seen after the longer one).
"""

# N symbols, C contexts, G grams

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.tokenizers.coding import Stream


def held_out_bits(stream: Stream, learnt_D: NDArray[np.bool_], size: int, highest: int = 5) -> NDArray[np.float64]:
    """Bits [highest] of the documents that were not learnt from, under interpolated n-grams of orders 1 to highest.

    p_k(t | c) = (n(c t) + m(c) p_(k-1)(t)) / (n(c) + m(c)), m(c) the different symbols seen after c; p_0 = 1/size.
    A symbol at the start of a document is predicted from what there is before it. The model itself is not paid for.
    """
    _, symbol_N = np.unique(stream.ids_N, return_inverse=True)
    learnt_N = learnt_D[stream.document_N]
    room_N = np.arange(len(symbol_N)) - np.repeat(stream.starts_D, stream.lengths_D)
    distinct = int(symbol_N.max(initial=-1)) + 1
    p_N, ends, context, bits = np.full(len(symbol_N), 1 / size), np.arange(len(symbol_N)), np.zeros_like(symbol_N), []
    for k in range(1, highest + 1):
        gram_of = np.zeros_like(symbol_N)
        if len(ends):
            seen = learnt_N[ends]
            _, first, gram = np.unique(context * distinct + symbol_N[ends], return_index=True, return_inverse=True)
            n_G = np.bincount(gram[seen], minlength=len(first))
            n_C = np.bincount(context[seen], minlength=int(context.max()) + 1)
            kinds_C = np.bincount(context[first][n_G > 0], minlength=len(n_C))
            known = n_C[context] > 0
            here, of = ends[known], context[known]
            p_N[here] = (n_G[gram[known]] + kinds_C[of] * p_N[here]) / (n_C[of] + kinds_C[of])
            gram_of[ends] = gram
        bits.append(float(-np.log2(p_N[~learnt_N]).sum()))
        ends = ends[room_N[ends] >= k]
        context = gram_of[ends - 1]
    return np.array(bits)
