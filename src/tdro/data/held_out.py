"""Rows that no model trains on, so that losses can be measured on what was not memorised."""

import numpy as np

from tdro.data.mixture import seeded
from tdro.data.store import Rows
from tdro.errors import ConfigError

LEAST = 200
"""Rows held out of each dataset where it has at least twice as many."""


def split_rows(rows: dict[str, Rows], share: float, seed: int) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Split every dataset into rows to train on and rows to measure on.

    A dataset gives max(share, 200 rows), but at most half of its rows. Rows with the same query text stay together, so
    no query is on both sides; the number is therefore only nearly exact.

    Args:
        rows: Dataset -> rows.
        share: Share of the rows to hold out, above 0 and at most 0.5.
        seed: Decides which; together with the name and the queries of a dataset, nothing else.

    Returns:
        Rows for training and rows held out, both in file order.

    Raises:
        ConfigError: All rows of a dataset ask the same query.
    """
    training, held_out = {}, {}
    for name, dataset in rows.items():
        distinct, query_n, count = np.unique(dataset.queries_n, return_inverse=True, return_counts=True)
        if len(distinct) < 2:
            what = "a dataset with one query has nothing to hold out"
            raise ConfigError(what, where=f"dataset {name}", saw=distinct[0], do="set weights.held_out_share to 0")
        wanted = min(max(round(share * len(dataset)), LEAST), len(dataset) // 2)
        order = seeded(seed, "held out", name).permutation(len(distinct))
        taken = max(1, int(np.searchsorted(np.cumsum(count[order]), wanted, side="right")))
        chosen_n = np.isin(query_n, order[: min(taken, len(distinct) - 1)])
        training[name] = dataset.select(np.flatnonzero(~chosen_n))
        held_out[name] = dataset.select(np.flatnonzero(chosen_n))
    return training, held_out
