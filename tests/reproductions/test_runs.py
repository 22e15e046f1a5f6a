"""One seed of each committed reproduction from its start to its measurements, on models that take seconds."""

import json
import math

import pytest
from PIL import Image

from prefopt.reproductions import diffusion_dpo, dpo
from prefopt.reproductions.bench import Bench, Progress


def bench(folder, steps):
    return Bench(1, folder / "seed-1", Progress("test", steps))


def prompts(path, texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def test_a_seed_of_dpo(tmp_path, monkeypatch, text_model, pairs_file):
    world = {
        "model": str(text_model),
        "train": str(pairs_file),
        "prompts": prompts(tmp_path / "prompts.jsonl", ["a b", "c"]),
    }
    monkeypatch.setattr(dpo, "_world", lambda seed: world)
    monkeypatch.setattr(dpo, "DPO", ((0.1, 1e-2),))
    monkeypatch.setattr(dpo, "SFT", (1e-2,))
    monkeypatch.setattr(dpo, "TRAIN", {"max_steps": 3, "per_device_train_batch_size": 4})
    work = bench(tmp_path, 4)
    found = dpo.run(work)
    assert found["start"]["kl"] == pytest.approx(0, abs=1e-4)
    for point in (*found["dpo"], *found["sft"]):
        assert abs(point["kl"]) > 1e-3 and point["kl_se"] > 0 and all(math.isfinite(x) for x in point.values())
    assert work.progress.done == 4
    again = bench(tmp_path, 4)
    assert dpo.run(again) == found and again.progress.seconds == pytest.approx(work.progress.seconds)
    assert (tmp_path / "seed-1" / "runs" / "dpo-0.1-0.01" / "run.json").is_file()


def test_a_seed_of_diffusion_dpo(tmp_path, monkeypatch, image_model, image_pairs):
    caption = "a red circle in the upper left"
    world = {
        "model": str(image_model),
        "train": str(image_pairs),
        "heldout": str(image_pairs),
        "prompts": prompts(tmp_path / "prompts.jsonl", [caption, "two blue squares on the right"]),
    }
    monkeypatch.setattr(diffusion_dpo, "_world", lambda seed: world)
    monkeypatch.setattr(diffusion_dpo, "TRAIN", {"max_steps": 1, "per_device_train_batch_size": 4})
    few = ("base", "dpo", "shuffled")
    monkeypatch.setattr(diffusion_dpo, "RUNS", {k: v for k, v in diffusion_dpo.RUNS.items() if k in few})
    monkeypatch.setattr(diffusion_dpo, "NAMES", {k: v for k, v in diffusion_dpo.NAMES.items() if k in few})
    for name, value in (("EACH", 2), ("SHOWN", 2), ("DRAWS", 1)):
        monkeypatch.setattr(diffusion_dpo, name, value)
    work = bench(tmp_path, 4)
    found = diffusion_dpo.run(work)
    assert set(found) == {*few} and work.progress.done == 4
    for name in diffusion_dpo.RUNS:
        assert 0 <= found[name]["win_rate"] <= 1 and 0 <= found[name]["implicit_accuracy"] <= 1
    assert Image.open(tmp_path / "seed-1" / "pictures.png").width > 300
