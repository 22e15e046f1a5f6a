"""What each of several processes does in test_image_processes: trains every kind of image run, one after the other."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prefopt.config import make
from prefopt.training.run import train

LORA = {"adapter": {"r": 4}}
RUNS: dict[str, dict[str, Any]] = {  # kind -> method, and the sections that are not the default
    "teacher": {"method": {"name": "self-npo", "evaluations": 3, "ema": 0.5}, "model": LORA},
    "bank": {"method": {"name": "diffusion-dpo", "beta": 100.0}, "denoising": {"bank": 1}},
    "inversion": {"method": {"name": "inpo", "beta": 100.0, "inversion_steps": 4, "inversion_eta": 0.1}, "model": LORA},
    "renoise": {"method": {"name": "smpo", "inversion_steps": 3}},
    "own path": {"method": {"name": "diffusion-dro", "steps": 10, "margin": 1.0}},
    "users": {"method": {"name": "ppd", "beta": 100.0}},
    "preference": {"method": {"name": "clip-preference"}, "model": {"path": "clip"}},
    "step-aware": {
        "method": {"name": "clip-preference", "step_aware": True},
        "model": {"path": "clip"},
        "sources": {"base": {"path": "sd"}},
    },
}
SCORES = ("chosen_reward_score", "rejected_reward_score")


def write(folder: Path, pairs: int = 3) -> None:
    """The models, and pairs of pictures with scores and users: more than a step holds, and not twice as many."""
    from prefopt.worlds.shapes.pipelines import tiny_pipeline
    from tests.small_clip import save_clip

    tiny_pipeline("sd").save_pretrained(folder / "sd")
    save_clip(folder / "clip")
    g = np.random.default_rng(0)
    rows = []
    for i in range(pairs):
        row: dict[str, Any] = {"prompt": ["a red circle in the upper left", "two blue squares at the top"][i % 2]}
        for side in ("chosen", "rejected"):
            row[side] = f"{i}-{side}.png"
            Image.fromarray(g.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / row[side])
        row |= dict(zip(SCORES, (0.3 + 0.1 * i, 0.2), strict=True))
        rows.append(row | {"user": f"user {i % 2}", "user_embedding": [[1.0, -0.5], [0.2, 1.0]][i % 2]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(folder: str, output: str, batch: str) -> None:
    """Two passes over the pairs."""
    steps = {
        "optim": "sgd", "learning_rate": 0.01, "lr_scheduler_type": "constant", "warmup_steps": 0, "num_train_epochs": 2,
        "per_device_train_batch_size": int(batch), "logging_steps": 1, "save_strategy": "no",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    gc.freeze()  # the libraries are no garbage: every run ends with a look for some, 0.3 s each
    for name, sections in RUNS.items():
        places = json.loads(json.dumps({"model": {"path": "sd"}} | sections))
        places["model"].setdefault("path", "sd")
        for section in (places["model"], *places.get("sources", {}).values()):
            section["path"] = f"{folder}/{section['path']}"
        content = {"data": {"path": f"{folder}/pairs.jsonl"}, "train": steps, "output": f"{output}/{name}"}
        train(make(content | places))
