"""What a model's first module takes: token lists padded, or laid end to end where nothing needs padding."""

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Router, StaticEmbedding, Transformer

from tdro.errors import ConfigError, DataError
from tdro.models.frame import frame


def features_of(model: SentenceTransformer, token_lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Build what the model's first module takes, on the model's device.

    Static embeddings take flat tokens with offsets. A network whose attention takes texts of any lengths laid end to
    end (flash attention's functions for variable lengths) gets them so. All others get padded tokens with a mask.

    Args:
        model: What `load_encoder` returns; of separate encoders one side (`tdro.models.sides.side_of`).
        token_lists: n >= 1 token lists.

    Raises:
        ConfigError: The model has separate encoders, and it is not said which of them is meant.
        DataError: A text has no tokens, or lacks the end-of-text token of a model with last-token pooling.
    """
    first = model[0]
    if isinstance(first, Router):
        do = "take side_of(model, 'queries') or side_of(model, 'passages') of tdro.models.sides"
        raise ConfigError("the model has separate encoders for queries and passages", do=do)
    if isinstance(first, StaticEmbedding):
        features = _with_offsets(token_lists)
    else:
        _check_frame(model, token_lists)
        flat = isinstance(first, Transformer) and first.can_flatten_inputs
        features = _end_to_end(model, token_lists) if flat else _padded(model, token_lists)
    device = model.device
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in features.items()}


def pools_last(model: SentenceTransformer) -> bool:
    """Tell whether the embedding is, or contains, the last token's."""
    return any(isinstance(module, Pooling) and "lasttoken" in module.pooling_mode for module in model)


def _with_offsets(token_lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """All tokens in a row, and where each text begins."""
    flat = [token for ids in token_lists for token in ids]
    starts_n = torch.tensor([0, *(len(ids) for ids in token_lists)]).cumsum(0)[:-1]
    return {"input_ids": torch.tensor(flat, dtype=torch.long), "offsets": starts_n}


def _padded(model: SentenceTransformer, token_lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Texts padded on the right, and a mask."""
    lengths_n = torch.tensor([len(ids) for ids in token_lists])
    input_ids_nL = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids, dtype=torch.long) for ids in token_lists],
        batch_first=True,
        padding_value=model.tokenizer.pad_token_id,
    )
    mask_nL = torch.arange(input_ids_nL.shape[1]) < lengths_n[:, None]
    return {"input_ids": input_ids_nL, "attention_mask": mask_nL.long()}


def _end_to_end(model: SentenceTransformer, token_lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One row of all tokens [1, L], and where texts begin and end; what sentence-transformers' own collator makes."""
    flat = [token for ids in token_lists for token in ids]
    lengths_n = torch.tensor([len(ids) for ids in token_lists])
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths_n.cumsum(0)])
    text_L = torch.arange(len(lengths_n)).repeat_interleave(lengths_n)
    first_position = getattr(model[0], "_flatten_position_offset", 0)  # RoBERTa and its relatives do not count from 0
    position_L = torch.arange(len(flat)) - bounds[text_L] + first_position
    longest = int(lengths_n.max())
    return {
        "input_ids": torch.tensor([flat], dtype=torch.long),
        "position_ids": position_L[None],
        "seq_idx": text_L[None].int(),
        "cu_seq_lens_q": bounds.int(),
        "cu_seq_lens_k": bounds.int(),
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _check_frame(model: SentenceTransformer, token_lists: Sequence[Sequence[int]]) -> None:
    """Refuse empty texts and, under last-token pooling, texts without the tokenizer's first and last special token."""
    if not all(token_lists):
        raise DataError("a text has no tokens", do="remove empty texts")
    if not pools_last(model):
        return
    first, last = frame(model.tokenizer)
    for ids in token_lists:
        if ids[-1] != last or first not in (None, ids[0]):
            what = "a text lacks the special tokens that last-token pooling relies on"
            saw = f"first {ids[0]}, last {ids[-1]}; expected first {first}, last {last}"
            raise DataError(what, saw=saw, do="tokenize with tdro.data.collate.tokenize and cut nothing after it")
