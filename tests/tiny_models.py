"""Models of a few thousand weights, made on the fly, with tokenizers made from a few sentences."""

import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.utils import logging

Family = Literal["bert", "qwen2", "llama", "mistral", "phi", "gpt_neox", "gemma", "static"]

SENTENCES = (
    "A bee dances to tell its hive where the flowers are.",
    "The river carries sand and stones from the mountains to the sea.",
    "Bread rises because yeast turns sugar into gas.",
    "How do birds find their way home in winter?",
    "A lens bends light, so a telescope shows what is far away.",
    "The clock in the tower strikes twelve at noon and at midnight.",
    "Iron rusts when it meets water and air.",
    "What makes the sky blue and the evening sun red?",
)
"""What the tokenizers are made from; also texts for tests."""

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
"""The wide initialisation keeps the embeddings of different texts apart."""

CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"


def make_tiny_model(family: Family, folder: Path, *, seed: int = 0) -> Path:
    """Write a model with random weights that `AutoModel` and `AutoTokenizer` load from the folder.

    Each family has the habits of its original: BERT is a masked language model without a pooler, Qwen2 has
    no BOS but a chat template, Llama, Mistral and Gemma put a BOS first, the first two have no token to pad with,
    Phi and GPT-NeoX have one special token for everything, and "static" is a saved sentence-transformers model.

    Args:
        family: Architecture.
        folder: Where the files go; made if it is absent.
        seed: Seed of the weights; the tokenizer does not depend on it.

    Returns:
        The folder.
    """
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if family == "static":
            static = StaticEmbedding(_word_pieces(), embedding_dim=SIZES["hidden_size"])
            SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(folder), create_model_card=False)
        else:
            tokenizer = _TOKENIZERS[family]()
            _network(family, len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return folder


def _network(family: Family, vocab_size: int) -> PreTrainedModel:
    """Build the network of a family with fresh weights."""
    if family == "bert":
        return BertForMaskedLM(BertConfig(vocab_size=vocab_size, **SIZES))
    if family == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocab_size, **SIZES))
    sizes = {"vocab_size": vocab_size, "num_key_value_heads": 2, **SIZES}
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes))
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    if family == "phi":
        return PhiForCausalLM(PhiConfig(**sizes))
    if family == "gemma":
        return GemmaForCausalLM(GemmaConfig(head_dim=8, **sizes))
    return MistralForCausalLM(MistralConfig(sliding_window=None, **sizes))


def _word_pieces() -> Tokenizer:
    """Build BERT's tokenizer: the words of the sentences, and letters for all others.

    The library's trainer is of no use here: it breaks ties by chance, so that each process gets other tokens.
    """
    words = re.findall(r"\w+|[^\w\s]", " ".join(SENTENCES).lower())
    characters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{letter}" for letter in characters)]
    pieces += sorted(set(words) - set(pieces))
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_pairs(pre_tokenizer: pre_tokenizers.PreTokenizer, alphabet: list[str], special: list[str]) -> Tokenizer:
    """Train a byte-pair tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    size = len(alphabet) + len(special) + 120
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _parts(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges of a byte-pair tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _bert_tokenizer() -> PreTrainedTokenizerBase:
    """[CLS] text [SEP]."""
    return BertTokenizer(vocab=_word_pieces().get_vocab())


def _qwen2_tokenizer() -> PreTrainedTokenizerBase:
    """Text alone; a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab, merges = _parts(_byte_pairs(byte_level, pre_tokenizers.ByteLevel.alphabet(), special))
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=special[1:])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _llama_tokenizer() -> PreTrainedTokenizerBase:
    """<s> text, as Llama 2: words begin with a visible space, unknown characters fall back to bytes."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _parts(_byte_pairs(pre_tokenizers.Metaspace(split=False), [], special))
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


def _mistral_tokenizer() -> PreTrainedTokenizerBase:
    """<s> text, as Mistral Nemo and Llama 3: byte level, the template behind another post-processor."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = _byte_pairs(byte_level, pre_tokenizers.ByteLevel.alphabet(), ["<unk>", "<s>", "</s>"])
    backend.decoder = decoders.ByteLevel()
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _end_of_text_tokenizer() -> PreTrainedTokenizerBase:
    """Text alone, as Phi and GPT-NeoX: byte level, one special token, which is BOS, EOS and unknown at once."""
    end, byte_level = "<|endoftext|>", pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = _byte_pairs(byte_level, pre_tokenizers.ByteLevel.alphabet(), [end])
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=end, bos_token=end, eos_token=end)


def _gemma_tokenizer() -> PreTrainedTokenizerBase:
    """<bos> text: spaces become visible, unknown characters fall back to bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _parts(_byte_pairs(pre_tokenizers.Metaspace(prepend_scheme="never", split=False), [], special))
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


_TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bert": _bert_tokenizer,
    "qwen2": _qwen2_tokenizer,
    "llama": _llama_tokenizer,
    "mistral": _mistral_tokenizer,
    "phi": _end_of_text_tokenizer,
    "gpt_neox": _end_of_text_tokenizer,
    "gemma": _gemma_tokenizer,
}
