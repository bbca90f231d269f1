"""Entropy estimators from counts of counts, in bits. numpy only.

All take how often each count occurs: `counts` int64 [k], distinct, and `times` int64 [k], of how many symbols each is
the count. A conditional entropy is the joint entropy of n-grams less that of their prefixes, each by the same
estimator.
"""

from __future__ import annotations

import numpy


def plug_in(counts: numpy.ndarray, times: numpy.ndarray) -> float:
    """Plug-in entropy of the observed frequencies: biased low while rare symbols are unseen."""
    total = float(counts @ times)
    return float(numpy.log2(total) - (times * counts * numpy.log2(counts)).sum() / total)


def coverage(counts: numpy.ndarray, times: numpy.ndarray) -> float:
    """Good-Turing coverage: probability of all seen symbols, 1 - symbols seen once / symbols."""
    once = int(times[counts == 1].sum())
    return 1.0 - once / float(counts @ times)


def chao_shen(counts: numpy.ndarray, times: numpy.ndarray) -> float:
    """Bias-corrected entropy (Chao and Shen, Environmental and Ecological Statistics 10, 2003, equation 9).

    Frequencies are shrunk to the coverage, and each symbol's term is divided by the probability of having seen it at
    all (Horvitz and Thompson). Taken here, among the usual ones, because it needs counts of counts alone, so that
    corpora of any size can be streamed, and because it corrects for symbols that were never seen, which is what is
    wrong with n-grams. It still fails where nearly all n-grams are new: see `coverage`.
    """
    total = float(counts @ times)
    covered = coverage(counts, times)
    if covered == 0:  # everything was seen once: as if one symbol had been seen again (their own remedy)
        covered = 1.0 / total
    p = covered * counts / total
    seen = -numpy.expm1(total * numpy.log1p(-numpy.minimum(p, 1 - 1e-15)))
    return float(-(times * p * numpy.log2(p) / seen).sum())
