"""`prefopt eval` of a preference model of pictures: how well it orders held-out pairs, at every noise level if it knows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prefopt.config import RunConfig
from prefopt.data.images import image_of
from prefopt.data.latents import empty_condition, encode_examples
from prefopt.errors import PrefoptError
from prefopt.evaluation.heldout import pictures_held_out
from prefopt.evaluation.preference import accuracy, calibration_error, margin
from prefopt.files import write_atomically
from prefopt.models.diffusion import load_image_model
from prefopt.models.preference import MODULATION, as_clip_reads
from prefopt.rewards.images import load_scorer
from prefopt.rewards.step_aware import StepAware
from prefopt.scoring.base import Draw
from prefopt.scoring.denoising import DenoisingScorer
from prefopt.scoring.preference import Predicted

LEVELS = 5  # equal parts of the range of times that accuracies are told of


def evaluate_preference_run(
    folder: Path, config: RunConfig, data: str | None, limit: int | None, progress: bool
) -> dict[str, Any]:
    """Accuracy, margin and calibration on held-out pairs of finished pictures; of a step-aware model also the accuracy
    in each fifth of the times. Writes evaluation.json. PrefoptError if the folder holds no trained model."""
    if not (folder / "config.json").is_file():
        raise PrefoptError(f"{folder} holds no trained model yet: let the run finish")
    found, notes = pictures_held_out(config.data, data, {"pairs"}, limit)
    aware = (folder / MODULATION).is_file()
    scorer = load_scorer(f"{'step-aware' if aware else 'pickscore'}:{folder}")
    sides: tuple[list[float], list[float]] = ([], [])
    for e in found.train:
        images = [image_of(r, e) for r in e.responses]
        scores = scorer.score(images, [str(e.prompt)] * len(images))
        for pair in e.pairs:
            for side, row in zip(sides, pair, strict=True):
                side.append(scores[row])
    measures = {"accuracy": accuracy, "margin": margin, "calibration_error": calibration_error}
    numbers: dict[str, Any] = {
        "settings": {"model": str(folder), "pairs": len(sides[0])},
        "notes": notes,
        "preference": {name: measure(*sides).to_json() for name, measure in measures.items()},
    }
    if aware:
        assert isinstance(scorer, StepAware)
        numbers["accuracy_by_time"] = by_time(scorer, config, found.train)
    write_atomically(folder / "evaluation.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    return numbers


def by_time(scorer: StepAware, config: RunConfig, examples: Sequence[Any], draws: int = 5) -> dict[str, Any]:
    """Fifth of the times -> accuracy on pairs as the base pipeline predicts them there."""
    base = load_image_model(config.sources["base"].path)
    how = DenoisingScorer(base.kind, base.schedule, empty_condition(base), caption_dropout=0.0)
    predicted = Predicted(base, how, float(config.method.get("guidance", 5.0)))
    data = encode_examples(list(examples), base, held_out=True, progress=False)
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in range(LEVELS)]
    for i in range(len(data)):
        batch = how.collate([Draw(data[i], epoch) for epoch in range(draws)]).to(scorer.device)
        decoded, time = predicted(batch)
        pixels = as_clip_reads(decoded, scorer.processor.image_processor)
        with torch.no_grad():
            scores = scorer.values(pixels, [str(data.examples[i].prompt)] * len(pixels), time)
        for w, l in batch.notes["pairs"].tolist():
            part = min(LEVELS - 1, int(LEVELS * float(time[w]) / base.schedule.steps))
            found[part][0].append(float(scores[w]))
            found[part][1].append(float(scores[l]))
    step = base.schedule.steps // LEVELS
    return {f"{n * step} to {(n + 1) * step}": accuracy(*sides).to_json() for n, sides in enumerate(found) if sides[0]}
