"""The rows of the benchmark: which candidates are compared, and the target ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.candidates import Candidate
from benchmarks.jobs import BenchmarkData, Job, JobStage
from benchmarks.runner import Benchmark

EPOCHS = 10
ComparedMetric = Literal["seconds", "peak", "accuracy", "reach"]


@dataclass(frozen=True)
class Comparison:
    """Two candidates and the metric to compare.

    `target_ratio` is the minimum of theirs over ours: of seconds, peak memory, or seconds until ours reaches the final
    accuracy of theirs; None if there is no target. For accuracy the target is one standard error.
    """

    ours: str
    theirs: str
    target_ratio: float | None = None
    metric: ComparedMetric = "seconds"


@dataclass(frozen=True)
class BenchmarkRow:
    """One row: its number, title, benchmark, comparisons, and a note for the reader."""

    number: int
    title: str
    benchmark: Benchmark
    comparisons: tuple[Comparison, ...]
    note: str = ""

    @property
    def candidate_names(self) -> set[str]:
        """The names of the candidates in the comparisons."""
        return {name for one in self.comparisons for name in (one.ours, one.theirs)}


@dataclass(frozen=True)
class FullTraining:
    """A training of all layers; its epochs are scaled to ten."""

    network: str
    data: BenchmarkData
    epochs: int
    num_rounds: int


@dataclass(frozen=True)
class Size:
    """How much to measure.

    `epochs` are scaled to ten; `head_networks` are the networks of the head stages with their images; `num_images` is
    the largest data set of the memory row.
    """

    num_rounds: int
    epochs: int
    head_networks: tuple[tuple[str, BenchmarkData], ...]
    full_trainings: tuple[FullTraining, ...]
    num_images: int
    rows: tuple[int, ...]


JPEGS, PNGS, FEW = BenchmarkData("jpeg", 300, 100), BenchmarkData("png", 300, 100), BenchmarkData("jpeg", 64, 32)
CELLS = BenchmarkData("png", 1968, 656)
FULL = Size(
    num_rounds=3,
    epochs=2,
    head_networks=(("resnet18", JPEGS), ("mobilenet_v3_small", PNGS)),
    full_trainings=(
        FullTraining("resnet18", FEW, epochs=2, num_rounds=2),
        FullTraining("resnet50", FEW, epochs=1, num_rounds=1),
    ),
    num_images=50_000,
    rows=(1, 2, 3, 4, 5, 6, 7, 9, 10),
)
QUICK = Size(
    num_rounds=1,
    epochs=1,
    head_networks=(("mobilenet_v3_small", PNGS),),
    full_trainings=(FullTraining("mobilenet_v3_small", FEW, epochs=1, num_rounds=1),),
    num_images=5_000,
    rows=(1, 2, 3, 6, 7, 9, 10),
)
OFF, ONE, FOUR = "ftcli, cache: off", "ftcli, one view", "ftcli, four views"
TUTORIAL, FASTAI, TRAINER, TIMM = "tutorial loop", "fastai", "Trainer", "timm loop"
AUTO = "ftcli, precision: auto"
MEMORY, OWN = "tensors in memory", "hand-written loop"


def list_rows(size: Size) -> list[BenchmarkRow]:
    """Return all rows of this size, and row 8, which is measured on request."""
    rows = [row for name, data in size.head_networks for row in _list_head(size, name, data)]
    rows += [
        *_list_again(size, *size.head_networks[0]),
        _four_views(),
        _through(size),
        *(_all(one) for one in size.full_trainings),
    ]
    rows += [_forward(size), _reach(), _memory(size)]
    return sorted((row for row in rows if row.number in (*size.rows, 8)), key=lambda row: row.number)


def _list_head(size: Size, name: str, data: BenchmarkData) -> list[BenchmarkRow]:
    ten, few, one = (Job(data, name, (JobStage("backbone", epochs),)) for epochs in (EPOCHS, size.epochs, 1))
    benchmark = Benchmark(
        f"head-{name}",
        (
            Candidate(OFF, "train", few, "off", scaled_epochs=EPOCHS),
            Candidate(ONE, "train", ten, "1"),
            Candidate(FOUR, "train", ten, "4"),
            Candidate(TUTORIAL, "tutorial", few, scaled_epochs=EPOCHS),
            # fastai's first epoch takes no longer than its second.
            Candidate(FASTAI, "fastai_learner", one, scaled_epochs=EPOCHS),
            Candidate(OWN, "own_loop", few, scaled_epochs=EPOCHS),
        ),
        size.num_rounds,
    )
    title = f"{name}, head stage, ten epochs"
    return [
        BenchmarkRow(1, f"{title}, one view", benchmark, (Comparison(ONE, OFF, 8.5),)),
        BenchmarkRow(
            2, f"{title}, one view", benchmark, (Comparison(ONE, TUTORIAL, 12.0), Comparison(ONE, FASTAI, 12.0))
        ),
        BenchmarkRow(4, f"{title}, four views", benchmark, (Comparison(FOUR, OFF, 2.2), Comparison(FOUR, TUTORIAL))),
        BenchmarkRow(10, f"{title}, without cache", benchmark, (Comparison(OFF, OWN, 0.98),)),
    ]


def _list_again(size: Size, name: str, data: BenchmarkData) -> list[BenchmarkRow]:
    few = _again(name, data, f"again-{name}", size.num_rounds)
    # The cost of a warm stage besides its steps, mostly checkpoints, does not grow with the number of images.
    return [few, _again(name, CELLS, f"again-{name}-all", 1)] if size is FULL else [few]


def _again(name: str, data: BenchmarkData, title: str, rounds: int) -> BenchmarkRow:
    job = Job(data, name, (JobStage("backbone", EPOCHS),), augment="none")
    cold = "ftcli, cold cache"
    changes = {
        "same recipe": (),
        "another learning rate": ("stages.main.optimizer.lr=0.003",),
        "another head": ("head.hidden=[64]",),
        "other validation images": (f"data.root={data.fold}",),
    }
    warm = [Candidate(name, "train", job, "1", change, cache_from=cold) for name, change in changes.items()]
    benchmark = Benchmark(title, (Candidate(cold, "train", job, "1"), *warm), rounds)
    note = "Without augmentation, so that the features of an image that moves to another split are cached."
    comparisons = tuple(Comparison(one.name, cold, 20.0) for one in warm)
    heading = f"{name}, head stage, ten epochs, {data.train:,} and {data.val:,} images, repeated with a warm cache"
    return BenchmarkRow(3, heading, benchmark, comparisons, note)


def _four_views() -> BenchmarkRow:
    job = Job(
        CELLS, "timm/efficientnet_lite0", (JobStage("backbone", EPOCHS, 3e-3, "adamw"),), True, 96, "squash", "standard"
    )
    benchmark = Benchmark("views", (Candidate(OFF, "train", job, "off"), Candidate(FOUR, "train", job, "4")), 1)
    comparisons = (Comparison(FOUR, OFF, 2.2), Comparison(FOUR, OFF, metric="accuracy"))
    note = "Real weights, all solar cells at 96 px."
    return BenchmarkRow(4, "Lite0, head stage, ten epochs, four views", benchmark, comparisons, note)


def _through(size: Size) -> BenchmarkRow:
    ten, few = (Job(FEW, "resnet18", (JobStage("layer3", epochs),)) for epochs in (EPOCHS, size.epochs))
    benchmark = Benchmark(
        "through-layer3",
        (
            Candidate(ONE, "train", ten, "1"),
            Candidate(FOUR, "train", ten, "4"),
            Candidate(TUTORIAL, "tutorial", few, scaled_epochs=EPOCHS),
        ),
        size.num_rounds,
    )
    note = "The tutorial loop freezes the same layers with requires_grad; their BatchNorm statistics change."
    comparisons = (Comparison(ONE, TUTORIAL, 2.5), Comparison(FOUR, TUTORIAL))
    return BenchmarkRow(5, "resnet18 frozen through layer3, ten epochs", benchmark, comparisons, note)


def _all(training: FullTraining) -> BenchmarkRow:
    name, job = training.network, Job(training.data, training.network, (JobStage("none", training.epochs),))
    loops = {
        TUTORIAL: "tutorial",
        FASTAI: "fastai_learner",
        TRAINER: "trainer",
        MEMORY: "memory_loop",
    } | ({} if name == "resnet50" else {TIMM: "timm_loop"})  # a large network is compared with fewer loops
    others = [Candidate(name, program, job, scaled_epochs=EPOCHS) for name, program in loops.items()]
    ours = (
        Candidate("ftcli", "train", job, "4", scaled_epochs=EPOCHS),
        Candidate(AUTO, "train", job, "4", ("precision=auto",), scaled_epochs=EPOCHS),
    )
    benchmark = Benchmark(f"all-{name}", (*ours, *others), training.num_rounds)
    comparisons = tuple(Comparison("ftcli", name, 0.95 if name == MEMORY else 1.5) for name in loops)
    note = f"{AUTO} is the default: it uses bfloat16 if a trial step is faster on this machine."
    return BenchmarkRow(
        6, f"{name}, all layers, ten epochs", benchmark, (*comparisons, Comparison(AUTO, TUTORIAL)), note
    )


def _forward(size: Size) -> BenchmarkRow:
    name = "resnet18"  # with a smaller network most of the time would be reading images
    job = Job(JPEGS, name, (JobStage("backbone", 1),))
    eager, fastest = "eager NCHW forward pass", "fastest forward pass in memory"
    benchmark = Benchmark(
        f"forward-{name}",
        (
            Candidate("ftcli extract", "extract", job),
            Candidate("ftcli evaluate", "evaluate", job),
            Candidate(eager, "forward", job),
            Candidate(fastest, "fastest_forward", job),
        ),
        size.num_rounds,
    )
    comparisons = tuple(
        Comparison(ours, theirs, bar)
        for ours in ("ftcli extract", "ftcli evaluate")
        for theirs, bar in ((eager, 1.5), (fastest, 0.95))
    )
    note = (
        "For ftcli, the time after the network is created: cut, fingerprint, images, metrics and files. The loops are "
        "timed from the same point."
    )
    return BenchmarkRow(7, f"{name}, 300 images forward, cold", benchmark, comparisons, note)


def _reach() -> BenchmarkRow:
    seeds = (0, 1, 2)
    candidates, comparisons = [], []
    for seed in seeds:
        for name, program, batch_norm in ((TUTORIAL, "tutorial", "train"), ("ftcli", "train", "frozen")):
            stages = (
                JobStage("backbone", 3, 3e-3, "adamw"),
                JobStage("none", 3, 3e-4, "adamw", batch_norm="train" if batch_norm == "train" else "frozen"),
            )
            job = Job(CELLS, "timm/efficientnet_lite0", stages, True, 96, "squash", "flips", seed=seed)
            candidates.append(Candidate(f"{name}, seed {seed}", program, job, "4"))
        comparisons.append(Comparison(f"ftcli, seed {seed}", f"{TUTORIAL}, seed {seed}", 2.0, "reach"))
    title = "Lite0, two stages of three epochs, to the final accuracy of the tutorial loop"
    note = "Real weights, all solar cells at 96 px. For ftcli, the time until an epoch first reached that accuracy."
    return BenchmarkRow(8, title, Benchmark("reach", tuple(candidates), 1), tuple(comparisons), note)


def _memory(size: Size) -> BenchmarkRow:
    candidates, comparisons = [], []
    counts = (1_000, size.num_images)
    for count in counts:
        stage = JobStage("backbone", 2)
        job = Job(BenchmarkData("noise", count, 200), "mobilenet_v3_small", (stage,), image_size=32, augment="none")
        cold = f"{count:,} images, cold"
        candidates += [
            Candidate(cold, "train", job, "1"),
            Candidate(f"{count:,} images, warm", "train", job, "1", cache_from=cold),
        ]
    for state in ("cold", "warm"):
        few, many = (f"{count:,} images, {state}" for count in counts)
        comparisons.append(Comparison(many, few, 1 / 1.1, "peak"))
    title = "mobilenet_v3_small, head stage: peak memory"
    note = "Distinct PNGs of 32 px. The largest resident set of the process and its children."
    return BenchmarkRow(9, title, Benchmark("memory", tuple(candidates), 1), tuple(comparisons), note)
