"""PPD (2501.06655): one network serves users of opposite tastes, also users that it has never met, by four examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import read_jsonl, write_jsonl
from .bars import bar
from .bench import Bench
from .claim import Demand, Measurements, Reproduction
from .measure_images import side_by_side, win_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENCODER = "prefopt.worlds.tastes:encode"
PPD = {"name": "ppd", "beta": 50.0, "user_dropout": 0.1}
TRAIN: dict[str, Any] = {
    "max_steps": 500,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-2,
    "lr_scheduler_type": "linear",
    "logging_steps": 50,
    "save_strategy": "no",
}
DPO_RATE = 1e-4  # of all weights; the rate above is for the branch alone
DRAWS = 16  # embeddings of a training user
PICTURES = 32  # of each user
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = 8
ARMS = ("dpo", "one-hot", "encoder", "shuffled")
NAMES = {"dpo": "without users", "one-hot": "PPD, codes", "encoder": "PPD", "shuffled": "users shuffled"}
COLOURS = {"seen": "#1f6f8b", "unseen": "#7fb3c4"}


def run(bench: Bench) -> Measurements:
    """Embed the users, train four ways, and draw for everyone from equal noise."""
    from ..worlds import tastes

    world = bench.once("world", lambda: _world(bench.seed))
    likes: dict[str, list[float]] = json.loads(Path(world["users"]).read_text(encoding="utf-8"))
    known, new = (sorted(n for n in likes if n.startswith(kind)) for kind in ("user", "new"))
    tables = bench.once(
        "tables", lambda: {n: _table(bench, world, n, e) for n, e in (("encoder", ENCODER), ("one-hot", "one-hot"))}
    )
    runs = {arm: bench.once(arm, partial(_trained, bench, world, tables, arm, known)) for arm in ARMS}
    said = [c for c in tastes.captions() for _ in range(PICTURES // 4)]

    def features(images: Sequence[Any]) -> list[list[float]]:
        return np.round(tastes.features(said, images), 4).tolist()

    def drawn(choose: Callable[[Any, str], Any], arm: str, users: Sequence[str]) -> dict[str, Any]:
        pipeline, branch = _opened(world["model"], runs[arm])
        return {u: features(_pictures(pipeline, branch, choose(branch, u), said, bench.seed)) for u in users}

    base = bench.once(
        "base", lambda: features(_pictures(_opened(world["model"], None)[0], None, None, said, bench.seed))
    )
    seen = {a: bench.once(f"seen-{a}", partial(drawn, lambda _, u: u, a, known)) for a in ARMS if a != "dpo"}
    plain = bench.once(
        "seen-dpo", lambda: features(_pictures(_opened(runs["dpo"], None)[0], None, None, said, bench.seed))
    )
    shots = {u: _shots(bench, world, u) for u in new}
    unseen = {
        a: bench.once(f"unseen-{a}", partial(drawn, lambda b, u: b.embed(shots[u]), a, new))
        for a in ("encoder", "shuffled")
    }
    mixes = bench.once("mixes", lambda: _mixes(bench, world, runs["encoder"], known, said, features))
    nobody = bench.once("nobody", lambda: drawn(lambda b, u: None, "encoder", known[:1]) == {known[0]: base})
    _show(bench, world, runs["encoder"], _strongest(likes, known, 3), _strongest(likes, new, 1), shots, likes)
    liked = {u: np.asarray(h) for u, h in likes.items()}
    found = {arm: {"seen": pictures} for arm, pictures in seen.items()} | {
        "dpo": {"seen": dict.fromkeys(known, plain), "unseen": dict.fromkeys(new, plain)}
    }
    for arm, pictures in unseen.items():
        found[arm]["unseen"] = pictures
    return {
        name: {a: {kind: measure(liked, base, x) for kind, x in kinds.items()} for a, kinds in found.items()}
        for name, measure in (("win_rate", _wins), ("gain", _gains))
    } | {"mixes": _curves(liked, mixes), "nobody_is_the_start": bool(nobody)}


def _world(seed: int) -> dict[str, str]:
    from ..worlds import tastes

    world = tastes.build(seed=seed)
    return {n: str(getattr(world, n)) for n in ("model", "train", "heldout")} | {
        "users": str(world.root / "users.json")
    }


def _table(bench: Bench, world: Mapping[str, str], name: str, encoder: str) -> str:
    from ..annotation.users import build_users
    from ..data.config import DataConfig

    folder = bench.folder / f"table-{name}"
    build_users(DataConfig(path=world["train"]), folder, encoder, draws=DRAWS, seed=bench.seed)  # type: ignore[call-arg]
    return str(folder)


def _trained(bench: Bench, world: Mapping[str, str], tables: Mapping[str, str], arm: str, known: Sequence[str]) -> str:
    data = {"path": world["train"], "max_dropped": 0.1}
    train = TRAIN | {"seed": bench.seed}
    if arm == "dpo":
        method = {"name": "diffusion-dpo", "beta": PPD["beta"]}
        return str(
            bench.train(
                arm,
                {"method": method, "model": world["model"], "data": data, "train": train | {"learning_rate": DPO_RATE}},
            )
        )
    if arm == "shuffled":
        data["path"] = str(_shuffled(Path(world["train"]), bench.folder / "shuffled.jsonl", known, bench.seed))
    data["users"] = tables["one-hot" if arm == "one-hot" else "encoder"]
    return str(bench.train(arm, {"method": PPD, "model": world["model"], "data": data, "train": train}))


def _shuffled(pairs: Path, output: Path, known: Sequence[str], seed: int) -> Path:
    """The same choices, each said to be anyone's."""
    rng = np.random.default_rng(seed)
    rows = read_jsonl(pairs)
    for row in rows:
        row["user"] = known[int(rng.integers(len(known)))]
        row |= {side: str(pairs.parent / row[side]) for side in ("chosen", "rejected")}
    write_jsonl(output, rows)
    return output


def _shots(bench: Bench, world: Mapping[str, str], user: str) -> Path:
    """A file with the first four pairs of a user who was not trained on."""
    path = bench.folder / "shots" / f"{user}.jsonl"
    place = Path(world["heldout"])
    rows = [r for r in read_jsonl(place) if r["user"] == user][:4]
    rows = [r | {side: str(place.parent / r[side]) for side in ("chosen", "rejected")} for r in rows]
    write_jsonl(path, rows)
    return path


def _opened(model: str, branch: str | None) -> tuple[Any, Any]:
    from ..models.diffusion import load_image_model
    from ..personal import load_users

    pipeline = load_image_model(model).pipeline
    return pipeline, None if branch is None or branch == model else load_users(pipeline, branch)


def _pictures(pipeline: Any, branch: Any, user: Any, said: Sequence[str], seed: int) -> list[Any]:
    """Equal noise for everyone."""
    from ..rollout.images import sample_images
    from ..worlds.tastes import SAMPLING

    if branch is not None:
        branch.choose(user)
    return sample_images(pipeline, said, [10_000 * seed + n for n in range(len(said))], SAMPLING, progress=False)


def _mixes(
    bench: Bench,
    world: Mapping[str, str],
    run_: str,
    known: Sequence[str],
    said: Sequence[str],
    features: Callable[..., Any],
) -> dict[str, list[Any]]:
    """Pictures between the two of five couples, by share of the second."""
    pipeline, branch = _opened(world["model"], run_)
    found: dict[str, list[Any]] = {}
    for first, second in zip(known[:10:2], known[1:10:2], strict=True):
        shares = [{first: 1 - w, second: w} for w in SHARES]
        found[first] = [features(_pictures(pipeline, branch, who, said, bench.seed)) for who in shares]
    return found


def _wins(likes: Mapping[str, np.ndarray], base: Sequence[Any], found: Mapping[str, Sequence[Any]]) -> float:
    """Mean over users of the share of pictures that they like better than the start's from the same noise."""
    return float(np.mean([win_rate(np.asarray(x) @ likes[u], np.asarray(base) @ likes[u]) for u, x in found.items()]))


def _gains(likes: Mapping[str, np.ndarray], base: Sequence[Any], found: Mapping[str, Sequence[Any]]) -> float:
    """Mean over users of how much more they like their pictures, in standard deviations of their liking of the start's."""
    gained = []
    for user, x in found.items():
        before = np.asarray(base) @ likes[user]
        gained.append(np.mean(np.asarray(x) @ likes[user] - before) / before.std())
    return float(np.mean(gained))


def _curves(likes: Mapping[str, np.ndarray], mixes: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """Mean liking of the first and of the second of each couple, by share of the second."""
    first = np.mean([[np.mean(np.asarray(x) @ likes[u]) for x in row] for u, row in mixes.items()], axis=0)
    return {"first": first.tolist(), "second": (-first).tolist()}


def _strongest(likes: Mapping[str, Sequence[float]], users: Sequence[str], count: int) -> list[str]:
    """The couples with the strongest taste for hue, for brightness and for size (the first `count` of these couples)."""
    taste = np.abs([likes[u] for u in users[::2]])
    found: list[str] = []
    for quality in range(3):
        left = [n for n in np.argsort(-taste[:, quality], kind="stable") if users[2 * n] not in found]
        found += users[2 * left[0] : 2 * left[0] + 2]
    return found[: 2 * count]


def _show(
    bench: Bench,
    world: Mapping[str, str],
    run_: str,
    users: Sequence[str],
    new: Sequence[str],
    shots: Mapping[str, Path],
    likes: Mapping[str, Any],
) -> None:
    """The first noises for the start, for couples that were trained on and for one that was not."""
    from ..worlds import tastes

    said = [c for c in tastes.captions() for _ in range(SHOWN // 4)]
    pipeline, branch = _opened(world["model"], run_)
    who = {"start": None} | {u: u for u in users} | {u: branch.embed(shots[u]) for u in new}
    rows = [(_name(n, likes), _pictures(pipeline, branch, u, said, bench.seed)) for n, u in who.items()]
    side_by_side(rows, said, bench.folder / "pictures.png")


def _name(user: str, likes: Mapping[str, Any]) -> str:
    if user not in likes:
        return user
    hue, bright, size = likes[user]
    return f"{user}: hue {hue:+.1f}, bright {bright:+.1f}, size {size:+.1f}"


def spearman(m: Measurements) -> float:
    """Rank correlation of share and liking of the second, and of the first with the sign turned, the smaller one."""
    ranks = np.argsort(np.argsort(m["mixes"]["second"]))
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])


def plot(seeds: Sequence[Measurements]) -> Figure:
    """Win rates of the four arms, and liking between two opposite users."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    for x, arm in enumerate(ARMS):
        for shift, kind in ((-0.2, "seen"), (0.2, "unseen")):
            values = [s["win_rate"][arm][kind] for s in seeds if kind in s["win_rate"][arm]]
            if values:
                bar(bars, x + shift, values, COLOURS[kind], width=0.38, label=kind if arm == "encoder" else None)
    bars.axhline(0.5, color="#444444", linewidth=0.9, dashes=(3, 3))
    bars.set_xticks(range(len(ARMS)), [NAMES[a] for a in ARMS], fontsize=7)
    bars.set_ylim(0, 1)
    bars.set_title("win rate over the start", fontsize=9)
    bars.legend(fontsize=6, frameon=False)
    for seed in seeds:
        for who, colour in (("first", "#c8553d"), ("second", "#1f6f8b")):
            lines.plot(SHARES, seed["mixes"][who], "-o", color=colour, markersize=3, linewidth=1)
    lines.set_xlabel("share of the second user", fontsize=8)
    lines.set_title("liking of the first (red) and the second", fontsize=9)
    for axes in (bars, lines):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


REPRODUCTION = Reproduction(
    slug="ppd",
    paper="2501.06655",
    claim="Conditioned on an embedding of the user, one network learns tastes that cancel each other on average, carries over "
    "to users it has never met by four of their pairs, and moves from one taste to the other with the mix of embeddings.",
    setting=(
        "World `tastes`, one for each seed: a small Stable Diffusion model draws blobs of any hue, brightness and size at the "
        "place of its caption. 40 users, 20 couples of opposite tastes, choose 100 times each between two of the model's own "
        "pictures, 5 % of the choices turned round; 10 further users are kept apart. An embedding is what the chosen has more "
        "than the rejected on average over four pairs, through a frozen random network (2 tokens of 16; it stands for a "
        "vision-language model). Diffusion-DPO without users, PPD with codes, PPD with embeddings, and PPD whose pairs are "
        "said to be anyone's take 500 steps of 32 pairs. 32 pictures for each user, from equal noise."
    ),
    demands=(
        Demand(
            "win rate of PPD over the start, users of the training",
            lambda m: m["win_rate"]["encoder"]["seen"],
            least=0.7,
        ),
        Demand(
            "win rate of PPD over the start, users by four pairs",
            lambda m: m["win_rate"]["encoder"]["unseen"],
            least=0.65,
        ),
        Demand(
            "win rate of Diffusion-DPO without users", lambda m: m["win_rate"]["dpo"]["seen"], least=0.44, most=0.56
        ),
        Demand(
            "win rate of PPD with shuffled users", lambda m: m["win_rate"]["shuffled"]["seen"], least=0.44, most=0.56
        ),
        Demand(
            "gain in liking by PPD, users of the training (standard deviations of the start's)",
            lambda m: m["gain"]["encoder"]["seen"],
            least=0.3,
        ),
        Demand(
            "gain in liking by PPD, users by four pairs",
            lambda m: m["gain"]["encoder"]["unseen"],
            least=0.3,
        ),
        Demand("gain in liking with shuffled users", lambda m: m["gain"]["shuffled"]["seen"], least=-0.1, most=0.1),
        Demand("rank correlation of liking and share in a mix of two opposite users", spearman, least=0.9),
        Demand("pictures for nobody are the start's, to the bit", lambda m: float(m["nobody_is_the_start"]), least=1),
    ),
    settings={
        "ppd": PPD,
        "train": TRAIN,
        "dpo_rate": DPO_RATE,
        "draws": DRAWS,
        "pictures": PICTURES,
        "world": "tastes",
    },
    run=run,
    plot=plot,
    steps=2 + len(ARMS) + 1 + (len(ARMS) - 1) + 1 + 2 + 1 + 1,
    remarks=(
        "The experiment was planned with 16x16 pictures, prompts of shapes, 2000 steps of 64 pairs at a rate of 1e-3, and beta "
        "500; here 8x8, prompts of places, 500 of 32 at 2e-2, and beta 50.",
        "This is the second version, on a mended world and under the same bounds on win rates. The first failed: its control "
        "with shuffled users won 0.48, 0.42 and 0.72 (seeds 1, 2, 3). The gain by PPD was only 0.08, 0.13 and 0.08 standard "
        "deviations, which no eye can see, and a win at equal noise counts the sign of a change however small. Two causes "
        "were found. The start drew noise in half of its pictures: dark pictures as latents have mean -0.9, which sampling "
        "from noise of mean 0 does not meet (the schedule ends with a signal of 0.07), and a small model that predicts noise "
        "leaves much of it behind. Latents are now centred and enlarged, and the model predicts v: the remainder that no "
        "blob explains fell from 0.036 to 0.012 of the grey scale (median; 0.01 is drawn), its 90 % quantile from 0.108 to "
        "0.016. And beta 500 held the branch back.",
        "Pilots on seed 0, which is not judged, trained PPD alone; gains for 16 users of the training / 10 by four pairs on "
        "the new start: with beta 500, 250 steps of 32 at rate 2e-3 0.08 / 0.09, at 1e-2 0.13 / 0.15, at 3e-2 0.18 / 0.21; "
        "with beta 100 at 1e-2 0.32 / 0.39 (of 64 pairs 0.41 / 0.46), at 3e-2 0.49 / 0.47; with beta 30 at 1e-2 0.38 / 0.48, "
        "at 3e-2 0.52 / 0.62 with losses for some users; 400 steps at 2e-2 with beta 100 0.48 / 0.54, where shuffled users "
        "gained -0.02 and won 0.48; 400 steps of 48 at 3e-2 with beta 60 0.70 / 0.68; 500 steps of 32 at 2e-2 with beta 50 "
        "0.66 / 0.75, which was taken.",
        "The demands on gains were added after these pilots and before the judged seeds.",
        "Liking of couples is opposite by construction, so one rank correlation serves both users of a mix, and a model "
        "without users wins exactly as often as it loses.",
        "What fails is again the control with shuffled users, on one seed here. A run before this one, with the same settings on "
        "earlier code, missed on two (0.439, 0.410, 0.455). Looked into after that one: its gain was -0.01, -0.04 and "
        "0.02 (seeds 1, 2, 3), and what it learnt is chance, a map from taste to pictures with entries of mostly less than 0.1 "
        "where the diagonal of PPD's has 0.1 to 0.6. But a win counts the sign alone, which is much the same for all pictures "
        "of a user (single users win from 0.00 to 0.97) and for users of like taste. The mean over 20 couples with tastes of "
        "three dimensions is thus one of few draws, whose spread does not depend on the size of the effect, so that a larger "
        "gain by PPD could not mend it. The bounds were left as they were, and nothing was tuned after these seeds.",
        "The grid shows the first noises of the first seed, for the couples with the strongest taste for hue, for brightness "
        "and for size, and for the couple by four pairs with the strongest taste for hue.",
    ),
    keeps=("pictures.png",),
)
