"""Features of images, kept in a file and tried on simple classifiers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli.analysis.extraction.depth import draw_depth
from ftcli.analysis.extraction.heads import LinearHead, Revisit, plan_linear, save_head
from ftcli.analysis.extraction.passes import fill_spool
from ftcli.analysis.extraction.sources import Source, find_images, load_source, open_source
from ftcli.analysis.extraction.wishes import Wish, check_kept, check_wish
from ftcli.analysis.subjects import Subject
from ftcli.data.sources import ImageSet
from ftcli.errors import DataError, RecipeError
from ftcli.features.extraction import Extractor
from ftcli.features.folding import fold_head
from ftcli.features.layers import Layer, resolve_layers
from ftcli.features.pooling import pool_shape
from ftcli.features.probing import Codes, Probe, check_codes, fit_probe
from ftcli.features.spool import Spool
from ftcli.features.stores import Description, check_capacity, find_faults, write_store
from ftcli.results import Extraction, FeatureLayer, Progress, Reporter
from ftcli.runtime import choose_device
from ftcli.storage import check_writable


def extract(wish: Wish, reporter: Reporter) -> Extraction:
    """Send all images of a source through its network once, in the order train, val, test, as in evaluation, and keep
    what its layers give, in a file, as a probe, or both. What the cache has of the head's input is taken from there.

    Memory does not grow with the number of images, but for what a probe needs. Whatever is wrong with the wish, the
    layers or the images is told before weights are loaded. Raises RecipeError, DataError, CheckpointError, and
    RunError where the disk is full or a number is not finite; no file is half written then.
    """
    check_wish(wish)
    device = choose_device(wish.device)
    source = open_source(wish.target, reporter)
    check_kept(wish, source.path, source.document.recipe.backbone.weights)
    layers = _choose_layers(wish, source.subject)
    picture = _check_layers(wish, source, layers)
    source, images = find_images(source, wish.target, reporter)
    _check_images(wish, images)
    subject = load_source(source, images, reporter)
    if subject.preprocessing.image_size != source.subject.preprocessing.image_size:
        layers = _choose_layers(wish, subject)  # weights from an address may tell their size when they have come
    precision = source.document.recipe.precision
    extractor = Extractor(subject.model, subject.preprocessing, layers, wish.pool, device, precision)
    names = [layer.name for layer in layers]
    with Spool(wish.out, names, extractor.shapes, narrow=wish.dtype == "float16") as spool:
        began = time.monotonic()
        skipped = fill_spool(wish, source.document.recipe.data, images, extractor, spool, reporter)
        seconds = time.monotonic() - began
        if wish.out is not None:
            write_store(wish.out, spool, _describe(wish, subject, images, layers))
        probes = _fit_probes(wish, source, images, spool, skipped, reporter) if wish.probe else ()
        shapes = extractor.shapes
        taken = tuple(_tell_layer(layer, shape) for layer, shape in zip(layers, shapes, strict=True))
        if picture is not None:
            title = f"{subject.name}, weights: {subject.weights}"
            draw_depth([probe.score for probe in probes], taken, picture, title, reporter)
        if wish.head is not None:
            head = LinearHead(probes[0], *fold_head(probes[0], taken[0].dimensions))
            trained = replace(source, subject=subject)
            revisit = Revisit(wish.batch_size, wish.num_workers, wish.cache)
            save_head(trained, images, head, wish.head, reporter, revisit)
        return replace(_sum_up(wish, subject, spool, taken, probes, seconds, skipped), picture=picture)


def _choose_layers(wish: Wish, subject: Subject) -> tuple[Layer, ...]:
    """The layers of the wish; `head` stands for the head in every network, as in a recipe's patterns."""
    modules = {name for name, _ in subject.model.named_modules()}
    names = []
    for name in wish.layers:
        first, dot, rest = name.partition(".")
        own = f"{subject.head}{dot}{rest}"
        names.append(own if first == "head" and name not in modules and own in modules else name)
    return resolve_layers(subject.model, subject.head, names, subject.preprocessing.image_size)


def _check_layers(wish: Wish, source: Source, layers: Sequence[Layer]) -> Path | None:
    """Refuse what does not go with the layers; returns the file of the picture, if one is drawn."""
    for layer in layers:
        pool_shape(source.subject.model, layer, wish.pool)
    if wish.head is not None:
        plan_linear(source.document, source.subject, f"--save-head {wish.head}")
    faults = []
    if wish.out is not None and len(layers) > 1:
        faults += find_faults(wish.out, [layer.name for layer in layers])
    if wish.picture is not None and len(layers) < 2:
        faults.append(
            f"--plot {wish.picture}: shows accuracies by depth, and one layer is taken; add --layers all, or leave "
            "it out"
        )
    if faults:
        raise RecipeError(*faults)
    if wish.probe is None or len(layers) < 2:
        return None
    picture = wish.picture or Path(f"{source.document.recipe.name}-{wish.probe}-depth.png")
    check_writable(picture, "--plot")
    return picture


def _check_images(wish: Wish, images: ImageSet) -> None:
    samples = [(sample, split) for split, samples in images.splits.items() for sample in samples]
    splits = [split for _, split in samples]
    if wish.probe is not None:
        labels = np.array([sample.label for sample, _ in samples], dtype=np.int64)
        groups = _list_groups(images, [sample.path for sample, _ in samples])
        check_codes(labels, np.array(splits), images.classes, f"--probe {wish.probe}", groups)
    if wish.out is not None:
        check_capacity(wish.out, [sample.path for sample, _ in samples], splits)


def _list_groups(images: ImageSet, paths: Sequence[str]) -> NDArray[np.str_] | None:
    """The group of each of some images, where any has one; an image without one is a group of its own."""
    groups = {s.path: s.group for samples in images.splits.values() for s in samples if s.group is not None}
    return np.array([groups.get(path, f"path {path}") for path in paths]) if groups else None


def _fit_probes(
    wish: Wish, source: Source, images: ImageSet, spool: Spool, skipped: Sequence[str], reporter: Reporter
) -> tuple[Probe, ...]:
    assert wish.probe is not None
    labels, splits, groups = spool.labels, np.array(spool.splits), _list_groups(images, spool.paths)
    if skipped:
        _check_left(wish, images, labels, splits, groups, skipped)
    probes: list[Probe] = []
    for number, layer in enumerate(spool.layers):
        codes = Codes(spool.features(number).reshape(len(spool), -1), labels, splits, groups)
        probes.append(fit_probe(wish.probe, layer, codes, images.classes, source.document.recipe.seed))
        accuracy = f"{probes[-1].score.cv_accuracy:.1%}"
        reporter.advance(Progress(f"fitting {wish.probe}", number + 1, len(spool.layers), details=accuracy))
    return tuple(probes)


def _check_left(
    wish: Wish,
    images: ImageSet,
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    groups: NDArray[np.str_] | None,
    skipped: Sequence[str],
) -> None:
    """Raise DataError where no probe can be fitted to the images that could be read."""
    try:
        check_codes(labels, splits, images.classes, f"--probe {wish.probe}", groups)
    except DataError as error:
        left_out = f"--probe {wish.probe}: broken images left out: {len(skipped)}; the first: {skipped[0]}"
        raise DataError(*error.faults, left_out) from error


def _describe(wish: Wish, subject: Subject, images: ImageSet, layers: Sequence[Layer]) -> Description:
    return Description(
        source=wish.target.source,
        model=subject.name,
        weights=subject.weights,
        weights_sha256=subject.sha256,
        layers=tuple(layer.name for layer in layers),
        pool=wish.pool or "default",
        classes=images.classes,
        preprocessing=subject.preprocessing.to_dict(),
        dtype=wish.dtype or "float32",
    )


def _tell_layer(layer: Layer, shape: tuple[int, ...]) -> FeatureLayer:
    return FeatureLayer(layer.name, layer.output_shape, shape, layer.depth)


def _sum_up(
    wish: Wish,
    subject: Subject,
    spool: Spool,
    layers: tuple[FeatureLayer, ...],
    probes: Sequence[Probe],
    seconds: float,
    skipped: tuple[str, ...],
) -> Extraction:
    scores = tuple(probe.score for probe in probes)
    # The first of equals: less of the network is computed for it.
    best = max(range(len(layers)), key=lambda n: scores[n].cv_accuracy if scores else n)
    return Extraction(
        source=wish.target.source,
        weights=subject.weights,
        output=wish.out,
        layer=layers[best].name,
        images=len(spool),
        dimensions=layers[best].dimensions,
        seconds=seconds,
        probe=scores[best] if scores else None,
        layers=layers,
        probes=scores,
        head=wish.head,
        skipped=skipped,
        next_command=None if wish.head is None else f"ftcli evaluate {shlex.quote(str(wish.head))}",
        splits={split: spool.splits.count(split) for split in dict.fromkeys(spool.splits)},
        pool=wish.pool,
    )
