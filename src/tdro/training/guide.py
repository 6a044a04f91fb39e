"""A frozen encoder beside the one in training that tells which negatives of a batch may be right answers."""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.core.losses import guide_negatives
from tdro.data.mixture import Draw
from tdro.devices import ALONE, Device, Ranks
from tdro.errors import ConfigError
from tdro.models.encoder import embed, load_encoder, longest_input
from tdro.models.sides import pack_sides, side_of
from tdro.training.batch_loss import number_texts
from tdro.training.run import Run
from tdro.training.texts import StepTexts, TextSource


class Guide:
    """Compares the queries and passages of a batch by its own embeddings.

    It sees the texts of the step, instruction included, as its own tokenizer cuts them up.

    Args:
        model: The guide.
        source: The texts of the steps as the guide's tokens.
        margin: See `guide_negatives`.
        device: Where and in which precision.
        max_tokens: Tokens of a forward pass.
        ranks: Who shares the work: each embeds some of the texts.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        source: TextSource,
        margin: float,
        device: Device,
        max_tokens: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self._model, self._source, self._margin = model.requires_grad_(False).eval(), source, margin
        self._device, self._max_tokens, self._ranks = device, max_tokens, ranks

    def texts(self, draw: Draw, passages_per_query: int) -> StepTexts:
        """Return the texts of a draw; may be called in another thread."""
        return self._source.texts(draw, passages_per_query)

    def excluded(self, texts: StepTexts) -> Tensor:
        """Return [E, 2] int64, pairs of a query's row and the row of a passage that must not be its negative."""
        number_B, queries = number_texts(texts.queries_B)
        number_P, passages = number_texts(texts.passages_P)
        embedding_nD = self._embed(queries + passages, len(queries))
        query_UD, passage_UD = embedding_nD[: len(queries)], embedding_nD[len(queries) :]
        number_B, number_P, positive_B = (
            numbers.to(self._device.name) for numbers in (number_B, number_P, texts.positive_B)
        )
        return guide_negatives(query_UD[number_B], passage_UD[number_P], positive_B, self._margin)

    def _embed(self, token_lists: list[list[int]], queries: int) -> Tensor:
        """Embed texts, queries first; all ranks get all embeddings."""
        length_n = np.array([len(tokens) for tokens in token_lists])
        passes = pack_sides(self._model, length_n, queries, self._max_tokens)
        dealt = [passes[rank :: self._ranks.count] for rank in range(self._ranks.count)]
        dtype = torch.promote_types(self._device.dtype, torch.float32)
        width = side_of(self._model, "passages").get_embedding_dimension() or 0
        parts = [torch.empty((0, width), dtype=dtype, device=self._device.name)]
        with torch.no_grad(), self._device.precision():
            parts += [embed(side, [token_lists[i] for i in group]) for side, group in dealt[self._ranks.number]]
        embedding_nD = torch.cat(self._ranks.gather(torch.cat(parts)))
        order_n = np.argsort(np.concatenate([group for of_rank in dealt for _, group in of_rank]))
        return embedding_nD[torch.from_numpy(order_n).to(embedding_nD.device)]


def load_guide(run: Run) -> SentenceTransformer:
    """Load the guide of a study as its author has made it; its similarity is the cosine.

    Raises:
        ConfigError: It is not found, is no model, or has fewer positions than the study's texts have tokens.
    """
    study, name = run.study, run.study.fill_root(run.study.reference.guide)
    model = load_encoder(name, device=run.device.name, dtype=run.device.dtype)
    longest, most = max(study.data.query_max_length, study.data.passage_max_length), longest_input(model)
    if most is not None and longest > most:
        what, where = "texts may be longer than the guide's positions", f"reference.guide, {name}"
        do = f"use at most {most} in data.query_max_length and data.passage_max_length, or another guide"
        raise ConfigError(what, where=where, saw=longest, do=do)
    return model
