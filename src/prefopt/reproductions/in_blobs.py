"""What reproductions in the world of blobs share: its data with other labels, tuning, and looking at equal noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .bench import Bench
from .measure_images import accuracy_on_pairs, pictures, rewards, side_by_side, win_rate

if TYPE_CHECKING:
    from PIL.Image import Image

EACH = 128  # pictures of each of the four captions
DRAWS = 10  # noise levels that the implicit reward of a pair is averaged over
SHOWN = 2  # pictures of each caption in the grid
TRAIN: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "logging_steps": 20,
    "save_strategy": "no",
}
SCORED = {"chosen_reward_score": "chosen_score", "rejected_reward_score": "rejected_score"}
"""The truth of the data's pictures as the score that a method asks for."""

Parts = Mapping[str, str]
Row = dict[str, Any]


def world(bench: Bench, temperature: float = 0.1) -> dict[str, str]:
    """The seed's world: where model, pairs and held-out pairs lie."""
    from ..worlds import blobs

    built = blobs.build(seed=bench.seed, temperature=temperature)
    return {name: str(getattr(built, name)) for name in ("model", "train", "heldout")}


def drawn(bench: Bench, name: str, model: Path) -> tuple[list[str], list[Image]]:
    """EACH pictures of every caption from the seed's noise; the first of them are kept for the grid."""
    from ..worlds import blobs

    said, images = pictures(model, blobs.captions(), EACH, blobs.SAMPLING, first_noise=10_000 * bench.seed)
    folder = bench.folder / "shown" / name
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(len(blobs.captions()) * SHOWN):
        images[n // SHOWN * EACH + n % SHOWN].save(folder / f"{n}.png")
    return said, images


def look(bench: Bench, name: str, model: Path) -> list[float]:
    """Rewards of the pictures that `drawn` makes."""
    from ..worlds import blobs

    return rewards(*drawn(bench, name, model), blobs.reward)


def content(
    bench: Bench, parts: Parts, method: Mapping[str, Any], rate: float, steps: int, data: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of a run from the world's model."""
    train = {**TRAIN, "learning_rate": rate, "max_steps": steps, "seed": bench.seed}
    return {"method": dict(method), "model": parts["model"], "data": dict(data), "train": train}


def accuracy(bench: Bench, parts: Parts, model: Path) -> float:
    """Of the model's implicit reward, on the world's held-out pairs."""
    return accuracy_on_pairs(model, Path(parts["model"]), Path(parts["heldout"]), draws=DRAWS, seed=bench.seed)


def tune(
    bench: Bench, name: str, parts: Parts, method: Mapping[str, Any], rate: float, steps: int, data: Mapping[str, Any]
) -> dict[str, Any]:
    """One run from the world's model, and what came of it."""
    folder = bench.train(name, content(bench, parts, method, rate, steps, data))
    return {"rewards": look(bench, name, folder), "implicit_accuracy": accuracy(bench, parts, folder)}


def compared(
    bench: Bench, parts: Parts, runs: Mapping[str, Callable[[], dict[str, Any]]], base: str = "base"
) -> dict[str, Any]:
    """Mean reward of the start and of every run, win rate over the start, implicit accuracy."""
    start = bench.once(base, lambda: look(bench, base, Path(parts["model"])))
    found: dict[str, Any] = {base: {"reward": float(np.mean(start))}}
    for name, run in runs.items():
        tuned = bench.once(name, run)
        found[name] = {
            "reward": float(np.mean(tuned["rewards"])),
            "win_rate": win_rate(tuned["rewards"], start),
            "implicit_accuracy": tuned["implicit_accuracy"],
        }
    return found


def runs_of(
    bench: Bench, parts: Parts, plans: Mapping[str, tuple[Mapping[str, Any], float, int, Mapping[str, Any]]]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> (method, learning rate, steps, data) as the runs that `compared` makes."""
    return {name: partial(tune, bench, name, parts, *plan) for name, plan in plans.items()}


def grid(folder: Path, names: Mapping[str, str], output: Path | None = None) -> None:
    """`pictures.png` in the folder, or `output`: equal noise in every column, a row for each run."""
    from PIL import Image

    from ..worlds import blobs

    said = [caption for caption in blobs.captions() for _ in range(SHOWN)]
    rows = [
        (shown, [Image.open(folder / "shown" / name / f"{n}.png") for n in range(len(said))])
        for name, shown in names.items()
    ]
    side_by_side(rows, said, output or folder / "pictures.png")


def relabelled(parts: Parts, path: Path, first_wins: Callable[[Row, np.random.Generator], bool], seed: int) -> Path:
    """The training pairs with other labels: `first_wins` says whether the row's present winner stays it."""
    rng, rows = np.random.default_rng(seed), []
    train = Path(parts["train"])
    for line in train.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sides = ("chosen", "rejected") if first_wins(row, rng) else ("rejected", "chosen")
        made = {"prompt": row["prompt"]}
        for new, old in zip(("chosen", "rejected"), sides, strict=True):
            made |= {new: str((train.parent / row[old]).resolve()), f"{new}_score": row[f"{old}_score"]}
        rows.append(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
