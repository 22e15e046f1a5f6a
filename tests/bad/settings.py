"""Bad configurations: keys, values, hyperparameters."""

from __future__ import annotations

import yaml

from tests.bad import Place, Table

bad = Table()

# keys
bad.train("unknown_section", "trian.seed=1", "trian", "did you mean 'train'")
bad.train("unknown_key", "data.max_lenght=64", "data.max_lenght", "data.max_length")
bad.train("unknown_train_key", "train.learning_rat=1e-3", "train.learning_rat", "train.learning_rate")
bad.train("unknown_adapter_key", "model.adapter.rank=8", "model.adapter.rank", "alpha")
bad.train("key_in_the_wrong_section", "model.max_length=64", "model.max_length", "data.max_length")
bad.train("train_key_without_effect", "train.group_by_length=true", "train.group_by_length", "no effect")
bad.train("old_name_of_the_output", "train.output_dir=x", "train.output_dir", "`output`")
bad.train("noise_on_the_policy_alone", "train.neftune_noise_alpha=5", "neftune_noise_alpha", "reference")
bad.train("override_without_value", "train.seed", "train.seed", "section.key=value")
bad.train("override_without_section", "beta=0.1", "beta", "method.beta")
bad.train("override_of_a_value", "output.path=x", "output", "section")
bad.train("reference_for_a_method_without", "reference.kind=frozen", "reference.kind", "simpo", method="simpo")
bad.train(
    "reference_for_a_triple", "reference.path=x", "reference.path", "triple-tpo", "no reference", method="triple-tpo"
)
bad.train("store_that_moves", "reference.kind=store reference.mixup_alpha=0.5", "store cannot move", "frozen")
bad.train("stages_with_one_reference", "reference.path=x", "reference.path", "update_reference", method="curry-dpo")
bad.train("chunks_of_one_file", "", "method.chunks", "data.path", method="sdpo")
bad.train("soft_labels_unused", "data.soft_labels=logistic", "data.soft_labels", "data.use")
bad.train("split_of_a_file", "data.split=test", "data.split", "datasets")
bad.train("subset_of_a_file", "data.subset=en", "data.subset", "hub")
bad.train("seed_of_nothing", "data.seed=3", "data.seed", "data.eval_fraction")
bad.train("truncation_of_nothing", "data.truncation=drop data.max_length=null", "data.truncation", "max_length")
bad.train("revision_of_a_folder", "model.revision=v2", "model.revision", "folder")
bad.train(
    "online_with_a_reference",
    "reference.path=x rollout.reward=a:b",
    "reference.path",
    "rollout.reference",
    method="online-dpo",
)
bad.train("online_with_pairing", "data.pairing=all rollout.reward=a:b", "data.pairing", method="online-dpo")
bad.train("online_with_bad_train_key", "train.optim=adamm rollout.reward=a:b", "adamm", method="online-dpo")
bad.train("online_with_denoising", "denoising.random_flip=true rollout.reward=a:b", "denoising", method="online-dpo")
bad.train("source_that_nobody_asks_for", "sources.token_reward=x", "sources.token_reward", "no other model's scores")
bad.train("source_not_named", "", "sources.token_reward.path", "folder", method="tgdpo")
bad.train("source_key_unknown", "sources.token_reward.dtype=x", "sources.token_reward.dtype", method="tgdpo")
bad.train("scores_not_in_the_data", "", "row 1", "chosen_reward_score", "prefopt data build scores", method="madpo")
bad.train("recipe_key_unknown", "method.alpha=1", "'alpha'", "base", method="tgdpo-from-pairs")
bad.train("rollout_offline", "rollout.rounds=2", "rollout.rounds", "online-dpo")
bad.train("diagnostics_of_single_answers", "diagnostics.every=2", "diagnostics.every", "kto", "no pairs", method="kto")
bad.train("diagnostics_of_nothing", "diagnostics.patience=2", "diagnostics.patience", "diagnostics.every is 0")
bad.train("diagnostics_without_samples", "diagnostics.every=2 diagnostics.samples=0 diagnostics.max_new_tokens=9",
          "diagnostics.max_new_tokens", "diagnostics.samples is 0")  # fmt: skip
bad.train("diagnostics_of_one_pair", "diagnostics.every=2 diagnostics.pairs=1", "diagnostics.pairs", "2")
bad.train("diagnostics_key_unknown", "diagnostics.evry=2", "diagnostics.evry", "diagnostics.every")
bad.train("diagnostics_of_single_answers_in_steps", "diagnostics.every=2 method.chunks=2 method.base=kto", "diagnostics.every",
          "no step compares pairs", method="sdpo")  # fmt: skip
bad.train("denoising_of_text", "denoising.caption_dropout=0.1", "denoising.caption_dropout", "text model")
bad.train("eval_without_data", "train.eval_strategy=steps", "train.eval_strategy", "data.eval_path")
bad.train(
    "eval_batch_without_data", "train.per_device_eval_batch_size=3", "per_device_eval_batch_size", "data.eval_path"
)
bad.train("two_kinds_of_held_out", "data.eval_path=x.jsonl data.eval_fraction=0.1", "eval_path", "eval_fraction")
bad.train("system_of_plain_strings", "data.system=Hello data.strings=plain", "system", "plain")
bad.train("store_for_another_kind", "reference.path=x reference.kind=adapter_off", "adapter_off", "reference.path")

# values
bad.train("negative_learning_rate", "train.learning_rate=-1", "train.learning_rate", "-1", "greater than 0")
bad.train("learning_rate_in_words", "train.learning_rate=small", "train.learning_rate", "'small'", "float")
bad.train("learning_rate_nan", "train.learning_rate=.nan", "train.learning_rate")
bad.train("batch_of_none", "train.per_device_train_batch_size=0", "per_device_train_batch_size", "greater than 0")
bad.train("no_steps", "train.max_steps=0", "train.max_steps", "0")
bad.train("save_every_0_steps", "train.save_steps=0", "train.save_steps")
bad.train("log_every_0_steps", "train.logging_steps=0", "train.logging_steps")
bad.train("negative_warmup", "train.warmup_steps=-3", "warmup_steps")
bad.train("unknown_optimizer", "train.optim=adamm", "train", "adamm")
bad.train("unknown_schedule", "train.lr_scheduler_type=cosin", "train", "cosin")
bad.train("unknown_logger", "train.report_to=wanda", "train.report_to", "wanda")
bad.train(
    "best_model_of_nothing",
    "train.load_best_model_at_end=true data.eval_fraction=0.2",
    "load_best_model_at_end",
    "save",
)
bad.train("deepspeed_file_missing", "train.deepspeed=nowhere.json", "train.deepspeed")
bad.train(
    "fsdp_file_missing", "train.fsdp=full_shard train.fsdp_config=nowhere.json", "train.fsdp_config", "nowhere.json"
)
bad.train("token_budget_of_0", "train.token_budget=0", "train.token_budget", "greater than 0")
bad.train("unknown_dtype", "model.dtype=float8", "model.dtype", "bfloat16")
bad.train("unknown_attention", "model.attention=quick", "quick", "attention")
bad.train("rank_0", "model.adapter.r=0", "model.adapter.r", "0")
bad.train("adapter_in_words", "model.adapter=yes_please", "model.adapter", "yes_please")
bad.train("share_over_1", "data.max_dropped=2", "data.max_dropped", "2")
bad.train("no_room_for_an_answer", "data.max_length=8 data.max_prompt_length=8", "max_prompt_length", "max_length")
bad.train("template_that_is_no_jinja", "data.chat_template={{oops", "chat_template")
bad.train("template_file_missing", "data.chat_template=nowhere.jinja", "chat_template", "nowhere.jinja")
bad.train("everything_held_out", "data.eval_fraction=0.99 data.limit=1", "no example is left", "eval_fraction")
bad.train("unknown_annotation", "data.use=[wieght]", "data.use", "wieght", "weight")

# methods and hyperparameters
bad.train("unknown_method", "", "dpoo", "did you mean 'dpo'", method="dpoo")
bad.train("unknown_hyperparameter", "method.betta=1", "betta", "did you mean 'beta'")
bad.train("negative_beta", "method.beta=-0.1", "dpo.beta", "-0.1")
bad.train("beta_in_words", "method.beta=low", "dpo.beta", "'low'", "number")
bad.train("beta_nan", "method.beta=.nan", "dpo.beta", "nan")
bad.train("beta_infinite", "method.beta=.inf", "dpo.beta", "inf")
bad.train("too_much_smoothing", "method.label_smoothing=0.7", "label_smoothing", "0.7")
bad.train("unknown_loss_type", "method.loss_type=sigmiod", "loss_type", "sigmoid", "robust")
bad.train("smoothing_without_effect", "method.loss_type=hinge method.label_smoothing=0.1", "label_smoothing")
bad.train("method_file_missing", "", "nowhere.py", method="nowhere.py")
bad.train("online_without_reward", "", "rollout.reward", "rollout.judge", method="online-dpo")
bad.train(
    "online_with_a_pointwise_method", "method.base=kto rollout.reward=a:b", "method.base", "kto", method="online-dpo"
)
bad.train("online_with_unknown_key", "method.beta=1 rollout.reward=a:b", "'beta'", "base", method="online-dpo")
bad.train("online_reward_missing", "rollout.reward=nowhere:f", "nowhere", "reward", method="online-dpo")


@bad("prompts_per_round", "500", "24 prompts")
def fewer_prompts_than_asked(p: Place) -> list[str]:
    p.file("taste.py", "def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    return p.train("rollout.reward=taste.py:short", "rollout.prompts_per_round=500", method="online-dpo")


@bad("diagnostics.samples", "pictures are not drawn")
def diagnostics_draw_no_pictures(p: Place) -> list[str]:
    more = ("diagnostics.every=2", "diagnostics.samples=2")
    return p.train(*more, model=p.fixture("image_model"), data=p.fixture("image_pairs"), method="diffusion-dpo")


@bad("curry-dpo", "recipe", "ranked lists", "--dry-run")
def doctor_of_a_recipe(p: Place) -> list[str]:
    return ["data", "check", str(p.pairs), "--method", "curry-dpo"]


@bad("broken.py", "SyntaxError")
def method_file_that_does_not_parse(p: Place) -> list[str]:
    return p.train(method=str(p.file("broken.py", "def f(:\n")))


@bad("empty.py", "0 methods", "@method")
def method_file_without_method(p: Place) -> list[str]:
    return p.train(method=str(p.file("empty.py", "x = 1\n")))


@bad("reward_scor", "reward_score")
def column_unknown(p: Place) -> list[str]:
    return ["data", "build", "scores", str(p.pairs), "-o", "scored.jsonl", "--add", "reward_scor=a:b"]


@bad("NAME=WHAT")
def column_without_what(p: Place) -> list[str]:
    return ["data", "build", "scores", str(p.pairs), "-o", "scored.jsonl", "--add", "reward_score"]


# files
@bad("nowhere.yaml", "no configuration file")
def yaml_missing(p: Place) -> list[str]:
    return ["train", "nowhere.yaml"]


@bad("run.yaml", "not valid YAML", "line 3")
def yaml_invalid(p: Place) -> list[str]:
    return ["train", str(p.file("run.yaml", "method: dpo\nmodel: [\n"))]


@bad("run.yaml", "must hold sections")
def yaml_of_a_list(p: Place) -> list[str]:
    return ["train", str(p.file("run.yaml", "- dpo\n"))]


@bad("lacks `data`")
def yaml_without_data(p: Place) -> list[str]:
    return ["train", str(p.file("run.yaml", yaml.safe_dump({"method": "dpo", "model": "m", "output": "o"})))]


@bad("lacks `output`")
def no_output(p: Place) -> list[str]:
    return ["train", "dpo", "-m", str(p.model), "-d", str(p.pairs)]


@bad("train", "section")
def section_that_is_a_value(p: Place) -> list[str]:
    content = {"method": "dpo", "model": str(p.model), "data": str(p.pairs), "output": "o", "train": 3}
    return ["train", str(p.file("run.yaml", yaml.safe_dump(content)))]


@bad("--config", "run.yaml")
def config_beside_a_run_file(p: Place) -> list[str]:
    run = p.file("run.yaml", yaml.safe_dump({"method": "dpo", "model": "m", "data": "d", "output": "o"}))
    return ["train", str(run), "--config", str(p.file("other.yaml", "method: ipo\n"))]
