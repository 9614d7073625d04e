"""What a learned embedding says: which tokens lie near each other, and all of them in a plane.

It is the output embedding, the rows of the read-out (Press and Wolf 2017): tokens that come in the same places are near
each other there. The input embedding learns less of that, and starts from vectors so long that it still looks random
after a short training.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .model import LanguageModel
from .text import Ids

Vectors = NDArray[np.float64]

PROBES = 8
NEAREST = 5
KNOWN = 20  # how often a word must come for its vector to be more than its random start


def frequent(model: LanguageModel, ids: Ids, most: int, least_count: int = 1) -> list[int]:
    """Return the ids of the most frequent tokens of a text that hold a letter, the most frequent first."""
    counts = np.bincount(ids, minlength=len(model.vocabulary))
    tokens = model.vocabulary.tokens
    order = np.argsort(-counts, kind="stable")
    known = (int(i) for i in order if counts[i] >= least_count and i != model.vocabulary.unknown)
    return [i for i in known if any(c.isalpha() for c in tokens[i])][:most]


def directions(model: LanguageModel) -> Vectors:
    """Return the output embedding (V,H): its rows less their mean, of length 1 each."""
    vectors = model.head.parameters()["weight"].astype(np.float64)
    vectors -= vectors.mean(axis=0)
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(float).tiny)


def nearest(vectors: Vectors, one: int, among: Sequence[int], count: int) -> list[tuple[int, float]]:
    """Return the ids whose vectors have the largest cosine with that of one id, and these cosines."""
    others = np.array([i for i in among if i != one], dtype=np.int64)
    cosines = vectors[others] @ vectors[one]
    best = np.argsort(-cosines, kind="stable")[:count]
    return [(int(others[i]), float(cosines[i])) for i in best]


def plane(vectors: Vectors) -> Vectors:
    """Return points (n,2): the two principal components of vectors (n,E) (Pearson 1901)."""
    centred = vectors - vectors.mean(axis=0)
    components: Vectors = np.linalg.svd(centred, full_matrices=False)[2]
    points = centred @ components[:2].T
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def table_of_neighbours(model: LanguageModel, ids: Ids) -> str:
    """Return lines: frequent words of a text, and to each the nearest others with the cosines."""
    known = frequent(model, ids, most=2000, least_count=KNOWN)
    tokens = model.vocabulary.tokens
    if len(known) <= NEAREST:
        return f"        no more than {len(known)} words come {KNOWN} times: too few to compare"
    vectors = directions(model)
    long = [i for i in known if len(tokens[i]) > 3] or known
    probes = long[:: max(1, min(len(long), 25 * PROBES) // PROBES)][:PROBES]
    width = max(len(tokens[i]) for i in probes)
    lines = []
    for one in probes:
        found = (f"{tokens[i]} {cosine:.2f}" for i, cosine in nearest(vectors, one, known, NEAREST))
        lines.append(f"        {tokens[one]:>{width}}: {', '.join(found)}")
    return "\n".join(lines)
