"""Methods on features in whole runs: however a step is cut, stopped and gone on, with their own networks' settings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from prefopt import PrefoptError
from prefopt.config import make
from prefopt.training.run import train
from tests.small_models import save_text_model, sentence, write_pairs

METHODS: dict[str, dict[str, Any]] = {
    "masks": {"name": "sparsepo", "variant": "spo-independent", "l1_u": 0.001, "l1_d": 0.001},
    "activations": {"name": "sparsepo", "variant": "mapo"},
    "degrees": {"name": "self-spo", "gamma": 0.3, "head_init": "normal"},
    "trees": {"name": "tree-tpo"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("files")
    g = random.Random(0)
    rows = []
    for _ in range(12):
        answers = [[sentence(g) for _ in range(g.randint(1, 3))] for _ in range(g.randint(2, 3))]
        rows.append({"prompt": "Go: ", "steps": answers, "scores": [100, *(g.randint(-100, 99) for _ in answers[1:])]})
    (place / "lists.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pairs = write_pairs(place / "pairs.jsonl", 12)
    return {"model": save_text_model(place / "model"), "pairs": pairs, "lists": place / "lists.jsonl"}


def run(files: dict[str, Path], output: Path, method: dict[str, Any], more: Any = None, **settings: Any) -> Path:
    data = files["lists" if method["name"] == "tree-tpo" else "pairs"]
    defaults = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True}
    content = {
        "method": method, "model": {"path": str(files["model"])}, "data": {"path": str(data)},
        "train": defaults | settings, "output": str(output),
    }  # fmt: skip
    train(make(content), **(more or {}))
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_depend_on_how_it_is_cut(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    whole, cut = (
        weights(run(files, tmp_path / str(batch), METHODS[name], optim="sgd", per_device_train_batch_size=batch,
                    gradient_accumulation_steps=4 // batch, max_grad_norm=0, lr_scheduler_type="constant"))
        for batch in (4, 1)
    )  # fmt: skip
    start = weights(files["model"])
    assert any(not torch.equal(whole[k], start[k]) for k in start)
    for k in whole:
        torch.testing.assert_close(cut[k], whole[k], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["masks", "degrees"])
def test_resumes_bit_for_bit_with_its_networks(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    whole = run(files, tmp_path / "whole", METHODS[name], max_steps=4)
    stopped = run(files, tmp_path / "stopped", METHODS[name], {"stop_after": 2}, max_steps=4)
    kept = load_file(stopped / "checkpoint-2" / "method_modules.safetensors")
    assert {k.split(".")[0] for k in kept} == ({"reward_mask", "kl_mask"} if name == "masks" else {"degree_head"})
    run(files, tmp_path / "stopped", METHODS[name], max_steps=4)
    a, b = weights(whole), weights(stopped)
    assert all(torch.equal(a[k], b[k]) for k in a)
    last = [load_file(f / "checkpoint-4" / "method_modules.safetensors") for f in (whole, stopped)]
    assert all(torch.equal(last[0][k], last[1][k]) for k in last[0])
    assert any(not torch.equal(kept[k], last[0][k]) for k in kept)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(whole)  # its networks are gone from the result
    assert sum(p.numel() for p in loaded.parameters()) == sum(x.numel() for x in a.values())


class Groups(transformers.TrainerCallback):
    """Looks at the optimiser."""

    found: list[dict[str, Any]]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = [{k: g[k] for k in ("weight_decay", "initial_lr")} | {"n": sum(p.numel() for p in g["params"])}
                      for g in kwargs["optimizer"].param_groups]  # fmt: skip


def test_networks_have_their_own_weight_decay_and_rate(files: dict[str, Path], tmp_path: Path) -> None:
    looking = Groups()
    method = METHODS["masks"] | {"mask_weight_decay": 0.05}
    run(files, tmp_path / "masks", method, {"callbacks": [looking]}, weight_decay=0.5)
    own = looking.found[-2:]
    assert [(g["weight_decay"], g["initial_lr"]) for g in own] == [(0.05, 1e-2)] * 2
    assert own[0]["n"] == 2 * 32 + 2 * 32 + 2 + 2  # norm, w, b, mixer
    method = METHODS["degrees"] | {"head_rate": 20}
    run(files, tmp_path / "degrees", method, {"callbacks": [looking]}, weight_decay=0.5)
    assert looking.found[-1] == {"weight_decay": 0.0, "initial_lr": pytest.approx(0.2), "n": 3 * 32 + 3}


class Moves(transformers.TrainerCallback):
    """How far the method's own networks went in each step."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def look(self, optimizer: Any) -> None:
        own = [g["params"] for g in optimizer.param_groups[-2:]]
        self.seen.append([torch.cat([p.detach().flatten().clone() for p in params]) for params in own])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(kwargs["optimizer"])

    @property
    def norms(self) -> list[float]:
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return [(b - a).norm().item() for before, after in pairs for a, b in zip(before, after, strict=True)]


def test_networks_are_clipped_each_by_itself(files: dict[str, Path], tmp_path: Path) -> None:
    """A plain gradient step of a clipped gradient is as long as rate times limit; without clipping it is longer."""
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 2}
    method, found = METHODS["masks"] | {"mask_weight_decay": 0.0}, {}
    for limit in (1e-3, 0.0):
        moves = Moves()
        run(files, tmp_path / str(limit), method, {"callbacks": [moves]}, max_grad_norm=limit, **plain)
        found[limit] = moves.norms
    assert found[1e-3] == pytest.approx([1e-5] * 4, rel=2e-2)
    assert min(found[0.0]) > 2e-5


def test_gamma_zero_is_the_base_bit_for_bit(files: dict[str, Path], tmp_path: Path) -> None:
    dpo = weights(run(files, tmp_path / "dpo", {"name": "dpo"}))
    none = weights(run(files, tmp_path / "none", {"name": "self-spo", "gamma": 0.0}))
    some = weights(run(files, tmp_path / "some", METHODS["degrees"]))
    assert all(torch.equal(dpo[k], none[k]) for k in dpo)
    assert any(not torch.equal(dpo[k], some[k]) for k in dpo)


def test_what_cannot_be_had_is_refused_before_training(files: dict[str, Path], tmp_path: Path) -> None:
    def refused(method: dict[str, Any], why: str, **sections: Any) -> None:
        content = {
            "method": method, "model": {"path": str(files["model"])}, "data": {"path": str(files["pairs"])},
            "output": str(tmp_path / "refused"),
        }  # fmt: skip
        content = {k: {**v, **sections.get(k, {})} if isinstance(v, dict) else v for k, v in content.items()}
        content |= {k: v for k, v in sections.items() if k not in content}
        with pytest.raises(PrefoptError, match=why):
            train(make(content))

    refused(METHODS["masks"], "hidden states", reference={"kind": "store"})
    refused({"name": "dpo"}, "data.stop_words has no effect", data={"stop_words": "x"})
    refused({"name": "dpo"}, "data.list_labels has no effect", data={"list_labels": "rank"})
    refused({"name": "dpo"}, "data.step_marker has no effect", data={"step_marker": "x"})
    refused(METHODS["trees"], "data.step_marker")
