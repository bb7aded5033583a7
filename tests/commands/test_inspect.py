"""Tests of `ftcli inspect`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Ftcli

CONFIGS = Path(__file__).parents[2] / "configs"


def test_inspect_resnet152(ftcli: Ftcli) -> None:
    result = ftcli("inspect", "resnet152", "--json").json
    assert result["name"] == "resnet152"
    assert result["parameters"] == result["trainable"] == 60_192_808
    assert result["head"] == {"path": "fc", "type": "Linear", "in_features": 2048, "out_features": 1000}
    layer4 = next(layer for layer in result["layers"] if layer["name"] == "layer4")
    assert layer4["output_shape"] == [2048, 7, 7]
    assert layer4["parameters"] == 14_964_736
    assert [(entry["name"], entry["accuracy"]) for entry in result["weights"]] == [
        ("IMAGENET1K_V1", 78.312),
        ("IMAGENET1K_V2", 82.284),
    ]
    assert result["preprocessing"]["image_size"] == 224
    assert "head: fc (Linear), 2048 -> 1000" in ftcli("inspect", "resnet152").out.splitlines()


@pytest.mark.covers("backbone.name", "head.hidden")
def test_inspect_recipe_shows_trained_layers(ftcli: Ftcli) -> None:
    result = ftcli("inspect", CONFIGS / "two-layer-head.yaml", "--json").json
    head, all_stage = result["stages"]
    assert (head["name"], head["trainable"]) == ("head", 525_315)
    assert head["trained_layers"] == ["fc"]
    assert head["cut"] == [{"name": "flatten", "shape": [2048]}]
    assert all_stage["frozen"] == 0
    assert result["classes"] == ["bicycle", "car", "pedestrian"]


def test_inspect_checkpoint_shows_origin(work_dir: Path, ftcli: Ftcli) -> None:
    best = ftcli("train", "r.yaml", "--stage", "head", "--json").json["best_loss"]
    shutil.copy(best, work_dir / "mine.pt")
    result = ftcli("inspect", "mine.pt", "--json").json
    assert result["classes"] == ["china", "flower"]
    assert result["checkpoint"]["stage"] == "head"
    assert result["checkpoint"]["weights"] == "none"
    assert result["head"]["out_features"] == 2


def test_inspect_without_argument_lists_models(ftcli: Ftcli) -> None:
    result = ftcli("inspect", "--json").json
    models = {row["name"]: row for row in result["models"]}
    assert result["glob"] is None
    assert models["resnet152"] == {
        "name": "resnet152",
        "parameters": 60_192_808,
        "multiply_adds": 11_514_000_000,
        "image_size": 224,
        "accuracy": 82.284,
        "weights": "IMAGENET1K_V2",
    }
    timm = [name for name in models if name.startswith("timm/")]
    assert len(models) - len(timm) == 80
    assert models["timm/efficientnet_lite0"]["parameters"] is None
    lines = ftcli("inspect").out.splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert len(lines) == 1 + 80 + 2
    assert lines[-1] == (
        f"{len(timm):,} more from timm: ftcli inspect 'timm/*' lists their names; a narrower glob such as "
        "'timm/*lite*' lists their sizes too"
    )


def test_inspect_glob_sorts_models(ftcli: Ftcli) -> None:
    lines = ftcli("inspect", "resnet*", "--sort", "accuracy").out.splitlines()
    assert [line.split() for line in lines] == [
        ["model", "parameters", "G", "multiply-adds", "pixels", "ImageNet", "top-1", "%"],
        ["resnet152", "60,192,808", "11.51", "224", "82.28"],
        ["resnet101", "44,549,160", "7.80", "224", "81.89"],
        ["resnet50", "25,557,032", "4.09", "224", "80.86"],
        ["resnet34", "21,797,672", "3.66", "224", "73.31"],
        ["resnet18", "11,689,512", "1.81", "224", "69.76"],
    ]


def test_inspect_prints_dash_for_unknown(ftcli: Ftcli) -> None:
    lines = ftcli("inspect", "timm/efficientnet_lite[0]", "--sort", "size").out.splitlines()
    assert lines[1].split() == ["timm/efficientnet_lite0", "4,652,008", "0.39", "224", "-"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["resnot*"],
            "inspect: no model matches 'resnot*'; did you mean 'resnet50' or 'resnet34' or 'resnet18'?",
        ),
        (
            ["resnet*", "--sort", "price"],
            "--sort: unknown order 'price'; known: accuracy, name, size, speed",
        ),
        (
            ["resnet18", "--sort", "size"],
            "--sort size: sorts a list of models; give a glob such as 'resnet*', or omit it",
        ),
        (
            ["resnet*", "--weights", "default"],
            "--weights default: needs one model, not 'resnet*'; name one",
        ),
    ],
)
def test_inspect_reports_invalid_listing(ftcli: Ftcli, arguments: list[str], sentence: str) -> None:
    outcome = ftcli("inspect", *arguments)
    assert (outcome.code, outcome.errors) == (2, [sentence])


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_inspect_reports_unsupported_image_size_with_valid_ones(work_dir: Path, ftcli: Ftcli, command: str) -> None:
    text = (work_dir / "r.yaml").read_text().replace("shufflenet_v2_x0_5", "vit_b_16")
    (work_dir / "r.yaml").write_text(text.replace("image_size: 32", "image_size: 100"))
    outcome = ftcli(command, "r.yaml")
    assert outcome.code == 2
    assert outcome.errors == [
        "r.yaml:5:15: data.image_size: vit_b_16 cannot be created for images of 100 x 100 pixels "
        "(Input shape indivisible by patch size!); choose 96 or 112"
    ]
    assert not (work_dir / "runs").exists()


def test_inspect_depth_lists_nested_modules(ftcli: Ftcli) -> None:
    names = [
        {layer["name"] for layer in ftcli("inspect", "resnet18", "--json", "--depth", n).json["layers"]} for n in "13"
    ]
    assert "layer1" in names[0]
    assert "layer1.0.conv1" in names[1] - names[0]


def test_inspect_notes_measured_normalization(work_dir: Path, ftcli: Ftcli) -> None:
    assert ftcli("inspect", "r.yaml").err == ""
    recipe = work_dir / "r.yaml"
    recipe.write_text(recipe.read_text().replace("  val: 0.2", "  val: 0.2\n  normalize: dataset"))
    assert ftcli("inspect", "r.yaml").err == (
        "mean and std are measured at the start of training; those shown are the model's own\n"
    )


def test_inspect_recipe_without_classes_reports_error(work_dir: Path, ftcli: Ftcli) -> None:
    text = (work_dir / "r.yaml").read_text()
    root = text.split("root: ")[1].split("\n")[0]
    (work_dir / "r.yaml").write_text(text.replace(root, "nowhere"))
    outcome = ftcli("inspect", "r.yaml")
    assert outcome.code == 3
    assert outcome.errors == [
        "r.yaml:3:9: data.root: nowhere does not exist, so the classes are unknown; create the folder, or "
        "set data.classes"
    ]


@pytest.mark.parametrize("columns", ["40", "200"])
def test_inspect_in_pipe_is_plain(ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "")
    out = ftcli("inspect", "resnet152").out
    assert "https://download.pytorch.org/models/resnet152-f82ba261.pth" in out
    assert "\x1b" not in out


@pytest.mark.slow
def test_inspect_draws_plots_and_estimate(work_dir: Path, photo_folder: Path, ftcli: Ftcli) -> None:
    image = photo_folder / "test/china/20.jpg"
    command = ("inspect", "r.yaml", "--plot-augment", "a.png", "--plot-activations", image, "f.png", "--estimate")
    result = ftcli(*command, "--json").json
    assert result["pictures"] == [str(work_dir / "a.png"), str(work_dir / "f.png")]
    assert [stage["stage"] for stage in result["estimate"]] == ["head", "all"]
    assert set(result["estimate"][0]) >= {"seconds_per_step", "seconds", "memory_bytes", "images"}
    plots = [(work_dir / name).read_bytes() for name in ("a.png", "f.png")]
    outcome = ftcli(*command)
    lines = outcome.out.splitlines()
    assert lines[-2:] == ["plot: a.png", "plot: f.png"]
    assert lines[-3] == "for 30 training and 10 validation images in batches of 8"
    assert "estimate for this machine:" in lines
    assert "warning" not in outcome.err
    assert [(work_dir / name).read_bytes() for name in ("a.png", "f.png")] == plots


def test_inspect_has_no_plots_by_default(work_dir: Path, ftcli: Ftcli) -> None:
    result = ftcli("inspect", "r.yaml", "--json").json
    assert (result["pictures"], result["estimate"]) == ([], None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("resnet18", "--plot-augment", "a.png"),
            "--plot-augment: needs a recipe (.yaml), not resnet18; give one",
        ),
        (("--estimate",), "--estimate: needs a recipe (.yaml), not a list of models; give one"),
        (
            ("r.yaml", "--plot-augment", "a.gif"),
            "--plot-augment: a.gif does not end in .png; give a path that does",
        ),
        (
            ("r.yaml", "--plot-activations", "x.jpg", "f"),
            "--plot-activations: f does not end in .png; give a path that does",
        ),
        (("r.yaml", "--layer", "fc"), "--layer fc: has no effect without --plot-activations; add it"),
        (
            ("resnet1*", "--plot-activations", "x.jpg", "f.png"),
            "--plot-activations: needs one network; give a model, recipe or checkpoint",
        ),
    ],
)
def test_inspect_reports_invalid_plot_options(
    work_dir: Path, ftcli: Ftcli, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = ftcli("inspect", *arguments)
    assert (outcome.code, outcome.errors) == (2, [sentence])
    assert [path.name for path in work_dir.iterdir()] == ["r.yaml"]


def test_inspect_plot_does_not_download_dataset(solar_cells_dir: Path, ftcli: Ftcli) -> None:
    shutil.rmtree(solar_cells_dir / "data")
    outcome = ftcli("inspect", "configs/solar-cells.yaml", "--plot-augment", "a.png")
    assert outcome.code == 3
    (message,) = outcome.errors
    assert message.startswith("configs/solar-cells.yaml:")
    assert message.endswith(": data.root: data/solar-cells does not exist; run `ftcli data download solar-cells`")
    assert not (solar_cells_dir / "data").exists()
    assert not (solar_cells_dir / "a.png").exists()


def test_inspect_activations_require_weights(work_dir: Path, photo_folder: Path, ftcli: Ftcli) -> None:
    image = photo_folder / "test/china/20.jpg"
    outcome = ftcli("inspect", "resnet18", "--weights", "nowhere.pt", "--plot-activations", image, "f.png")
    assert outcome.code == 4
    result = ftcli("inspect", "squeezenet1_1", "--weights", "none", "--plot-activations", image, "f.png", "--json").json
    assert result["pictures"] == [str(work_dir / "f.png")]


def test_inspect_warns_once_of_missing_glyph(work_dir: Path, photo_folder: Path, ftcli: Ftcli) -> None:
    for split in ("train", "test"):
        for label in ("china", "flower"):
            shutil.copytree(photo_folder / split / label, work_dir / "data" / split / f"\U0001fae8 {label}")
    (work_dir / "r.yaml").write_text((work_dir / "r.yaml").read_text().replace(str(photo_folder), "data"))
    outcome = ftcli("inspect", "r.yaml", "--plot-augment", "a.png", "--depth", "1")
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    if warnings:  # few machines have a font with this character
        assert warnings == [
            "warning: a.png: no installed font has \U0001fae8 (U+1FAE8), drawn as names or codes; "
            "install a font for them, such as the Debian packages fonts-noto-cjk, fonts-noto-core and fonts-symbola"
        ]


def test_inspect_refuses_folder_as_plot_path(work_dir: Path, ftcli: Ftcli) -> None:
    Path("a.png").mkdir()
    outcome = ftcli("inspect", "r.yaml", "--plot-augment", "a.png")
    assert outcome.code == 2
    assert outcome.errors == ["--plot-augment: a.png is a folder, link or device; give the name of a file"]
