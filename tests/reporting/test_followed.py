"""What a report says of the three properties, where a run followed them."""

from __future__ import annotations

from prefopt.reporting.figures import training_figures
from prefopt.reporting.health import findings
from prefopt.reporting.run_folder import Run

TITLE = "Where the probability goes"


def run(degrading: list[float], **sides: list[float]) -> Run:
    names = {f"properties/{side}": values for side, values in sides.items()}
    rows = [{"step": 10 * i, "properties/degrading": d} for i, d in enumerate(degrading)]
    for name, values in names.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return Run(folder=None, metrics=rows)


def test_the_figure_is_there_where_the_properties_were_followed() -> None:
    chosen, rejected, unseen = [0.0, -1.0, -2.0], [0.0, -3.0, -9.0], [0.0, 0.1, -0.5]
    (figure,) = training_figures(run([0, 0, 1], chosen=chosen, rejected=rejected, unseen=unseen))
    assert figure.title == TITLE
    assert [label for _, label in figure.legend] == ["chosen", "rejected", "unseen"]
    for colour in ("after", "worse", "before"):
        assert f"var(--{colour})" in figure.svg
    (few,) = training_figures(run([0, 0, 0], chosen=chosen, rejected=rejected))
    assert "var(--before)" not in few.svg
    assert [label for _, label in few.legend] == ["chosen", "rejected"]
    assert training_figures(Run(folder=None, metrics=[{"step": s, "grad_norm": 1.0} for s in (1, 2)]))[0].title != TITLE


def test_degradation_is_a_finding_with_its_first_step() -> None:
    assert findings(run([0, 0, 0, 0], chosen=[0.0] * 4)) == []
    (found,) = findings(run([0, 0, 1, 1], chosen=[0.0, -1.0, -2.0, -3.0]))
    assert found.title == "The training degrades into suppression"
    assert found.text.startswith("From step 20 on (50% of the looks)")
    assert "beta_rejected" in found.text
