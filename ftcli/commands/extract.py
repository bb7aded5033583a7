"""`ftcli extract`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ftcli.commands.options import DEVICE, JSON, MATCH, SHA256, WEIGHTS, choose_weights
from ftcli.console import Terminal, print_result
from ftcli.errors import FtcliError, RecipeError, suggest

POOLS = ("avg", "max", "flatten", "none", "token")
DTYPES = ("float32", "float16")
LINEAR = ("svm", "logistic")
"""The probes that can become a head."""

SOURCE = Annotated[str, typer.Argument(metavar="MODEL|RECIPE|CHECKPOINT", help="Whose features to take.")]
DATA = Annotated[
    Path | None, typer.Option(help="A folder or manifest; a recipe and a checkpoint have images of their own.")
]
LAYERS = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "--layers",
        metavar="NAME",
        help="A layer whose output to take, instead of the input of the head. Repeatable; all: one after every block.",
    ),
]
POOL = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(POOLS),
        help="How a map or tokens become a vector. Without it they are averaged; none keeps them.",
    ),
]
OUT = Annotated[
    Path | None, typer.Option(help="The file for the features: .npz, .parquet, .safetensors, or .npy with a .json.")
]
DTYPE = Annotated[str | None, typer.Option(metavar="|".join(DTYPES), help="Their number format. Without it: float32.")]
PROBE = Annotated[
    str | None,
    typer.Option(
        metavar="svm|rbf|logistic|knn",
        help="Fit a classifier to the features of train: a linear SVM, one with a Gaussian kernel, logistic "
        "regression, or nearest neighbours.",
    ),
]
HEAD = Annotated[
    Path | None,
    typer.Option("--save-head", metavar="OUT.pt", help="Keep the network with a linear probe as its head."),
]
PICTURE = Annotated[
    Path | None, typer.Option(metavar="OUT.png", help="The file for the accuracies of several layers by depth.")
]
SIZE = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Side of what the network sees, in pixels, instead of its own.")
]
BATCH = Annotated[
    int | None, typer.Option(min=1, max=100_000, help="Images computed at a time. Without it: as in training.")
]
WORKERS = Annotated[
    int | None, typer.Option(min=0, max=256, help="Processes that load images. Without it: as in training.")
]


def extract(
    source: SOURCE,
    data: DATA = None,
    layers: LAYERS = None,
    pool: POOL = None,
    out: OUT = None,
    dtype: DTYPE = None,
    probe: PROBE = None,
    save_head: HEAD = None,
    picture: PICTURE = None,
    weights: WEIGHTS = None,
    match: MATCH = None,
    sha256: SHA256 = None,
    image_size: SIZE = None,
    batch_size: BATCH = None,
    workers: WORKERS = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Keep what a layer of a network gives for each image, and try simple classifiers on it."""
    from ftcli.recipe.loading import read_recipe
    from ftcli.recipe.schema import Backbone

    kind = _tell_kind(source)
    named = source if kind == "model" else None
    faults = [
        *_collect(choose_weights, named, weights, match, sha256),
        *_check_source(source, kind, data, image_size),
        *_check_names(pool, dtype, probe, layers or []),
        *_check_wishes(out, dtype, probe, save_head, picture, layers or []),
        *_check_places(out, save_head, picture, layers or []),
    ]
    if faults:
        raise RecipeError(*faults)
    document = read_recipe(Path(source)) if kind == "recipe" else None  # before torch, which takes seconds to load
    backbone = choose_weights(named, weights, match, sha256) or (Backbone(name=named) if named else None)
    from ftcli.analysis.extraction import Wish
    from ftcli.analysis.extraction import extract as run
    from ftcli.analysis.extraction.sources import Target
    from ftcli.runtime import keep_freed_memory

    keep_freed_memory()
    target = Target(source=source, document=document, backbone=backbone, data=data, image_size=image_size)
    wish = Wish(
        target=target,
        layers=tuple(layers or ()),
        pool=pool,  # type: ignore[arg-type]  # was checked above
        out=out,
        dtype=dtype or "float32",  # type: ignore[arg-type]  # likewise
        probe=probe,
        head=save_head,
        picture=picture,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    with Terminal() as terminal:
        result = run(wish, terminal)
    print_result(result, as_json=as_json)


def _tell_kind(source: str) -> str:
    if source.lower().endswith((".yaml", ".yml")):
        return "recipe"
    return "checkpoint" if source.endswith(".pt") else "model"


def _collect(check: Callable[..., Any], *arguments: Any) -> tuple[str, ...]:
    """The faults that a check raises."""
    try:
        check(*arguments)
    except FtcliError as error:
        return error.faults
    return ()


def _check_source(source: str, kind: str, data: Path | None, image_size: int | None) -> Iterator[str]:
    if kind == "model" and Path(source).exists():
        yield f"extract: {source} is neither a recipe (.yaml) nor a checkpoint (.pt); give one in it"
    elif kind == "model" and data is None:
        yield f"extract: {source} is the name of a model, which has no images; add --data with a folder or manifest"
    if kind == "checkpoint" and image_size is not None:
        yield f"--image-size {image_size}: {source} has the size that it was trained with; leave it out"


def _check_names(pool: str | None, dtype: str | None, probe: str | None, layers: list[str]) -> Iterator[str]:
    for option, value, known in (("--pool", pool, POOLS), ("--dtype", dtype, DTYPES)):
        if value is not None and value not in known:
            yield f"{option} {value}: there is no such choice; {suggest(value, known)}"
    if probe is not None:
        from ftcli.features.probing import check_probe

        yield from _collect(check_probe, probe, "--probe")
    for name, count in Counter(layers).items():
        if count > 1:
            yield f"--layer {name}: stands {'twice' if count == 2 else f'{count} times'}; give it once"


def _check_wishes(
    out: Path | None,
    dtype: str | None,
    probe: str | None,
    head: Path | None,
    picture: Path | None,
    layers: list[str],
) -> Iterator[str]:
    """What would have no effect, or does not go together."""
    if out is None and probe is None and head is None:
        yield "extract: nothing is asked for; add --out for a file of the features, or --probe for a classifier on them"
    if dtype is not None and out is None:
        yield f"--dtype {dtype}: does nothing without --out; add it"
    if picture is not None and probe is None:
        yield f"--picture {picture}: does nothing without --probe; add it"
    if head is not None and probe not in LINEAR:
        yield f"--save-head {head}: needs a linear probe; add --probe svm or --probe logistic"
    if head is not None and layers:
        yield f"--save-head {head}: goes with the input of the head alone, not with --layer {layers[0]}; leave one out"


def _check_places(out: Path | None, head: Path | None, picture: Path | None, layers: list[str]) -> Iterator[str]:
    from ftcli.features.stores import find_faults
    from ftcli.storage import check_writable

    if out is not None:
        yield from find_faults(out, layers)
    for option, place, ending in (("--save-head", head, ".pt"), ("--picture", picture, ".png")):
        if place is not None and place.suffix.lower() != ending:
            yield f"{option}: {place} does not end in {ending}; give such a name"
    for option, place in (("--out", out), ("--save-head", head), ("--picture", picture)):
        if place is not None:
            yield from _collect(check_writable, place, option)
