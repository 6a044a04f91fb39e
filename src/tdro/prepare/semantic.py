"""Find training queries that mean the same as a test query, as far as an encoder can tell; for reports only."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tdro.data.store import Rows
from tdro.prepare.evaluation_queries import EvaluationSet
from tdro.retrieval.search import Encode, search

_ROWS = 16_384  # queries encoded together


def semantic_neighbours(
    rows: Rows,
    sets: Sequence[EvaluationSet],
    encode: Encode,
    vector_TD: np.ndarray,
    least: float,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, int, int, float]]:
    """Yield the training queries that are close to a test query, with the closest one.

    Args:
        rows: The dataset.
        sets: The evaluation sets.
        encode: Texts -> vectors of length 1.
        vector_TD: Vectors of all test queries, set after set.
        least: Smallest inner product that is yielded.
        progress: Called with (rows done, rows).

    Yields:
        Row, number of the evaluation set, number of the query in it, and the inner product; by row.
    """
    places = [(place, query) for place, one in enumerate(sets) for query in range(len(one.queries))]
    ids = [f"{number:09d}" for number in range(len(places))]
    for start in range(0, len(rows), _ROWS):
        queries = rows.queries_at(rows.numbers_n[start : start + _ROWS])
        hits = search(encode(queries), vector_TD, ids, 1)
        for at in np.flatnonzero(hits.scores_QK[:, 0] >= least).tolist():
            place, query = places[int(hits.indices_QK[at, 0])]
            yield start + at, place, query, float(hits.scores_QK[at, 0])
        if progress is not None:
            progress(start + len(queries), len(rows))
