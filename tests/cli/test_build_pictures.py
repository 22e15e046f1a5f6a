"""The documented commands, in their order: generators, lists, votes, RankDPO; captions, DCPO; a judge, labels by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt import cli
from tests.small_clip import save_clip

SMALL = ["train.max_steps=1", "train.per_device_train_batch_size=2", "train.use_cpu=true", "train.save_steps=1"]
Run = Callable[..., None]


@pytest.fixture
def prefopt(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command, which must end well."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, None)

    return run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lists_of_two_generators_by_two_scorers(prefopt: Run, image_model: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a red circle in the upper left\ntwo blue squares at the top\n")
    for name, seed in (("a", 0), ("b", 5)):
        how = ["--steps", 1, "--guidance", 1, "--seed", seed, "-n", 2]
        prefopt("generate", image_model, "-p", tmp_path / "prompts.txt", "-o", tmp_path / name, *how)
        assert (tmp_path / name / "grid.png").is_file()
    prefopt("data", "build", "lists", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "lists.jsonl")
    add = [x for kind in ("pickscore", "clip-score") for x in ("--add", f"reward_scores={kind}:{clip}")]
    prefopt("data", "build", "scores", tmp_path / "lists.jsonl", "-o", tmp_path / "scored.jsonl", *add)
    made = rows(tmp_path / "scored.jsonl")
    assert [len(r["responses"]) for r in made] == [4, 4]
    assert all(len(scores) == 2 for r in made for scores in r["reward_scores"])
    prefopt("train", "rankdpo", "-m", image_model, "-d", tmp_path / "scored.jsonl", "-o", tmp_path / "run", *SMALL)
    assert (tmp_path / "run" / "model_index.json").is_file()


def test_captions_labels_and_a_judge(prefopt: Run, image_model: Path, image_pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "say.py").write_text(
        "def say(images, prompts):\n    return [f'a red circle {sum(i.tobytes()) % 97}' for i in images]\n"
        "def other(texts, strength):\n    return [f'a blue square {strength}' for t in texts]\n"
    )
    captions = tmp_path / "captions.jsonl"
    of = ["--captioner", f"{tmp_path / 'say.py'}:say", "--perturber", f"{tmp_path / 'say.py'}:other"]
    prefopt("data", "build", "captions", image_pairs, "-o", captions, "--way", "h", "--strength", "weak", *of)
    assert {r["caption_rejected"] for r in rows(captions)} == {"a blue square weak"}
    prefopt("train", "dcpo", "-m", image_model, "-d", captions, "-o", tmp_path / "run", *SMALL)
    judge = tmp_path / "judge"
    clip = save_clip(tmp_path / "clip")
    prefopt("train", "clip-preference", "-m", clip, "-d", image_pairs, "-o", judge, *SMALL)
    prefopt("eval", judge, "--data", image_pairs, "--limit", 4)
    assert json.loads((judge / "evaluation.json").read_text())["preference"]["accuracy"]["n"] == 4
    labels = tmp_path / "labels.jsonl"
    prefopt("data", "build", "labels", image_pairs, "-o", labels, "--reward", f"pickscore:{judge}")
    assert all(r["chosen_score"] > r["rejected_score"] for r in rows(labels))
    prefopt("train", "diffusion-dpo", "-m", image_model, "-d", labels, "-o", tmp_path / "ai", *SMALL)
