"""BM25 by its definition, slowly: what the fast ones are compared with."""

import math

from tdro.retrieval.bm25 import words


def bm25(query: str, text: str, collection: list[str]) -> float:
    """The score by its definition: Lucene's form, k1 = 1.5, b = 0.75."""
    length = sum(len(words(other)) for other in collection) / len(collection)
    score = 0.0
    for word in words(query):
        having = sum(word in words(other) for other in collection)
        idf = math.log(1 + (len(collection) - having + 0.5) / (having + 0.5))
        count = words(text).count(word)
        score += idf * count / (count + 1.5 * (0.25 + 0.75 * len(words(text)) / length))
    return score
