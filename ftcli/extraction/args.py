"""Arguments of `ftcli extract` and their validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ftcli.errors import FtcliError, RecipeError, suggest
from ftcli.extraction.sources import SourceArgs
from ftcli.features.pooling import Pool
from ftcli.features.probes import check_probe_name
from ftcli.features.writers import FeatureDtype, find_output_errors
from ftcli.files import check_writable, is_same_file
from ftcli.runs.history import is_run_checkpoint

LINEAR_PROBES = ("svm", "logistic")
"""The probes that can be saved as a head."""


@dataclass(frozen=True, kw_only=True)
class ExtractArgs:
    """Arguments of `ftcli extract`.

    Without `layers` the input of the head is extracted. If `pool` is None, feature maps and tokens are averaged; if
    `batch_size` or `num_workers` is None, the recipe's value is used. `out`, `save_head` and `plot` are files.
    """

    source_args: SourceArgs
    layers: tuple[str, ...] = ()
    pool: Pool | None = None
    out: Path | None = None
    dtype: FeatureDtype | None = None
    probe: str | None = None
    save_head: Path | None = None
    plot: Path | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    device: str = "auto"
    use_cache: bool = True
    rehash: bool = False


def validate_args(args: ExtractArgs) -> None:
    """Raise RecipeError with every error that needs no network and no image to find."""
    errors = [
        *_collect_errors(lambda: args.source_args.backbone),
        *_check_source(args.source_args),
        *_check_choices(args),
        *_check_combinations(args),
        *_check_paths(args),
    ]
    if errors:
        raise RecipeError(*errors)


def check_not_overwriting(args: ExtractArgs, checkpoint: Path | None, weights: str) -> None:
    """Raise RecipeError if an output file is the checkpoint or weights file that is read."""
    errors = []
    for option, path in _list_output_paths(args):
        if checkpoint is not None and is_same_file(path, checkpoint):
            errors.append(f"{option}: {path} is the checkpoint that is read; give another name")
        elif checkpoint is None and is_same_file(path, Path(weights)):
            errors.append(f"{option}: {path} is the weights file that is read; give another name")
    if errors:
        raise RecipeError(*errors)


def _check_source(source_args: SourceArgs) -> Iterator[str]:
    source, is_model = source_args.source, source_args.model_name is not None
    if is_model and Path(source).exists():
        yield f"extract: {source} is neither a recipe (.yaml) nor a checkpoint (.pt); give one of these"
    elif is_model and source_args.data is None:
        yield f"extract: {source} is a model, which has no images; add --data with a folder or manifest"
    if not is_model and source_args.recipe_file is None and source_args.image_size is not None:
        yield f"--image-size {source_args.image_size}: {source} has a fixed image size; omit it"


def _check_choices(args: ExtractArgs) -> Iterator[str]:
    for option, value, choices in (
        ("--pool", args.pool, get_args(Pool)),
        ("--dtype", args.dtype, get_args(FeatureDtype)),
    ):
        if value is not None and value not in choices:
            yield f"{option}: unknown value {value!r}; {suggest(value, choices)}"
    if args.probe is not None:
        yield from _collect_errors(check_probe_name, args.probe, "--probe")
    for name, count in Counter(args.layers).items():
        if count > 1:
            yield f"--layer {name}: is given {'twice' if count == 2 else f'{count} times'}; give it once"


def _check_combinations(args: ExtractArgs) -> Iterator[str]:
    """Yield errors for options that have no effect or cannot be combined."""
    if args.out is None and args.probe is None and args.save_head is None:
        yield "extract: no output is requested; add --out for a file of features, or --probe for a classifier on them"
    if args.dtype is not None and args.out is None:
        yield f"--dtype {args.dtype}: has no effect without --out; add it"
    if args.rehash and not args.use_cache:
        yield "--rehash: has no effect with --no-cache; omit one of them"
    if args.rehash and args.layers:
        yield f"--rehash: has no effect with --layer {args.layers[0]}, which uses no cache; omit one of them"
    if args.plot is not None and args.probe is None:
        yield f"--plot {args.plot}: has no effect without --probe; add it"
    if args.save_head is not None and args.probe not in LINEAR_PROBES:
        yield f"--save-head {args.save_head}: needs a linear probe; add --probe svm or --probe logistic"
    if args.save_head is not None and args.layers:
        yield (
            f"--save-head {args.save_head}: cannot be combined with --layer {args.layers[0]}: the head reads its "
            "input; omit one of them"
        )


def _check_paths(args: ExtractArgs) -> Iterator[str]:
    if args.out is not None:
        yield from find_output_errors(args.out, args.layers)
    if args.save_head is not None and is_run_checkpoint(args.save_head):
        yield f"--save-head: {args.save_head} is a checkpoint that its run resumes from; give another name"
    suffixes = {"--out": (), "--save-head": [".pt"], "--plot": [".png"]}
    for option, path in _list_output_paths(args):
        yield from _collect_errors(check_writable, path, option, suffixes[option])


def _list_output_paths(args: ExtractArgs) -> list[tuple[str, Path]]:
    """Return the output files with their options."""
    options = (("--out", args.out), ("--save-head", args.save_head), ("--plot", args.plot))
    return [(option, path) for option, path in options if path is not None]


def _collect_errors(check: Callable[..., Any], *arguments: Any) -> tuple[str, ...]:
    """Return the messages of the error that a check raises."""
    try:
        check(*arguments)
    except FtcliError as error:
        return error.messages
    return ()
