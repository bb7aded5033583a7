"""What the user asks of an extraction, and what of it cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ftcli.analysis.extraction.sources import Target
from ftcli.errors import FtcliError, RecipeError, suggest
from ftcli.features.pooling import Pool
from ftcli.features.probing import check_probe
from ftcli.features.stores import Dtype, find_faults
from ftcli.runs.records import is_of_run
from ftcli.storage import check_writable, is_same_file

LINEAR = ("svm", "logistic")
"""The probes that can become a head."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked of `ftcli extract`. Without `layers` the input of the head is taken; where `pool` is None,
    maps and tokens are averaged; where `batch_size` or `workers` is None, the recipe tells. `out`, `head` and `picture`
    are the files for the features, for a checkpoint with the probe as its head, and for the accuracies by depth. With
    `cache` what the head is given is kept and found again; `verify` digests every image anew for that."""

    target: Target
    layers: tuple[str, ...] = ()
    pool: Pool | None = None
    out: Path | None = None
    dtype: Dtype | None = None
    probe: str | None = None
    head: Path | None = None
    picture: Path | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    device: str = "auto"
    cache: bool = True
    verify: bool = False


def check_wish(wish: Wish) -> None:
    """Raise RecipeError with every fault that shows without a network or an image."""
    faults = [
        *_collect(lambda: wish.target.backbone),
        *_check_source(wish.target),
        *_check_names(wish),
        *_check_uses(wish),
        *_check_places(wish),
    ]
    if faults:
        raise RecipeError(*faults)


def check_kept(wish: Wish, checkpoint: Path | None, weights: str) -> None:
    """Raise RecipeError where a file would take the place of the checkpoint, or of the file of weights, that it is made
    from."""
    faults = []
    for option, place in _list_places(wish):
        if checkpoint is not None and is_same_file(place, checkpoint):
            faults.append(f"{option}: {place} is the checkpoint itself, which stays as it is; give another name")
        elif checkpoint is None and is_same_file(place, Path(weights)):
            faults.append(f"{option}: {place} holds the weights, and stays as it is; give another name")
    if faults:
        raise RecipeError(*faults)


def _check_source(target: Target) -> Iterator[str]:
    source, is_model = target.source, target.model is not None
    if is_model and Path(source).exists():
        yield f"extract: {source} is neither a recipe (.yaml) nor a checkpoint (.pt); give one in it"
    elif is_model and target.data is None:
        yield f"extract: {source} is the name of a model, which has no images; add --data with a folder or manifest"
    if not is_model and target.document is None and target.image_size is not None:
        yield f"--image-size {target.image_size}: {source} has the size that it was trained with; leave it out"


def _check_names(wish: Wish) -> Iterator[str]:
    for option, value, known in (("--pool", wish.pool, get_args(Pool)), ("--dtype", wish.dtype, get_args(Dtype))):
        if value is not None and value not in known:
            yield f"{option} {value}: there is no such choice; {suggest(value, known)}"
    if wish.probe is not None:
        yield from _collect(check_probe, wish.probe, "--probe")
    for name, count in Counter(wish.layers).items():
        if count > 1:
            yield f"--layer {name}: stands {'twice' if count == 2 else f'{count} times'}; give it once"


def _check_uses(wish: Wish) -> Iterator[str]:
    """What would have no effect, or does not go together."""
    if wish.out is None and wish.probe is None and wish.head is None:
        yield "extract: nothing is asked for; add --out for a file of the features, or --probe for a classifier on them"
    if wish.dtype is not None and wish.out is None:
        yield f"--dtype {wish.dtype}: does nothing without --out; add it"
    if wish.verify and not wish.cache:
        yield "--rehash: does nothing with --no-cache; leave one out"
    if wish.verify and wish.layers:
        yield f"--rehash: does nothing with --layer {wish.layers[0]}, which uses no cache; leave one out"
    if wish.picture is not None and wish.probe is None:
        yield f"--plot {wish.picture}: does nothing without --probe; add it"
    if wish.head is not None and wish.probe not in LINEAR:
        yield f"--save-head {wish.head}: needs a linear probe; add --probe svm or --probe logistic"
    if wish.head is not None and wish.layers:
        yield (
            f"--save-head {wish.head}: goes with the input of the head alone, not with --layer {wish.layers[0]}; leave "
            "one out"
        )


def _check_places(wish: Wish) -> Iterator[str]:
    if wish.out is not None:
        yield from find_faults(wish.out, wish.layers)
    for option, place, ending in (("--save-head", wish.head, ".pt"), ("--plot", wish.picture, ".png")):
        if place is not None and place.suffix.lower() != ending:
            yield f"{option}: {place} does not end in {ending}; give such a name"
    if wish.head is not None and is_of_run(wish.head):
        yield f"--save-head: {wish.head} is a checkpoint that its run goes on from; give another name"
    for option, place in _list_places(wish):
        yield from _collect(check_writable, place, option)


def _list_places(wish: Wish) -> list[tuple[str, Path]]:
    """The files that the user names, each with its option."""
    named = (("--out", wish.out), ("--save-head", wish.head), ("--plot", wish.picture))
    return [(option, place) for option, place in named if place is not None]


def _collect(check: Callable[..., Any], *arguments: Any) -> tuple[str, ...]:
    """The faults that a check raises."""
    try:
        check(*arguments)
    except FtcliError as error:
        return error.faults
    return ()
