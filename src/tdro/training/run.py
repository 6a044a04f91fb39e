"""A run folder and the stages in it: what is finished, and what it was made from."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from typing import Any

from sentence_transformers import SentenceTransformer

from tdro.config import Study, fingerprint
from tdro.data.reading import Rows, read_study_dataset
from tdro.devices import (
    ALONE,
    Device,
    Ranks,
    be_deterministic,
    describe_machine,
    peak_memory_gb,
    pick_device,
)
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import cache_folder, read_json, write_json, write_text
from tdro.locks import hold
from tdro.models.encoder import load_encoder, longest_input
from tdro.models.lora import Lora, add_lora, require_peft
from tdro.models.network import check_attention, checkpoint_gradients, compile_network, network_of
from tdro.models.sides import refuse_sharded_sides, sides_of
from tdro.retrieval.encoders import encoder_fingerprint
from tdro.sharding import refuse_other_sharding, shard
from tdro.study_file import save_study
from tdro.training.budget import Budget, bytes_of, find_budget, keep_budget, kept_budget
from tdro.training.journal import Event, Journal, SilentJournal

MARKER = "done.json"
PACKAGES = ("tdro", "torch", "transformers", "sentence-transformers", "pyarrow", "numpy", "ir-measures")


class Run:
    """A study with its run folder, journal and device.

    Args:
        study: The study.
        listener: Called with every event of the journal.
        study_text: The study file as it was written; kept as study.yaml.
        ranks: Who shares the work; rank 0 alone writes to the run folder.

    Raises:
        ConfigError: The machine lacks what model.attention needs, or separate encoders are to be sharded.
        EnvironmentProblem: The run folder cannot be written, or LoRA lacks its package.
    """

    def __init__(
        self,
        study: Study,
        listener: Callable[[Event], None] | None = None,
        study_text: str | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.study, self.ranks = study, ranks
        self.folder = study.run_folder
        self.device: Device = pick_device(study.model.precision)
        self._study_text = study_text
        check_attention(study.model.attention, self.device.name, self.device.autocast)
        refuse_other_sharding(study.model.sharding)
        refuse_sharded_sides(study.model.sharding == "full" and bool(study.model.query_encoder))
        if study.model.deterministic:
            be_deterministic()
        if study.model.lora_rank:
            require_peft()
        try:
            if ranks.number:
                self.journal: Journal = SilentJournal(self.folder)
            else:
                self._lock = hold(self.folder / ".lock", "run folder", "choose another folder with --output")
                self.journal = Journal(self.folder, listener)
        except OSError as error:
            do = "choose another folder with --output"
            raise EnvironmentProblem("run folder cannot be written", where=self.folder, saw=str(error), do=do) from None
        if not (ranks.number or self._lock.guards):
            text = "this file system has no locks: use the folder from one process only"
            self.journal.write("note", "lock", text=text)

    @cached_property
    def source_rows(self) -> dict[str, Rows]:
        """Rows of every dataset as the study's files have them."""
        names, rows = list(self.study.data.datasets), {}
        with self.ranks.first():
            for done, name in enumerate(names, start=1):
                rows[name] = read_study_dataset(self.study, name)
                self.journal.progress("read", done, len(names))
        return rows

    @cached_property
    def base_fingerprint(self) -> str:
        """Identifies the base encoder by its files, and that of the queries where it is another."""
        options = self.study.model
        base = encoder_fingerprint(self.study.fill_root(options.base))
        if options.query_encoder in ("", "copy"):
            return base
        return fingerprint(base, encoder_fingerprint(self.study.fill_root(options.query_encoder)))

    @property
    def max_tokens(self) -> int:
        """Tokens of one forward pass, padding included."""
        return self.budget.max_tokens

    @cached_property
    def budget(self) -> Budget:
        """Tokens of a forward pass: as the study says, as this run or this machine has found them before, or found now.

        What was found is kept in the run folder, so that a run that goes on computes the same bits, also on another
        number of ranks. On a GPU the guide, which stays beside the model, has its room.
        """
        study, path = self.study, self.folder / "budget.json"
        if study.model.micro_batch_tokens is not None:
            return Budget(study.model.micro_batch_tokens, {})
        length, machine = study.data.passage_max_length, describe_machine()
        model = study.model.model_dump(mode="json", exclude={"sharding", "deterministic"})
        guide = study.fill_root(study.reference.guide)
        guides = [encoder_fingerprint(guide)] if guide else []
        key = fingerprint(self.base_fingerprint, model, length, machine, metadata.version("torch"), *guides)
        known = cache_folder() / "budgets" / f"{key}.json"
        with self.ranks.first():
            budget = kept_budget(path, key) or kept_budget(known, key)
            if budget is None:
                gpu = self.device.name != "cpu"
                beside = bytes_of(load_encoder(guide, dtype=self.device.dtype)) if guide and gpu else 0
                budget = find_budget(self.load_base(), self.device, length, beside)
                keep_budget(known, key, budget)
                self.journal.write("note", "budget", text=str(budget))
            if kept_budget(path, key) is None:
                keep_budget(path, key, budget := budget.shared(self.ranks.count, self._tokens_of_step))
        return budget

    @property
    def _tokens_of_step(self) -> int:
        """Tokens of a step of stages 0 and 2, if texts fill half of their lengths."""
        data, config = self.study.data, self.study.reference
        per_query = data.query_max_length + config.passages_per_query * data.passage_max_length
        return config.batch_size * per_query // 2

    @property
    def _packages(self) -> tuple[str, ...]:
        """What the results depend on."""
        return (*PACKAGES, "peft") if self.study.model.lora_rank else PACKAGES

    def load_trainee(self, seed: int | None = None) -> SentenceTransformer:
        """Load the base encoder in training mode, in pieces if the study wants it sharded and there are several ranks.

        Args:
            seed: Of adapters and projection; that of the study where it is not given.

        Raises:
            ConfigError: It is to be sharded, and has no blocks or separate encoders.
        """
        if self.study.model.sharding == "none" or self.ranks.count == 1:
            return self.load_base(seed).train()
        model = self.load_base(seed, "cpu").train()
        refuse_sharded_sides(len(sides_of(model)) > 1)
        shard(model, network_of(model, "model.sharding"), self.device, self.ranks)
        return model

    def load_base(self, seed: int | None = None, device: str = "") -> SentenceTransformer:
        """Load a fresh copy of the base encoder, ready to train.

        It has what the study asks for beside the base: projection, encoder of the queries, adapters, savings.

        Args:
            seed: Of adapters and projection; that of the study where it is not given.
            device: Where it goes; the run's device where it is not given.
        """
        options = self.study.model
        seed = self.study.seed if seed is None else seed
        queries = self.study.fill_root(options.query_encoder)
        model = self.load(
            self.study.fill_root(options.base), device, projection=options.projection, query_encoder=queries, seed=seed
        )
        lora = Lora(options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets)
        if lora.rank:
            projected = options.projection is not None
            add_lora(model, lora, seed, half=self.device.autocast, projection=projected)
        if options.gradient_checkpointing:
            checkpoint_gradients(model)
        if options.compile:
            compile_network(model)
        return model

    def load(
        self,
        name: str,
        device: str = "",
        *,
        projection: int | None = None,
        query_encoder: str = "",
        seed: int = 0,
    ) -> SentenceTransformer:
        """Load an encoder with the study's pooling, on the run's device if no other is given.

        Args:
            name: A folder, package or hub name.
            device: Where it goes.
            projection: Dimensions of a linear layer that it gets; a trained model has its own.
            query_encoder: Encoder of the queries that it gets; a trained model has its own.
            seed: Of that layer.

        Raises:
            ConfigError: It is not found, is no model, or has fewer positions than the study's texts have tokens.
        """
        data, options = self.study.data, self.study.model
        model = load_encoder(
            name,
            pooling=options.pooling,
            projection=projection,
            normalize=options.normalize,
            query_encoder=query_encoder,
            seed=seed,
            device=device or self.device.name,
            dtype=self.device.dtype,
            attention=options.attention,
        )
        longest = max(data.query_max_length, data.passage_max_length)
        if longest > (longest_input(model) or longest):
            do = f"use at most {longest_input(model)} in data.query_max_length and data.passage_max_length"
            raise ConfigError("texts may be longer than the model's positions", where=name, saw=longest, do=do)
        return model

    def finished(self, stage: str, stage_fingerprint: str, *outputs: str) -> dict[str, Any] | None:
        """Return the marker of a stage that was finished from the same inputs and has its outputs, else None."""
        return self.ranks.agree(self._finished(stage, stage_fingerprint, outputs))

    def _finished(self, stage: str, stage_fingerprint: str, outputs: tuple[str, ...]) -> dict[str, Any] | None:
        """Look for the marker of a stage."""
        if not all((self.folder / output).exists() for output in outputs):
            return None
        try:
            marker = read_json(self.folder / stage / MARKER)
        except (OSError, ValueError):
            return None
        if not isinstance(marker, dict) or marker.get("fingerprint") != stage_fingerprint:
            return None
        if self.ranks.number == 0:  # left over from a kill right after the end
            shutil.rmtree(self.folder / stage / "checkpoints", ignore_errors=True)
        return marker

    @contextmanager
    def stage(self, stage: str, stage_fingerprint: str) -> Iterator[dict[str, Any]]:
        """Run a stage, and leave its marker when it ends without an error.

        Yields:
            A dict to put results into; it is kept in the marker.
        """
        folder, writes = self.folder / stage, self.ranks.number == 0
        if writes and (folder / MARKER).exists():  # checkpoints beside it are left over from a kill after the end
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / MARKER).unlink()
        self.ranks.barrier()
        began = time.monotonic()
        result: dict[str, Any] = {}
        yield result
        self.ranks.barrier()
        if not writes:
            return
        seconds = round(time.monotonic() - began, 2)
        marker = {"fingerprint": stage_fingerprint, "seconds": seconds, "peak_memory_gb": peak_memory_gb(), **result}
        write_json(folder / MARKER, marker)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.journal.write("stage_finished", stage, seconds=seconds, **result)

    def write_resolved(self) -> None:
        """Record what ran: every option, versions, data fingerprints, machine and git state; and what was written.

        What results can differ by from run to run goes to the journal too, which keeps what earlier runs had.
        """
        if self.ranks.number:
            return
        versions = {name: metadata.version(name) for name in self._packages}
        exact = self.study.model.deterministic or self.device.name == "cpu"
        self.journal.write(
            "environment", "run", ranks=self.ranks.count, deterministic=exact, versions=versions, **describe_machine()
        )
        ran = {
            "versions": versions,
            "machine": describe_machine(),
            "git": _git_state(),
            "base": self.base_fingerprint,
            "data": {name: rows.info.fingerprint for name, rows in self.source_rows.items()},
        }
        if self._study_text is not None:
            write_text(self.folder / "study.yaml", self._study_text)
        write_text(self.folder / "resolved.yaml", save_study(self.study, ran))


def _git_state() -> dict[str, str] | None:
    """Commit and cleanliness of the working directory's repository, None where there is none."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "state": "changed" if git("status", "--porcelain") else "clean"}
    except (OSError, subprocess.SubprocessError):
        return None
