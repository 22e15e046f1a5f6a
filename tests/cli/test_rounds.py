"""Rounds of image roll-outs on several processes: the processes share a round's pieces, and make one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forks import Done, Forks

JUDGES = """
def bright(prompts, images):
    return [sum(image.convert("L").tobytes()) for image in images]

def judge(images, prompts, timesteps):
    return 100 * images.mean((1, 2, 3))

def flat(prompts, images):
    return [1.0] * len(images)
"""
KEYS = {
    "d3po": ["method.steps=4", "method.guidance=2"],
    "spo-step": ["method.steps=5", "method.divert_start_step=1", "method.threshold=0", "method.guidance=1"],
}


def run(forks: Forks, processes: int, name: str, model: Path, data: Path, folder: Path, judge: str, batch: int) -> Done:
    (folder / "judges.py").write_text(JUDGES)
    keys = ["rollout.rounds=2", "rollout.prompts_per_round=4", "rollout.batch_size=1", "train.optim=sgd"]
    keys += ["train.learning_rate=1e-2", "train.logging_steps=1", f"train.per_device_train_batch_size={batch}"]
    reward = f"rollout.reward={folder / 'judges.py'}:{judge}"
    given = ["-m", model, "-d", data, "-o", folder / str(processes), *KEYS[name], *keys, reward]
    return forks.run("train", name, *given, processes=processes)


@pytest.mark.parametrize(("name", "judge"), [("d3po", "bright"), ("spo-step", "judge")])
def test_two_processes_are_one_run(
    name: str, judge: str, forks: Forks, image_model: Path, image_pairs: Path, tmp_path: Path
) -> None:
    for processes, batch in ((1, 8), (2, 4)):
        done = run(forks, processes, name, image_model, image_pairs, tmp_path, judge, batch)
        assert done.code == 0, done.stderr[-3000:]
    a, b = (load_file(tmp_path / x / "unet" / "diffusion_pytorch_model.safetensors") for x in ("1", "2"))
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-3, atol=1e-5)
    one, two = ([json.loads(line) for line in (tmp_path / x / "metrics.jsonl").open()] for x in ("1", "2"))
    assert [r["loss"] for r in one if "loss" in r] == pytest.approx([r["loss"] for r in two if "loss" in r], abs=1e-5)
    told = [[r["rollout/reward"] for r in rows if "rollout/reward" in r] for rows in (one, two)]
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_a_round_without_a_pair_is_said_once(
    forks: Forks, image_model: Path, image_pairs: Path, tmp_path: Path
) -> None:
    done = run(forks, 2, "d3po", image_model, image_pairs, tmp_path, "flat", 4)
    assert done.code != 0
    assert done.stderr.count("all 4 pairs are ties") == 1, done.stderr[-3000:]
