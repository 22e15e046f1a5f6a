"""What a user should worry about, from the numbers of a run. Each finding says what was seen and what helps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from prefopt.reporting.plots import points
from prefopt.reporting.run_folder import Run

LENGTH_FACTOR = 1.5
KL_PER_TOKEN = 0.3
LOST_DIVERSITY = 0.3
OVERFIT = 0.15
SPIKE = 20.0


class Finding(NamedTuple):
    title: str
    text: str


def findings(run: Run) -> list[Finding]:
    """All findings, in the order of the training, the evaluation, the method's own and the record's."""
    reported = run.record.get("health") or []
    texts = reported.values() if isinstance(reported, dict) else reported
    own = [*(str(t) for t in texts), *_counted(run)]
    return [*_training(run), *_evaluation(run.evaluation), *(Finding("The method reports", t) for t in own)]


def _counted(run: Run) -> Iterator[str]:
    """What the method counts as a reason to worry (`Loss.health`) and was not zero, in the log lines of training."""
    for key in sorted({k for row in run.metrics for k in row if k.startswith("health/")}):
        steps, values = points(run.metrics, key)
        if len(values) and values.max() > 0:
            name, first = key.removeprefix("health/").replace("_", " "), steps[values > 0][0]
            yield (
                f"{name}: not zero from step {first:g} on, {values[-1]:.3g} in a micro-batch at the end "
                f"({values.max():.3g} at most)."
            )


def _training(run: Run) -> Iterator[Finding]:
    loss = points(run.metrics, "loss")[1]
    if any(isinstance(r.get("loss"), float) and not math.isfinite(r["loss"]) for r in run.metrics):
        yield Finding(
            "The loss was not finite", "At least one step had a loss of NaN or infinity: lower the learning rate."
        )
    if len(loss) > 4 and np.ptp(loss) < 1e-4:
        yield Finding("The loss did not move", "It is the same at every step: the learning rate may be too small.")
    start, end = _ends(points(run.metrics, "logps/chosen")[1])
    if end < start - max(1.0, 0.1 * abs(start)):
        text = (
            f"The log-probability of the preferred answers fell from {start:.1f} to {end:.1f}: it learns what to "
            "avoid, not what to write. A smaller learning rate, a larger beta or an added SFT term counters it."
        )
        yield Finding("Preferred answers became less likely", text)
    yield from _denoising(run)
    steps, degrading = points(run.metrics, "properties/degrading")
    if degrading.any():
        text = (
            f"From step {steps[degrading > 0][0]:.0f} on ({degrading.mean():.0%} of the looks) the followed preferred "
            "answers became less likely look after look while the margin rose: rejected ones are only driven away. "
            "A smaller learning rate, or 3d-properties with beta_rejected below beta_chosen or with sft_gamma, counters it."
        )
        yield Finding("The training degrades into suppression", text)
    train, held_out = points(run.metrics, "rewards/accuracies")[1], points(run.metrics, "eval_rewards/accuracies")[1]
    if len(train) > 4 and len(held_out) and _ends(train)[1] - held_out[-1] > OVERFIT:
        text = (
            f"{_ends(train)[1]:.0%} of the training pairs are ordered rightly, but {held_out[-1]:.0%} of the held-out "
            "ones: fewer epochs, more data or a larger beta help."
        )
        yield Finding("It fits the training pairs better than new ones", text)
    norm = points(run.metrics, "grad_norm")[1]
    if len(norm) > 10 and norm.max() > SPIKE * np.median(norm):
        times = norm.max() / np.median(norm)
        text = f"The largest gradient norm is {times:.0f} times the median: look for odd rows, or clip."
        yield Finding("The gradient jumps", text)


def _denoising(run: Run) -> Iterator[Finding]:
    """Denoising errors above those of the reference, of both sides of the pairs."""
    chosen, rejected = (_ends(points(run.metrics, f"errors/{side}")[1])[1] for side in ("chosen", "rejected"))
    if chosen > 0 and rejected > 0:
        text = (
            f"Against the reference it rose by {chosen:.2g} on preferred images and by {rejected:.2g} on rejected ones: the "
            "margin grows because the rejected are spoilt more, not because the preferred are drawn better. A smaller "
            "learning rate, fewer steps or a larger beta counters it."
        )
        yield Finding("The denoising error rose on both sides", text)


def _evaluation(evaluation: dict[str, Any]) -> Iterator[Finding]:
    def at(*path: str) -> float | None:
        node: Any = evaluation
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node if isinstance(node, int | float) else None

    gain = (evaluation.get("reward") or {}).get("gain") or {}
    if gain.get("ci") and gain["ci"][0] <= 0 <= gain["ci"][1]:
        yield Finding(
            "No clear gain", "The interval of the reward gain includes zero: more training, data or prompts are needed."
        )
    elif gain.get("ci") and gain["ci"][1] < 0:
        yield Finding(
            "The reward fell", "Samples are worse than those of the start model: check the direction of the pairs."
        )
    after, before = at("length", "tokens", "policy", "value"), at("length", "tokens", "start", "value")
    if after and before and not 1 / LENGTH_FACTOR < after / before < LENGTH_FACTOR:
        word = "longer" if after > before else "shorter"
        text = (
            f"From {before:.0f} to {after:.0f} tokens. Judges and rewards often favour length: compare at equal "
            "length, or use a method that normalises it."
        )
        yield Finding(f"Answers became much {word}", text)
    done, was_done = at("finished", "policy", "value"), at("finished", "start", "value")
    if done is not None and was_done is not None and done < 0.8 and done < was_done - 0.1:
        text = f"{done:.0%} of the answers end by themselves (before: {was_done:.0%}); the rest ran into the limit."
        yield Finding("Answers do not end", text)
    kl = at("kl", "k1", "value")
    if kl is not None and after and kl / after > KL_PER_TOKEN:
        text = (
            f"{kl:.1f} nats per answer, {kl / after:.2f} per token: the model may exploit the reward rather than "
            "improve. Read the samples; a larger beta or fewer steps keep it closer."
        )
        yield Finding("The model moved far from its start", text)
    now, then = at("diversity", "distinct_2", "policy", "value"), at("diversity", "distinct_2", "start", "value")
    if now is not None and then and now < (1 - LOST_DIVERSITY) * then:
        text = f"Different word pairs among the samples of a prompt fell from {then:.0%} to {now:.0%}."
        yield Finding("Samples became more alike", text)
    bias = at("win_rate", "position_bias", "value")
    if bias is not None and abs(bias) > 0.2:
        text = f"It moves by {abs(bias):.0%} with the order of the answers; both orders were averaged; trust it less."
        yield Finding("The judge looks at the position", text)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Mean over the first and over the last tenth of a curve (NaN where it has fewer than five points)."""
    if len(values) < 5:
        return math.nan, math.nan
    part = max(2, len(values) // 10)
    return float(values[:part].mean()), float(values[-part:].mean())
