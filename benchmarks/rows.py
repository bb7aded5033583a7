"""The rows of the comparison: what is set beside what, and how far apart it should be."""

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
    """Two contestants of a match. `bar` is the least that theirs over ours should be: of seconds, of the peak of
    memory, or of the seconds until ours reaches the accuracy that theirs ends with. None where nothing is asked. Of
    accuracy, ours should be within one standard error of theirs."""

    ours: str
    theirs: str
    target_ratio: float | None = None
    metric: ComparedMetric = "seconds"


@dataclass(frozen=True)
class BenchmarkRow:
    """A row by its number, with what it is about, its match and comparisons, and what one must know to read it."""

    number: int
    title: str
    benchmark: Benchmark
    comparisons: tuple[Comparison, ...]
    note: str = ""

    @property
    def candidate_names(self) -> set[str]:
        """The contestants that it needs."""
        return {name for one in self.comparisons for name in (one.ours, one.theirs)}


@dataclass(frozen=True)
class FullTraining:
    """A training of all layers: its network and images, its epochs, which are scaled to ten, and its rounds."""

    network: str
    data: BenchmarkData
    epochs: int
    num_rounds: int


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, the epochs of a training that is scaled to ten, the networks of a head stage with
    their images, the trainings of all layers, the most images in memory, and the rows."""

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
    """All rows that are measured at this size, and row 8, which is measured apart."""
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
    match = Benchmark(
        f"head-{name}",
        (
            Candidate(OFF, "train", few, "off", scaled_epochs=EPOCHS),
            Candidate(ONE, "train", ten, "1"),
            Candidate(FOUR, "train", ten, "4"),
            Candidate(TUTORIAL, "tutorial", few, scaled_epochs=EPOCHS),
            Candidate(FASTAI, "fastai_learner", one, scaled_epochs=EPOCHS),  # its first is no longer than its second
            Candidate(OWN, "own_loop", few, scaled_epochs=EPOCHS),
        ),
        size.num_rounds,
    )
    told = f"{name}, head stage of ten epochs"
    return [
        BenchmarkRow(1, f"{told}, one view", match, (Comparison(ONE, OFF, 8.5),)),
        BenchmarkRow(2, f"{told}, one view", match, (Comparison(ONE, TUTORIAL, 12.0), Comparison(ONE, FASTAI, 12.0))),
        BenchmarkRow(4, f"{told}, four views", match, (Comparison(FOUR, OFF, 2.2), Comparison(FOUR, TUTORIAL))),
        BenchmarkRow(10, f"{told}, nothing cached", match, (Comparison(OFF, OWN, 0.98),)),
    ]


def _list_again(size: Size, name: str, data: BenchmarkData) -> list[BenchmarkRow]:
    few = _again(name, data, f"again-{name}", size.num_rounds)
    # What a warm stage costs beside its steps, its checkpoints most of all, does not grow with the images.
    return [few, _again(name, CELLS, f"again-{name}-all", 1)] if size is FULL else [few]


def _again(name: str, data: BenchmarkData, title: str, rounds: int) -> BenchmarkRow:
    job = Job(data, name, (JobStage("backbone", EPOCHS),), augment="none")
    cold = "ftcli, cold cache"
    changes = {
        "the same again": (),
        "another learning rate": ("stages.main.optimizer.lr=0.003",),
        "another head": ("head.hidden=[64]",),
        "other images validate": (f"data.root={data.fold}",),
    }
    warm = [Candidate(told, "train", job, "1", change, cache_from=cold) for told, change in changes.items()]
    match = Benchmark(title, (Candidate(cold, "train", job, "1"), *warm), rounds)
    note = (
        "Without augmentation, so that an image that changes sides is known: with it, its first look would be computed."
    )
    comparisons = tuple(Comparison(one.name, cold, 20.0) for one in warm)
    told = f"{name}, head stage of ten epochs, {data.train:,} and {data.val:,} images, again with a warm cache"
    return BenchmarkRow(3, told, match, comparisons, note)


def _four_views() -> BenchmarkRow:
    job = Job(
        CELLS, "timm/efficientnet_lite0", (JobStage("backbone", EPOCHS, 3e-3, "adamw"),), True, 96, "squash", "standard"
    )
    match = Benchmark("views", (Candidate(OFF, "train", job, "off"), Candidate(FOUR, "train", job, "4")), 1)
    comparisons = (Comparison(FOUR, OFF, 2.2), Comparison(FOUR, OFF, metric="accuracy"))
    note = "Real weights, all solar cells at 96 px."
    return BenchmarkRow(4, "Lite0, head stage of ten epochs, four views", match, comparisons, note)


def _through(size: Size) -> BenchmarkRow:
    ten, few = (Job(FEW, "resnet18", (JobStage("layer3", epochs),)) for epochs in (EPOCHS, size.epochs))
    match = Benchmark(
        "through-layer3",
        (
            Candidate(ONE, "train", ten, "1"),
            Candidate(FOUR, "train", ten, "4"),
            Candidate(TUTORIAL, "tutorial", few, scaled_epochs=EPOCHS),
        ),
        size.num_rounds,
    )
    note = "The tutorial loop freezes the same by requires_grad; its BatchNorm goes on counting."
    comparisons = (Comparison(ONE, TUTORIAL, 2.5), Comparison(FOUR, TUTORIAL))
    return BenchmarkRow(5, "resnet18 frozen through layer3, ten epochs", match, comparisons, note)


def _all(whole: FullTraining) -> BenchmarkRow:
    name, job = whole.network, Job(whole.data, whole.network, (JobStage("none", whole.epochs),))
    loops = {
        TUTORIAL: "tutorial",
        FASTAI: "fastai_learner",
        TRAINER: "trainer",
        MEMORY: "memory_loop",
    } | ({} if name == "resnet50" else {TIMM: "timm_loop"})  # a large network is measured beside fewer
    others = [Candidate(told, program, job, scaled_epochs=EPOCHS) for told, program in loops.items()]
    ours = (
        Candidate("ftcli", "train", job, "4", scaled_epochs=EPOCHS),
        Candidate(AUTO, "train", job, "4", ("precision=auto",), scaled_epochs=EPOCHS),
    )
    match = Benchmark(f"all-{name}", (*ours, *others), whole.num_rounds)
    comparisons = tuple(Comparison("ftcli", told, 0.95 if told == MEMORY else 1.5) for told in loops)
    note = f"{AUTO} is the default: it computes in bfloat16 where that was tried and found faster on this machine."
    return BenchmarkRow(6, f"{name}, all layers, ten epochs", match, (*comparisons, Comparison(AUTO, TUTORIAL)), note)


def _forward(size: Size) -> BenchmarkRow:
    name = "resnet18"  # of a smaller network, reading the images would be most of it
    job = Job(JPEGS, name, (JobStage("backbone", 1),))
    eager, fastest = "eager NCHW forward pass", "fastest forward pass in memory"
    match = Benchmark(
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
        "Of ftcli it is all that the command does once the network is built, where the loops begin to count too: the "
        "cut and digests of the network, images, figures and files."
    )
    return BenchmarkRow(7, f"{name}, 300 images forward, cold", match, comparisons, note)


def _reach() -> BenchmarkRow:
    seeds = (0, 1, 2)
    contestants, comparisons = [], []
    for seed in seeds:
        for told, program, kept in ((TUTORIAL, "tutorial", "train"), ("ftcli", "train", "frozen")):
            stages = (
                JobStage("backbone", 3, 3e-3, "adamw"),
                JobStage("none", 3, 3e-4, "adamw", batch_norm="train" if kept == "train" else "frozen"),
            )
            job = Job(CELLS, "timm/efficientnet_lite0", stages, True, 96, "squash", "flips", seed=seed)
            contestants.append(Candidate(f"{told}, seed {seed}", program, job, "4"))
        comparisons.append(Comparison(f"ftcli, seed {seed}", f"{TUTORIAL}, seed {seed}", 2.0, "reach"))
    title = "Lite0, two stages of three epochs, to the accuracy that the tutorial loop ends with"
    note = "Real weights, all solar cells at 96 px. Of ftcli it is the time until an epoch first reached it."
    return BenchmarkRow(8, title, Benchmark("reach", tuple(contestants), 1), tuple(comparisons), note)


def _memory(size: Size) -> BenchmarkRow:
    contestants, comparisons = [], []
    counts = (1_000, size.num_images)
    for count in counts:
        stage = JobStage("backbone", 2)
        job = Job(BenchmarkData("noise", count, 200), "mobilenet_v3_small", (stage,), image_size=32, augment="none")
        cold = f"{count:,} images, cold"
        contestants += [
            Candidate(cold, "train", job, "1"),
            Candidate(f"{count:,} images, warm", "train", job, "1", cache_from=cold),
        ]
    for state in ("cold", "warm"):
        few, many = (f"{count:,} images, {state}" for count in counts)
        comparisons.append(Comparison(many, few, 1 / 1.1, "peak"))
    title = "mobilenet_v3_small, head stage: the most memory of its processes"
    note = "Distinct PNGs of 32 px. The greatest resident set of the process and of those it starts."
    return BenchmarkRow(9, title, Benchmark("memory", tuple(contestants), 1), tuple(comparisons), note)
