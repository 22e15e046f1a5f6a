"""Ways of noising: found by name, asked for by a method, and what an answer of each prediction type stands for."""

import pytest
import torch

from prefopt.errors import PrefoptError
from prefopt.objectives.loss import prefer
from prefopt.objectives.method import method
from prefopt.objectives.responses import Responses
from prefopt.scoring.noising import Forward, noising_for
from prefopt.scoring.noising.forward import ForwardEach
from prefopt.scoring.schedules import noised, split, target
from prefopt.training.needs import how_to_give

from .test_denoising import draws, scorer

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_right_answer_stands_for_the_latents_and_the_noise(prediction):
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 5, 6, generator=g, dtype=torch.float64)
    sigma = torch.tensor([0.3, 0.7, 0.95], dtype=torch.float64)
    signal = 1 - sigma if prediction == "flow" else (1 - sigma**2).sqrt()
    noisy = noised(clean, noise, signal, sigma)
    found = split(prediction, target(prediction, clean, noise, signal, sigma), noisy, signal, sigma)
    torch.testing.assert_close(found[0], clean)
    torch.testing.assert_close(found[1], noise)


def test_each_image_may_have_a_noise_of_its_own():
    shared, own = (scorer(noising=way).collate(draws(1, 2)) for way in (Forward(), ForwardEach()))
    assert len(shared.noise) == 2 and len(own.noise) == 4
    assert not torch.equal(own.noise[0], own.noise[1])
    again = scorer(noising=ForwardEach()).collate(draws(2))
    torch.testing.assert_close(again.noise, own.noise[2:])  # whatever the company in the batch


@pytest.fixture(scope="module")
def twice():
    @method("test-noised-twice")
    def noised_twice(r: Responses):
        w, l = r.noised("forward").noised("forward_each").pairs()
        return prefer(w.policy.mean(), l.policy.mean())

    return noised_twice()


def test_a_method_asks_in_one_way(twice):
    assert isinstance(noising_for({}), Forward) and not isinstance(noising_for({}), ForwardEach)
    assert isinstance(noising_for({"noising:forward_each": {}}), ForwardEach)
    with pytest.raises(PrefoptError, match="one way only; the method asks for forward and forward_each"):
        noising_for(twice.needs())
    with pytest.raises(PrefoptError, match="no way of noising 'sideways'"):
        noising_for({"noising:sideways": {}})


def test_what_text_cannot_do_is_said(twice):
    assert "noising:forward" in twice.missing({"scores:policy", "notes:pairs"})
    assert how_to_give("noising:forward", "text") == "inputs noised by 'forward', which this model does not have (text)"


def test_plain_numbers_are_taken_as_they_are(twice):
    x = torch.tensor([-1.0, -2.0])
    assert torch.isfinite(twice(Responses.of(policy_logps=x, pairs="halves")).scalar)
