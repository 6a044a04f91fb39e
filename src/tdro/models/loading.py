"""A folder becomes one encoder or two, as its files say: sentence-transformers, Hugging Face, adapters, released."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Router, StaticEmbedding, Transformer
from transformers import AutoTokenizer

from tdro.errors import ConfigError
from tdro.models.adapters import CONFIG, base_of, is_adapter, merge_adapter
from tdro.models.released import is_untied, read_arguments, read_projection
from tdro.models.sides import ROUTES, UNTIED, Kind, side_of
from tdro.models.top import freeze_layer_weights
from tdro.models.trust import refuse_code
from tdro.models.vocabulary import grow_embeddings, is_decoder

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_KINDS: tuple[Kind, Kind] = ("queries", "passages")


@dataclass(frozen=True)
class Found:
    """An encoder as a folder has it.

    Attributes:
        model: Its modules.
        pooling: What the folder asks for; "auto" where the modules say it.
        appends: Whether its tokenizer may be made to append the end-of-text token.
    """

    model: SentenceTransformer
    pooling: str
    appends: bool


def read_folder(folder: Path, model_kwargs: dict[str, Any]) -> list[Found]:
    """Read the encoder of a folder; two, that of queries first, where queries and passages have encoders of their own.

    Args:
        folder: A sentence-transformers, Hugging Face, adapter or released folder.
        model_kwargs: For transformers: `dtype`, `use_safetensors` and perhaps `attn_implementation`.

    Raises:
        ConfigError: Weights are missing, or an adapter or the settings of a released model do not do.
        Exception: What the libraries raise on files they cannot read.
    """
    refuse_code(folder)
    if (folder / "modules.json").is_file():
        return _saved(folder, model_kwargs)
    if not is_untied(folder):
        return [_released(folder, folder, "passages", model_kwargs)]
    inside = zip(UNTIED, _KINDS, strict=True)
    return [_released(folder / name, folder, kind, model_kwargs) for name, kind in inside]


def _saved(folder: Path, model_kwargs: dict[str, Any]) -> list[Found]:
    """Read a sentence-transformers folder with its own modules."""
    _refuse_inner_adapters(folder)
    settings = folder / "config_sentence_transformers.json"
    kind = json.loads(settings.read_text(encoding="utf-8")).get("model_type") if settings.is_file() else None
    if kind not in (None, "SentenceTransformer"):
        raise ValueError(f"this is a {kind}, not a SentenceTransformer")
    model = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        model_kwargs=model_kwargs,
        processor_kwargs={"padding_side": "right"},
    )
    inside = folder / json.loads((folder / "modules.json").read_text(encoding="utf-8"))[0]["path"]
    routed = isinstance(model[0], Router)
    sides = [side_of(model, kind) for kind in _KINDS] if routed else [model]
    for side, route in zip(sides, ROUTES.values(), strict=False):
        if isinstance(side[0], StaticEmbedding):  # a Transformer has taken dtype already, its rotary buffers float32
            side.to(model_kwargs["dtype"])
        elif isinstance(side[0], Transformer):
            _refuse_missing_weights(side[0].model, _first_of(inside, route) if routed else inside)
        freeze_layer_weights(side)
    return [Found(side, "auto", False) for side in sides]


def _refuse_inner_adapters(folder: Path) -> None:
    """Refuse modules that are adapters: the library would load the bases that they name, unseen by `refuse_code`."""
    for inner in folder.rglob(CONFIG):
        what = "an adapter inside a sentence-transformers folder"
        do = "give the adapter's own folder, without a modules.json: it is merged into the base that it names"
        raise ConfigError(what, where=inner.parent, do=do)


def _first_of(folder: Path, route: str) -> Path:
    """Find the folder of the first module of a route."""
    structure = json.loads((folder / "router_config.json").read_text(encoding="utf-8"))["structure"]
    return folder / str(structure[route][0])


def _released(folder: Path, root: Path, kind: Kind, model_kwargs: dict[str, Any]) -> Found:
    """Read a Hugging Face or adapter folder, with what `model_args.yaml` in the root puts on top of it."""
    arguments = read_arguments(root)
    found = _adapted(folder, root, model_kwargs) if is_adapter(folder) else _plain(folder, root, model_kwargs)
    projection = read_projection((folder, root), arguments.projected)
    if projection is not None:
        found.model.append(projection.to(model_kwargs["dtype"]))
    pooling = arguments.pooling(kind)
    return Found(found.model, pooling if pooling != "auto" else found.pooling, found.appends)


def _plain(folder: Path, root: Path, model_kwargs: dict[str, Any]) -> Found:
    """Read a Hugging Face folder and put a pooling on top."""
    elsewhere = {} if _has_tokenizer(folder) or not _has_tokenizer(root) else {"tokenizer_name_or_path": str(root)}
    # Left to itself the library sends every text through the chat template where the tokenizer has one.
    transformer = Transformer(
        str(folder),
        model_kwargs={**_LOCAL, **model_kwargs},
        processor_kwargs={**_LOCAL, "padding_side": "right"},  # set later, it would not be saved
        config_kwargs=dict(_LOCAL),
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
        **elsewhere,
    )
    _refuse_missing_weights(transformer.model, folder)
    mode = "lasttoken" if is_decoder(transformer.config) else "mean"
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), mode)]
    return Found(SentenceTransformer(modules=modules, device="cpu"), "auto", True)


def _adapted(folder: Path, root: Path, model_kwargs: dict[str, Any]) -> Found:
    """Read the base of an adapter, give it the adapter's tokenizer, and merge the adapter into it."""
    bases = read_folder(base_of(folder), model_kwargs)
    first = bases[0].model[0]
    if len(bases) > 1 or not isinstance(first, Transformer):
        raise ConfigError("an adapter belongs to one transformer", where=folder, do="correct its base")
    if own := next((place for place in (folder, root) if _has_tokenizer(place)), None):
        _take_tokenizer(first, own)
        grow_embeddings(first)
    merge_adapter(first, folder)
    return bases[0]


def _has_tokenizer(folder: Path) -> bool:
    """Tell whether there are files of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _take_tokenizer(transformer: Transformer, folder: Path) -> None:
    """Give a network the tokenizer of another folder."""
    longest = transformer.max_seq_length
    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="right", **_LOCAL)
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
    transformer.processor = transformer.input_formatter.processor = tokenizer


def _refuse_missing_weights(network: Any, folder: Path) -> None:
    """Refuse a folder without weights that loading has therefore made up at random."""
    _, info = type(network).from_pretrained(
        folder,
        config=copy.deepcopy(network.config),
        device_map="meta",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        do = "use a complete checkpoint of this architecture"
        raise ConfigError("the model lacks weights that it needs", where=folder, saw=missing, do=do)
