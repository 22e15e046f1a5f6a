"""The survey's vocabulary: every method and recipe has a sound record; names that several papers share are refused."""

from __future__ import annotations

import re

import pytest

from prefopt import PrefoptError, get_method, method
from prefopt.catalogue import methods
from prefopt.objectives.aliases import ALIASES, SHARED
from prefopt.objectives.method import METHODS, Family
from prefopt.objectives.taxonomy import (
    FOUND,
    MAY_BE_EMPTY,
    VOCABULARY,
    matches,
    modality_of,
    needs_of,
    place,
    resolve,
    validate,
)

RECORDS = {m["name"]: m for m in methods()}

# where the survey (or, for the second block, this library) puts the papers: tags that differ from the defaults
SURVEYED = {
    "curry-dpo": "distinguishability dynamic",
    "modpo": "multi_objective",
    "simpo": "free length_bias",
    "f-dpo": "diversity",
    "ld-dpo": "length_bias",
    "ln-dpo": "length_bias",
    "tdpo": "token",
    "sparsepo": "token",
    "tgdpo": "token",
    # the representative losses of its tree
    "dpo": "",
    "odpo": "distinguishability",
    "gdpo-geometric": "distinguishability",
    "beta-dpo": "distinguishability",
    "grpo-robust": "heterogeneity",
    "kto": "pointwise",
    "bco": "pointwise",
    "nca": "pointwise",
    "dro": "pointwise",
    "aot": "pointwise",
    "rao-kupper": "",
    "davidson": "",
    "lipo": "listwise",
    "plackett-luce": "listwise",
    "d2po": "token",
    "sppo": "self_play",
    "cpo": "free",
    "orpo": "free",
    "simper": "free",
    "chi-po": "generalization",
    "gpo": "generalization",
    "exo": "generalization",
    "r-dpo": "length_bias",
    "sampo": "length_bias",
    "dpop": "likelihood_collapse",
    "apo-zero": "likelihood_collapse",
    "apo-down": "likelihood_collapse",
    "e-dpo": "likelihood_collapse",
}
ASSIGNED = {
    "asft": "free likelihood_collapse",
    "madpo": "distinguishability",
    "lcpo": "noise heterogeneity",
    "self-spo": "distinguishability",
    "triple-tpo": "listwise free",
    "infifpo": "generalization",
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_is_sound(name):
    record = RECORDS[name]["place"]
    validate(record, name)
    assert list(record) == list(VOCABULARY)
    assert isinstance(record["constraint.safety"], bool)
    assert record["modality"]


@pytest.mark.parametrize("name", RECORDS)
def test_the_description_holds_the_loss_in_ascii(name):
    text = RECORDS[name]["description"]
    assert text.isascii()
    if RECORDS[name]["kind"] == "method" and name != "sft":
        assert re.search(r"log|sigmoid|[(\w]\^\d|max\(|exp\(| [-+*/] ", text), f"{name}: no equation in {text!r}"


@pytest.mark.parametrize("name", sorted((SURVEYED | ASSIGNED).keys() & RECORDS.keys()))
def test_papers_stand_where_the_survey_puts_them(name):
    record = RECORDS[name]["place"]
    assert record["source"] == ("survey" if name in SURVEYED else "assigned")
    tags = (SURVEYED | ASSIGNED)[name].split()
    assert matches(record, tags), record
    assert record == place(tags, record["needs"], record["modality"], name in SURVEYED)


def test_filters_are_conjunctions():
    free = {m["name"] for m in methods(tags=["free"])}
    short = {m["name"] for m in methods(tags=["free", "length_bias"])}
    assert "simpo" in short < free
    assert {"dpo", "kto"} & free == set()
    assert {m["name"] for m in methods(tags=["free", "reference"])} == set()
    assert "diffusion-dpo" in {m["name"] for m in methods(tags=["image_diffusion", "constraint.reference.static"])}
    assert not {m["name"] for m in methods(tags=["lm"])} & {"diffusion-dpo"}
    assert {m["name"] for m in methods(tags=["safety.false"])} <= set(RECORDS)


def test_tags_are_names_of_leaves_alone_or_with_their_dimension():
    for dimension, leaves in VOCABULARY.items():
        for leaf in leaves:
            assert resolve(f"{dimension}.{leaf}") == (dimension, leaf)
            assert resolve(f"{dimension.split('.')[-1]}.{leaf}") == (dimension, leaf)
    assert resolve("safety") == ("constraint.safety", "true")
    assert resolve("token") == ("data_strategy.granularity", "token")


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("lenght_bias", "unknown tag 'lenght_bias'; did you mean 'length_bias'"),
        ("nonsense123", "unknown tag 'nonsense123'; there are heterogeneity"),
        ("none", "stands for several things: say quality.none or divergence.none"),
        ("true", "unknown tag 'true'"),
    ],
)
def test_unknown_tags_are_refused(tag, says):
    for ask in (lambda: resolve(tag), lambda: methods(tags=[tag])):
        with pytest.raises(PrefoptError, match=says):
            ask()
    with pytest.raises(PrefoptError, match=f"my-own: .*{says}"):
        method("my-own", tags=(tag,))(lambda r: None)
    assert "my-own" not in METHODS


def test_what_is_found_is_no_tag():
    for tag in ("reference", "lm", "survey", "needs.judge"):
        with pytest.raises(PrefoptError, match="my-own: the tag .* is found, not declared"):
            method("my-own", tags=(tag,))(lambda r: None)
    with pytest.raises(PrefoptError, match="'token' is given twice"):
        place(["token", "token"], ["reference"], ["lm"], False)


def test_a_record_that_is_not_whole_or_contradicts_itself_is_refused():
    whole = RECORDS["dpo"]["place"]
    for dimension in VOCABULARY:
        with pytest.raises(PrefoptError, match=f"the dimension '{dimension}' is missing"):
            validate({k: v for k, v in whole.items() if k != dimension})
        if dimension not in MAY_BE_EMPTY and dimension not in ("source", "constraint.safety"):
            with pytest.raises(PrefoptError, match=f"the dimension '{dimension}' is missing"):
                validate(whole | {dimension: []})
    with pytest.raises(PrefoptError, match="unknown tag 'stattic' of constraint.reference; did you mean 'static'"):
        validate(whole | {"constraint.reference": ["stattic"]})
    with pytest.raises(PrefoptError, match="'colour' is no dimension"):
        validate(whole | {"colour": ["red"]})
    with pytest.raises(PrefoptError, match="tagged 'free', and it asks for a reference"):
        validate(whole | {"constraint.reference": ["free"]})
    with pytest.raises(PrefoptError, match="asks for no reference, and is not tagged 'free'"):
        validate(whole | {"needs": []})


def test_reference_and_tag_must_agree_in_the_catalogue(monkeypatch):
    dpo, simpo = METHODS["dpo"], METHODS["simpo"]
    for f, tags, says in ((dpo, ("free",), "dpo: tagged 'free'"), (simpo, (), "simpo: it asks for no reference")):
        monkeypatch.setitem(METHODS, f.name, Family(f.name, f.fn, f.paper, f.beta, tags))
        with pytest.raises(PrefoptError, match=says):
            methods(f.name)
        monkeypatch.undo()


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(PrefoptError, match="two methods are called 'dpo'"):
        method("dpo")(lambda r: None)


def test_needs_are_found_by_asking():
    assert needs_of({"scores:policy": {"grad": True}, "scores:reference": {}}) == {"reference"}
    assert needs_of({"extras:mismatched": {"asked": {"scores:reference": {}}}}) == {"reference"}
    assert needs_of({"scores:token_reward": {}, "notes:margin_rewards": {}}) == {"reward_model"}
    assert needs_of({"scores:reward": {"grad": True}}) == set()
    assert needs_of({"scores:value": {"grad": True}}) == {"value_head"}
    assert needs_of({"notes:forward_pass": {}, "notes:value": {}}) == set()


def test_modality_is_where_the_questions_have_answers():
    assert modality_of({"scores:policy": {}, "notes:pairs": {"shape": "P 2"}}, "pairwise") == ["lm", "image_diffusion"]
    assert modality_of({"scores:policy": {}, "notes:step_index": {"shape": "R T"}}, "token") == ["lm"]
    assert modality_of({"scores:policy": {}, "extras:prompt": {}}, "pairwise") == ["lm"]
    assert modality_of({"scores:policy": {}}, "diffusion") == ["image_diffusion"]


def test_aliases_are_methods_with_settings():
    for name, (slug, settings) in ALIASES.items():
        if slug not in METHODS:
            continue
        assert name not in METHODS, f"{name} is a method now"
        made = get_method(name)
        assert made.name == slug
        assert settings.items() <= made.hyper.items()
        assert get_method(**made.record()) == made
    assert get_method("cdpo", label_smoothing=0.3) == get_method("dpo", label_smoothing=0.3)
    assert get_method("DPO") == get_method("dpo")
    with pytest.raises(PrefoptError, match="did you mean 'cdpo'"):
        get_method("cdpoo")


@pytest.mark.parametrize("name", SHARED)
def test_a_name_of_several_methods_is_refused_with_its_candidates(name):
    assert name not in ALIASES
    for spelt in {name.upper(), name} - set(METHODS):
        with pytest.raises(PrefoptError, match=f"'{spelt}' is the name of several methods") as e:
            get_method(spelt)
        assert all(slug in str(e.value) for slug in SHARED[name])
        assert len(SHARED[name]) > 1


def test_what_is_found_is_of_the_vocabulary():
    assert set(FOUND) <= set(VOCABULARY)
