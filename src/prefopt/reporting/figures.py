"""The figures of a report with their legends and the one sentence that says what is seen and what good looks like."""

from __future__ import annotations

from typing import Any, NamedTuple

from markupsafe import Markup

from prefopt.reporting.plots import curves, distributions, reward_against_kl, verdicts
from prefopt.reporting.run_folder import Run

Legend = tuple[tuple[str, str], ...]  # colour, label


class Figure(NamedTuple):
    title: str
    text: str
    svg: Markup
    legend: Legend = ()


PAIR: Legend = (("after", "chosen"), ("worse", "rejected"))
SIDES: Legend = (("before", "before"), ("after", "after"))


def training_figures(run: Run) -> list[Figure]:
    """Curves of the training; dots are held-out data."""
    one, two = "after", "worse"
    table: list[tuple[str, str, list[tuple[str, str]], Legend, dict[str, Any]]] = [
        ("Loss",
         "What the training minimises. Good: falls and levels off, and the held-out dots fall with it.",
         [("loss", one)], (), {}),
        ("Preference accuracy",
         "Share of pairs in which the implicit reward of the chosen answer is the higher one. Good: well above the "
         "dashed line of chance, on held-out pairs too.",
         [("rewards/accuracies", one)], (), {"level": 0.5}),
        ("Reward margin",
         "How far apart the implicit rewards of chosen and rejected answers are. Good: above zero and rising, slower "
         "towards the end.",
         [("rewards/margins", one)], (), {"level": 0.0}),
        ("Implicit rewards",
         "How much more likely than before the model finds each side. Good: the two part, and chosen does not sink far "
         "below zero.",
         [("rewards/chosen", one), ("rewards/rejected", two)], PAIR, {"level": 0.0}),
        ("Log-probabilities",
         "How likely the model finds whole answers. Good: rejected falls; if chosen falls much as well, the model "
         "forgets how to write.",
         [("logps/chosen", one), ("logps/rejected", two)], PAIR, {}),
        ("Where the probability goes",
         "Change of the log-probability of whole answers on followed pairs, and on answers that belong to no pair (for "
         "images: of their denoising score). Good: rejected falls a little, chosen holds or rises; where both fall, "
         "the mass goes elsewhere, and if unseen answers fall as well, far from where the model began.",
         [("properties/chosen", one), ("properties/rejected", two), ("properties/unseen", "before")],
         (*PAIR, ("before", "unseen")), {"level": 0.0, "smooth": False}),
        ("Gradient norm",
         "The size of each step's push. Good: the same order of magnitude throughout; lone peaks are odd rows.",
         [("grad_norm", one)], (), {"log": True}),
        ("Learning rate", "The schedule as it was applied.", [("learning_rate", one)], (), {"smooth": False}),
    ]  # fmt: skip
    figures = []
    for title, text, lines, legend, options in table:
        svg = curves(run.metrics, lines, name=title.lower().replace(" ", "-"), title=title, **options)
        if svg is not None:
            there = {key.removeprefix("eval_") for row in run.metrics for key in row}
            shown = tuple(entry for entry, (key, _) in zip(legend, lines, strict=False) if key in there)
            figures.append(Figure(title, text, svg, shown))
    return figures


def outcome_figures(run: Run) -> list[Figure]:
    """Reward against KL, and the distributions of reward and length before and after."""
    figures = []
    frontier = reward_against_kl(_places(run))
    if frontier is not None:
        text = (
            "What was gained, and how far the model moved for it. Good: high and to the left; bars are 95 % intervals."
        )
        figures.append(Figure("Reward against KL", text, frontier))
    rate = run.evaluation.get("win_rate") or {}
    judged = verdicts(*(int(rate.get(k) or 0) for k in ("wins", "ties", "losses")))
    if judged is not None:
        text = (
            "How the new answer compares with the old one to the same prompt, judged in both orders; verdicts that "
            "change with the order count as equal. Good: far more better than worse."
        )
        figures.append(Figure("Side by side", text, judged))
    rows = run.samples or run.images
    rewards = distributions(
        [r.get("reward_before") for r in rows], [r.get("reward_after") for r in rows],
        name="rewards", title="Rewards of the answers", unit="reward",
    )  # fmt: skip
    if rewards is not None:
        text = (
            "How the rewards of single answers are spread; dashed lines are means. Good: all of it moves to the right."
        )
        figures.append(Figure("Rewards before and after", text, rewards, SIDES))
    tokens = all("tokens_before" in r and "tokens_after" in r for r in run.samples)
    unit = "tokens" if tokens else "characters"
    keys = ("tokens_before", "tokens_after") if tokens else ("before", "after")
    lengths = [[_length(row.get(key)) for row in run.samples] for key in keys]
    svg = distributions(*lengths, name="lengths", title="Lengths of the answers", unit=unit)
    if svg is not None:
        text = (
            "How long answers are. Good: no drift, unless length is what was asked for; judges tend to favour length."
        )
        figures.append(Figure("Length before and after", text, svg, SIDES))
    return figures


def _places(run: Run) -> list[dict[str, Any]]:
    reward = run.evaluation.get("reward") or {}
    places = []
    if reward.get("start"):
        places.append(_place("start", 0.0, None, reward["start"]))
    evaluated = [(f"step {e['step']}", e) for e in run.checkpoints] + [("this model", run.evaluation)]
    for label, evaluation in evaluated:
        kl, after = (evaluation.get("kl") or {}).get("k1") or {}, (evaluation.get("reward") or {}).get("policy") or {}
        places.append(_place(label, kl.get("value"), kl, after))
    return places


def _place(label: str, kl: float | None, kl_estimate: dict[str, Any] | None, reward: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": label,
        "kl": kl,
        "reward": reward.get("value"),
        "kl_error": 1.96 * ((kl_estimate or {}).get("se") or 0),
        "reward_error": 1.96 * (reward.get("se") or 0),
    }


def _length(value: Any) -> float | None:
    if isinstance(value, str):
        return float(len(value))
    return float(value) if isinstance(value, int | float) else None
