"""A real static encoder without a hub: the token embeddings of the package wordllama (extra `bench`)."""

from importlib import metadata
from pathlib import Path

PACKAGE = "wordllama"


def static_model(folder: Path) -> Path:
    """Save it as a sentence-transformers model, 32,000 tokens x 256, unless it is there.

    Args:
        folder: Where it goes.

    Returns:
        The folder.

    Raises:
        SystemExit: The package is not installed.
    """
    if (folder / "modules.json").exists():
        return folder
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    try:
        files = {Path(str(file)).name: str(file.locate()) for file in metadata.files(PACKAGE) or ()}
    except metadata.PackageNotFoundError:
        raise SystemExit("pip install 'tdro[bench]' brings the static model") from None
    weights = load_file(files["l2_supercat_256.safetensors"])["embedding.weight"].float()
    tokenizer = Tokenizer.from_file(files["l2_supercat_tokenizer_config.json"])
    modules = [StaticEmbedding(tokenizer, embedding_weights=weights.numpy()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder
