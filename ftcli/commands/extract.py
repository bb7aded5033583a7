"""`ftcli extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import (
    BATCH_SIZE,
    DEVICE,
    JSON,
    MATCH,
    NO_CACHE,
    NUM_WORKERS,
    REHASH,
    SHA256,
    WEIGHTS,
    build_args,
    read_recipe_source,
)
from ftcli.console import TerminalReporter, print_result

SOURCE = Annotated[str, typer.Argument(metavar="MODEL|RECIPE|CHECKPOINT", help="The network to extract features from.")]
DATA = Annotated[
    Path | None, typer.Option(help="Image folder or manifest. Default: the data of the recipe or checkpoint.")
]
LAYERS = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "--layers",
        metavar="NAME",
        help="Extract the output of this layer instead of the input of the head. Repeatable, or all for every block.",
    ),
]
POOL = Annotated[
    str | None,
    typer.Option(
        metavar="avg|max|flatten|none|token",
        help="Pooling of feature maps and tokens to a vector; none disables it. Default: avg.",
    ),
]
OUT = Annotated[
    Path | None, typer.Option(help="Feature file: .npz, .parquet, .safetensors, or .npy with a .json next to it.")
]
DTYPE = Annotated[str | None, typer.Option(metavar="float32|float16", help="Number format of --out. Default: float32.")]
PROBE = Annotated[
    str | None,
    typer.Option(
        metavar="svm|rbf|logistic|knn",
        help="Fit a classifier on the training features: linear SVM, SVM with RBF kernel, logistic regression or "
        "k nearest neighbors.",
    ),
]
SAVE_HEAD = Annotated[
    Path | None,
    typer.Option("--save-head", metavar="OUT.pt", help="Save a checkpoint with the linear probe as head."),
]
PLOT = Annotated[Path | None, typer.Option(metavar="OUT.png", help="Plot the probe accuracy of each layer by depth.")]
IMAGE_SIZE = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Input size in pixels. Default: the recipe's or the network's.")
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
    """Extract features of images, or fit a probe on them. Features are the head's input or the output of --layer."""
    options = {**locals(), "layers": tuple(layers or ()), "use_cache": not no_cache}
    options["recipe_file"] = read_recipe_source(source)  # before torch, which is slow to import
    from ftcli.extraction.args import ExtractArgs
    from ftcli.extraction.extract import extract as run
    from ftcli.extraction.sources import SourceArgs
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    options["source_args"] = build_args(SourceArgs, options)
    with TerminalReporter() as reporter:
        result = run(build_args(ExtractArgs, options), reporter)
    print_result(result, as_json=as_json)
