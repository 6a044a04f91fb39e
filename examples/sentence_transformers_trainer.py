"""Learn weights and train with them inside `SentenceTransformerTrainer`, in three stages.

    python examples/sentence_transformers_trainer.py --model FOLDER_OR_NAME --output out

Needs the package `datasets`. The three toy datasets are made here; put your own `datasets.Dataset`s in their place,
each with the columns query, positive, negative_1, ... in this order.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from tdro.core.plan import top_share
from tdro.integrations.sentence_transformers import (
    MixedBatches,
    RobustCallback,
    RobustLoss,
    WeightedBatches,
    with_groups,
)

TEMPERATURE = 0.05


def toy_datasets(rows: int, seed: int = 0) -> dict[str, Dataset]:
    """Make three datasets of different difficulty."""
    rng = random.Random(seed)
    things = ["bee", "river", "bread", "bird", "lens", "clock", "iron", "sky"]
    colours = ["red", "blue", "grey", "green", "brown", "white"]
    phrases = {
        "facts": ("where is the {c} {t}?", "the {c} {t} is in room {n}"),
        "titles": ("{t} {n}", "a {c} {t}, number {n}"),
        "noise": ("{t}", "{c} {c} {n}"),
    }
    datasets = {}
    for name, (query, passage) in phrases.items():
        made: dict[str, list[str]] = {"query": [], "positive": [], "negative_1": [], "negative_2": []}
        for _ in range(rows):
            right, *wrong = ({"t": rng.choice(things), "c": rng.choice(colours), "n": rng.randrange(99)} for _ in "123")
            made["query"].append(query.format(**right))
            for column, each in zip(("positive", "negative_1", "negative_2"), (right, *wrong), strict=True):
                made[column].append(passage.format(**each))
        datasets[name] = Dataset.from_dict(made)
    return datasets


def train(model: SentenceTransformer, folder: Path, steps: int, datasets: dict[str, Dataset], **plugged: Any) -> None:
    """Train a model; what makes it tDRO is in `plugged`."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        multi_dataset_batch_sampler=plugged["batches"],
        save_steps=steps,
        report_to="none",
        disable_tqdm=True,
        seed=42,
    )
    loss = plugged["loss"]
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=datasets, loss=loss, callbacks=plugged.get("callbacks")
    ).train()
    model.save_pretrained(str(folder / "model"))


def main() -> None:
    """Reference, weights, robust model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="base: a folder or a hub name"
    )
    parser.add_argument("--output", type=Path, default=Path("out"), help="where the models and weights.json go")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of each stage")
    parser.add_argument("--rows", type=int, default=500, help="rows of each toy dataset")
    asked = parser.parse_args()
    datasets = toy_datasets(asked.rows)

    # Stage 0: every dataset equally likely, one dataset per batch.
    uniform = WeightedBatches(dict.fromkeys(datasets, 1.0), datasets)
    reference = SentenceTransformer(asked.model)
    loss = CachedMultipleNegativesRankingLoss(reference, scale=1 / TEMPERATURE)
    train(reference, asked.output / "reference", asked.steps, datasets, batches=uniform, loss=loss)

    # Stage 1: mixed batches; a proxy learns, and its losses against the reference move the weights.
    proxy = SentenceTransformer(asked.model)
    robust = RobustLoss(proxy, reference, datasets, temperature=TEMPERATURE, step_size=0.1)
    mixed = with_groups(datasets)
    callbacks = [RobustCallback(robust)]
    train(
        proxy, asked.output / "proxy", asked.steps, mixed, batches=MixedBatches(mixed), loss=robust, callbacks=callbacks
    )
    (asked.output / "weights.json").write_text(json.dumps(robust.weights, indent=2), encoding="utf-8")
    print(json.dumps(robust.weights))

    # Stage 2: as stage 0, with the best 70 % of the datasets, as in the paper.
    # WeightedBatches("weights.json", datasets) would sample all of them by weight, as `tdro run` does.
    plan = top_share(robust.weights, 0.7).probabilities
    model = SentenceTransformer(asked.model)
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    train(model, asked.output / "robust", asked.steps, datasets, batches=WeightedBatches(plan, datasets), loss=loss)


if __name__ == "__main__":
    main()
