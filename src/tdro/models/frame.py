"""The special tokens that frame a text, kept in the tokenizer's post-processor so that they survive saving."""

import json
import tempfile
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import PostProcessor
from transformers import PreTrainedTokenizerBase

from tdro.errors import ConfigError
from tdro.models.quiet import quiet


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Return the special tokens that the post-processor puts first and last; None where it puts none."""
    code = tokenizer.backend_tokenizer.encode("a")
    rows = zip(code.ids, code.special_tokens_mask, code.attention_mask, strict=True)
    added = [token if special else None for token, special, used in rows if used]
    return (added[0], added[-1]) if added else (None, None)


def append_eos(tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    """Let the post-processor append the end-of-text token, and make sure that saving keeps it."""
    if tokenizer.eos_token is None:
        do = "set eos_token in its tokenizer_config.json"
        raise ConfigError(f"the tokenizer of {base} has no end-of-text token", where="model.base", do=do)
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.post_processor = _with_end(backend.post_processor, tokenizer.eos_token, tokenizer.eos_token_id)
    with tempfile.TemporaryDirectory() as folder, quiet():
        tokenizer.save_pretrained(folder)
        if frame(type(tokenizer).from_pretrained(folder)) != frame(tokenizer):
            do = "set tokenizer_class to PreTrainedTokenizerFast in its tokenizer_config.json"
            saw = type(tokenizer).__name__
            raise ConfigError(f"the tokenizer of {base} loses the end-of-text token when saved", saw=saw, do=do)


def _with_end(processor: PostProcessor | None, token: str, token_id: int) -> PostProcessor:
    """Return the post-processor with a token appended to each text.

    Two templates in a row would each take the other's tokens for texts (BOS EOS text EOS), so a template that is
    there is extended; only without one is a new one put behind what is there.
    """
    carrier = Tokenizer(WordLevel({"a": 0}, unk_token="a"))  # the library (de)serializes processors only inside one
    carrier.post_processor = processor
    state: dict[str, Any] = json.loads(carrier.to_str())
    before = state["post_processor"]
    steps = before["processors"] if before and before["type"] == "Sequence" else [before] if before else []
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        text, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
        template = {"type": "TemplateProcessing", "single": [text], "pair": [text, second], "special_tokens": {}}
        steps.append(template)
    template["single"].append({"SpecialToken": {"id": token, "type_id": 0}})
    template["special_tokens"][token] = {"id": token, "ids": [token_id], "tokens": [token]}
    state["post_processor"] = {"type": "Sequence", "processors": steps}
    return Tokenizer.from_str(json.dumps(state)).post_processor
