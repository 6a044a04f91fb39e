"""Per-query scores of a run, by ir-measures, with ties settled before it sees them."""

from collections.abc import Mapping, Sequence

import ir_measures
from ir_measures import RR, R, nDCG

from tdro.errors import DataError

DEPTH = 100
"""The deepest rank that any measure looks at."""

MEASURES = {"ndcg@10": nDCG @ 10, "recall@100": R @ DEPTH, "mrr@10": RR @ 10}

Qrels = Mapping[str, Mapping[str, int]]
"""query id -> document id -> relevance (0 = judged not relevant)."""


def score_run(qrels: Qrels, run: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Compute nDCG@10, recall@100 and reciprocal rank at 10 of every judged query.

    A ranking counts exactly in the order given; rankers put equal scores in the order of the ids. ir-measures
    would sort by score and break ties by document id, in descending order for two of these measures and in
    ascending order for the third, so it is given strictly decreasing numbers made from the ranks. nDCG uses linear
    gains (a document of relevance 2 adds 2 / log2(rank + 1)); relevance 1 or more counts as relevant for the others.
    A judged query without results, or without any relevant document, scores 0 and stays in the mean.
    Queries that nobody judged are left out.

    Args:
        qrels: Judgements.
        run: Document ids per query, best first.

    Returns:
        Measure name (`ndcg@10`, `recall@100`, `mrr@10`) -> query id, in the order of qrels -> score in [0, 1].

    Raises:
        DataError: qrels is empty, or a ranking names a document twice.

    Example:
        >>> scores = score_run({"q1": {"d1": 1}, "q2": {"d1": 1}}, {"q1": ["d7", "d1"]})
        >>> scores["mrr@10"], scores["recall@100"]
        ({'q1': 0.5, 'q2': 0.0}, {'q1': 1.0, 'q2': 0.0})
    """
    if not qrels:
        raise DataError("no judgements to score against", do="give qrels for at least one query")
    surrogate = {query_id: _by_rank(query_id, ranking) for query_id, ranking in run.items() if query_id in qrels}
    judged = {query_id: dict(documents) for query_id, documents in qrels.items()}
    scores = {name: dict.fromkeys(qrels, 0.0) for name in MEASURES}
    names = {measure: name for name, measure in MEASURES.items()}
    for result in ir_measures.iter_calc(MEASURES.values(), judged, surrogate):
        scores[names[result.measure]][result.query_id] = float(result.value)
    return scores


def _by_rank(query_id: str, ranking: Sequence[str]) -> dict[str, float]:
    """Give the first 100 documents the numbers 100, 99, ..."""
    top = ranking[:DEPTH]
    numbers = {document: float(DEPTH - rank) for rank, document in enumerate(top)}
    if len(numbers) < len(top):
        raise DataError("a ranking names a document twice", where=f"query {query_id}", saw=list(top))
    return numbers
