"""The scores of a task in the form in which `mteb` 2 writes and reads them, made without it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tdro.evaluation.beir import FORUMS
from tdro.evaluation.miracl import LANGUAGES

NAMES = {
    "arguana": "ArguAna",
    "climate-fever": "ClimateFEVER",
    "cqadupstack": "CQADupstackRetrieval",
    **{f"cqadupstack/{forum}": f"CQADupstack{forum.title()}Retrieval" for forum in FORUMS},
    "dbpedia-entity": "DBPedia",
    "fever": "FEVER",
    "fiqa": "FiQA2018",
    "hotpotqa": "HotpotQA",
    "msmarco": "MSMARCO",
    "nfcorpus": "NFCorpus",
    "nq": "NQ",
    "quora": "QuoraRetrieval",
    "scidocs": "SCIDOCS",
    "scifact": "SciFact",
    "trec-covid": "TRECCOVID",
    "webis-touche2020": "Touche2020",
}
"""What mteb calls the sets of BEIR, by the names of their folders; it has CQADupStack as 12 tasks and their mean."""
UNKNOWN = "und-Zyyy"
"""Undetermined language and script, in the codes of ISO that mteb writes."""
MIRACL_NAMES = {"full": "MIRACLRetrieval", "hard-negatives": "MIRACLRetrievalHardNegatives"}


class Subset(NamedTuple):
    """The means of a part of a task: of a language, or of all of it."""

    language: str
    measures: Mapping[str, float]


def mteb_result(
    label: str, settings: Mapping[str, Any], content: str, subsets: Sequence[Subset], main: str
) -> dict[str, Any]:
    """Return what `mteb`'s TaskResult.from_disk reads.

    A task that mteb has is called as it is there, going by the name of its folder; others keep their name. The time is
    left out, so that the same evaluation gives the same file; the revision is the fingerprint of the task's content.

    Args:
        label: Name of the task; with its part, of a forum of CQADupStack.
        settings: Kind, split and variant.
        content: Fingerprint of the task.
        subsets: The means.
        main: The measure that stands for the task.

    Example:
        >>> found = mteb_result("scifact", {"split": "test"}, "ab", [Subset("", {"ndcg@10": 0.5})], "ndcg@10")
        >>> found["task_name"], found["scores"]["test"][0]["ndcg_at_10"]
        ('SciFact', 0.5)
    """
    name = MIRACL_NAMES[settings["variant"]] if settings.get("variant") else NAMES.get(label, label)
    known = "eng-Latn" if label in NAMES else UNKNOWN
    scores = [
        {
            **{measure.replace("@", "_at_"): mean for measure, mean in subset.measures.items()},
            "main_score": subset.measures[main],
            "hf_subset": subset.language or "default",
            "languages": [LANGUAGES.get(subset.language, known) if settings.get("variant") else known],
        }
        for subset in subsets
    ]
    return {
        "dataset_revision": content,
        "task_name": name,
        "mteb_version": None,
        "scores": {settings["split"]: scores},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }
