"""An image run, evaluated on equal seeds against its start, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from prefopt.config import make
from prefopt.evaluation.image_run import evaluate_image_run
from prefopt.evaluation.run import run_config
from prefopt.reporting.report import write_report
from prefopt.rollout.images import ImageSampling
from prefopt.training.run import train


def brightness(prompts: list[str], images: list) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def test_pictures_numbers_and_report(tmp_path: Path, image_model: Path, image_pairs: Path) -> None:
    steps = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    run = {"method": "dpo", "model": str(image_model), "data": str(image_pairs), "output": str(tmp_path / "run")}
    folder = train(make(run | {"train": steps})).folder
    sampling = ImageSampling(steps=2, guidance=1.0)
    found = evaluate_image_run(
        folder, run_config(folder), None, None, brightness, limit=2, progress=False, sampling=sampling
    )
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    before = [row["reward_before"] for row in rows]
    after = [row["reward_after"] for row in rows]
    assert all((folder / row[side]).is_file() for row in rows for side in ("before", "after"))
    assert before != after  # the model moved
    assert found["reward"]["start"]["value"] == np.mean(before)
    wins = sum(a > b for a, b in zip(after, before, strict=True))
    assert found["win_rate"]["wins"] == wins
    html = write_report(folder).read_text()
    assert html.count("data:image/png;base64") >= 2 * len(rows[:4])
