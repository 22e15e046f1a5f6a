"""Runs with a bank of fixed draws: the same steps as without it in the first epochs, killed and resumed, refused."""

import numpy as np
import pytest
import torch

from prefopt.errors import PrefoptError
from prefopt.training.run import train
from prefopt.worlds.shapes.pipelines import tiny_pipeline

from .test_diffusion_task import config, losses, weights, write_pairs

BANK = {"denoising": {"bank": 2}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    tiny_pipeline("sd").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), 8)


@pytest.mark.parametrize("adapter", [{}, {"model": {"adapter": {"r": 4}}}], ids=["full", "lora"])
def test_the_first_epochs_are_those_of_a_run_without_it(model, data, tmp_path, adapter):
    steps = {"train": {"max_steps": 6}}  # 2 a epoch
    train(config(model, data, tmp_path / "plain", **steps, **adapter))
    train(config(model, data, tmp_path / "banked", **steps, **BANK, **adapter))
    plain, banked = losses(tmp_path / "plain"), losses(tmp_path / "banked")
    assert banked[:4] == pytest.approx(plain[:4], rel=1e-4)
    assert banked[4:] != pytest.approx(plain[4:], rel=1e-2)


def test_a_run_that_was_cut_is_the_run_that_was_not(model, data, tmp_path, monkeypatch):
    steps = {"train": {"max_steps": 6, "save_steps": 1}}
    train(config(model, data, tmp_path / "whole", **steps, **BANK))
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "other"))
    train(config(model, data, tmp_path / "cut", **steps, **BANK), stop_after=3)
    train(config(model, data, tmp_path / "cut", **steps, **BANK))
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_what_is_kept_is_kept_once(model, data, tmp_path, cache):
    for name, beta in (("one", 1000.0), ("two", 3000.0)):
        method = {"name": "diffusion-dpo", "beta": beta}
        train(config(model, data, tmp_path / name, method=method, train={"max_steps": 8}, **BANK))
    sizes = [p.stat().st_size for p in cache.rglob("*.bin")]
    assert sizes == [8 * 2 * 2 * 16]  # pairs, sides, draws, bytes: and nothing of the second run
    assert not np.isclose(losses(tmp_path / "one")[3], losses(tmp_path / "two")[3])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": {"name": "sft"}}, "no reference whose errors could be kept"),
        ({"method": {"name": "inpo"}}, "'ddim_inversion' depends on the policy"),
        ({"reference": {"sync_steps": 2}}, "this one follows the policy"),
        ({"denoising": {"bank": 0}}, "denoising.bank"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(model, data, tmp_path, sections, words):
    with pytest.raises(PrefoptError, match=words):
        train(config(model, data, tmp_path / "run", **(BANK | sections)))
