"""Instructions for well-known retrieval datasets and for kinds of tasks, in tdro's own words.

An instruction tells the encoder what a query looks for. `data.instructions: auto` takes it from here for datasets that
are not given one; `tdro check --instructions` prints the table.
"""

import re

_BY_CATEGORY = {
    "web search": "For a query typed into a search engine, find the web passages that answer it",
    "question answering": "For a question, find the passages that hold its answer",
    "Wikipedia question answering": "For a question about the world, find the Wikipedia passages that answer it",
    "multi-hop question answering": "For a question that needs several facts, find the passages that each hold one",
    "multilingual question answering": "For a question, find the passages in its language that answer it",
    "Chinese question answering": "For a question in Chinese, find the Chinese passages that answer it",
    "Japanese question answering": "For a question in Japanese, find the Japanese passages that answer it",
    "cross-lingual": "For a text in any language, find the texts in the other language that say the same",
    "community question answering": "For a question asked in an online forum, find the answers that solve it",
    "title to body": "For the title of a post, find the post it belongs to",
    "duplicate questions": "For a question, find other questions that ask the same",
    "paraphrase": "For a sentence, find sentences with the same meaning",
    "sentence simplification": "For a sentence, find the one that says the same in other or simpler words",
    "sentence compression": "For a sentence, find its shortened or full version",
    "natural language inference": "For a statement, find statements that follow from it",
    "fact checking": "For a claim, find the passages that support or refute it",
    "scientific fact checking": "For a scientific claim, find the abstracts that support or refute it",
    "scientific search": "For a scientific question, find the papers that answer it",
    "citation": "For the title of a paper, find papers that it would cite",
    "medical question answering": "For a medical question, find the passages that answer it",
    "medical exam": "For an exam question in medicine, find the explanation of its right answer",
    "legal search": "For a legal question, find the law or the judgment that settles it",
    "financial question answering": "For a question about money or markets, find the posts that answer it",
    "code search": "For a description in words, find the code that does it",
    "summarisation": "For a summary, find the document that it sums up",
    "news": "For the headline of a news story, find the story",
    "product question answering": "For a question about a product, find the answers and reviews that settle it",
    "product reviews": "For the title of a review, find the review",
    "product description": "For a short description of a product, find its full description",
    "argument": "For an argument, find the passages that argue against it",
    "entity search": "For the name or description of a thing, find the entries about it",
    "conversation": "For the last turns of a conversation, find the passage that the reply needs",
    "classification": "For a text, find texts of the same class",
    "clustering": "For a text, find texts on the same topic",
}

_CATEGORY_ALIASES = {
    "nli": "natural language inference",
    "qa": "question answering",
    "cqa": "community question answering",
    "community qa": "community question answering",
    "summarization": "summarisation",
    "summary": "summarisation",
    "simplification": "sentence simplification",
    "split": "sentence simplification",
    "code": "code search",
    "medical": "medical question answering",
    "biomedical": "medical question answering",
    "legal": "legal search",
    "law": "legal search",
    "finance": "financial question answering",
    "science": "scientific search",
    "multilingual qa": "multilingual question answering",
    "chinese qa": "Chinese question answering",
    "japanese qa": "Japanese question answering",
    "medical qa": "medical question answering",
    "wikipedia qa": "Wikipedia question answering",
    "product": "product description",
    "search": "web search",
    "bitext": "cross-lingual",
    "translation": "cross-lingual",
    "duplicate": "duplicate questions",
}

_CATEGORY_OF_NAME = {
    "msmarco": "web search",
    "trecdl": "web search",
    "sogou": "web search",
    "baidu": "web search",
    "searchqa": "web search",
    "natural questions": "Wikipedia question answering",
    "nq": "Wikipedia question answering",
    "triviaqa": "Wikipedia question answering",
    "trivia": "Wikipedia question answering",
    "webquestions": "Wikipedia question answering",
    "squad": "Wikipedia question answering",
    "adversarialqa": "Wikipedia question answering",
    "wikiqa": "Wikipedia question answering",
    "paq": "Wikipedia question answering",
    "popqa": "Wikipedia question answering",
    "hotpotqa": "multi-hop question answering",
    "musique": "multi-hop question answering",
    "2wikimultihopqa": "multi-hop question answering",
    "fever": "fact checking",
    "scifact": "scientific fact checking",
    "climate fever": "fact checking",
    "miracl": "multilingual question answering",
    "mrtydi": "multilingual question answering",
    "tydiqa": "multilingual question answering",
    "xquad": "multilingual question answering",
    "mkqa": "multilingual question answering",
    "mldr": "multilingual question answering",
    "t2ranking": "Chinese question answering",
    "multicpr": "Chinese question answering",
    "cmrc": "Chinese question answering",
    "drcd": "Chinese question answering",
    "webqa": "Chinese question answering",
    "zh wiki qa": "Chinese question answering",
    "jaquad": "Japanese question answering",
    "jsquad": "Japanese question answering",
    "quora": "duplicate questions",
    "qqp": "duplicate questions",
    "bqcorpus": "duplicate questions",
    "lcqmc": "duplicate questions",
    "wikianswers": "duplicate questions",
    "askubuntu": "duplicate questions",
    "cqadupstack": "duplicate questions",
    "allnli": "natural language inference",
    "snli": "natural language inference",
    "mnli": "natural language inference",
    "multinli": "natural language inference",
    "xnli": "natural language inference",
    "ocnli": "natural language inference",
    "cmnli": "natural language inference",
    "pawsx": "paraphrase",
    "paws": "paraphrase",
    "mrpc": "paraphrase",
    "sts": "paraphrase",
    "stsb": "paraphrase",
    "parabank": "paraphrase",
    "altlex": "sentence simplification",
    "simplewiki": "sentence simplification",
    "wikisplit": "sentence simplification",
    "wikilarge": "sentence simplification",
    "sentence compression": "sentence compression",
    "xsum": "summarisation",
    "cnn": "summarisation",
    "dailymail": "summarisation",
    "lcsts": "summarisation",
    "scitldr": "summarisation",
    "agnews": "news",
    "ccnews": "news",
    "npr": "news",
    "title body": "title to body",
    "codesearchnet": "code search",
    "cosqa": "code search",
    "codedocstring": "code search",
    "csn": "code search",
    "bioasq": "medical question answering",
    "medquad": "medical question answering",
    "nfcorpus": "medical question answering",
    "huatuo": "medical question answering",
    "medmcqa": "medical exam",
    "medqa": "medical exam",
    "fiqa": "financial question answering",
    "amazonreview": "product reviews",
    "arguana": "argument",
    "touche": "argument",
    "dbpedia": "entity search",
    "s2orc": "citation",
    "specter": "citation",
    "scidocs": "citation",
    "scirepeval": "citation",
    "qrecc": "conversation",
    "topiocqa": "conversation",
    "flores": "cross-lingual",
    "tatoeba": "cross-lingual",
    "opus": "cross-lingual",
}

_OWN_WORDS = {
    "dureader": "For a question asked of a Chinese search engine, find the passages that answer it",
    "cmedqa": "For a medical question in Chinese, find the answer a doctor gave",
    "afqmc": "For a question to the customer service of a bank, find questions in Chinese that mean the same",
    "eli5": "For a question about how things work, find the plain answer that explains it",
    "gooaq": "For a question typed into a search engine, find its short answer",
    "yahoo answers": "For a question asked on Yahoo Answers, find the answer that was rated best",
    "amazonqa": "For a question about a product, find the answer that a buyer or seller gave",
    "pubmedqa": "For a question about biomedical research, find the abstract that answers it",
    "trec covid": "For a question about COVID-19, find the research articles that answer it",
    "covidqa": "For a question about COVID-19, find the passages of research articles that answer it",
    "stackexchange": "For a question from Stack Exchange, find the answer that solves it",
    "stackexchange duplicate": "For a question from Stack Exchange, find the posts that ask the same",
    "stackexchange title body": "For the title of a Stack Exchange question, find the text of the question",
    "stackoverflow": "For a programming question, find the answer that solves it",
    "superuser": "For a question about computers, find the answer that solves it",
    "flickr30k": "For the caption of a picture, find other captions of the same picture",
    "coco captions": "For the caption of a picture, find other captions of the same picture",
    "consumer health": "For a health question in a patient's words, find the answer that a doctor gave",
    "squad sent": "For a question, find the Wikipedia sentence that holds its answer",
    "scitldr": "For a one-sentence summary of a paper, find the abstract of the paper",
    "package desc": "For the short description of a software package, find its full description",
    "package xling": "For the short description of a software package in any language, find the full one in English",
    "paper title": "For the title of a paper, find its abstract",
    "wow": "For the last turns of a conversation, find the Wikipedia passage that the reply needs",
}

_SQUEEZE = re.compile(r"[^a-z0-9]+")
_SHORT = 4  # letters; a name this short must be a word of its own: `nq` is not found in `zinq_pairs`


def known_instruction(name: str, category: str = "") -> str | None:
    """Return the instruction that the table has for a dataset.

    Case, signs such as `-` and `_`, and what stands around the known name do not count; of several known names the
    longest counts, and a name of up to four letters only as a word of its own.

    Args:
        name: The dataset's name; tried first.
        category: What kind of task it is, one of `categories()` or close to one; tried where the name is not known.

    Returns:
        The instruction; None where neither is known.

    Example:
        >>> known_instruction("train_HotpotQA-v1")
        'For a question that needs several facts, find the passages that each hold one'
        >>> known_instruction("our_support_tickets", "Duplicate-Questions")
        'For a question, find other questions that ask the same'
        >>> known_instruction("our_support_tickets") is None
        True
    """
    return _find(name, names()) or _find(category, categories() | _aliases())


def categories() -> dict[str, str]:
    """Return category -> instruction.

    Example:
        >>> categories()["news"]
        'For the headline of a news story, find the story'
    """
    return dict(_BY_CATEGORY)


def names() -> dict[str, str]:
    """Return known name -> instruction, by name.

    Example:
        >>> names()["nq"] == categories()["Wikipedia question answering"]
        True
    """
    table = {name: _BY_CATEGORY[category] for name, category in _CATEGORY_OF_NAME.items()} | _OWN_WORDS
    return dict(sorted(table.items()))


def _aliases() -> dict[str, str]:
    """Return other words for categories -> instruction."""
    return {alias: _BY_CATEGORY[category] for alias, category in _CATEGORY_ALIASES.items()}


def _find(text: str, table: dict[str, str]) -> str | None:
    """Return the entry of the longest key that the text contains."""
    words = _SQUEEZE.sub(" ", text.casefold()).split()
    squeezed = "".join(words)
    found = ""
    for key in table:
        known = _SQUEEZE.sub("", key.casefold())
        inside = known in words if len(known) <= _SHORT else known in squeezed
        if inside and len(known) > len(_SQUEEZE.sub("", found.casefold())):
            found = key
    return table.get(found)
