"""The main job on the built-in world, from nothing to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel

from .files import read_jsonl

REWARD = "prefopt.worlds.reviews:reward"
# tuned once on seed 0 of the world: large enough steps to show an effect in a minute on two cores
SETTINGS = {
    "method": {"name": "dpo", "beta": 0.1},
    "train": {
        "learning_rate": 2e-4,
        "max_steps": 120,
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "linear",
        "logging_steps": 5,
        "save_steps": 60,
    },
}


def run(output: Path, seed: int, out: Console) -> None:
    """Build `reviews`, align its model by DPO, evaluate, report; prints samples, the gain and the report's path."""
    from .config import make
    from .evaluation.run import evaluate_run
    from .reporting.report import write_report
    from .rollout.text import Sampling
    from .training.run import train
    from .worlds import reviews

    out.rule("1 of 4  a small world: film reviews, a model that writes them, and preferences between its reviews")
    world = reviews.build(seed=seed)
    out.rule("2 of 4  align the model by DPO on 2,048 preferences")
    content: dict[str, Any] = {
        **SETTINGS,
        "model": str(world.model),
        "data": {"path": str(world.train), "eval_path": str(world.heldout)},
        "output": str(output),
    }
    content["train"] = {**SETTINGS["train"], "seed": seed, "eval_strategy": "steps", "eval_steps": 60}
    folder = train(make(content)).folder
    out.rule("3 of 4  compare it with its start on new prompts")
    sampling = Sampling(max_new_tokens=80, n=2, seed=seed)
    found = evaluate_run(folder, reward=REWARD, sampling=sampling, limit=128)
    out.rule("4 of 4  report")
    report = write_report(folder)
    _show(folder, found, report, out)


def _show(folder: Path, found: dict[str, Any], report: Path, out: Console) -> None:
    rows = read_jsonl(folder / "samples.jsonl")
    rows.sort(key=lambda r: r["reward_after"] - r["reward_before"])
    for row in (
        rows[len(rows) // 2],
        rows[3 * len(rows) // 4],
        rows[-1],
    ):  # median, upper quartile, best: not the worst only
        out.print(f"[bold]{row['prompt']}[/bold]", highlight=False)
        before, after = f"before ({row['reward_before']:.2f})", f"after ({row['reward_after']:.2f})"
        out.print(Panel(row["before"].strip(), title=before, title_align="left", border_style="dim"))
        out.print(Panel(row["after"].strip(), title=after, title_align="left", border_style="green"))
    reward, win = found["reward"], found["win_rate"]
    low, high = reward["gain"]["ci"]
    out.print(
        f"true reward {reward['start']['value']:.3f} -> {reward['policy']['value']:.3f} "
        f"(gain {reward['gain']['value']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}); "
        f"better than its start in {win['value']:.0%} of comparisons",
        highlight=False,
    )
    out.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)
