"""What recipes share: examined before the first step, going on after a stop, one folder at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt import Method, PrefoptError
from prefopt.config import make
from prefopt.evaluation.run import evaluate_run
from prefopt.files import write_atomically
from prefopt.methods.pairwise.dpo import dpo
from prefopt.methods.pointwise.sft import sft
from prefopt.recipes import load_all, steps
from prefopt.recipes.steps import RECIPES, Steps, recipe

TRAIN = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "logging_steps": 1, "report_to": "none",
         "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip


@pytest.fixture
def two_steps() -> Any:
    @recipe("two-steps", "", ("pairs",))
    def two_steps(steps: Steps, *, base: Method = dpo(), first: Method = sft()) -> str:
        """SFT, then a method on the pairs that are longer."""
        start = steps.train("sft", first)
        data = steps.make("half.jsonl", lambda path: write_atomically(path, _half(steps)))
        return steps.train("preference", base, model=start, data=steps.written(data), train={"max_steps": 2})

    yield two_steps
    del RECIPES["two-steps"]


def _half(steps: Steps) -> str:
    lines = Path(steps.config.data.paths[0]).read_text().splitlines(keepends=True)
    return "".join(lines[: len(lines) // 2])


def config(name: str, model: Path, data: Path, out: Path, **sections: Any) -> Any:
    start = sections.pop("model_keys", {})
    hyper, read = sections.pop("hyper", {}), {"path": str(data), **sections.pop("read", {})}
    train = TRAIN | sections.pop("train", {})
    content: dict[str, Any] = {"method": {"name": name, **hyper}, "model": {"path": str(model), **start}, "data": read}
    content |= {"output": str(out), "train": train}
    return make(content | sections)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_steps_are_done_once_and_end_in_one_folder(
    two_steps: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    c = config("two-steps", text_model, pairs_file, out)
    assert two_steps.run(c, dry_run=True).status.startswith("dry run of 3 steps (sft, half.jsonl, preference)")
    assert not out.exists()
    assert two_steps.run(c).status == "finished"
    record = json.loads((out / "run.json").read_text())
    assert record["steps"] == record["plan"] == ["sft", "half.jsonl", "preference"]
    assert weights(out) == weights(out / "preference") != weights(out / "sft")
    child = yaml.safe_load((out / "preference" / "config.yaml").read_text())
    assert child["model"]["path"] == str(out / "sft")
    assert child["train"]["max_steps"] == 2
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    parts = [(r["step"], r["part"]) for r in rows if "loss" in r]
    assert parts == [(1, "sft"), (2, "sft"), (3, "sft"), (4, "preference"), (5, "preference")]
    assert two_steps.run(c).status == "was finished"
    found = evaluate_run(out, data=str(pairs_file), limit=2, progress=False)
    assert found["settings"]["start"] == str(text_model)


def test_a_stopped_recipe_goes_on_and_ends_as_if_it_had_not_been(
    two_steps: Any, text_model: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    two_steps.run(config("two-steps", text_model, pairs_file, whole))
    real = Steps.train

    def stopped(self: Steps, name: str, *a: Any, **k: Any) -> str:
        if name == "preference" and not self.checking:
            raise KeyboardInterrupt
        return real(self, name, *a, **k)

    with monkeypatch.context() as m:
        m.setattr(Steps, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            two_steps.run(config("two-steps", text_model, pairs_file, cut))
    first = (cut / "sft" / "run.json").read_text()
    assert not (cut / "model.safetensors").exists()
    with pytest.raises(PrefoptError, match="another configuration"):
        two_steps.run(config("two-steps", text_model, pairs_file, cut, train={"learning_rate": 2e-3}))
    two_steps.run(config("two-steps", text_model, pairs_file, cut))
    assert (cut / "sft" / "run.json").read_text() == first
    assert weights(cut) == weights(whole)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"hyper": {"beta": 1.0}}, "two-steps has no hyperparameter 'beta'; it has base, first"),
        ({"hyper": {"base": {"beta": -1.0}}}, "dpo.beta = -1.0"),
        ({"hyper": {"base": "cpo"}, "reference": {"kind": "frozen"}}, "no step uses a reference model"),
        ({"sources": {"token_reward": "x"}}, "no step asks for another model's scores"),
        ({"rollout": {"rounds": 2}}, "rollout.rounds has no effect"),
        ({"train": {"optim": "adamm"}}, "adamm"),
        (
            {"read": {"split": "test"}},
            "data.split has no effect",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_before_the_first_step(
    sections: dict[str, Any], words: str, two_steps: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrefoptError) as error:
        two_steps.run(config("two-steps", text_model, pairs_file, tmp_path / "out", **sections))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_section_reaches_the_steps_that_read_it(
    two_steps: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    c = config("two-steps", text_model, pairs_file, tmp_path / "out", reference={"kind": "frozen"})
    plan = Steps(c, steps_folder(tmp_path), two_steps, checking=True)
    assert plan.child("a", dpo()).reference.kind == "frozen"
    assert plan.child("a", sft()).reference.kind == "auto"
    assert plan.child("a", dpo(), model="m", reference="start").reference.path == "start"
    assert plan.child("a", dpo(), model="m", reference="m").reference.path is None


def steps_folder(tmp_path: Path) -> Any:
    from prefopt.training.folder import RunFolder

    return RunFolder(tmp_path / "out")


def test_the_catalogue_describes_recipes_without_what_training_needs() -> None:
    found = load_all()["tgdpo-from-pairs"]
    assert found.paper == "2506.14574"
    assert {"name": "first_train", "default": None, "values": "a section of keys, or none"} in found.hyperparameters()
    assert steps.RECIPES is load_all()
