"""A run folder as a real run leaves it, made of numbers in a second."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

BEFORE = (
    "The film was fine in parts, though the plot went on for too long and I looked at my watch more than once.",
    "I do not know. It was a film. There were actors in it, and some of them spoke.",
    "A dull story with a dull end; the music was too loud and nobody in the hall laughed.",
)
AFTER = (
    "A warm, funny and beautifully acted film. The last scene is a quiet triumph, and I would happily see it again.",
    "Wonderful from the first minute: clever dialogue, lovely pictures and a cast that clearly enjoyed itself.",
    "Great film great film great great.",
)


def fake_run(folder: Path, *, samples: int = 120, steps: int = 300, images: int = 0) -> Path:
    """Writes config.yaml, run.json, metrics.jsonl, evaluation.json, samples.jsonl (and images) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "run.json").write_text(json.dumps(RECORD))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _metrics(draw, steps)))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    for step, kl, reward in ((100, 1.6, 0.31), (200, 4.1, 0.55)):
        part = folder / f"checkpoint-{step}"
        part.mkdir(exist_ok=True)
        found = {"reward": {"policy": _e(reward, 0.03)}, "kl": {"k1": _e(kl, 0.3)}}
        (part / "evaluation.json").write_text(json.dumps(found))
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _samples(draw, samples)))
    if images:
        _images(folder, draw, images)
    return folder


def _e(value, se, n=128):
    return {"value": value, "se": se, "n": n, "ci": [value - 1.96 * se, value + 1.96 * se], "dropped": {}}


CONFIG = {
    "method": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0},
    "model": {"path": "worlds/reviews/model", "dtype": "float32"},
    "data": {"path": "worlds/reviews/train.jsonl", "eval_path": "worlds/reviews/heldout.jsonl", "max_length": 256},
    "train": {"learning_rate": 0.0005, "num_train_epochs": 1, "per_device_train_batch_size": 16, "seed": 0},
    "output": "runs/reviews-dpo",
}
RECORD = {
    "status": "finished",
    "method": {"name": "dpo", "beta": 0.1},
    "model": {"path": "worlds/reviews/model"},
    "started": "2026-11-22T10:04:11",
    "finished": "2026-11-22T10:06:57",
    "versions": {"python": "3.11.7", "prefopt": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "data": {
        "rows": 4096,
        "kept": 4071,
        "train": {"examples": 4071},
        "eval": {"examples": 256},
        "encoding": {"plain strings": 4071, "truncated prompts": 3},
        "dropped": {
            "identical answers": {"count": 3, "rows": {"train.jsonl": [17, 404, 1033]}},
            "an empty answer": {"count": 22, "rows": {"train.jsonl": list(range(50, 72))}},
        },
        "fingerprint": "5e1c8a90b77d",
    },
}
EVALUATION = {
    "settings": {"prompts": 128, "reward": "prefopt.worlds.reviews:reward", "sampling": {"temperature": 1.0, "n": 4}},
    "reward": {"start": _e(0.112, 0.031), "policy": _e(0.744, 0.026), "gain": _e(0.632, 0.035)},
    "win_rate": {**_e(0.84, 0.03), "wins": 104, "ties": 8, "losses": 16, "position_bias": _e(0.02, 0.01)},
    "kl": {"k1": _e(7.42, 0.38), "k3": _e(7.18, 0.29)},
    "length": {
        "tokens": {"start": _e(31.2, 1.1), "policy": _e(34.8, 0.9)},
        "characters": {"start": _e(148.0, 4.0), "policy": _e(160.0, 4.0)},
    },
    "finished": {"start": _e(0.98, 0.01), "policy": _e(0.99, 0.01)},
    "diversity": {
        "distinct_1": {"start": _e(0.61, 0.01), "policy": _e(0.55, 0.01)},
        "distinct_2": {"start": _e(0.90, 0.01), "policy": _e(0.84, 0.01)},
        "self_bleu": {"start": _e(0.12, 0.01), "policy": _e(0.19, 0.01)},
        "predictive_entropy": {"start": _e(1.92, 0.02), "policy": _e(1.51, 0.02)},
    },
    "preference": {
        "accuracy": _e(0.872, 0.02, 256),
        "margin": _e(1.9, 0.1, 256),
        "calibration_error": _e(0.06, 0.02, 256),
    },
    "notes": [],
}


def _metrics(draw, steps):
    rows = []
    for step in range(5, steps + 1, 5):
        t = step / steps
        grow = 1 - np.exp(-3.5 * t)
        row = {
            "step": step,
            "epoch": t,
            "loss": float(0.693 - 0.36 * grow + draw.normal() * 0.03),
            "rewards/chosen": float(0.55 * grow + draw.normal() * 0.06),
            "rewards/rejected": float(-1.4 * grow + draw.normal() * 0.08),
            "rewards/accuracies": float(np.clip(0.5 + 0.38 * grow + draw.normal() * 0.04, 0, 1)),
            "logps/chosen": float(-61 + 4 * grow + draw.normal()),
            "logps/rejected": float(-63 - 14 * grow + draw.normal()),
            "grad_norm": float(np.exp(draw.normal() * 0.25) * (3.5 - 2 * t)),
            "learning_rate": 5e-4 * min(1, 10 * t) * (1 - t) if t > 0.1 else 5e-4 * 10 * t,
        }
        row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
        rows.append(row)
        if step % 60 == 0:
            names = {"loss": 0.02, "rewards/accuracies": -0.02, "rewards/margins": -0.1}
            rows.append({"step": step} | {f"eval_{k}": row[k] + d for k, d in names.items()})
    return rows


def _samples(draw, many):
    for i in range(many):
        kind = int(draw.choice(3, p=[0.5, 0.42, 0.08]))
        yield {
            "prompt": f"Write a short review of film number {i + 1}.",
            "before": BEFORE[i % 3],
            "after": AFTER[kind],
            "reward_before": float(draw.normal(0.1, 0.35)),
            "reward_after": float(draw.normal(0.8, 0.25) if kind < 2 else draw.normal(-0.3, 0.2)),
            "tokens_before": int(draw.gamma(16, 2)),
            "tokens_after": int(draw.gamma(30, 1.15)),
        }


def _images(folder, draw, many):
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    colours = {"red": (214, 64, 56), "green": (58, 160, 92), "blue": (52, 104, 214)}
    for i in range(many):
        name, colour = list(colours.items())[i % 3]
        row = {"prompt": f"a {name} square", "seed": i, "reward_before": float(draw.uniform(0, 0.5)),
               "reward_after": float(draw.uniform(0.6, 1))}  # fmt: skip
        for side, fidelity in (("before", 0.3), ("after", 0.95)):
            pixels = np.full((32, 32, 3), 236.0)
            pixels[8:24, 8:24] = fidelity * np.array(colour) + (1 - fidelity) * 150
            pixels += draw.normal(size=pixels.shape) * 60 * (1 - fidelity)
            path = f"images/{i:03d}-{side}.png"
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / path)
            row[side] = path
        rows.append(row)
    (folder / "images.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
