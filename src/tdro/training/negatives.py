"""The stage before training: datasets whose rows lack hard negatives get them mined."""

import glob
import shutil
from functools import cached_property
from pathlib import Path

from tdro.config import MiningConfig, fingerprint
from tdro.data.reading import Rows, read_dataset
from tdro.errors import ConfigError
from tdro.files import cache_folder, read_json, write_json
from tdro.prepare.bm25 import Bm25
from tdro.prepare.candidates import Dense, Ranker
from tdro.prepare.judges import Judge, PairScorer
from tdro.prepare.margins import Selection
from tdro.prepare.mining import mine
from tdro.retrieval.bm25 import require_bm25
from tdro.retrieval.corpus import PassageFile
from tdro.retrieval.cross_encoder import load_cross_encoder
from tdro.retrieval.encoders import encoder_fingerprint
from tdro.training.encoders import Encoders, text_settings
from tdro.training.run import Run
from tdro.training.token_caches import instruction_of

STAGE = "negatives"


def negatives(run: Run, source: dict[str, Rows] | None = None) -> dict[str, Rows]:
    """Return the rows of every dataset with hard negatives, mining them where the study asks for it.

    Mined datasets are kept in data/negatives/NAME.jsonl beside a report; they are mined again only when their rows,
    their corpus, a model or the settings change. Embeddings stay in the cache, so that a run that was killed goes on
    with the texts that were not encoded, and mining with other margins encodes nothing. Several ranks share encoding
    and search; the rest they all do, and write the same file.

    Args:
        run: The run.
        source: Dataset -> rows to mine for; by default all rows of the study's files.
    """
    config, source = run.study.mining, source or run.source_rows
    wanted = {
        name
        for name, rows in source.items()
        if config.when == "always" or (config.when == "missing" and rows.without_negatives)
    }
    miner = _Mining(run)
    result = {}
    for done, (name, rows) in enumerate(source.items()):
        if name not in wanted:
            result[name] = rows
            continue
        run.journal.progress(STAGE, done, len(source), dataset=name)
        out = run.folder / "data" / "negatives" / f"{name}.jsonl"
        inputs = miner.fingerprint(name, rows)
        if not run.ranks.agree(_is_made_from(out, inputs)):
            miner.mine(name, rows, out, inputs)
        with run.ranks.first():
            result[name] = read_dataset(name, out, cache=cache_folder() / "datasets")
    return result


def selection_of(config: MiningConfig) -> Selection:
    """Return what mining selects under these options."""
    return Selection(
        ranks=config.ranks,
        negatives=config.negatives,
        sampling=config.sampling,
        relative_margin=config.relative_margin,
        absolute_margin=config.absolute_margin,
        max_score=config.max_score,
        min_score=config.min_score,
    )


def refuse_unread(config: MiningConfig) -> None:
    """Refuse options that would not be read.

    Raises:
        ConfigError: Both an encoder and a cross-encoder are to score what BM25 has found.
    """
    if config.source == "bm25" and config.encoder and config.cross_encoder:
        do = "leave out mining.encoder or mining.cross_encoder"
        what = "an encoder and a cross-encoder cannot both score what BM25 has found"
        raise ConfigError(what, where="mining.encoder", saw=config.encoder, do=do)


class _Mining:
    """The models that a study mines with, loaded when they are needed."""

    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.study.mining
        refuse_unread(self._config)

    @cached_property
    def _encoder_name(self) -> str:
        """The encoder that ranks, or that scores what BM25 has found; empty for BM25 alone."""
        given = self._config.encoder or ("" if self._config.source == "bm25" else self._run.study.model.base)
        return self._run.study.fill_root(given)

    @cached_property
    def _identity(self) -> str:
        """Identifies the encoder by its files."""
        return encoder_fingerprint(self._encoder_name) if self._encoder_name else ""

    @cached_property
    def _encoders(self) -> Encoders:
        """The encoder."""
        return Encoders(self._run, self._run.load(self._encoder_name))

    @cached_property
    def _cross_encoder_name(self) -> str:
        """The cross-encoder; empty for none."""
        return self._run.study.fill_root(self._config.cross_encoder)

    @cached_property
    def _scorer(self) -> PairScorer:
        """The cross-encoder."""
        score = load_cross_encoder(self._cross_encoder_name, device=self._run.device.name)
        return PairScorer(score, self._config.cross_encoder)

    def fingerprint(self, name: str, rows: Rows) -> str:
        """Identify everything that the negatives of a dataset depend on."""
        study, corpus = self._run.study, self._corpus(name)
        options = study.data.datasets[name]
        if self._config.source == "bm25":
            require_bm25()
        return fingerprint(
            rows.info.fingerprint,
            self._config,
            self._identity,
            encoder_fingerprint(self._cross_encoder_name) if self._cross_encoder_name else "",
            "" if corpus is None else corpus.fingerprint(cache_folder()),
            text_settings(study, instruction_of(options, "queries"), "queries"),
            text_settings(study, instruction_of(options, "passages"), "passages"),
            study.seed,
        )

    def mine(self, name: str, rows: Rows, out: Path, inputs: str) -> None:
        """Mine one dataset and write its report."""
        run, corpus = self._run, self._corpus(name)
        ranker, judge = self._ranker_and_judge(name, rows)
        _report_of(out).unlink(missing_ok=True)  # it vouches for the file that is about to be replaced
        run.ranks.barrier()
        report = mine(
            rows,
            out,
            dataset=name,
            ranker=ranker,
            judge=judge,
            seed=run.study.seed,
            corpus=None if corpus is None else corpus.store(cache_folder()),
            selection=selection_of(self._config),
            only_missing=self._config.when == "missing",
            process=run.ranks.number,
            progress=lambda done, of: run.journal.progress(STAGE, done, of, dataset=name),
        )
        run.ranks.barrier()
        if run.ranks.number == 0:
            for left in out.parent.glob(f".{glob.escape(out.name)}.mining-*"):  # of more processes, which were killed
                shutil.rmtree(left, ignore_errors=True)
            write_json(_report_of(out), {"inputs": inputs, **report.as_dict()})
        run.journal.write("mined", STAGE, dataset=name, **report.as_dict())
        for warning in report.warnings:
            run.journal.write("note", STAGE, text=f"{name}: {warning}")

    def _corpus(self, name: str) -> PassageFile | None:
        """The file of further passages that a dataset names."""
        given = self._run.study.data.datasets[name].corpus
        return PassageFile(self._run.study.locate(given)) if given else None

    def _ranker_and_judge(self, name: str, rows: Rows) -> tuple[Ranker, Judge | None]:
        """Return who ranks the passages, and who scores them for the margins where it is somebody else."""
        judge = self._scorer if self._cross_encoder_name else None
        if not self._encoder_name:
            return Bm25(), judge
        given = self._config.encoder or self._run.study.model.base
        foreign = bool(self._run.study.data.datasets[name].corpus)
        query, passage = self._encoders.of_dataset(name, rows, self._identity, foreign=foreign)
        dense = Dense(query, passage, given, self._run.device.name)
        return (dense, judge) if self._config.source == "dense" else (Bm25(), judge or dense)


def _report_of(out: Path) -> Path:
    """Where the report of a mined file is."""
    return out.with_suffix(".json")


def _is_made_from(out: Path, inputs: str) -> bool:
    """Say whether a mined file is there and was made from these inputs."""
    try:
        return out.exists() and read_json(_report_of(out))["inputs"] == inputs
    except (OSError, ValueError, KeyError, TypeError):
        return False
