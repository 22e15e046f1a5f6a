"""References: stored, adapter-off and frozen agree with the starting model, whatever the policy has become."""

from __future__ import annotations

import copy
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from prefopt import PrefoptError
from prefopt.scoring.base import Draw
from prefopt.scoring.batch import Collator
from prefopt.scoring.identity import identity_of
from prefopt.scoring.reference import AdapterOffReference, FrozenReference, StoredReference, adapter_off_obstacle
from prefopt.scoring.store import Store
from prefopt.scoring.text import TextScorer, install
from tests.forks import Forks

from .tiny_text import example, make

EXTRAS = frozenset({"prompt", "gold", "mismatched"})
ASKED = {"scores:policy": {"grad": True}, "scores:reference": {}}


class Draws:
    """A data set as the trainer draws from it; mismatched completions come from the next example."""

    def __init__(self, n: int = 7):
        self.all = [example(3 + 2 * i, 1 + i, 9 - i, gold=4, seed=i) for i in range(n)]
        self.examples = SimpleNamespace(tokens=np.array([len(e.prompt_ids) + 10 for e in self.all]))

    def __len__(self) -> int:
        return len(self.all)

    def draw(self, index: int, epoch: int = 0) -> Draw:
        return Draw(self.all[index], epoch, self.all[(index + 1) % len(self.all)])


def lora(model: nn.Module, **settings: object) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=4, **({"target_modules": ["q_proj", "up_proj"]} | settings)))


def spoil(model: nn.Module) -> None:
    """What training does: the weights are others now."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))


@pytest.mark.parametrize("kind", ["stored", "adapter off", "frozen"])
def test_references_stay_at_the_start(kind: str, tmp_path: Path) -> None:
    draws, collate = Draws(), Collator(EXTRAS)
    policy = install(make("qwen3 window"))
    if kind == "adapter off":
        policy = lora(policy)
        reference = AdapterOffReference(policy)
    elif kind == "frozen":
        reference = FrozenReference.copy_of(policy)
    else:
        reference = StoredReference(policy, tmp_path)
        assert reference.prepare(policy, collate, [draws], tokens=60, progress=False) == 7
    needs = ASKED | {f"extras:{e}": {"grad": True, "asked": ASKED} for e in EXTRAS}
    scorer = TextScorer(needs, reference)
    batch = scorer.collate([draws.draw(i) for i in (4, 0, 6)])
    start = {k: v["policy"].values.detach() for k, v in scorer.score(policy, batch, needs).items()}
    assert set(start) == {"responses"} | EXTRAS
    spoil(policy)
    trained = [p.requires_grad for p in policy.parameters()]
    scored = scorer.score(policy, batch, needs)
    for name, values in start.items():
        torch.testing.assert_close(scored[name]["reference"].values, values, atol=1e-5, rtol=1e-5)
        assert (scored[name]["policy"].values - values).abs().max() > 0.1
        assert not scored[name]["reference"].values.requires_grad
    assert [p.requires_grad for p in policy.parameters()] == trained


@pytest.mark.parametrize("kind", ["adapter off", "frozen"])
def test_exact_kl_is_zero_at_the_start(kind: str) -> None:
    policy = lora(install(make("gemma2")))
    reference = AdapterOffReference(policy) if kind == "adapter off" else FrozenReference.copy_of(policy)
    needs = {"scores:token_kl": {"grad": True}}
    scorer = TextScorer(needs, reference)
    assert "scores:token_kl" in scorer.offers()
    batch = scorer.collate([Draws().draw(2)])
    assert scorer.score(policy, batch, needs)["responses"]["token_kl"].values.abs().max() < 1e-6
    spoil(policy)
    moved = scorer.score(policy, batch, needs)["responses"]["token_kl"]
    assert moved.sum().min() > 1e-3
    moved.sum().sum().backward()


def test_the_store_serves_every_run(tmp_path: Path) -> None:
    draws, policy = Draws(), install(make("llama"))
    prepare = {"collate": Collator(), "sets": [draws], "progress": False}
    assert StoredReference(policy, tmp_path).prepare(policy, **prepare) == 7
    assert StoredReference(policy, tmp_path).prepare(policy, **prepare) == 0
    more = prepare | {"collate": Collator(frozenset({"prompt"}))}
    assert StoredReference(policy, tmp_path).prepare(policy, **more) == 7
    assert policy.training
    other = install(make("llama", seed=1))
    assert StoredReference(other, tmp_path).prepare(other, **prepare) == 7
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_runs_that_begin_together_compute_the_reference_once(tmp_path: Path) -> None:
    """The second has looked before the first was done, and waits for it."""
    models = [install(make("llama")) for _ in range(2)]
    references = [StoredReference(model, tmp_path) for model in models]
    done = []

    def look_then_prepare(reference: StoredReference, model: nn.Module) -> None:
        looked, wait = reference._lacking, iter([both_looked.wait])

        def lacking(wanted: object) -> object:
            found = looked(wanted)
            next(wait, lambda: None)()
            return found

        reference._lacking = lacking
        done.append(reference.prepare(model, Collator(), [Draws()], progress=False))

    both_looked = threading.Barrier(2)
    pairs = zip(references, models, strict=True)
    threads = [threading.Thread(target=look_then_prepare, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 7]


def test_what_is_not_stored_is_not_guessed(tmp_path: Path) -> None:
    policy = install(make("llama"))
    reference = StoredReference(policy, tmp_path)
    batch = Collator()([Draws().draw(0)])
    with pytest.raises(PrefoptError, match="2 of 2 reference log-probs"):
        reference.scores(policy, batch, "responses")
    assert "scores:token_kl" not in TextScorer((), reference).offers()
    with pytest.raises(PrefoptError, match=r"reference.kind = frozen"):
        reference.answers(policy, batch, {"responses": ["hidden"]})


def test_identity_follows_everything_that_numbers_depend_on() -> None:
    model = make("llama")
    names = {"start": identity_of(model), "autocast": identity_of(model, torch.bfloat16)}
    names["window"] = identity_of(make("mistral"))
    names["wider window"] = identity_of(make("mistral window"))
    names["half"] = identity_of(make("llama", dtype=torch.bfloat16))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    names["one weight"] = identity_of(model)
    assert len(set(names.values())) == len(names)
    assert identity_of(install(make("llama"))) == names["start"]
    assert identity_of(lora(install(make("llama")))) == names["start"]
    assert identity_of(lora(make("llama"), init_lora_weights=False)) != names["start"]


def test_when_the_adapter_cannot_be_switched_off() -> None:
    assert adapter_off_obstacle(lora(make("llama"))) is None
    assert adapter_off_obstacle(lora(make("llama"), lora_dropout=0.1)) is None
    cases = {
        "no adapter": make("llama"),
        "lm_head.*no LoRA weight": lora(make("llama"), modules_to_save=["lm_head"]),
        "trained before": lora(make("llama"), init_lora_weights=False),
        "attention_dropout = 0.1": lora(make("llama")),
        "the dropout .*drop": lora(make("gpt2"), target_modules=["c_attn"]),
        "NEFTune": lora(make("llama")),
    }
    cases["attention_dropout = 0.1"].config.attention_dropout = 0.1
    next(m for m in cases["the dropout .*drop"].modules() if isinstance(m, nn.Dropout)).p = 0.1
    cases["NEFTune"].get_input_embeddings().neftune_noise_alpha = 5
    for why, model in cases.items():
        with pytest.raises(PrefoptError, match=f"cannot be the reference: .*{why}.*reference.kind = store"):
            AdapterOffReference(model)


def test_store_keeps_values_exactly(tmp_path: Path) -> None:
    store = Store("abc", tmp_path / "deep")
    values = {f"k{i}": np.random.default_rng(i).normal(size=i).astype(np.float32) for i in range(1200)}
    store.put(values)
    store.put({"k3": np.zeros(3)})  # what is there stays
    found = copy.deepcopy(store).get([*values, "unknown"])
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[k], v) for k, v in values.items())
    assert store.missing(["k5", "x"]) == {"x"}


WRITER = """
import sys, numpy as np
from pathlib import Path
from prefopt.scoring.store import Store
store, me = Store("id", Path(sys.argv[1])), int(sys.argv[2])
for i in range(10**9):
    store.put({f"{me}-{i}-{j}": np.full(50, i + j, dtype=np.float32) for j in range(20)})
    print(i, flush=True)
"""


def test_store_survives_kills_and_company(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen([*command, str(me)], stdout=subprocess.PIPE, text=True, env=environment) for me in range(3)
    ]
    told = [[writer.stdout.readline() for _ in range(8)] for writer in writers]
    for writer in writers:
        writer.kill()
        told[writers.index(writer)] += writer.stdout.read().splitlines()
        writer.wait()
    store = Store("id", tmp_path)
    assert sqlite3.connect(store.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for me, lines in enumerate(told):
        keys = {f"{me}-{i}-{j}": i + j for i in range(len([x for x in lines if x.strip()])) for j in range(20)}
        found = store.get(keys)
        assert found.keys() == keys.keys()
        assert all((found[k] == v).all() and len(found[k]) == 50 for k, v in keys.items())
    assert len(store) % 20 == 0


def open_new_stores(folder: str) -> None:
    """One of three processes that open the same new store at the same moment, again and again."""
    for number in range(60):
        (Path(folder) / f"{number}-{os.environ['RANK']}").touch()
        while not all((Path(folder) / f"{number}-{rank}").exists() for rank in range(3)):
            pass
        assert len(Store(str(number), Path(folder))) == 0


def test_a_new_store_may_be_opened_by_many_at_once(forks: Forks, tmp_path: Path) -> None:
    done = forks.run(call="tests.scoring.test_reference:open_new_stores", arguments=(tmp_path,), processes=3)
    assert done.code == 0, done.stderr[-500:]


def test_a_broken_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "id.sqlite").write_text("this is no database, and long enough to be seen as none" * 10)
    with pytest.raises(PrefoptError, match=r"id.sqlite.*delete it"):
        Store("id", tmp_path).get(["k"])
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefoptError, match="PREFOPT_CACHE"):
        Store("id", tmp_path / "file").get(["k"])


def test_the_store_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    assert Store("id").path == tmp_path / "reference" / "id.sqlite"
