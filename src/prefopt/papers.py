"""The papers whose systems prefopt is to hold, and how far each one is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from . import methods, recipes
from .objectives.method import METHODS

_TABLE = """
curry-dpo|2403.07230|Curry-DPO: curriculum over ranked pairs, moving reference|text
modpo|2310.03708|Multi-Objective DPO|text
simpo|2405.14734|SimPO|text
smpo|2506.02698|SmPO-Diffusion: smoothed preferences, ReNoise inversion|image diffusion
f-dpo|2309.16240|f-DPO: divergence constraints|any
asft|2409.10571|ASFT: absolute likelihood|text
dense-dpo|2506.03517|DenseDPO: segment-level video preferences|video diffusion
diffusion-dro|2510.18353|Diffusion-DRO: ranking against the policy's own samples|image diffusion
ld-dpo|2409.06411|LD-DPO: length desensitisation|text
rankdpo|2410.18013|RankDPO and Syn-Pic: ranked lists from reward models|image diffusion
dpa|2402.18571|Directional Preference Alignment|text
triple-tpo|2405.16681|Triple Preference Optimization (TPO, TPO-L)|text
survey|2503.11701|A Survey of DPO: the taxonomy, and the unified comparison|all
apo|2410.06293|Accelerated Preference Optimization (momentum)|text
ofs-dpo|2406.05534|OFS-DPO and COFS-DPO: fast-slow chasing, cross-domain|text
tgdpo|2506.14574|TGDPO: token-level reward guidance|text
self-npo|2505.11777|Self-NPO and Diffusion-NPO: negative preference models for guidance|image, video diffusion
madpo|2510.05342|Margin-Adaptive DPO|any
spo-step|2406.04314|Step-aware Preference Optimization|image diffusion
3d-properties|2406.07327|3D-properties of DPO: diagnostics and Flex-DPO|text
tdpo|2404.11999|Token-level DPO (TDPO1, TDPO2)|text
pami-vdpo|2504.05810|PaMi-VDPO: prompt-aware multi-instance video DPO|video language model
infifpo|2505.13878|InfiFPO: fused source models as reference|text
d3po|2311.13231|D3PO: per-step DPO on the denoising MDP|image diffusion
mo-grpo|2503.21819|Multi-objective GRPO for safe generation|text
sparsepo|2410.05102|SparsePO: sparse token masks (MaPO, SPO)|text
diffusion-dpo|2311.12908|Diffusion-DPO|image diffusion
more-is-less|2504.02193|Pitfalls of multi-model preference data in safety alignment|text
oreo|2412.16145|OREO: offline RL for multi-step reasoning|text
trpa|2504.04524|Trust Region Preference Approximation|text
egida|2502.13603|Safety retrofitting against jailbreaking|text
code-dpo|2410.05605|CodeDPO: self-generated, verified code|text
lcpo|2509.24159|Latent Collective Preference Optimization (EM over labels)|any
rto|2404.18922|Reinforced Token Optimization: DPO reward, then PPO|text
insights-variants|2404.14723|DPO and variants across tasks; baselines DPO, IPO, KTO, CPO, ORPO, SLiC|text
tree-tpo|2410.12854|Tree Preference Optimization|text
mia-dpo|2410.17637|MIA-DPO: multi-image augmentation|vision-language
inpo|2503.18454|DDIM-InPO: inversion|image diffusion
ln-dpo|2407.15229|Hitchhiker's guide: LN-DPO, robustness to hyperparameters|text
ppd|2501.06655|Personalized Preference Fine-tuning|image diffusion
self-spo|2409.17791|Self-supervised Preference Optimization (preference degree)|text
unpacking|2406.09279|Unpacking DPO and PPO: data, algorithm, reward model, prompts; reward models, PPO|text
dcpo|2502.06023|Dual Caption Preference Optimization|image diffusion
veripo|2505.19000|VerIPO: GRPO, verifier, DPO loop|video language model
tlpo|2508.11255|FantasyTalking2 TLPO: timestep-layer adaptive experts|video diffusion
mcts-dpo|2405.00451|MCTS-DPO: tree search, step-level pairs|text
diff-instruct-star|2410.20898|Diff-Instruct*: one-step generators|image diffusion
"""  # slug | arXiv id | what it brings | modality

COMPARISONS = ("survey", "insights-variants")
"""Papers that compare: the survey's vocabulary is objectives/taxonomy.py, their methods are in the list of methods."""


@dataclass(frozen=True)
class Paper:
    """One paper.

    status: "method" or "recipe" where its system is here, "comparison" where it has none of its own and what it compares
    is here, else "to come".
    verdict: what its reproduction found: "holds", "fails", or "" where none has been committed.
    """

    slug: str
    arxiv: str
    title: str
    modality: str
    status: str
    verdict: str


def papers() -> list[Paper]:
    """All rows, in the order of the catalogue."""
    methods.load_all()
    found = []
    for line in _TABLE.strip().splitlines():
        slug, arxiv, title, modality = line.split("|")
        in_steps = any(r.paper == arxiv for r in recipes.load_all().values())
        here = "recipe" if in_steps else "comparison" if slug in COMPARISONS else "to come"
        status = "method" if slug in METHODS else here
        found.append(Paper(slug, arxiv, title, modality, status, verdict(slug)))
    return found


def verdict(slug: str) -> str:
    """The committed verdict of a reproduction: in docs/reproductions of a checkout, or installed with the package."""
    package = Path(__file__).parent / "reproductions" / "verdicts"
    checkout = Path(__file__).parents[2] / "docs" / "reproductions"
    for folder in (package, checkout):
        if (path := folder / f"{slug}.json").is_file():
            return str(json.loads(path.read_text())["verdict"])
    return ""
