"""Tests of reading recipes: all errors at once, each an exact sentence with its position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import RecipeError
from ftcli.recipe.loading import dump_recipe, read_recipe, recipe_from_dict
from ftcli.recipe.parsing import dump_yaml, parse_yaml
from ftcli.recipe.schema import HeadFitStage, Stage

RECIPE = """\
name: cells
data:
  root: data/cells
backbone: {name: resnet18}
stages:
  - name: head
    freeze: backbone
    epochs: 5
    optimizer: {name: sgd, lr: 1e-2}
  - name: all
    freeze: none
    epochs: 5
    optimizer: {name: adamw, lr: 1e-3}
"""

INVALID_RECIPES = [
    ("root: data", "rooot: 1\n  root: data", "r.yaml:3:3: data.rooot: unknown key; did you mean 'root'?"),
    (
        "name: cells",
        "name: cells\ncolour: red",
        "r.yaml:2:1: colour: unknown key; known: backbone, compile, data, head, name, precision, seed, stages",
    ),
    (
        "epochs: 5\n    optimizer: {name: sgd",
        "epochs: five\n    optimizer: {name: sgd",
        "r.yaml:8:13: stages.head.epochs: 'five' is not an integer; give one such as 5",
    ),
    (
        "epochs: 5\n    optimizer: {name: sgd",
        "epochs: 2.5\n    optimizer: {name: sgd",
        "r.yaml:8:13: stages.head.epochs: 2.5 is not an integer; give one such as 5",
    ),
    (
        "lr: 1e-2",
        "lr: .nan",
        "r.yaml:9:32: stages.head.optimizer.lr: nan is not a finite number; give one such as 0.001",
    ),
    (
        "lr: 1e-2",
        "lr: .inf",
        "r.yaml:9:32: stages.head.optimizer.lr: inf is not a finite number; give one such as 0.001",
    ),
    (
        "lr: 1e-2",
        "lr: -0.1",
        "r.yaml:9:32: stages.head.optimizer.lr: -0.1 is out of range; give a number above 0",
    ),
    (
        "lr: 1e-2",
        "lr: '0.1'",
        "r.yaml:9:32: stages.head.optimizer.lr: '0.1' is not a number; give one such as 0.001",
    ),
    (
        "lr: 1e-2",
        "lr: 1e-2, nesterov: yes",
        "r.yaml:9:48: stages.head.optimizer.nesterov: 'yes' is neither true nor false; give one of them",
    ),
    (
        "lr: 1e-2",
        "lr: 1e-2, momentum: 0, nesterov: true",
        "r.yaml:9:16: stages.head.optimizer: nesterov requires a momentum above 0; set momentum",
    ),
    (
        "lr: 1e-3",
        "lr: 1e-3, momentum: 0.9",
        "r.yaml:13:40: stages.all.optimizer.momentum: unknown key; known: betas, decay_norm_and_bias, lr, name, "
        "weight_decay",
    ),
    ("{name: sgd,", "{", "r.yaml:9:16: stages.head.optimizer: has no name; give one of sgd, adam, adamw"),
    (
        "name: sgd",
        "name: sdg",
        "r.yaml:9:16: stages.head.optimizer: 'sdg' is not one of sgd, adam, adamw; did you mean 'sgd'?",
    ),
    (
        "freeze: none",
        "freeze: nothing",
        "r.yaml:11:13: stages.all.freeze: 'nothing' is not one of backbone, none",
    ),
    (
        "freeze: none",
        "freeze: {throgh: layer3}",
        "r.yaml:11:13: stages.all.freeze.through: is missing; give it a value",
    ),
    ("    freeze: none\n", "", "r.yaml:10:5: stages.all.freeze: is missing; give it a value"),
    (
        "    epochs: 5\n    optimizer: {name: sgd, lr: 1e-2}",
        "    fit: logistic_regression\n    epochs: 5",
        "r.yaml:9:5: stages.head.epochs: unknown key; known: fit, freeze, name",
    ),
    (
        "    epochs: 5\n    optimizer: {name: sgd, lr: 1e-2}",
        "    fit: svm",
        "r.yaml:8:10: stages.head.fit: 'svm' is not one of logistic_regression",
    ),
    (
        "freeze: none\n    epochs: 5\n    optimizer: {name: adamw, lr: 1e-3}",
        "freeze: none\n    fit: logistic_regression",
        "r.yaml:11:13: stages.all.freeze: 'none' is not one of backbone",
    ),
    (
        "    epochs: 5\n    optimizer: {name: sgd",
        "    optimizer: {name: sgd",
        "stages.head.epochs: is missing; give it a value",
    ),
    ("name: all", "name: head", "r.yaml:6:3: stages: two stages are named 'head'; rename one of them"),
    (
        "name: all",
        "name: a/b",
        "r.yaml:10:11: stages.a/b.name: 'a/b' is not a valid name; use letters, digits, '.', '_' and '-', and begin "
        "with a letter or digit",
    ),
    ("data/cells", "3", "r.yaml:3:9: data.root: 3 is not a string; put it in quotes if it is meant as a name"),
    ("data/cells", "data/cells\n  val: 1", "r.yaml:4:8: data.val: 1 is out of range; give a number below 1"),
    ("data/cells", "data/cells\n  classes: [a]", '4:12: data.classes: ["a"] has fewer than 2 classes; give at least 2'),
    (
        "data/cells",
        "data/cells\n  classes: [a, b, a]",
        'r.yaml:4:12: data.classes: ["a", "b", "a"] contains \'a\' twice; remove one of them',
    ),
    (
        "data/cells",
        "data/cells\n  classes: [a, 1]",
        "r.yaml:4:16: data.classes.1: 1 is not a string; put it in quotes if it is meant as a name",
    ),
    (
        "data/cells",
        "data/cells\n  augment: flip",
        "r.yaml:4:12: data.augment: 'flip' is not one of none, flips, light, standard, strong; did you mean 'flips'?",
    ),
    (
        "data/cells",
        "data/cells\n  resize: pad\n  resize_size: 9",
        "r.yaml:3:3: data: resize_size has no effect with resize: pad; remove it",
    ),
    (
        "data/cells",
        "data/cells\n  resize_size: 9",
        "r.yaml:3:3: data: resize_size requires image_size; add it",
    ),
    (
        "data/cells",
        "data/cells\n  normalize: {mean: [0, 0, 0], std: [1, 0, 1]}",
        "r.yaml:4:41: data.normalize.std.1: 0 is out of range; give a number above 0",
    ),
    (
        "{name: resnet18}",
        "resnet18",
        "r.yaml:4:11: backbone: 'resnet18' is not a mapping; give keys with values below it",
    ),
    (
        "{name: resnet18}",
        "{name: resnet18}\nhead: {hidden: 256}",
        "r.yaml:5:16: head.hidden: 256 is not a list; write it as [a, b]",
    ),
    (
        "data/cells",
        "data/cells\n  augment: [{name: random_erasing, scale: [0.3, 0.1]}]",
        "r.yaml:4:43: data.augment.0.scale: [0.3, 0.1] is in the wrong order; give the smaller number first",
    ),
]
"""A part of RECIPE, its replacement, and the message (or its end) that this causes."""


@pytest.fixture
def recipe_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    return Path("r.yaml")


def recipe_errors(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return list(caught.value.messages)


def replace(path: Path, old: str, new: str) -> Path:
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    return path


def test_read_recipe_parses_numbers(recipe_path: Path) -> None:
    recipe = read_recipe(recipe_path).recipe
    (head, _) = recipe.stages
    assert isinstance(head, Stage)
    assert head.optimizer.lr == 0.01
    assert recipe.data.val == 0.1


def test_dump_recipe_round_trips(recipe_path: Path, tmp_path: Path) -> None:
    override = "data.augment=[{name: random_rotation, degrees: 5}, random_horizontal_flip]"
    recipe = read_recipe(recipe_path, (override,)).recipe
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "again.yaml").recipe == recipe
    assert recipe_from_dict(recipe.model_dump(mode="json"), "best_loss.pt").recipe == recipe


def test_dump_recipe_round_trips_head_fit_stage(recipe_path: Path, tmp_path: Path) -> None:
    replace(recipe_path, "epochs: 5\n    optimizer: {name: sgd, lr: 1e-2}", "fit: logistic_regression")
    recipe = read_recipe(recipe_path).recipe
    assert recipe.stages[0] == HeadFitStage(name="head", freeze="backbone", fit="logistic_regression")
    assert isinstance(recipe.stages[1], Stage)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "again.yaml").recipe == recipe
    assert recipe_from_dict(recipe.model_dump(mode="json"), "best_loss.pt").recipe == recipe


@pytest.mark.parametrize("name", ["1e3", "off", "null", "010", "1:30", ".5", "~", "2026-11-22", "it's: #1", " a "])
def test_dump_recipe_keeps_ambiguous_text(recipe_path: Path, tmp_path: Path, name: str) -> None:
    recipe = read_recipe(recipe_path, (f"data.classes={json.dumps([name, 'b'])}",)).recipe
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "again.yaml").recipe.data.classes == (name, "b")


def test_dump_yaml_suits_other_readers() -> None:
    shared = ["off", "1:30"]
    text = dump_yaml({"lr": 1e-5, "first": shared, "second": shared, "line": "a\x85b"})
    assert text == (
        'lr: 1.0e-05\nfirst:\n- "off"\n- "1:30"\nsecond:\n- "off"\n- "1:30"\nline: "a\\Nb"\n'  # no aliases
    )
    assert parse_yaml(text, "r.yaml").data == {"lr": 1e-5, "first": shared, "second": shared, "line": "a\x85b"}


@pytest.mark.parametrize(("old", "new", "message"), INVALID_RECIPES)
def test_read_recipe_reports_exact_message(recipe_path: Path, old: str, new: str, message: str) -> None:
    errors = recipe_errors(replace(recipe_path, old, new))
    assert errors[0] == message if message.startswith("r.yaml") else errors[0].endswith(message)


def test_read_recipe_reports_all_errors(recipe_path: Path) -> None:
    replace(recipe_path, "epochs: 5", "epochs: 0")
    assert sorted(recipe_errors(recipe_path, "data.val=2", "seed=-1")) == [
        "--set data.val=2: data.val: 2 is out of range; give a number below 1",
        "--set seed=-1: seed: -1 is out of range; give a number of at least 0",
        "r.yaml:12:13: stages.all.epochs: 0 is out of range; give a number of at least 1",
        "r.yaml:8:13: stages.head.epochs: 0 is out of range; give a number of at least 1",
    ]


def test_read_recipe_orders_errors_by_line(recipe_path: Path) -> None:
    replace(recipe_path, "epochs: 5", "epochs: 0")
    recipe_path.write_text(recipe_path.read_text().replace("data/cells", "3"))
    positions = [message.split(": ")[0] for message in recipe_errors(recipe_path)]
    assert positions == ["r.yaml:3:9", "r.yaml:8:13", "r.yaml:12:13"]


def test_read_recipe_rejects_duplicate_key(recipe_path: Path) -> None:
    replace(recipe_path, "  root: data/cells\n", "  root: data/cells\n  root: data/other\n")
    assert recipe_errors(recipe_path) == ["r.yaml:4:3: data.root: duplicate key, first on line 3; remove one of them"]


def test_read_recipe_rejects_python_object(recipe_path: Path, tmp_path: Path) -> None:
    replace(recipe_path, "root: data/cells", f"root: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    assert recipe_errors(recipe_path) == [
        "r.yaml:3:9: data.root: tag !!python/object/apply:os.mkdir is not supported here; remove it"
    ]
    assert not (tmp_path / "made").exists()


def test_read_recipe_locates_invalid_yaml(recipe_path: Path) -> None:
    recipe_path.write_text("name: [a\ndata: b\n")
    assert recipe_errors(recipe_path) == [
        "r.yaml:2:5: is not valid YAML: expected ',' or ']', but got ':'; correct it there"
    ]
    recipe_path.write_text("")
    assert recipe_errors(recipe_path) == ["r.yaml: is empty; see the recipes in configs/ for examples"]
    recipe_path.write_text("- a\n")
    assert recipe_errors(recipe_path) == [
        'r.yaml:1:1: the recipe: ["a"] is not a mapping; give keys with values below it'
    ]


def nest(depth: int) -> str:
    return "a: " + "[" * depth + "]" * depth + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a 1\nb: *a\n", "r.yaml:2:4: alias *a is not supported; write its value out"),
        ("a: &a [*a]\n", "r.yaml:1:8: alias *a is not supported; write its value out"),
        (nest(2000), "r.yaml:1:24: nested more than 20 levels deep; flatten it"),
        ("? [a, b]\n: 1\n", "r.yaml:1:3: the recipe: a key here is not a string; put it in quotes"),
        ("data:\n  1: x\n", "r.yaml:2:3: data: a key here is not a string; put it in quotes"),
        (
            "name: a\0b\n",
            'r.yaml: is not valid YAML: unacceptable character #x0000: special characters are not allowed in "<unicode '
            'string>", position 7; save it as UTF-8 text',
        ),
        ("seed: !!int abc\n", "r.yaml:1:7: seed: 'abc' is not a valid !!int; correct it or remove the tag"),
        ("seed: !!null 3\n", "r.yaml:1:7: seed: '3' is not a valid !!null; correct it or remove the tag"),
        ("a:\n  b: !!timestamp foo\n", "r.yaml:2:6: a.b: tag !!timestamp is not supported here; remove it"),
        ("a: !!map b\n", "r.yaml:1:4: a: tag !!map is not supported here; remove it"),
        ("a: !mine {b: 1}\n", "r.yaml:1:4: a: tag !mine is not supported here; remove it"),
    ],
)
def test_read_recipe_rejects_unsupported_yaml(recipe_path: Path, text: str, message: str) -> None:
    recipe_path.write_text(text)
    assert recipe_errors(recipe_path) == [message]


def test_read_recipe_reports_all_duplicate_keys_and_tags(recipe_path: Path) -> None:
    recipe_path.write_text("seed: !x 1\nseed: 2\ndata: {val: 0.1, val: 0.2}\nseed: 3\n")
    assert recipe_errors(recipe_path) == [
        "r.yaml:1:7: seed: tag !x is not supported here; remove it",
        "r.yaml:2:1: seed: duplicate key, first on line 1; remove one of them",
        "r.yaml:3:18: data.val: duplicate key, first on line 3; remove one of them",
        "r.yaml:4:1: seed: duplicate key, first on line 1; remove one of them",
    ]


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            "data/cells",
            "data/cells\n  workers: 2",
            ["r.yaml:4:3: data.workers: unknown key; it was renamed to num_workers"],
        ),
        (
            "data/cells",
            "data/cells\n  fetch: mnist",
            ["r.yaml:4:3: data.fetch: unknown key; it was renamed to download"],
        ),
        (
            "data/cells",
            "data/cells\n  on_bad_image: skip",
            ["r.yaml:4:3: data.on_bad_image: unknown key; it was renamed to on_corrupt_image"],
        ),
        (
            "epochs: 5\n    optimizer: {name: sgd, lr: 1e-2}",
            "solver: logistic",
            ["r.yaml:8:5: stages.head.solver: unknown key; it was renamed to fit"],
        ),
        (
            "lr: 1e-3}",
            "lr: 1e-3}\n    schedule: {name: step, every: 2}",
            ["r.yaml:14:28: stages.all.schedule.every: unknown key; it was renamed to step_size"],
        ),
        (
            "data/cells",
            "data/cells\n  normalize: weights\n  resize: shorter",
            [
                "r.yaml:4:14: data.normalize: 'weights' is not one of pretrained, dataset; it was renamed to "
                "'pretrained'",
                "r.yaml:5:11: data.resize: 'shorter' is not one of crop, squash, pad; it was renamed to 'crop'",
            ],
        ),
        (
            "data/cells",
            "data/cells\n  normalize: data",
            ["r.yaml:4:14: data.normalize: 'data' is not one of pretrained, dataset; it was renamed to 'dataset'"],
        ),
        (
            "epochs: 5\n    optimizer: {name: sgd, lr: 1e-2}",
            "fit: logistic",
            [
                "r.yaml:8:10: stages.head.fit: 'logistic' is not one of logistic_regression; it was renamed to "
                "'logistic_regression'"
            ],
        ),
        (
            "name: cells",
            "name: cells\nworkers: 2",
            ["r.yaml:2:1: workers: unknown key; known: backbone, compile, data, head, name, precision, seed, stages"],
        ),
    ],
)
def test_read_recipe_names_new_key_or_value(recipe_path: Path, old: str, new: str, messages: list[str]) -> None:
    assert recipe_errors(replace(recipe_path, old, new)) == messages


def test_read_recipe_rejects_huge_numbers(recipe_path: Path) -> None:
    replace(recipe_path, "lr: 1e-2", "lr: 1e300")
    assert recipe_errors(recipe_path, "seed=" + "9" * 5000, "data.image_size=20000")[1:] == [
        "--set data.image_size=20000: data.image_size: 20000 is out of range; give a number of at most 4096",
        "r.yaml:9:32: stages.head.optimizer.lr: 1e+300 is out of range; give a number of at most 1e+06",
    ]


@pytest.mark.usefixtures("recipe_path")
def test_read_recipe_suggests_existing_recipes() -> None:
    assert recipe_errors(Path("rr.yaml")) == ["rr.yaml: does not exist; did you mean 'r.yaml'?"]


def test_read_recipe_accepts_only_true_and_false(recipe_path: Path) -> None:
    for word in ("on", "off", "yes", "no"):
        assert recipe_errors(replace(recipe_path, "lr: 1e-2", f"lr: 1e-2, nesterov: {word}"))[0].endswith(
            f"{word!r} is neither true nor false; give one of them"
        )


def test_set_overrides_value(recipe_path: Path) -> None:
    recipe = read_recipe(
        recipe_path, ("stages.all.epochs=3", "stages.0.freeze={through: layer2}", "head.hidden=[64]")
    ).recipe
    assert recipe.stages[1].model_dump()["epochs"] == 3
    assert recipe.stages[0].model_dump()["freeze"] == {"through": "layer2"}
    assert recipe.head.hidden == (64,)
    assert read_recipe(recipe_path, ("stages.all.freeze.through=layer1",)).recipe.stages[1].model_dump()["freeze"] == {
        "through": "layer1"
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "--set foo: is not KEY=VALUE; write it as in --set stages.all.epochs=3"),
        ("seed=x", "--set seed=x: seed: 'x' is not an integer; give one such as 5"),
        ("sed=1", "--set sed=1: sed: unknown key; did you mean 'seed'?"),
        ("dat.val=0.2", "--set dat.val=0.2: dat: unknown key; did you mean 'data'?"),
        ("stages.al.epochs=1", "--set stages.al.epochs=1: stages.al: does not exist; did you mean 'all'?"),
        ("stages.7.epochs=1", "--set stages.7.epochs=1: stages.7: does not exist; known: all, head"),
        ("data.workers=2", "--set data.workers=2: data.workers: unknown key; it was renamed to num_workers"),
    ],
)
def test_set_rejects_unknown_key(recipe_path: Path, override: str, message: str) -> None:
    assert recipe_errors(recipe_path, override) == [message]


def test_locate_reports_line_or_option(recipe_path: Path) -> None:
    recipe_file = read_recipe(recipe_path, ("stages.all.freeze=[layer1]",))
    assert recipe_file.locate("data", "root") == "r.yaml:3:9: data.root"
    assert recipe_file.locate("backbone", "weights") == "r.yaml:4:11: backbone.weights"
    assert recipe_file.locate("stages", 1, "freeze") == "--set stages.all.freeze=[layer1]: stages.all.freeze"


def test_stage_name_rejects_too_many_bytes(recipe_path: Path) -> None:
    recipe_path.write_text(RECIPE.replace("name: head", f"name: {'字' * 66}"))
    assert read_recipe(recipe_path).recipe.stages[0].name == "字" * 66
    recipe_path.write_text(RECIPE.replace("name: head", f"name: {'字' * 67}"))
    with pytest.raises(RecipeError) as error:
        read_recipe(recipe_path)
    assert str(error.value) == (
        f"r.yaml:6:11: stages.{'字' * 67}.name: '{'字' * 58}… takes more than 200 bytes, too many for a file name; "
        "shorten it"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cache.views=0", "stages.head.cache.views: 0 is out of range; give a number of at least 1"),
        ("cache.views=null", "stages.head.cache.views: null is not an integer; give one such as 5"),
        ("cache=yes", "stages.head.cache: 'yes' is not a cache setting; give off, or a mapping such as {views: 8}"),
    ],
)
def test_cache_reports_one_error(recipe_path: Path, setting: str, message: str) -> None:
    assert recipe_errors(recipe_path, f"stages.head.{setting}") == [f"--set stages.head.{setting}: {message}"]
