"""`ftcli extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import BATCH_SIZE, DEVICE, JSON, MATCH, NO_CACHE, NUM_WORKERS, REHASH, SHA256, WEIGHTS
from ftcli.console import TerminalReporter, print_result

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
        metavar="avg|max|flatten|none|token",
        help="How a map or tokens become a vector. Without it they are averaged; none keeps them.",
    ),
]
OUT = Annotated[
    Path | None, typer.Option(help="The file for the features: .npz, .parquet, .safetensors, or .npy with a .json.")
]
DTYPE = Annotated[str | None, typer.Option(metavar="float32|float16", help="Their number format. Without it: float32.")]
PROBE = Annotated[
    str | None,
    typer.Option(
        metavar="svm|rbf|logistic|knn",
        help="Fit a classifier to the features of train: a linear SVM, one with a Gaussian kernel, logistic "
        "regression, or nearest neighbours.",
    ),
]
SAVE_HEAD = Annotated[
    Path | None,
    typer.Option("--save-head", metavar="OUT.pt", help="Keep the network with a linear probe as its head."),
]
PLOT = Annotated[
    Path | None, typer.Option(metavar="OUT.png", help="The file for the accuracies of several layers by depth.")
]
IMAGE_SIZE = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="Side of what the network sees, in pixels, instead of its own."),
]


def extract(
    source: SOURCE,
    data: DATA = None,
    layers: LAYERS = None,
    pool: POOL = None,
    out: OUT = None,
    dtype: DTYPE = None,
    probe: PROBE = None,
    save_head: SAVE_HEAD = None,
    plot: PLOT = None,
    weights: WEIGHTS = None,
    match: MATCH = None,
    sha256: SHA256 = None,
    image_size: IMAGE_SIZE = None,
    batch_size: BATCH_SIZE = None,
    num_workers: NUM_WORKERS = None,
    device: DEVICE = "auto",
    no_cache: NO_CACHE = False,
    rehash: REHASH = False,
    as_json: JSON = False,
) -> None:
    """Keep what a layer of a network gives for each image, and try simple classifiers on it."""
    from ftcli.recipe.loading import read_recipe

    is_recipe = source.lower().endswith((".yaml", ".yml"))
    recipe_file = read_recipe(Path(source)) if is_recipe else None  # before torch, which takes seconds to load
    from ftcli.extraction import ExtractArgs, SourceArgs
    from ftcli.extraction import extract as run
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter() as reporter:
        weights_args = {"weights": weights, "match": match, "sha256": sha256}
        source_args = SourceArgs(
            source=source, recipe_file=recipe_file, data=data, image_size=image_size, **weights_args
        )
        args = ExtractArgs(
            source_args=source_args,
            layers=tuple(layers or ()),
            pool=pool,  # type: ignore[arg-type]  # what it may be is checked there
            out=out,
            dtype=dtype,  # type: ignore[arg-type]  # likewise
            probe=probe,
            save_head=save_head,
            plot=plot,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            use_cache=not no_cache,
            rehash=rehash,
        )
        result = run(args, reporter)
    print_result(result, as_json=as_json)
