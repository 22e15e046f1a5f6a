"""One seed of each committed reproduction from its start to its measurements, on models that take seconds."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from prefopt.reproductions import diffusion_dpo, diffusion_dpo_blobs, dpo
from prefopt.reproductions.bench import Bench, Progress


def bench(folder, steps):
    return Bench(1, folder / "seed-1", Progress("test", steps))


def prompts(path, texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


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
    found = diffusion_dpo.in_shapes(work)
    assert set(found) == {*few} and work.progress.done == 4
    for name in diffusion_dpo.RUNS:
        assert 0 <= found[name]["win_rate"] <= 1 and 0 <= found[name]["implicit_accuracy"] <= 1
    assert Image.open(tmp_path / "seed-1" / "pictures.png").width > 300


def test_diffusion_dpo_in_blobs_runs_what_it_says(tmp_path, monkeypatch, image_pairs):
    blobs, asked, counts = diffusion_dpo_blobs, {}, {"base": 0.0}
    worlds = {0.1: {"model": "m", "train": str(image_pairs)}, 0.5: {"model": "m", "train": "noisier.jsonl"}}
    monkeypatch.setattr(blobs, "world", lambda bench, temperature: worlds[temperature])
    monkeypatch.setattr(blobs, "by_truth", lambda pairs, output: f"{pairs}, by truth")
    monkeypatch.setattr(blobs, "accuracy", lambda bench, parts, model: 0.75)
    monkeypatch.setattr(blobs, "grid", lambda *a: None)
    monkeypatch.setattr(Bench, "train", lambda self, name, content: asked.setdefault(name, content))

    def look(bench, name, model):
        x = counts.setdefault(name, len(counts) / 10)
        return {"rewards": [x] * 8, "brightness": x, "remainder": 0.0}

    monkeypatch.setattr(blobs, "look", look)
    monkeypatch.setattr(blobs, "EACH", 2)
    work = bench(tmp_path, 13)
    found = blobs.run(work)
    assert work.progress.done == blobs.BENCH_STEPS and list(found) == ["base", *blobs.RUNS] == list(blobs.NAMES)
    assert found["base"]["win_rate"] == 0.5 and found["dpo"]["win_rate"] == found["dpo"]["win_rate_any_noise"] == 1.0
    assert {name: content["method"]["name"] for name, content in asked.items()} == {
        name: "sft" if name.startswith("sft") else "diffusion-dpo" for name in blobs.RUNS
    }
    assert [name for name, content in asked.items() if content.get("denoising") == {"shared_noise": False}] == [
        "unshared"
    ]
    assert [name for name, content in asked.items() if content["method"].get("beta") == 500] == ["small-beta"]
    data = {name: content["data"]["path"] for name, content in asked.items()}
    assert data["dpo"] == data["unshared"] == str(image_pairs) and data["noisy"] == "noisier.jsonl"
    assert data["ai"] == f"{image_pairs}, by truth"
    coin, turned = (rows_of(data[name]) for name in ("shuffled", "reversed"))
    assert [(r["chosen"], r["rejected"]) for r in coin] == [(r["rejected"], r["chosen"]) for r in turned]


def test_blobs_shuffled_labels_are_judged_with_their_reverse():
    seed = {
        "shuffled": {"win_rate": 0.9, "win_rate_any_noise": 0.52},
        "reversed": {"win_rate": 0.2, "win_rate_any_noise": 0.47},
    }
    assert diffusion_dpo_blobs.by_coin({"blobs": seed}) == pytest.approx(0.55)
    assert diffusion_dpo_blobs.by_coin_any_noise({"blobs": seed}) == 0.47
    # a caption's pictures are compared with its own start's only: 1 > 0.5 in one caption, 0 < 0.5 in the other
    assert diffusion_dpo_blobs.win_rate_any_noise([1.0] * 128 + [0.0] * 128, [0.5] * 128 + [0.5] * 128) == 0.5


def test_blobs_labels_by_the_truth(tmp_path):
    import numpy as np

    from prefopt.worlds import blobs

    rng, rows = np.random.default_rng(0), []
    for n, (dim, bright) in enumerate([(0.3, 0.8), (0.9, 0.4), (0.5, 0.7)]):
        for side, b in (("chosen", dim), ("rejected", bright)):
            Image.fromarray(blobs.blob("upper left", b, rng)).save(tmp_path / f"{n}-{side}.png")
        sides = {side: f"{n}-{side}.png" for side in ("chosen", "rejected")}
        rows.append({"prompt": "a blob in the upper left", **sides, "chosen_score": 0.0, "rejected_score": 0.0})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = diffusion_dpo_blobs.by_truth(str(tmp_path / "pairs.jsonl"), tmp_path / "seed" / "truth.jsonl")
    found = rows_of(made)
    assert [row["chosen"].rsplit("/")[-1] for row in found] == ["0-rejected.png", "1-chosen.png", "2-rejected.png"]
    assert all(row["chosen_score"] > row["rejected_score"] for row in found)
