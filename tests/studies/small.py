"""A study small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REWARD = "def score(prompts, responses):\n    return [float(r.count('a')) for r in responses]\n"


def content(tmp: Path, model: Path, pairs: Path, **changes: Any) -> dict[str, Any]:
    """The study as YAML would give it; the first 16 rows train, the last 8 are held out."""
    rows = pairs.read_text().splitlines(keepends=True)
    tmp.mkdir(parents=True, exist_ok=True)
    (tmp / "train.jsonl").write_text("".join(rows[:16]))
    (tmp / "held.jsonl").write_text("".join(rows[16:24]))
    (tmp / "reward.py").write_text(REWARD)
    made: dict[str, Any] = {
        "name": "small",
        "model": str(model),
        "data": {"path": str(tmp / "train.jsonl"), "eval_path": str(tmp / "held.jsonl")},
        "train": {
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 1,
        },
        "methods": {"dpo": {"grid": {"beta": [0.1, 0.5]}}, "simpo": None},
        "evaluation": {"reward": f"{tmp / 'reward.py'}:score", "limit": 4, "samples": 2, "max_new_tokens": 8},
        "output": str(tmp / "out"),
    }
    return made | changes
