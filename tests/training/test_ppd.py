"""PPD: attention by the equation, identities, tables of users without leaks, runs, pictures for users, what is refused."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from prefopt.annotation.users import build_users, draw_shots, told_apart
from prefopt.data.config import DataConfig
from prefopt.data.users import UserTable, mixed, pair_keys
from prefopt.errors import PrefoptError
from prefopt.evaluation.run import run_config
from prefopt.models.diffusion import image_model
from prefopt.models.opening import open_pipeline
from prefopt.models.user_branch import branch_weights, insert_user_branch, load_user_branch, save_user_branch
from prefopt.personal import load_users, parse_users
from prefopt.rollout.images import ImageSampling, sample_images
from prefopt.scoring.base import Draw
from prefopt.scoring.conditioning import predict
from prefopt.training.run import make_method, train
from prefopt.training.tasks.denoising import diffusion_task
from prefopt.worlds.shapes.pipelines import tiny_pipeline
from prefopt.worlds.shapes.render import render, scenes

from .test_diffusion_task import config, losses

ENCODER = """
import numpy as np

def features(image):
    x = np.asarray(image, dtype=float) / 255
    return [x[..., 0].mean(), x[..., 1].mean(), x[..., 2].mean()]

def taste(shots):
    gaps = [np.subtract(features(s.chosen), features(s.rejected)) for s in shots]
    mean = np.mean(gaps, axis=0)
    return [mean.tolist(), np.tanh(9 * mean).tolist()]

def ragged(shots):
    ragged.calls = getattr(ragged, "calls", 0) + 1
    return [0.5] * (2 + ragged.calls % 2)

def nothing(shots):
    return [0.0, 0.0]

def red(prompts, images):
    return [features(image)[0] for image in images]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in ("sd", "sd-v", "sdxl", "sd3"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


def write_users(folder, users=("anna", "ben", "cleo"), pairs=6, edit=lambda row, i: row):
    """Anna and Ben see the same pairs and choose oppositely; Cleo has her own."""
    rows, all_ = [], scenes()
    for u, user in enumerate(users):
        rng = np.random.default_rng(0 if u < 2 else u)
        for i in range(pairs):
            names = []
            for side in "ab":
                names.append(f"{min(u, 1) if u < 2 else u}-{i}-{side}.png" if u >= 2 else f"0-{i}-{side}.png")
                Image.fromarray(render(all_[rng.integers(96)], rng)).save(folder / names[-1])
            names = names[::-1] if user == "ben" else names
            row = {"prompt": all_[i % 4].caption, "chosen": names[0], "rejected": names[1], "user_id": user}
            rows.append(edit(row, len(rows)))
    (folder / "users.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r))
    (folder / "taste.py").write_text(ENCODER)
    return folder / "users.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_users(tmp_path_factory.mktemp("users"))


@pytest.fixture(scope="module")
def table(data):
    out = data.parent / "table"
    build_users(DataConfig(path=str(data)), out, f"{data.parent}/taste.py:taste", draws=3, progress=False)
    return out


def ppd(model, data, output, table, /, **sections):
    method = {"name": "ppd", "beta": 100.0} | sections.pop("method", {})
    rows = {"users": str(table)} if table else {}
    return config(model, data, output, method=method, data=rows | sections.pop("data", {}), **sections)


# ------------------------------------------------------------------------------------------------------ the attention
def test_attention_is_the_equations_in_float64():
    """Z = softmax(Q K^T / sqrt d) V + lam softmax(Q (u W_k')^T / sqrt d) (u W_v'), head by head, row by row."""
    unet = tiny_pipeline("sd").unet.double()
    insert_user_branch(unet, 5, lam=0.7, seed=3)
    unet.double()
    g = torch.Generator().manual_seed(0)
    weights = branch_weights(unet)
    for w in weights.values():
        w.data = torch.randn(w.shape, generator=g, dtype=torch.float64)
    name = next(iter(weights)).rpartition(".")[0]
    attention = unet.get_submodule(name)
    size, heads = attention.to_k.out_features, attention.heads
    x = torch.randn(2, 6, attention.to_q.in_features, generator=g, dtype=torch.float64)
    text = torch.randn(2, 4, attention.to_k.in_features, generator=g, dtype=torch.float64)
    u = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    found = attention(x, encoder_hidden_states=(text, [u]))

    def one(q, keys, values):
        """A single query of a single head over all keys, in plain Python."""
        logits = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in keys]
        top = max(logits)
        shares = [math.exp(v - top) for v in logits]
        return [sum(s * v[i] for s, v in zip(shares, values, strict=True)) / sum(shares) for i in range(len(q))]

    def of(linear, rows):
        return (rows @ linear.weight.T).tolist()

    d = size // heads
    for b in range(2):
        q, k, v = of(attention.to_q, x[b]), of(attention.to_k, text[b]), of(attention.to_v, text[b])
        ku, vu = (u[b] @ weights[f"{name}.to_{w}"].T for w in "kv")
        for row in range(6):
            z = []
            for h in range(heads):
                cut = slice(h * d, (h + 1) * d)
                plain = one(q[row][cut], [r[cut] for r in k], [r[cut] for r in v])
                more = one(q[row][cut], [r[cut] for r in ku.tolist()], [r[cut] for r in vu.tolist()])
                z += [a + 0.7 * c for a, c in zip(plain, more, strict=True)]
            out = attention.to_out[0](torch.tensor(z, dtype=torch.float64))
            torch.testing.assert_close(found[b, row], out, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
def test_no_user_and_new_branches_change_nothing(kind):
    model, plain = image_model(tiny_pipeline(kind)), image_model(tiny_pipeline(kind))
    text = {n: x.expand(2, *x.shape[1:]) for n, x in plain.encode_captions(["a red circle in the upper left"]).items()}
    if kind == "sdxl":
        text["time_ids"] = torch.zeros(2, 6)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([20, 700])
    start = predict(plain.denoiser, model.kind, x, t, text)
    insert_user_branch(model.denoiser, 7)
    some, none = {"user": torch.randn(2, 3, 7)}, {"user": torch.zeros(2, 3, 7)}
    assert torch.equal(predict(model.denoiser, model.kind, x, t, text | some), start)  # W_v' starts at zero
    for w in branch_weights(model.denoiser).values():
        nn.init.normal_(w)
    assert torch.equal(predict(model.denoiser, model.kind, x, t, text | none), start)
    assert not torch.allclose(predict(model.denoiser, model.kind, x, t, text | some), start)
    assert {n for n, p in model.denoiser.named_parameters() if p.requires_grad} == {
        n for n, _ in model.denoiser.named_parameters() if "processor" in n
    }


def test_the_key_starts_as_the_texts_own_where_it_fits():
    unet = tiny_pipeline("sd").unet
    insert_user_branch(unet, unet.config.cross_attention_dim)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert torch.equal(branch_weights(unet)[f"{name}.to_k"], unet.get_submodule(name).to_k.weight)
    one, two, other = (tiny_pipeline("sd").unet for _ in range(3))
    for net, seed in ((one, 1), (two, 1), (other, 2)):
        insert_user_branch(net, 5, seed=seed)
    assert torch.equal(branch_weights(one)[f"{name}.to_k"], branch_weights(two)[f"{name}.to_k"])
    assert not torch.equal(branch_weights(one)[f"{name}.to_k"], branch_weights(other)[f"{name}.to_k"])


def test_denoisers_without_a_place_are_refused():
    with pytest.raises(PrefoptError, match="text and image share one attention"):
        insert_user_branch(tiny_pipeline("sd3").transformer, 5)
    unet = tiny_pipeline("sd").unet
    insert_user_branch(unet, 5)
    with pytest.raises(PrefoptError, match="a further condition already"):
        insert_user_branch(unet, 5)
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
        mid_block_type=None, norm_num_groups=4,
    )  # fmt: skip
    with pytest.raises(PrefoptError, match="no cross-attention to the text"):
        insert_user_branch(plain, 5)


def test_a_branch_is_saved_and_loaded(tmp_path):
    unet, again = tiny_pipeline("sd").unet, tiny_pipeline("sd").unet
    insert_user_branch(unet, 5, lam=0.3)
    for w in branch_weights(unet).values():
        nn.init.normal_(w)
    save_user_branch(unet, tmp_path / "a", 0.3)
    load_user_branch(again, tmp_path / "a")
    for name, w in branch_weights(unet).items():
        assert torch.equal(w, branch_weights(again)[name])
    layer = again.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn2")
    assert layer.processor.scale == [0.3]
    with pytest.raises(PrefoptError, match="is of another UNet"):
        load_user_branch(tiny_pipeline("sdxl", seed=1).unet.__class__.from_config(
            tiny_pipeline("sd").unet.config, block_out_channels=(32, 32)), tmp_path / "a")  # fmt: skip
    with pytest.raises(PrefoptError, match="holds no user branch"):
        load_user_branch(tiny_pipeline("sd").unet, tmp_path)


# ------------------------------------------------------------------------------------------------------ the loss
def scored(task, method, epoch=0):
    batch = task.scorer.collate([Draw(task.train[i], epoch) for i in range(6)])
    found = task.scorer.score(task.model, batch, method.needs())["responses"]
    return batch, found


def test_the_reference_is_the_start_whatever_the_branch_has_learnt(models, data, table, tmp_path):
    cfg = ppd(models["sd"], data, tmp_path / "run", table, denoising={"caption_dropout": 0.0})
    method = make_method(cfg)
    task = diffusion_task(cfg, method)
    assert task.record["reference"]["kind"] == "user_off"
    _, start = scored(task, method)
    assert torch.equal(start["policy"].values, start["reference"].values)
    for w in branch_weights(task.model).values():
        nn.init.normal_(w)
    batch, moved = scored(task, method)
    assert torch.equal(moved["reference"].values, start["reference"].values)
    own = batch.condition["user"].abs().sum((1, 2)) > 0
    changed = (moved["policy"].values != moved["reference"].values).squeeze(1)
    assert torch.equal(changed, own[batch.notes["group"]])  # those that user dropout left without a user are the start


def test_with_a_branch_that_does_nothing_it_is_diffusion_dpo(models, data, table, tmp_path):
    """lam u W_v' = 0: the same values as Diffusion-DPO's on the same draws, pair by pair."""
    cfg = ppd(models["sd"], data, tmp_path / "a", table, method={"user_dropout": 1.0})
    plain = config(models["sd"], data, tmp_path / "b", method={"name": "diffusion-dpo", "beta": 100.0})
    tasks = [diffusion_task(c, make_method(c)) for c in (cfg, plain)]
    for w in branch_weights(tasks[0].model).values():
        nn.init.normal_(w)
    batches, found = zip(*(scored(t, make_method(c)) for t, c in zip(tasks, (cfg, plain), strict=True)), strict=True)
    for name in ("latents", "noise", "time"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))
    for name in ("policy", "reference"):
        assert torch.equal(found[0][name].values, found[1][name].values)


def test_users_are_dropped_at_the_rate_and_draws_change(models, data, table, tmp_path):
    cfg = ppd(models["sd"], data, tmp_path / "run", table, method={"user_dropout": 0.3})
    task = diffusion_task(cfg, make_method(cfg))
    seen = [task.scorer.collate([Draw(task.train[i], e)]).condition["user"][0] for i in range(6) for e in range(60)]
    without = sum(not bool(x.any()) for x in seen) / len(seen)
    assert without == pytest.approx(0.3, abs=0.08)
    assert len({x.sum().item() for x in seen}) > 4  # several draws, and none
    again = task.scorer.collate([Draw(task.train[3], 5), Draw(task.train[0], 5)]).condition["user"][1]
    assert torch.equal(again, seen[5])


# ------------------------------------------------------------------------------------------------------ users
def test_no_pair_is_learnt_with_an_embedding_made_of_it(data, table, models, tmp_path):
    made = UserTable.load(table)
    cfg = ppd(models["sd"], data, tmp_path / "run", table)
    task = diffusion_task(cfg, make_method(cfg))
    names = task.record["data"]["names"]["user"]
    for i, example in enumerate(task.train.examples):
        user, (key,) = names[example.notes["user"][0]], pair_keys(example)
        clean = [d for d, shots in enumerate(made.shots[user]) if key not in shots]
        assert clean
        torch.testing.assert_close(task.train[i].condition["user"], made.embeddings[user][clean])
    assert set(made.shots["anna"][0]) & {k for e in task.train.examples for k in pair_keys(e)}


def test_the_same_pair_may_be_chosen_oppositely(data, table, models, tmp_path):
    cfg = ppd(models["sd"], data, tmp_path / "run", table)
    task = diffusion_task(cfg, make_method(cfg))
    assert len(task.train) == 18
    keys = {}
    for e in task.train.examples:
        keys.setdefault(pair_keys(e)[0], []).append(e)
    assert sorted(len(v) for v in keys.values()) == [1] * 6 + [2] * 6


@pytest.mark.parametrize("pairs", [5, 6, 9, 30])
@pytest.mark.parametrize("draws", [1, 2, 5])
def test_every_pair_has_a_draw_without_it(pairs, draws):
    keys = [f"{i:02d}" for i in range(pairs)]
    made = draw_shots(keys, 4, draws, np.random.default_rng(0))
    assert len(made) >= draws and all(len(set(m)) == 4 for m in made)
    assert all(any(k not in m for m in made) for k in keys)


def test_a_table_goes_on_where_it_was_stopped(data, tmp_path, monkeypatch):
    from prefopt.models.user_encoders import FunctionEncoder

    spec, calls = f"{data.parent}/taste.py:taste", []
    real = FunctionEncoder.__call__

    def counted(self, shots):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(self, shots)

    monkeypatch.setattr(FunctionEncoder, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        build_users(DataConfig(path=str(data)), tmp_path / "cut", spec, progress=False)
    build_users(DataConfig(path=str(data)), tmp_path / "cut", spec, progress=False)
    shots = UserTable.load(tmp_path / "cut").shots
    assert len(calls) == 8 + sum(map(len, shots.values())) - len(shots["anna"])  # the first user's were kept
    build_users(DataConfig(path=str(data)), tmp_path / "whole", spec, progress=False)
    one, two = (UserTable.load(tmp_path / n) for n in ("cut", "whole"))
    assert one.fingerprint == two.fingerprint
    assert one.scale == two.scale


def test_embeddings_tell_users_apart(table):
    made = UserTable.load(table)
    rms = torch.cat([x.flatten() for x in made.embeddings.values()]).square().mean().sqrt()
    assert rms.item() == pytest.approx(1.0, abs=1e-5)
    assert told_apart(made.embeddings)["nearest"] > 0.5
    same = {"a": torch.ones(3, 1, 2), "b": torch.ones(3, 1, 2)}
    assert told_apart(same)["among_16"] == 1.0
    assert told_apart({"a": torch.ones(1, 1, 2)}) == {}


def test_users_with_too_few_pairs_are_left_out_and_counted(models, tmp_path):
    rows = write_users(tmp_path, edit=lambda row, i: None if row["user_id"] == "cleo" and i % 6 > 3 else row)
    found = build_users(DataConfig(path=str(rows)), tmp_path / "t", f"{tmp_path}/taste.py:taste", progress=False)
    assert (found["users"], found["too_few"]) == (2, 1)
    task_config = ppd(models["sd"], rows, tmp_path / "run", tmp_path / "t")
    record = diffusion_task(task_config, make_method(task_config)).record["data"]["users"]
    assert (record["users"], record["rows_of_users_with_too_few_pairs"]) == (2, 4)
    with pytest.raises(PrefoptError, match="no user has more than 6 pairs"):
        build_users(DataConfig(path=str(rows)), tmp_path / "u", f"{tmp_path}/taste.py:taste", shots=6, progress=False)


def test_ties_are_dropped_before_users_are_counted(tmp_path):
    rows = write_users(tmp_path, edit=lambda row, i: row | ({"label_probability": 0.5} if i % 6 > 4 else {}))
    build_users(
        DataConfig(path=str(rows), max_dropped=0.5), tmp_path / "t", f"{tmp_path}/taste.py:taste", progress=False
    )
    made = UserTable.load(tmp_path / "t")
    assert all(len({k for d in shots for k in d}) == 5 for shots in made.shots.values())


def test_users_as_codes(data, models, tmp_path):
    build_users(DataConfig(path=str(data)), tmp_path / "t", "one-hot")
    made = UserTable.load(tmp_path / "t")
    assert made.shape == (1, 3)
    assert torch.equal(made.mean("ben"), torch.tensor([[0.0, 1.0, 0.0]]))
    assert train(ppd(models["sd"], data, tmp_path / "run", tmp_path / "t")).status == "finished"


def test_rows_may_bring_embeddings_of_their_own(models, tmp_path):
    rows = write_users(tmp_path, edit=lambda row, i: row | {"user_embedding": [[i % 3, 1.0], [0.0, 2.0]]})
    assert train(ppd(models["sd"], rows, tmp_path / "run", None)).status == "finished"
    pipeline = tiny_pipeline("sd")
    users = load_users(pipeline, tmp_path / "run")
    with pytest.raises(PrefoptError, match="no table of users"):
        users.choose("anna")
    users.choose(torch.ones(2, 2))


# ------------------------------------------------------------------------------------------------------ whole runs
@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
def test_it_trains_and_draws_for_users(models, data, table, tmp_path, kind):
    train_options = {"learning_rate": 0.1, "max_steps": 4}
    assert train(ppd(models[kind], data, tmp_path / "run", table, train=train_options)).status == "finished"
    curve = losses(tmp_path / "run")
    assert curve[0] == pytest.approx(math.log(2), abs=1e-3) and all(map(math.isfinite, curve))
    weights = load_file(tmp_path / "run" / "user_branch.safetensors")
    assert all(w.abs().sum() > 0 for w in weights.values())
    pipeline = tiny_pipeline(kind)
    start = picture(pipeline)
    users = load_users(pipeline, tmp_path / "run")
    assert users.names == ["anna", "ben", "cleo"]
    assert np.array_equal(picture(pipeline), start)  # nobody
    seen = {}
    for name, who in {"anna": "anna", "ben": "ben", "mix": {"anna": 1.0, "ben": 3.0}}.items():
        users.choose(who)
        seen[name] = picture(pipeline)
        assert not np.array_equal(seen[name], start)
    assert not np.array_equal(seen["anna"], seen["ben"])
    users.choose("anna", prompt_only=True)
    assert not np.array_equal(picture(pipeline), seen["anna"])
    assert np.array_equal(
        picture(pipeline, guidance_scale=1.0), (users.choose("anna"), picture(pipeline, guidance_scale=1.0))[1]
    )
    direct = users.embedding("anna")[None]
    again = picture(pipeline, ip_adapter_image_embeds=[torch.cat([direct] * 2)])
    np.testing.assert_allclose(again, seen["anna"], atol=1e-5)  # diffusers' own door
    users.choose({"anna": 2.0})
    assert np.array_equal(picture(pipeline), seen["anna"])
    users.choose(None)
    assert np.array_equal(picture(pipeline), start)


def picture(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"} | options
    return pipeline("a red circle in the upper left", generator=torch.Generator().manual_seed(0), **given).images[0]


def test_a_stopped_run_goes_on_bit_for_bit(models, data, table, tmp_path):
    options = {"train": {"max_steps": 4, "save_steps": 1, "save_strategy": "steps"}}
    train(ppd(models["sd"], data, tmp_path / "whole", table, **options))
    for _ in range(4):
        train(ppd(models["sd"], data, tmp_path / "cut", table, **options), stop_after=1)
    train(ppd(models["sd"], data, tmp_path / "cut", table, **options))
    one, two = (load_file(tmp_path / n / "user_branch.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_half_precision_backbones_have_float32_branches(models, data, table, tmp_path):
    cfg = ppd(models["sd"], data, tmp_path / "run", table, model={"dtype": "bfloat16"})
    task = diffusion_task(cfg, make_method(cfg))
    assert {w.dtype for w in branch_weights(task.model).values()} == {torch.float32}
    assert train(cfg).status == "finished"


def test_from_the_command_line(models, data, tmp_path, monkeypatch):
    from prefopt import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    taste = f"{data.parent}/taste.py:taste"
    assert not run("data", "build", "users", data, "-o", tmp_path / "t", "--encoder", taste, "--draws", "2")
    assert not run("train", "ppd", "-m", models["sd"], "-d", data, "-o", tmp_path / "run", f"data.users={tmp_path}/t",
                   "train.max_steps=4", "train.learning_rate=0.5", "method.beta=100", "train.warmup_steps=0",
                   "train.per_device_train_batch_size=6")  # fmt: skip
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps({k: str(data.parent / v) if k in ("chosen", "rejected") else v
                                       for k, v in r.items()}) + "\n" for r in rows[12:16]))  # fmt: skip
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": rows[0]["prompt"]}) + "\n")
    drawn = {}
    for name, options in {"nobody": [], "anna": ["--user", "anna"], "mix": ["--user", "anna=0.3,cleo=0.7"],
                          "new": ["--user-pairs", new], "prompt": ["--user", "anna", "--prompt-only"]}.items():  # fmt: skip
        assert not run("generate", tmp_path / "run", "-p", prompts, "-o", tmp_path / name, "--steps", "2", *options)
        drawn[name] = (tmp_path / name / "00000000.png").read_bytes()
    assert not run("generate", models["sd"], "-p", prompts, "-o", tmp_path / "start", "--steps", "2")
    assert drawn["nobody"] == (tmp_path / "start" / "00000000.png").read_bytes()
    assert len(set(drawn.values())) == 5
    for wrong in (["--user", "dora"], ["--user", "anna=-1,ben=2"], ["--user", "anna=0"], ["--user", "anna=x"],
                  ["--user", "anna", "--user-pairs", new], ["--prompt-only"], ["--user-pairs", prompts]):  # fmt: skip
        assert run("generate", tmp_path / "run", "-p", prompts, "-o", tmp_path / "wrong", *wrong) == 2
    assert run("generate", models["sd"], "-p", prompts, "-o", tmp_path / "wrong2", "--user", "anna") == 2
    judged_for_users(tmp_path / "run", data, new, run)


def judged_for_users(folder, data, new, run):
    """The evaluated pictures are those for the user, against the start's on equal noise; pairs are ordered by who chose."""
    few = ImageSampling(steps=2, guidance=4.0)
    options = ["--steps", "2", "--guidance", "4"]
    start = run_config(folder).model.path
    found, seen = {}, {}
    prompt = ["--user", "anna=1,cleo=0", "--prompt-only"]
    for name, who in {"nobody": [], "new": ["--user-pairs", new], "anna": prompt}.items():
        assert not run("eval", folder, "--reward", f"{data.parent}/taste.py:red", "--limit", "1", *options, *who)
        found[name] = json.loads((folder / "evaluation.json").read_text())
        seen[name] = [[np.asarray(Image.open(folder / f"images/{i:04d}-{side}.png")) for i in range(4)]
                      for side in ("before", "after")]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    said, seeds = [row["prompt"] for row in rows], [row["seed"] for row in rows]
    for name, pipeline in {
        "nobody": open_pipeline(start),
        "anna": open_pipeline(folder, user="anna", prompt_only=True),
    }.items():
        wanted = sample_images(pipeline, said, seeds, few, progress=False)
        assert np.array_equal(seen[name][1], np.stack(wanted))
    for before, _ in seen.values():
        assert np.array_equal(before, seen["nobody"][1])
    means = {name: np.mean([x[..., 0].mean() / 255 for x in after]) for name, (_, after) in seen.items()}
    for name in seen:
        assert found[name]["reward"]["policy"]["value"] == pytest.approx(means[name])
        assert found[name]["reward"]["start"]["value"] == pytest.approx(means["nobody"])
    assert found["nobody"]["win_rate"]["ties"] == 4 and found["anna"]["win_rate"]["ties"] < 4
    assert found["anna"]["settings"].items() >= {"user": prompt[1], "prompt_only": True}.items()
    accuracy = [f["preference"]["implicit_accuracy"] for f in found.values()]
    assert accuracy[0]["value"] in (0, 1)  # no tie: the policy is not its start
    assert accuracy[0]["n"] == 1 and all(a == accuracy[0] for a in accuracy)  # of Anna's own pair, whoever is drawn for
    for wrong in (["--user", "dora"], ["--user", "anna", "--user-pairs", new], ["--prompt-only"]):
        assert run("eval", folder, "--limit", "1", *wrong) == 2
    with pytest.raises(PrefoptError, match="holds no user branch"):
        open_pipeline(start, user="anna")


# ------------------------------------------------------------------------------------------------------ bad input
def test_bad_input_is_refused_before_training(models, data, table, tmp_path):
    def refused(match, *args, **sections):
        with pytest.raises(PrefoptError, match=match):
            train(ppd(*args, **sections))

    sd, out = models["sd"], tmp_path / "run"
    refused("prefopt data build users, and name the folder", sd, data, out, None)
    refused("leave the adapter out", sd, data, out, table, model={"adapter": {"r": 2}})
    refused("text and image share one attention", models["sd3"], data, out, table)
    refused("beta", sd, data, out, table, method={"beta": 0.0})
    refused("user_dropout", sd, data, out, table, method={"user_dropout": 1.5})
    refused("holds no table of users", sd, data, out, tmp_path)
    refused("needs model.adapter", sd, data, out, table, reference={"kind": "adapter_off"})
    (tmp_path / "plain").mkdir()
    nobody = write_users(tmp_path / "plain", edit=lambda row, i: {k: v for k, v in row.items() if k != "user_id"})
    refused("has no 'user_embedding|user'.*prefopt data build users", sd, nobody, out, table)
    other = write_users(tmp_path / "plain", users=("anna", "ben", "dora"))
    refused("the table of users has no 'dora'", sd, other, out, table)
    with pytest.raises(PrefoptError, match="data.users has no effect"):
        train(config(sd, data, out, method={"name": "diffusion-dpo"}, data={"users": str(table)}))
    odd = write_users(tmp_path / "plain", edit=lambda row, i: row | {"user_embedding": [1.0] * (2 + (i == 7))})
    refused(r"row 8: an embedding of \[1, 3\], the first one has \[1, 2\]", sd, odd, out, None)
    wrong = write_users(tmp_path / "plain", edit=lambda row, i: row | {"user_embedding": [[1.0], [2.0, 3.0]]})
    refused("row 1: 'user_embedding' must be d finite numbers", sd, wrong, out, None)
    leaking = UserTable.load(table)
    bad = UserTable({n: x[:1] for n, x in leaking.embeddings.items()}, {n: s[:1] for n, s in leaking.shots.items()}, {})
    bad.save(tmp_path / "leaking")
    refused("made of the very pair that is to be learnt", sd, data, out, tmp_path / "leaking")


def test_encoders_and_tables_that_cannot_be_are_refused(data, table, tmp_path):
    def refused(match, encoder, **options):
        with pytest.raises(PrefoptError, match=match):
            build_users(DataConfig(path=str(data)), tmp_path / encoder[-9:], encoder, progress=False, **options)

    taste = f"{data.parent}/taste.py"
    refused("shots = 0", f"{taste}:taste", shots=0)
    refused("has no function 'toste'", f"{taste}:toste")
    refused("sizes must not change", f"{taste}:ragged")
    refused("embeds every user as zeros", f"{taste}:nothing")
    refused("no effect on the function", f"{taste}:taste", tokens=3)
    refused("no image-text-to-text model", str(tmp_path))
    (tmp_path / "users.json").write_text("{")
    with pytest.raises(PrefoptError, match="is damaged"):
        UserTable.load(tmp_path)
    with pytest.raises(PrefoptError, match="must not be negative"):
        mixed({"a": -1.0, "b": 2.0}, lambda n: torch.zeros(1, 2))
    with pytest.raises(PrefoptError, match="must not be negative"):
        mixed({"a": 0.0}, lambda n: torch.zeros(1, 2))
    assert parse_users("x") == "x" and parse_users("x=1, y=2") == {"x": 1.0, "y": 2.0}
