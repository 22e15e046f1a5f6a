"""Merged weights by the equation, and guidance by two networks against the equation at every step of a sampler."""

import json
import logging
import sys
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from prefopt.errors import PrefoptError
from prefopt.models.merging import merge_folders, merged
from prefopt.models.opening import open_pipeline
from prefopt.pipelines import CLASSES, guided_by, load, with_negative
from prefopt.worlds.shapes.pipelines import tiny_pipeline

KINDS = ("sd", "sdxl", "sd3")
PROMPTS = ["a red circle in the upper left", "two blue squares side by side"]


@pytest.fixture
def run_prefopt(monkeypatch):
    from prefopt import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code

    return run


def network(pipeline):
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


def draw(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    given = {
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "generator": generators,
        "output_type": "latent",
    } | options
    with torch.no_grad():
        return pipeline(list(PROMPTS), **given).images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind in KINDS:
        for name, seed in (("base", 0), ("positive", 1), ("negative", 2)):
            made[kind, name] = tmp_path_factory.mktemp(f"{kind}-{name}")
            tiny_pipeline(kind, seed=seed).save_pretrained(made[kind, name])
    return made


def test_the_equation_weight_by_weight():
    base, positive, negative = ({"a": torch.randn(3, 2, dtype=torch.float64), "n": torch.tensor(i)} for i in range(3))
    made = merged(base, negative, positive, alpha=0.4, beta=0.7)
    for i in range(3):
        for j in range(2):
            b, p, n = (x["a"][i, j].item() for x in (base, positive, negative))
            assert made["a"][i, j].item() == pytest.approx(b + 0.4 * (p - b) + 0.7 * (n - b), rel=1e-12)
    assert made["n"] == 0
    torch.testing.assert_close(merged(base, negative)["a"], negative["a"])  # the base guides itself
    assert torch.equal(merged(base, base, base)["a"], base["a"])
    assert merged({"a": base["a"].half()}, {"a": base["a"].half()})["a"].dtype == torch.float16


def test_what_cannot_be_merged_is_refused():
    x = {"a": torch.zeros(2)}
    for alpha, beta in ((1.1, 1), (-0.1, 1), (1, 1.5), (1, float("nan"))):
        with pytest.raises(PrefoptError, match=r"must lie in \[0, 1\]"):
            merged(x, x, x, alpha, beta)
    with pytest.raises(PrefoptError, match="only the negative network has the weight 'b'"):
        merged(x, {**x, "b": torch.zeros(1)})
    with pytest.raises(PrefoptError, match="only the base has the weight 'a'"):
        merged(x, x, {})
    with pytest.raises(PrefoptError, match=r"'a': \[3\] in the positive network, \[2\] in the base"):
        merged(x, x, {"a": torch.zeros(3)})


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_the_equations(kind):
    """Each answer that the sampler gets: eps_neg("") + scale (eps_pos(prompt) - eps_neg("")), from the separate networks."""
    positive, negative = tiny_pipeline(kind, seed=0), network(tiny_pipeline(kind, seed=1))
    pipeline = with_negative(positive, negative)
    calls, steps = [], []
    for name, net in (("positive", network(positive)), ("negative", negative)):
        net.register_forward_hook(
            lambda m, args, kwargs, out, name=name: calls.append((name, args, kwargs, out[0])), with_kwargs=True
        )
    scheduler, own = pipeline.scheduler, pipeline.scheduler.step
    scheduler.step = lambda answer, *a, **k: steps.append(answer) or own(answer, *a, **k)
    draw(pipeline)
    # the hook of the positive network sees the joined call; what it computes itself is checked by computing it alone
    joined = [c for c in calls if c[0] == "positive"]
    alone = [c for c in calls if c[0] == "negative"]
    assert len(joined) == len(alone) == len(steps) == 3
    for (_, args, kwargs, both), (*_, minus), answer in zip(joined, alone, steps, strict=True):
        own_minus, plus = network(positive).__class__.forward(network(positive), *args, **kwargs)[0].chunk(2)
        torch.testing.assert_close(both, torch.cat([minus, plus]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer, minus + 4.0 * (plus - minus), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(minus, own_minus, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_identities(kind, caplog):
    plain = tiny_pipeline(kind)
    same = with_negative(plain, network(tiny_pipeline(kind)))
    other = with_negative(plain, network(tiny_pipeline(kind, seed=1)))
    torch.testing.assert_close(draw(same), draw(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(draw(other), draw(plain), atol=1e-2)
    with caplog.at_level(logging.WARNING, "prefopt"):
        assert torch.equal(draw(other, guidance_scale=1.0), draw(plain, guidance_scale=1.0))
    assert "the negative network has no effect" in caplog.text
    with guided_by(
        plain,
        network(other) if kind == "x" else getattr(other, f"negative_{'transformer' if kind == 'sd3' else 'unet'}"),
    ):
        inside = draw(plain)
    torch.testing.assert_close(inside, draw(other))
    assert "forward" not in vars(network(plain))
    said = draw(other, negative_prompt=["a green circle in the lower left"] * 2)  # goes to the negative network
    assert not torch.allclose(said, draw(other), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_two_network_pipeline_is_saved_and_loaded(kind, tmp_path):
    pipeline = with_negative(tiny_pipeline(kind), network(tiny_pipeline(kind, seed=1)))
    pipeline.save_pretrained(tmp_path / "both")
    for again in (load(tmp_path / "both"), open_pipeline(tmp_path / "both")):
        assert type(again).__name__ in CLASSES
        torch.testing.assert_close(draw(again), draw(pipeline))
    with pytest.raises(PrefoptError, match="has a negative network already"):
        open_pipeline(tmp_path / "both", negative=str(tmp_path / "both"))
    tiny_pipeline(kind).save_pretrained(tmp_path / "plain")
    with pytest.raises(PrefoptError, match="load it with diffusers"):
        load(tmp_path / "plain")
    for content, why in (("{", "is no JSON"), ("[]", "holds a list")):
        (tmp_path / "plain" / "model_index.json").write_text(content)
        for opened in (load, open_pipeline):
            with pytest.raises(PrefoptError, match=why):
                opened(tmp_path / "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_folders_are_merged(kind, folders, tmp_path):
    base, positive, negative = (str(folders[kind, n]) for n in ("base", "positive", "negative"))
    merge_folders(base, negative, tmp_path / "out", positive=positive, alpha=0.5, beta=1.0)
    part = "transformer" if kind == "sd3" else "unet"
    b, p, n, m = (
        load_file(f"{f}/{part}/diffusion_pytorch_model.safetensors")
        for f in (base, positive, negative, tmp_path / "out")
    )
    for key, x in m.items():
        torch.testing.assert_close(x, b[key] + 0.5 * (p[key] - b[key]) + (n[key] - b[key]))
    merge_folders(base, negative, tmp_path / "both", positive=positive, alpha=0.5, guided=True)
    expected = draw(open_pipeline(positive, negative=str(tmp_path / "out")))
    torch.testing.assert_close(draw(open_pipeline(tmp_path / "both")), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(PrefoptError, match="holds other files"):
        merge_folders(base, negative, tmp_path / "out")
    with pytest.raises(PrefoptError, match="alpha = 0.5 has no effect"):
        merge_folders(base, negative, tmp_path / "new", alpha=0.5)


def test_networks_of_different_kinds_are_refused(folders, tmp_path):
    sd, xl, sd3 = (str(folders[k, "base"]) for k in KINDS)
    with pytest.raises(PrefoptError, match="another architecture"):
        open_pipeline(sd, negative=xl)
    with pytest.raises(PrefoptError, match=r"only|in the negative network"):
        merge_folders(sd, xl, tmp_path / "a")
    with pytest.raises(PrefoptError, match="cannot be merged"):
        merge_folders(sd, sd3, tmp_path / "b")
    with pytest.raises(PrefoptError, match="no two-network form"):
        with_negative(with_negative(tiny_pipeline("sd"), tiny_pipeline("sd").unet), tiny_pipeline("sd").unet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrefoptError, match="holds no trained model yet"):
        open_pipeline(sd, negative=str(tmp_path / "empty"))


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_from_the_command_line(folders, image_pairs, tmp_path, adapter, run_prefopt):
    """Train a negative network, merge it, draw with it, measure what it does."""
    sd = str(folders["sd", "base"])
    lora = ["model.adapter.r=2"] if adapter else []
    run_prefopt("train", "self-npo", "-m", sd, "-d", str(image_pairs), "-o", str(tmp_path / "npo"), "train.max_steps=2",
                "train.learning_rate=1e-3", "train.per_device_train_batch_size=4", "method.evaluations=2", *lora)  # fmt: skip
    run_prefopt("merge", sd, str(tmp_path / "npo"), "--positive", str(folders["sd", "positive"]), "--alpha", "0.9",
                "-o", str(tmp_path / "negative"))  # fmt: skip
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    for name, options in {"plain": [], "guided": ["--negative", str(tmp_path / "npo")],
                          "merged": ["--negative", str(tmp_path / "negative")]}.items():  # fmt: skip
        run_prefopt("generate", sd, "-p", str(prompts), "-o", str(tmp_path / name), "--steps", "2", *options)
    drawn = [(tmp_path / n / "00000000.png").read_bytes() for n in ("plain", "guided", "merged")]
    assert all(a != b for a, b in pairwise(drawn))
    run_prefopt("eval", str(tmp_path / "npo"), "--negative", str(tmp_path / "npo"), "--limit", "1", "-d", str(prompts))
    found = json.loads((tmp_path / "npo" / "evaluation.json").read_text())
    assert found["settings"]["negative"] == str(tmp_path / "npo")
