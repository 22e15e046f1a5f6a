"""A run that is killed, anywhere and again and again, ends in the very weights of the run that was left alone.

Kills are SIGKILL: at the n-th change that the process makes to any file (while data is prepared, the reference store
or the latents are filled, a checkpoint or the final model is written, old checkpoints are deleted), and, in the slow
tests, at ten random moments. Every start is the same command; the cache of each chain begins empty.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefopt.config import make
from prefopt.training.run import train
from tests.forks import Done, Forks
from tests.small_clip import save_clip

STATEFUL = '''
import torch
from prefopt import Loss, Responses, Update, method, prefer
from prefopt.objectives.hyper import Positive


@method("tide")
def tide(r: Responses, *, beta: Positive = 0.5, decay: Positive = 0.7) -> Loss:
    """DPO whose reward is measured from a running mean of log-ratios: wrong at once if its state is lost."""
    w, l = r.pairs()
    level = r.state("level", lambda: torch.zeros(()))
    h_w, h_l = w.log_ratio.sum(), l.log_ratio.sum()
    loss = prefer(beta * torch.tanh(h_w - level), beta * torch.tanh(h_l + level))
    seen = torch.stack([h_w, h_l]).detach()
    moved = lambda old, total, n: decay * old + (1 - decay) * total / n
    return loss.replace(updates={"level": Update(seen.abs().sum() + 1, seen.new_full((), seen.numel()), moved)})
'''
WARM = "def warm(images, prompts):\n    return (images[:, 0] - images[:, 2]).mean((1, 2))\n"
REWARD = """
def short(prompts, responses):
    return [len(set(r)) - 0.1 * len(r) for r in responses]


def bright(prompts, images):
    return [sum(image.convert("L").tobytes()) for image in images]


def judge(images, prompts, timesteps):
    return 100 * images.mean((1, 2, 3))
"""
WORDS = ["a great film", "a dull one", "the plot"]
COMMON = "train.learning_rate=1e-2 train.logging_steps=1 train.disable_tqdm=true train.save_steps=2"
KINDS = {
    "stateful": "train {method} -m {text} -d {pairs} -o {out} train.per_device_train_batch_size=4 train.max_steps=8 "
    "train.gradient_accumulation_steps=2",
    "kto": "train kto -m {text} -d {pairs} -o {out} train.per_device_train_batch_size=8 train.num_train_epochs=2 "
    "data.eval_fraction=0.2",
    "lora": "train dpo -m {text} -d {pairs} -o {out} model.adapter.r=4 model.adapter.dropout=0.1 "
    "train.per_device_train_batch_size=8 train.num_train_epochs=2",
    "diffusion": "train dpo -m {image} -d {images} -o {out} train.per_device_train_batch_size=2 "
    "train.num_train_epochs=2 denoising.random_flip=true",
    "online": "train online-dpo -m {text} -d {pairs} -o {out} rollout.reward={reward} rollout.rounds=2 "
    "rollout.prompts_per_round=9 rollout.samples_per_prompt=3 rollout.batch_size=2 rollout.max_new_tokens=6 "
    "train.per_device_train_batch_size=3",
    "curry": "train curry-dpo -m {text} -d {lists} -o {out} method.criterion=logp method.kl_prompts=2 method.stages=2 "
    "train.per_device_train_batch_size=4",
    "scored": "train madpo-from-pairs -m {text} -d {pairs} -o {out} method.base.tau=2 train.per_device_train_batch_size=4",
    "moving": "train dpo -m {text} -d {pairs} -o {out} reference.mixup_alpha=0.5 reference.sync_steps=2 "
    "train.per_device_train_batch_size=4 train.max_steps=8",
    "turns": "train diff-instruct-star -m {image} -d {images} -o {out} rollout.reward={warm} method.alpha_rew=5 "
    "method.assistant_steps=2 method.ema=0.5 train.per_device_train_batch_size=4 train.max_steps=9",
    "rounds": "train d3po -m {image} -d {images} -o {out} rollout.reward={bright} method.steps=4 method.guidance=2 "
    "rollout.prompts_per_round=4 rollout.batch_size=2 train.per_device_train_batch_size=8 model.adapter.r=2",
    "pools": "train spo-step -m {image} -d {images} -o {out} rollout.reward={judge} method.steps=5 method.guidance=1 "
    "method.divert_start_step=1 method.threshold=0 rollout.prompts_per_round=4 rollout.batch_size=2 "
    "train.per_device_train_batch_size=8",
    "teacher": "train self-npo -m {image} -d {images} -o {out} model.adapter.r=2 method.evaluations=3 method.ema=0.5 "
    "train.per_device_train_batch_size=2 train.num_train_epochs=2",
    "users": "train ppd -m {image} -d {people} -o {out} train.per_device_train_batch_size=2 train.num_train_epochs=2",
    "judge of steps": "train clip-preference method.step_aware=true sources.base.path={image} -m {clip} -d {images} "
    "-o {out} train.per_device_train_batch_size=2 train.num_train_epochs=2",
    "own path": "train diffusion-dro -m {image} -d {images} -o {out} method.steps=4 method.refresh=3 "
    "train.per_device_train_batch_size=2 train.num_train_epochs=2",
}  # fmt: skip


def with_users(pairs: Path, path: Path) -> Path:
    """The same pairs, each with an embedding of whoever chose."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {side: str(pairs.parent / row[side]) for side in ("chosen", "rejected")}
        row["user_embedding"] = [[i % 3, 1.0], [0.5, i % 2]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Chain:
    """Starts of one command, each in a process of its own, with one output folder and one cache."""

    def __init__(self, kind: str, forks: Forks, tmp: Path, request: pytest.FixtureRequest):
        self.kind, self.forks, self.tmp = kind, forks, tmp
        (tmp / "tide.py").write_text(STATEFUL)
        (tmp / "taste.py").write_text(REWARD)
        (tmp / "warm.py").write_text(WARM)
        ranked = [{"prompt": f"{i}: ", "responses": [f"{w} {i}" for w in WORDS], "scores": [3, 1, 2]} for i in range(9)]
        (tmp / "lists.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ranked))
        functions = {"reward": "short", "bright": "bright", "judge": "judge"}
        taste = {name: f"{tmp / 'taste.py'}:{function}" for name, function in functions.items()}
        self.names: dict[str, Any] = {"method": tmp / "tide.py", "lists": tmp / "lists.jsonl", **taste}
        self.names["warm"] = f"{tmp / 'warm.py'}:warm"
        given = {"text": "text_model", "pairs": "pairs_file", "image": "image_model", "images": "image_pairs"}
        for name, fixture in given.items():
            if f"{{{name}}}" in KINDS[kind]:
                self.names[name] = request.getfixturevalue(fixture)
        if "{clip}" in KINDS[kind]:
            self.names["clip"] = save_clip(tmp / "clip")
        if "{people}" in KINDS[kind]:
            self.names["people"] = with_users(request.getfixturevalue("image_pairs"), tmp / "people.jsonl")

    def start(self, name: str, **kill: Any) -> Done:
        """One start of the command in the folder of this name."""
        out = self.tmp / name / "run"
        out.parent.mkdir(exist_ok=True)
        argv = f"{KINDS[self.kind]} {COMMON}".format(out=out, **self.names).split()
        return self.forks.run(*argv, cache=str(self.tmp / name / "cache"), **kill)

    def compare(self, a: str, b: str) -> None:
        """All weights of the final folders, bit for bit, and the losses that were logged on the way."""
        files = [
            sorted(p.relative_to(self.tmp / x / "run") for p in final_weights(self.tmp / x / "run")) for x in (a, b)
        ]
        assert files[0] == files[1] != []
        for name in files[0]:
            one, two = (load_file(self.tmp / x / "run" / name) for x in (a, b))
            assert one.keys() == two.keys()
            for key in one:
                assert torch.equal(one[key], two[key]), f"{name}: {key} differs after {b}"
        assert losses(self.tmp / a / "run") == losses(self.tmp / b / "run")
        assert json.loads((self.tmp / b / "run" / "run.json").read_text())["status"] == "finished"


def final_weights(run: Path) -> list[Path]:
    return [p for p in run.rglob("*.safetensors") if not any(x.startswith("checkpoint-") for x in p.parts)]


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r[k]) for r in rows for k in ("loss", "eval_loss", "grad_norm", "rewards/margins") if k in r]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_changes_of_files(kind: str, forks: Forks, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Four kills, the first before the training, the others in it; each start finds what the one before has written."""
    chain = Chain(kind, forks, tmp_path, request)
    g = random.Random(f"{kind} {os.environ.get('PREFOPT_KILL_SEED', 0)}")
    shares = [g.uniform(*part) for part in ((0, 0.3), (0.55, 0.75), (0.15, 0.25), (0.15, 0.3))]
    whole = chain.start("whole")
    assert whole.code == 0, whole.stderr
    assert not (tmp_path / "whole" / "run.lock").exists()
    killed = [chain.start("killed", event=max(1, round(share * whole.events))) for share in shares]
    assert [x.code for x in killed[:2]] == [-9] * 2
    last = chain.start("killed")
    assert kind in ("online", "curry", "scored") or any("going on from" in x.stderr for x in (*killed, last))
    assert last.code == 0, last.stderr
    chain.compare("whole", "killed")


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"num_train_epochs": 1}], ids=str)
def test_killed_between_the_last_checkpoint_and_the_end(
    length: dict[str, int], text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """No step more, no evaluation less or twice; in the middle of an epoch and at its end."""
    keys = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2}
    content = {
        "method": "dpo",
        "model": str(text_model),
        "data": {"path": str(pairs_file), "eval_fraction": 0.2},
        "output": str(tmp_path / "run"),
        "train": {**keys, **length, "disable_tqdm": True},
    }
    run = tmp_path / "run"
    train(make(content))
    weights, rows = load_file(run / "model.safetensors"), losses(run)
    (run / "model.safetensors").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert train(make(content)).status == "finished"
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert losses(run) == rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_ten_random_moments(kind: str, forks: Forks, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    chain = Chain(kind, forks, tmp_path, request)
    assert chain.start("whole").code == 0
    g = random.Random(f"{kind} {os.environ.get('PREFOPT_KILL_SEED', 0)}")
    kills = rounds = 0
    while kills < 10:
        rounds += 1
        name = f"killed-{rounds}"
        needed = chain.start(f"timed-{rounds}").seconds
        found = [chain.start(name, seconds=g.uniform(0, 0.7) * needed) for _ in range(5)]
        last = chain.start(name)
        kills += sum(f.code == -9 for f in found)
        assert {f.code for f in found} <= {-9, 0}, [f.stderr for f in found]
        assert last.code == 0, last.stderr
        chain.compare("whole", name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_every_change_of_a_file(
    kind: str, forks: Forks, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From an empty folder, killed at change n and started again, for every n (every third of long runs)."""
    chain = Chain(kind, forks, tmp_path, request)
    whole = chain.start("whole")
    for n in range(1, whole.events + 1, max(1, whole.events // 60)):
        assert chain.start(f"at-{n}", event=n).code == -9
        again = chain.start(f"at-{n}")
        assert again.code == 0, f"{n}: {again.stderr}"
        chain.compare("whole", f"at-{n}")
