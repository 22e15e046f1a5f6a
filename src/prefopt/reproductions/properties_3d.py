"""The 3D-properties (2406.07327): DPO degrades and disperses where parameters are shared; Flex-DPO and SFT-DPO do not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .bench import Bench
from .claim import Demand, Measurements, Reproduction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from ..scoring.tabular import Step

PROMPTS, RESPONSES, WIDTH = 4, 10, 32
CHOSEN, REJECTED = (0, 1, 2, 3), (4, 6, 7, 5)  # of each prompt; 8 and 9 belong to no pair
EPOCHS, RATE = 2000, 3e-4
FIT, FIT_RATE = 600, 1e-2
SCENARIOS = {1: (0.12, 0.12), 2: (0.02, 0.12), 3: (0.12, 0.02), 4: (0.02, 0.02)}  # mass of a chosen, a rejected column
TOY: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": 0.1},
    "flex-0.05": {"name": "3d-properties", "beta_rejected": 0.05},
    "flex-0.02": {"name": "3d-properties", "beta_rejected": 0.02},
    "flex-0.01": {"name": "3d-properties", "beta_rejected": 0.01},
    "sft-0.01": {"name": "3d-properties", "beta_rejected": 0.1, "sft_gamma": 0.01},
    "sft-0.05": {"name": "3d-properties", "beta_rejected": 0.1, "sft_gamma": 0.05},
}
LM: dict[str, dict[str, Any]] = {name: TOY[name] for name in ("dpo", "flex-0.05", "sft-0.05")}
LM_TRAIN: dict[str, Any] = {"steps": 300, "learning_rate": 5e-4, "batch": 48, "samples": 512}
EVERY = 50  # epochs of the toy from one look to the next


def run(bench: Bench) -> Measurements:
    """The toy in four scenarios with DPO and in the first with all cures, then language models on the copy task."""
    found: dict[str, Any] = {}
    for number in SCENARIOS:
        name = f"toy-dpo-{number}"
        found[name] = bench.once(name, lambda n=number: toy(TOY["dpo"], bench.seed, n))  # type: ignore[misc]
    for key, method in TOY.items():
        if key != "dpo":
            found[f"toy-{key}"] = bench.once(f"toy-{key}", lambda m=method: toy(m, bench.seed))  # type: ignore[misc]
    return found | _language_models(bench)


def _language_models(bench: Bench) -> dict[str, Any]:
    from ..worlds import copying
    from . import small

    world = copying.build(seed=bench.seed, **copying.LENGTH_BIASED)
    start = bench.once("lm-start", lambda: small.measure(world.model, copying, world, seed=bench.seed, samples=512))
    runs = {f"lm-{k}": small.run(bench, f"lm-{k}", copying, world, m, **LM_TRAIN) for k, m in LM.items()}
    return {"lm-start": start} | runs


# ---- the toy: 4 prompts, 10 responses, a small network that shares its parameters


def rows(scenario: int) -> Tensor:
    """[4, 10] the same probabilities for every prompt: of the chosen group, the rejected group, and two others."""
    import torch

    chosen, rejected = SCENARIOS[scenario]
    rest = (0.03, 0.01) if scenario == 1 else (1 - 4 * (chosen + rejected) - 0.04, 0.04)
    row = torch.tensor([chosen] * 4 + [rejected] * 4 + list(rest), dtype=torch.float64)
    return row.repeat(PROMPTS, 1)


def network(seed: int, target: Tensor) -> nn.Module:
    """A three-layer network on one-hot prompts, fitted to `target` rows by cross-entropy."""
    import torch
    from torch import nn

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (PROMPTS, WIDTH, WIDTH, RESPONSES)
            layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
            self.net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

        def forward(self) -> Tensor:
            return self.net(torch.eye(PROMPTS, dtype=torch.float64))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy()
    optimiser = torch.optim.Adam(policy.parameters(), FIT_RATE)
    for _ in range(FIT):
        optimiser.zero_grad()
        (-(target * policy().log_softmax(-1)).sum(-1).mean()).backward()
        optimiser.step()
    return policy


def toy(method: dict[str, Any], seed: int, scenario: int = 1) -> dict[str, Any]:
    """Full-batch training on the four pairs. Curves over epochs of the means over prompts: chosen and unseen mass,
    log-probability of the rejected one; and how far the gradients' ratio is from pi+ / pi- (1 for DPO)."""
    import torch

    from ..objectives.method import get_method
    from ..scoring.tabular import TabularScorer, fit, pairs_of

    policy = network(seed, rows(scenario))
    reference = policy().softmax(-1).detach()
    prompts = range(PROMPTS)
    curve: list[dict[str, float]] = []

    def watch(step: Step) -> None:
        w, l = step.logp[prompts, CHOSEN], step.logp[prompts, REJECTED]
        seen = {"chosen": w.exp(), "unseen": 1 - w.exp() - l.exp(), "log_rejected": l}
        now = {"epoch": step.index, **{k: float(v.mean()) for k, v in seen.items()}}
        if step.index % EVERY == 0:
            now["ratio_error"] = _ratio_error(step, w, l)
        curve.append(now)

    batch = pairs_of(prompts, CHOSEN, REJECTED)
    fit(
        get_method(**method),
        policy,
        TabularScorer(reference),
        batch,
        EPOCHS,
        lambda p: torch.optim.Adam(p, RATE),
        watch,
    )
    return {
        "chosen": curve[-1]["chosen"],
        "peak": max(x["chosen"] for x in curve),
        "unseen": curve[-1]["unseen"],
        "log_rejected": curve[-1]["log_rejected"],
        "ratio_error": max(x["ratio_error"] for x in curve if "ratio_error" in x),
        "curve": [{k: float(f"{v:.6g}") for k, v in x.items()} for x in curve if x["epoch"] % EVERY == 0],
    }


def _ratio_error(step: Step, w: Tensor, l: Tensor) -> float:
    """max |(|dloss/dpi-| / |dloss/dpi+|) / (pi+ / pi-) - 1| over the pairs."""
    import torch

    policy = step.responses.scores["policy"].values
    slope = torch.autograd.grad(step.loss.scalar, policy, retain_graph=True)[0][:, 0].abs()
    dw, dl = slope[:PROMPTS] / w.exp(), slope[PROMPTS:] / l.exp()
    return float(((dl / dw) / (w - l).exp() - 1).abs().max())


# ---- what is shown


COLOURS = {"dpo": "#c8553d", "flex-0.05": "#7fb3c8", "flex-0.02": "#1f6f8b", "flex-0.01": "#0b3a4a",
           "sft-0.01": "#b9b45a", "sft-0.05": "#7a7420"}  # fmt: skip
LABELS = {"dpo": "DPO", **{k: f"Flex-DPO, β⁻ {k[5:]}" for k in TOY if k[:4] == "flex"},
          **{k: f"SFT-DPO, γ {k[4:]}" for k in TOY if k[:3] == "sft"}}  # fmt: skip


def plot(seeds: Sequence[Measurements]) -> Figure:
    """The toy's three properties over epochs (first seed strong), and the drift of a language model's answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 5.6), layout="constrained")
    places = figure.subplots(2, 2)
    titles = {"log_rejected": "drop: log π of the rejected", "chosen": "degradation: π of the chosen",
              "unseen": "dispersion: mass on everything else"}  # fmt: skip
    for axes, (key, title) in zip(places.flat, titles.items(), strict=False):
        for name in TOY:
            for number, seed in enumerate(seeds):
                curve = seed["toy-dpo-1" if name == "dpo" else f"toy-{name}"]["curve"]
                axes.plot([p["epoch"] for p in curve], [p[key] for p in curve], color=COLOURS[name],
                          alpha=0.3 if number else 1.0, linewidth=1.0 if number else 1.6)  # fmt: skip
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("epoch of the toy", fontsize=8)
    _drift(places.flat[3], seeds)
    for axes in places.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    lines = [figure.axes[0].plot([], [], color=COLOURS[k], label=v)[0] for k, v in LABELS.items()]
    figure.legend(handles=lines, frameon=False, loc="outside upper left", ncols=6, fontsize=7.5)
    return figure


def _drift(axes: Axes, seeds: Sequence[Measurements]) -> None:
    for row, name in enumerate(LM):
        for side, mark in (("chosen", "o"), ("rejected", "x")):
            values = [seed[f"lm-{name}"][f"{side}_change"] for seed in seeds]
            axes.plot(values, [row] * len(values), mark, color=COLOURS[name])
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(LM)), [LABELS[k] for k in LM])
    axes.invert_yaxis()
    axes.set_title("language model: change of log π, chosen ● and rejected ✕", fontsize=9, loc="left")
    axes.set_xlabel("nats per answer after 300 steps", fontsize=8)


def _cure(m: Measurements, run: str, key: str) -> float:
    return m[run][key] - m["toy-dpo-1"][key]


def _least(m: Measurements, of: str) -> float:
    """Of the two cures of the language model, the worse one's number."""
    dpo, start = m["lm-dpo"], m["lm-start"]
    numbers = []
    for name in ("lm-flex-0.05", "lm-sft-0.05"):
        cured = m[name]
        numbers.append({
            "chosen": cured["chosen_change"] - dpo["chosen_change"],
            "rejected": cured["rejected_change"] - dpo["rejected_change"],
            "reward": cured["covered"] - start["covered"],
        }[of])  # fmt: skip
    return min(numbers)


REPRODUCTION = Reproduction(
    slug="3d-properties",
    paper="2406.07327",
    claim=(
        "DPO drives rejected responses out, then loses the chosen ones too, and the mass goes to unseen responses; a "
        "smaller beta on the rejected side (Flex-DPO) or the chosen NLL (SFT-DPO) counters it."
    ),
    setting=(
        "The paper's toy: 4 prompts, 10 responses, a three-layer network fitted to equal rows, 2,000 full-batch Adam "
        "epochs at rate 3e-4 on one pair a prompt, with chosen and rejected groups on-policy (0.12 each, scenario 1) or "
        "off-policy (0.02 each, scenario 4). Then language models on the copy task with length-biased labels (world "
        "`copying`): DPO, Flex-DPO (beta 0.1 and 0.05) and SFT-DPO (gamma 0.05), 300 AdamW steps of 48 pairs at 5e-4."
    ),
    demands=(
        Demand(
            "toy, DPO: the chosen probability ends below its peak, by",
            lambda m: m["toy-dpo-1"]["peak"] - m["toy-dpo-1"]["chosen"],
            least=1e-4,
        ),
        Demand("toy, DPO: mean log-probability of the rejected", lambda m: m["toy-dpo-1"]["log_rejected"], most=-40.0),
        Demand(
            "toy: chosen probability of Flex-DPO (0.02) above DPO's",
            lambda m: _cure(m, "toy-flex-0.02", "chosen"),
            least=0.15,
        ),
        Demand(
            "toy: unseen mass of Flex-DPO (0.02) less DPO's", lambda m: _cure(m, "toy-flex-0.02", "unseen"), most=-0.15
        ),
        Demand(
            "toy: chosen probability of SFT-DPO (0.05) above DPO's",
            lambda m: _cure(m, "toy-sft-0.05", "chosen"),
            least=0.35,
        ),
        Demand(
            "toy, DPO: |dloss/dpi-| / |dloss/dpi+| is pi+/pi- at every look, relative error",
            lambda m: m["toy-dpo-1"]["ratio_error"],
            most=1e-9,
        ),
        Demand(
            "toy, DPO: chosen probability with both groups on-policy above that with both off-policy",
            lambda m: m["toy-dpo-1"]["chosen"] - m["toy-dpo-4"]["chosen"],
            least=1e-4,
        ),
        Demand(
            "language model: chosen log-probability of either cure above DPO's, in nats",
            lambda m: _least(m, "chosen"),
            least=2.0,
        ),
        Demand(
            "language model: rejected log-probability of either cure above DPO's, in nats",
            lambda m: _least(m, "rejected"),
            least=1e-6,
        ),
        Demand("language model: reward of either cure above the start's", lambda m: _least(m, "reward"), least=0.1),
    ),
    settings={"toy": TOY, "epochs": EPOCHS, "rate": RATE, "scenarios": SCENARIOS, "lm": LM, "train": LM_TRAIN},
    run=run,
    plot=plot,
    steps=len(SCENARIOS) + len(TOY) - 1 + 1 + len(LM),
    remarks=(
        "Mean over the four prompts; unseen is everything but a prompt's own chosen and rejected response.",
        "Scenarios 2 and 3 are run and not judged: the paper's order of 2 against 1 does not show in this toy.",
        "What fails is scenario 4 against 1, by 0.002 on one seed of three: where both groups are off-policy the end "
        "depends much on the network's initial weights. On eight further seeds (11 to 18), run afterwards to see "
        "whether that was chance, the chosen probability was 0.24 to 0.26 on-policy, and off-policy 0.01 to 0.27 (mean "
        "0.18) and the lower one on five: lower on average, not on every seed. The demand was left as it was; rows, network, "
        "fit and rates were gone through again, and nothing departs from the description.",
        "Both cures cost reward at equal steps; what they bring is stability.",
    ),
)
