"""Features of a forward against plain transformers, on the packed and the plain path."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prefopt import PrefoptError
from prefopt.config import AdapterConfig
from prefopt.models.text import add_adapter
from prefopt.objectives.masks import GROUPS
from prefopt.scoring.base import Draw
from prefopt.scoring.entry import core, install
from prefopt.scoring.inside import group_numbers
from prefopt.scoring.reference import AdapterOffReference, FrozenReference, StoredReference
from prefopt.scoring.text import TextScorer
from tests.scoring.tiny_text import example, examples, make

FAMILIES = ["llama", "gpt2", "qwen3", "gemma2", "gpt_neox", "phi3", "bloom", "gptj"]
ASKED = {
    "scores:policy": {"grad": True},
    "scores:reference": {},
    "scores:token_kl": {"grad": True},
    "features:hidden": {"shape": "R T H", "grad": True},
    "features:reference_hidden": {"shape": "R L T D"},
    "features:activations": {"shape": "R J T"},
    "features:activation_group": {"shape": "J", "dtype": "int"},
}


def plain(model: nn.Module, e: SimpleNamespace, response: list[int]) -> tuple[Tensor, Tensor]:
    """Hidden states [L, n, D] of all layers and logits [n, V] of one answer alone behind its prompt."""
    ids = torch.tensor([e.prompt_ids + response])
    out = type(core(model)).forward(
        core(model), input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
    )
    return torch.stack(out.hidden_states[1:])[:, 0], out.logits[0]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_plain_transformers(name: str) -> None:
    model = install(make(name))
    of = examples()
    of[0].response_mask[1][2] = 0  # a token that is not scored
    scorer = TextScorer(ASKED, FrozenReference(make(name, seed=1)), model=model)
    batch = scorer.collate([Draw(e) for e in of])
    found = scorer.score(model, batch, ASKED)["responses"]
    for key, axes in scorer.shapes(ASKED).items():
        sizes = {"R": found["policy"].count.shape[0], "T": found["policy"].count.shape[1]}
        assert found[key].shape == tuple(sizes.get(a, a) for a in axes), key
    row = 0
    for e in of:
        for response, mask in zip(e.response_ids, e.response_mask, strict=True):
            n, start, on = len(response), len(e.prompt_ids), torch.tensor(mask).bool()
            states, _ = plain(model, e, response)
            close(found["hidden"][row, :n][on], states[-1, start : start + n][on])
            assert not found["hidden"][row, :n][~on].any()
            assert not found["hidden"][row, n:].any()
            inside, logits = plain(scorer.reference.model, e, response)
            close(found["reference_hidden"][row, :, :n][:, on], inside[:, start - 1 : start + n - 1][:, on])
            last = found["activation_group"].tolist().index(GROUPS.index("logits"))
            close(found["activations"][row, last, :n][on], logits[start - 1 : start + n - 1].mean(-1)[on])
            row += 1


def test_activations_are_means_over_the_features_of_each_hook() -> None:
    model, heard = install(make("llama")), {}
    e = example(6, 4)
    scorer = TextScorer(ASKED, FrozenReference(model), model=model)
    batch = scorer.collate([Draw(e)])
    found = scorer.score(model, batch, ASKED)["responses"]
    inner = core(scorer.reference.model)
    layer = inner.model.layers[1]
    watched = {"mlp": layer.mlp, "attn": layer.self_attn.k_proj, "resid": layer.input_layernorm}
    handles = [
        m.register_forward_hook(lambda _, args, out, k=k: heard.update({k: out[0].mean(-1)}))
        for k, m in watched.items()
    ]
    plain(inner, e, e.response_ids[0])
    for h in handles:
        h.remove()
    numbers = group_numbers(inner, GROUPS)
    assert found["activation_group"].tolist() == numbers
    assert sorted(set(numbers)) == [0, 1, 2, 3]
    assert numbers.count(GROUPS.index("mlp")) == len(inner.model.layers)
    assert numbers.count(GROUPS.index("attn")) == 4 * len(inner.model.layers)
    for group, values in heard.items():
        rows = found["activations"][0][torch.tensor(numbers) == GROUPS.index(group)]
        expected = values[5:9]
        assert any(torch.allclose(r, expected, rtol=1e-4, atol=1e-5) for r in rows), group
    some = ASKED | {"features:activations": {"shape": "R J T", "how": {"of": ("mlp", "logits")}}}
    few = scorer.score(model, batch, some)["responses"]["activations"]
    assert few.shape[1] == len(inner.model.layers) + 1


def test_a_group_without_hooks_is_refused_by_name() -> None:
    with pytest.raises(PrefoptError, match="no activations of the group 'mlp'.*it has attn, resid, logits"):
        group_numbers(core(install(make("opt"))), ("mlp", "attn"))


def test_the_reference_runs_once_and_the_policy_once() -> None:
    model = install(make("llama"))
    scorer = TextScorer(ASKED, FrozenReference(make("llama", seed=1)), model=model)
    batch = scorer.collate([Draw(e) for e in examples()])
    calls: list[str] = []
    for name, m in (("policy", model), ("reference", scorer.reference.model)):
        core(m).base_model.register_forward_hook(lambda *_, name=name: calls.append(name))
    scorer.score(model, batch, ASKED)
    assert sorted(calls) == ["policy", "reference"]


def test_with_an_adapter_the_reference_is_the_model_without_it() -> None:
    base = make("llama")
    states, _ = plain(install(make("llama")), e := example(5, 3), e.response_ids[0])
    model = install(add_adapter(base, AdapterConfig(r=2), "lm"))
    reference = AdapterOffReference(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    scorer = TextScorer(ASKED, reference, model=model)
    found = scorer.score(model, scorer.collate([Draw(e)]), ASKED)["responses"]
    close(found["reference_hidden"][0], states[:, 4:7])
    assert (found["hidden"][0] - states[-1, 5:8]).abs().max() > 1e-3
    found["hidden"].sum().backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora" in n)


def test_a_store_gives_no_features(tmp_path) -> None:
    model = install(make("llama"))
    scorer = TextScorer(ASKED, StoredReference(model, tmp_path), model=model)
    assert not {"features:reference_hidden", "features:activations", "scores:token_kl"} & scorer.offers()
    assert {"features:hidden", "features:graded_features"} <= scorer.offers()


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_graded_versions_share_the_prompt_and_one_forward(name: str, pool: str) -> None:
    model = install(make(name))
    e = example(5, 4, 3)
    e.graded_ids = [[[], [7, 8], [9]], [[], [], [11, 12, 13]]]
    e.graded_mask = []
    e.notes = {"graded_valid": [[1, 1, 1], [1, 0, 1]]}
    needs = {
        "scores:policy": {"grad": True},
        "features:graded_features": {"shape": "R 3 D", "grad": True, "how": {"pool": pool}},
    }
    scorer = TextScorer(needs, model=model)
    batch = scorer.collate([Draw(e)])
    found = scorer.score(model, batch, needs)["responses"]
    assert batch.size == 5 + 4 + 3 + 2 + 1 + 3
    for r, levels in enumerate(e.graded_ids):
        for k, ids in enumerate(levels):
            version = ids or e.response_ids[r]
            states = plain(model, e, version)[0][-1][5:]
            close(found["graded_features"][r, k], states[-1] if pool == "last" else states.mean(0))
    bare = TextScorer(model=model)
    alone = bare.score(model, bare.collate([Draw(e)]), {"scores:policy": {}})["responses"]["policy"]
    close(found["policy"].values, alone.values)
    assert batch.notes["graded_valid"].tolist() == [[1, 1, 1], [1, 0, 1]]


def test_hidden_versions_are_means_over_the_tokens_that_are_left() -> None:
    model = install(make("llama"))
    e = example(5, 4, 3)
    e.graded_ids = [[[], []], [[], []]]
    e.graded_mask = [[[1, 1, 1, 1], [1, 0, 0, 1]], [[1, 1, 1], [0, 0, 1]]]
    needs = {"features:graded_features": {"shape": "R 2 D", "grad": True, "how": {"pool": "mean"}}, "scores:policy": {}}
    scorer = TextScorer(needs, model=model)
    found = scorer.score(model, scorer.collate([Draw(e)]), needs)["responses"]["graded_features"]
    for r, response in enumerate(e.response_ids):
        states = plain(model, e, response)[0][-1][5:]
        for k, mask in enumerate(e.graded_mask[r]):
            close(found[r, k], states[torch.tensor(mask).bool()].mean(0))
