"""A bank of fixed draws: the same scores as without it, the reference asked once, nothing stale, nothing half."""

import numpy as np
import pytest
import torch

from prefopt.errors import PrefoptError
from prefopt.scoring.bank import RECORD, Bank
from prefopt.scoring.base import Draw
from prefopt.scoring.noising.ddim_inversion import DdimInversion
from prefopt.scoring.noising.forward import ForwardEach

from .test_denoising import BOTH, Net, example, frozen_net, scorer

REFERENCE = "scores:reference"


def collated(s, epoch=0, indices=(0, 1, 2)):
    return s.collate([Draw(example(i), epoch) for i in indices])


def banked(tmp_path, draws=2, identity="weights", **options):
    return scorer(bank=Bank(draws, identity, tmp_path), **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_scores_are_those_of_a_run_without_it(tmp_path, prediction):
    plain, s = scorer(prediction), banked(tmp_path, prediction=prediction)
    for epoch in (0, 1):
        wanted = plain.score(Net(0), collated(plain, epoch), BOTH)["responses"]
        for _ in range(2):  # computed, then kept
            found = s.score(Net(0), collated(s, epoch), BOTH)["responses"]
            for name in ("policy", "reference"):
                torch.testing.assert_close(found[name].values, wanted[name].values, rtol=0, atol=0)
                assert torch.equal(found[name].count, wanted[name].count)


def test_epochs_repeat_the_draws_and_the_reference_is_asked_once_for_each(tmp_path):
    s = banked(tmp_path, draws=3, caption_dropout=0.4)
    for epoch in range(7):
        s.score(Net(0), collated(s, epoch), BOTH)
        assert s.reference.rows == [6] * min(epoch + 1, 3)
    one, again, other = (collated(s, e) for e in (1, 4, 2))
    for name in ("noise", "t", "latents", "keys"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


def test_a_later_run_finds_them_whatever_its_batches(tmp_path):
    first = banked(tmp_path)
    wanted = first.score(Net(0), collated(first), BOTH)["responses"]["reference"].values
    later = banked(tmp_path)
    for index in (2, 0, 1):
        found = later.score(Net(5), collated(later, indices=[index]), BOTH)["responses"]["reference"].values
        assert torch.equal(found, wanted[2 * index : 2 * index + 2])
    assert later.reference.rows == []


@pytest.mark.parametrize("change", ["weights", "seed", "latents", "caption"])
def test_what_depends_on_anything_else_is_computed_anew(tmp_path, change):
    first = banked(tmp_path)
    first.score(Net(0), collated(first), BOTH)
    other = banked(tmp_path, identity="other" if change == "weights" else "weights", seed=int(change == "seed"))
    drawn = [Draw(example(i), 0) for i in range(3)]
    for draw in drawn:
        if change == "latents":
            draw.example.mean = draw.example.mean + 1e-6
        if change == "caption":
            draw.example.condition = {"text": draw.example.condition["text"] + 1e-6}
    other.score(Net(0), other.collate(drawn), BOTH)
    assert other.reference.rows == [6]


def test_half_a_record_is_not_read(tmp_path):
    s = banked(tmp_path)
    s.score(Net(0), collated(s), BOTH)
    (path,) = tmp_path.rglob("*.bin")
    content = path.read_bytes()
    assert len(content) == 6 * RECORD.itemsize
    path.write_bytes(content[: 4 * RECORD.itemsize + 5])
    later = banked(tmp_path)
    wanted = s.score(Net(0), collated(s), BOTH)["responses"]["reference"].values
    found = later.score(Net(0), collated(later), BOTH)["responses"]["reference"].values
    assert torch.equal(found, wanted)
    assert later.reference.rows == [6]  # the rows that were lost, in the same company
    assert np.isin(np.fromfile(path, RECORD, 4)["key"], collated(later).keys.numpy().astype(np.uint64)).all()
    last = banked(tmp_path)
    last.score(Net(0), collated(last), BOTH)
    assert last.reference.rows == []


def test_two_processes_share_what_both_have_written(tmp_path):
    a, b = banked(tmp_path), banked(tmp_path)
    a.score(Net(0), collated(a, indices=[0]), BOTH)
    b.score(Net(0), collated(b, indices=[1]), BOTH)
    both = banked(tmp_path)
    both.score(Net(0), collated(both, indices=[0, 1]), BOTH)
    assert both.reference.rows == []
    assert len(list(tmp_path.rglob("*.bin"))) == 2


def test_what_follows_the_policy_has_no_bank(tmp_path):
    with pytest.raises(PrefoptError, match="'ddim_inversion' depends on the policy"):
        banked(tmp_path, noising=DdimInversion())
    own = banked(tmp_path, noising=ForwardEach())
    own.score(Net(0), collated(own), BOTH)
    assert frozen_net().rows == []
