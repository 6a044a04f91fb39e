"""How long the texts of a dataset are and in which languages, from a seeded sample."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tdro.data.mixture import seeded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE = 2000
"""Texts of a kind that are sampled in a dataset."""
LANGUAGE_SAMPLE = 500
"""Texts of the sample whose language is identified."""
LONGEST = 50_000
"""Characters of a sampled text that are kept; longer ones count as this long."""

_SURE = 0.5  # probability from which a language counts as identified
_RARE = 0.02  # languages with a smaller share of the texts are summed up
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")


class Sample:
    """A uniform sample of a stream of texts, in memory that does not grow with it.

    Args:
        size: Texts of the sample.
        key: What the sample depends on, besides the stream.

    Attributes:
        seen: Texts so far.
        texts: The sample, in no order.

    Source: Li, Reservoir-sampling algorithms of time complexity O(n(1+log(N/n))) (1994), algorithm L: the number of
    texts to skip is drawn, so a text that is not taken costs one comparison.
    """

    def __init__(self, size: int, *key: object) -> None:
        self.texts: list[str] = []
        self.seen = 0
        self._size, self._random = size, seeded("sample", *key)
        self._threshold, self._next = 1.0, size - 1
        self._skip()

    def add(self, text: str) -> None:
        """Take the next text of the stream, or pass over it."""
        if self.seen < self._size:
            self.texts.append(text[:LONGEST])
        elif self.seen == self._next:
            self.texts[int(self._random.integers(self._size))] = text[:LONGEST]
            self._skip()
        self.seen += 1

    def _skip(self) -> None:
        """Draw which text is the next one to be taken."""
        self._threshold *= math.exp(math.log1p(-self._random.random()) / self._size)
        self._next += 1 + int(math.log1p(-self._random.random()) / math.log1p(-self._threshold))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of sampled texts, in tokens of the study's tokenizer or in words.

    Args:
        sampled: Texts measured.
        median: Of their lengths.
        p95: 95th percentile.
        longest: The longest one.
        cut: Share of the texts that training cuts; None where lengths are in words.
    """

    sampled: int
    median: float
    p95: float
    longest: int
    cut: float | None


def measure(texts: Sequence[str], tokenizer: Path | None, max_length: int) -> Lengths | None:
    """Measure texts as training writes them, instruction included.

    Args:
        texts: The texts.
        tokenizer: Folder of an encoder; None counts words (and Han characters and kana one by one).
        max_length: Tokens that training keeps of a text, special tokens included. The end-of-text token that training
            appends for a decoder is counted only if the tokenizer appends it by itself.

    Returns:
        The lengths; None without texts.

    Example:
        >>> measure(["who dances", "bees"], None, 128)
        Lengths(sampled=2, median=1.5, p95=1.95, longest=2, cut=None)
    """
    if not texts:
        return None
    length_N = np.array([len(_WORD.findall(text)) for text in texts] if tokenizer is None else _count(texts, tokenizer))
    median, p95 = np.percentile(length_N, [50, 95])
    cut = None if tokenizer is None else float((length_N > max_length).mean())
    return Lengths(len(texts), round(float(median), 2), round(float(p95), 2), int(length_N.max()), cut)


def _count(texts: Sequence[str], folder: Path) -> list[int]:
    """Count the tokens of every text, special tokens included."""
    fast, special = _load_tokenizer(folder)
    if fast is not None:
        return [len(code.ids) for code in fast.encode_batch_fast(list(texts), add_special_tokens=special)]
    return [len(ids) for ids in _slow_tokenizer(folder)(list(texts), verbose=False)["input_ids"]]


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Path) -> "tuple[Tokenizer | None, bool]":
    """Load tokenizer.json alone, in a fraction of the time that transformers takes; and whether special tokens count.

    A static embedding model uses its tokenizer without them. The tokenizer is None where there is no such file.
    """
    from tokenizers import Tokenizer

    modules = folder / "modules.json"
    special = not (modules.is_file() and "StaticEmbedding" in modules.read_text(encoding="utf-8"))
    files = [*folder.glob("tokenizer.json"), *sorted(folder.glob("*/tokenizer.json"))]
    if not files:
        return None, special
    tokenizer = Tokenizer.from_file(str(files[0]))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, special


@lru_cache(maxsize=1)
def _slow_tokenizer(folder: Path) -> Any:
    """Load a tokenizer that has no tokenizer.json."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def languages(texts: Sequence[str]) -> dict[str, float]:
    """Identify the languages of texts.

    Uses py3langid (97 languages, ISO 639-1 codes), whose model is part of the package. Without it, the script of the
    letters stands for the language.

    Args:
        texts: Any number of texts; `LANGUAGE_SAMPLE` of them, evenly spaced, are looked at.

    Returns:
        Language -> share of the texts, largest first; "?" where the text is too short to be sure, "other" for languages
        that are rare among the texts.
    """
    texts = texts[:: max(1, len(texts) // LANGUAGE_SAMPLE)][:LANGUAGE_SAMPLE]
    identify = _identifier()
    counts = Counter(map(_script if identify is None else identify, texts))
    total = counts.total()
    shares = {name: count / total for name, count in counts.most_common() if count >= _RARE * total and name != "?"}
    other = sum(count for name, count in counts.items() if name not in shares and name != "?") / (total or 1)
    if other:
        shares["other"] = other
    if counts["?"]:
        shares["?"] = counts["?"] / total
    return {name: round(share, 4) for name, share in shares.items()}


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """Return a function from text to language code; None where py3langid is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> str:
        """Return the language of a text, or "?"."""
        language, probability = model.classify(text[:2000])
        return str(language) if probability >= _SURE else "?"

    return identify


def _script(text: str) -> str:
    """Name the script of most letters of a text, or "?".

    Example:
        >>> _script("Who dances?"), _script("踊るのは誰")
        ('Latin script', 'Hiragana script')
    """
    names = Counter(unicodedata.name(char, "?").split()[0] for char in text[:2000] if char.isalpha())
    if names["HIRAGANA"] or names["KATAKANA"]:
        return "Hiragana script"
    return f"{names.most_common(1)[0][0].capitalize()} script" if names else "?"
