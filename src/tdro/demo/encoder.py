"""Make the demo's encoder: a table of token vectors, small enough to train on a laptop in minutes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

DIMENSION = 256
VOCABULARY = 10_000
_CHUNK = 1000


def build_encoder(folder: Path, texts: Iterable[str], *, seed: int) -> None:
    """Train a tokenizer on texts and save it with random token vectors as a sentence-transformers model.

    A text is encoded as the mean of its tokens' vectors, normalised. The directions of the vectors are random; their
    lengths are the tokens' inverse document frequencies, log(1 + n / (1 + df)) scaled to mean square 1, so that before
    any training the model compares texts like tf-idf does, and negatives mined with it are sensible.

    Args:
        folder: Where the model is saved; plain `SentenceTransformer(folder)` loads it.
        texts: The texts the vocabulary and the document frequencies are taken from; read once.
        seed: Seed of the vectors; the same seed and texts give the same files.
    """
    documents = list(texts)
    tokenizer = _train_tokenizer(documents)
    weights_VD = _random_vectors(tokenizer, documents, seed)
    embedding = StaticEmbedding(tokenizer, embedding_weights=weights_VD)
    SentenceTransformer(modules=[embedding, Normalize()], device="cpu").save(str(folder), create_model_card=False)


def _train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Train a lower-case tokenizer that sees `maxRetries` and `max_retries` as the same two words.

    Byte pair encoding with a mark at the beginning of words: unlike WordPiece's, its trainer breaks ties the same way
    in every process.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    split_camel_case = normalizers.Replace(Regex(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"), " ")
    tokenizer.normalizer = normalizers.Sequence([split_camel_case, normalizers.BertNormalizer(lowercase=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _random_vectors(tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> np.ndarray:
    """Draw one vector per token, [V, D] float32, as long as the token is rare."""
    document_frequency = Counter(token for ids in _token_ids(tokenizer, texts) for token in set(ids))
    size = tokenizer.get_vocab_size()
    frequency_V = np.array([document_frequency[token] for token in range(size)])
    length_V = np.log1p(len(texts) / (1 + frequency_V))
    length_V /= np.sqrt(np.mean(length_V**2))
    directions_VD = np.random.default_rng(seed).standard_normal((size, DIMENSION)) / np.sqrt(DIMENSION)
    return (directions_VD * length_V[:, None]).astype(np.float32)


def _token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the tokens of every text, a thousand texts in memory at a time."""
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_batch(texts[start : start + _CHUNK], add_special_tokens=False):
            yield encoding.ids
