"""Extraction of features: `ftcli extract`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig, choose_num_workers
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError, RecipeError
from ftcli.evaluation.classifier import LoadedModel
from ftcli.evaluation.head_features import cut_at_head, open_head_features
from ftcli.extraction.args import ExtractArgs, check_not_overwriting, validate_args
from ftcli.extraction.depth_plot import plot_depth
from ftcli.extraction.save_head import ProbeHead, plan_linear_head, save_head
from ftcli.extraction.sources import ExtractionSource, load_source_dataset, load_source_model, open_source
from ftcli.features.extractor import Extractor, FeatureBatch, FeatureBuffer
from ftcli.features.layers import LayerSpec, resolve_layers
from ftcli.features.pipeline import FeaturePipeline
from ftcli.features.pooling import pool_shape
from ftcli.features.probes import FeatureSet, Probe, check_probe_labels, fit_probe, probe_to_linear
from ftcli.features.writers import FeatureMetadata, check_header_size, find_output_errors, write_features
from ftcli.files import check_writable
from ftcli.recipe.schema import Data
from ftcli.results import ExtractResult, FeatureLayer, Progress, ProgressTask, Reporter, format_count
from ftcli.runtime import choose_device


def extract(args: ExtractArgs, reporter: Reporter) -> ExtractResult:
    """Extract features of all images of a source, in the order train, val, test, preprocessed as in evaluation.

    The features go to a file, a probe, or both. Inputs of the head are read from the feature cache. Memory use does not
    depend on the number of images, except for a probe. Errors in arguments, layers and images are raised before weights
    are loaded. Raises RecipeError, DataError, CheckpointError, and RunError if the disk is full or a feature is not
    finite; files are written atomically.
    """
    validate_args(args)
    device = choose_device(args.device)
    source = open_source(args.source_args, reporter)
    check_not_overwriting(args, source.checkpoint_path, source.recipe_file.recipe.backbone.weights)
    layers = _resolve_layers(args, source.loaded)
    plot_path = _check_layers(args, source, layers)
    source, dataset = load_source_dataset(source, args.source_args, reporter)
    _check_images(args, dataset)
    loaded = load_source_model(source, dataset, reporter)
    if loaded.preprocessing.image_size != source.loaded.preprocessing.image_size:
        layers = _resolve_layers(args, loaded)  # known only after the download
    precision = source.recipe_file.recipe.precision
    extractor = Extractor(loaded.model, loaded.preprocessing, layers, args.pool, device, precision)
    layer_names = [layer.name for layer in layers]
    with FeatureBuffer(args.out, layer_names, extractor.shapes, as_float16=args.dtype == "float16") as buffer:
        start_time = time.monotonic()
        skipped = _fill_buffer(args, source.recipe_file.recipe.data, dataset, extractor, buffer, reporter)
        seconds = time.monotonic() - start_time
        if args.out is not None:
            write_features(args.out, buffer, _describe_extraction(args, loaded, dataset, layers))
        probes = _fit_probes(args, source, dataset, buffer, skipped, reporter) if args.probe else ()
        shapes = extractor.shapes
        feature_layers = tuple(_to_feature_layer(layer, shape) for layer, shape in zip(layers, shapes, strict=True))
        if plot_path is not None:
            title = f"{loaded.name}, weights: {loaded.weights}"
            plot_depth([probe.score for probe in probes], feature_layers, plot_path, title)
        if args.save_head is not None:
            head = ProbeHead(probes[0], *probe_to_linear(probes[0], feature_layers[0].dimensions))
            loaded_source = replace(source, loaded=loaded)
            save_head(loaded_source, dataset, head, args, reporter)
        return replace(_build_result(args, loaded, buffer, feature_layers, probes, seconds, skipped), picture=plot_path)


def _resolve_layers(args: ExtractArgs, loaded: LoadedModel) -> tuple[LayerSpec, ...]:
    """Resolve the requested layers; `head` is an alias for the network's head, as in a recipe's patterns."""
    module_names = {name for name, _ in loaded.model.named_modules()}
    layer_names = []
    for name in args.layers:
        first, dot, rest = name.partition(".")
        expanded = f"{loaded.head}{dot}{rest}"
        layer_names.append(
            expanded if first == "head" and name not in module_names and expanded in module_names else name
        )
    return resolve_layers(loaded.model, loaded.head, layer_names, loaded.preprocessing.image_size)


def _check_layers(args: ExtractArgs, source: ExtractionSource, layers: Sequence[LayerSpec]) -> Path | None:
    """Raise RecipeError for arguments that do not fit the layers; return the file of the plot, if one is drawn."""
    for layer in layers:
        pool_shape(source.loaded.model, layer, args.pool)
    if args.save_head is not None:
        plan_linear_head(source.recipe_file, source.loaded, f"--save-head {args.save_head}")
    errors = []
    if args.out is not None and len(layers) > 1:
        errors += find_output_errors(args.out, [layer.name for layer in layers])
    if args.plot is not None and len(layers) < 2:
        errors.append(f"--plot {args.plot}: needs several layers; add --layers all, or omit it")
    if errors:
        raise RecipeError(*errors)
    if args.probe is None or len(layers) < 2:
        return None
    plot_path = args.plot or Path(f"{source.recipe_file.recipe.name}-{args.probe}-depth.png")
    check_writable(plot_path, "--plot")
    return plot_path


def _check_images(args: ExtractArgs, dataset: ImageDataset) -> None:
    samples = [(sample, split) for split, samples in dataset.splits.items() for sample in samples]
    splits = [split for _, split in samples]
    if args.probe is not None:
        labels = np.array([sample.label for sample, _ in samples], dtype=np.int64)
        groups = _list_groups(dataset, [sample.path for sample, _ in samples])
        check_probe_labels(labels, np.array(splits), dataset.classes, f"--probe {args.probe}", groups)
    if args.out is not None:
        check_header_size(args.out, [sample.path for sample, _ in samples], splits)


def _list_groups(dataset: ImageDataset, paths: Sequence[str]) -> NDArray[np.str_] | None:
    """Return the group of each image, None if none has one; an image without a group is its own."""
    groups = {s.path: s.group for samples in dataset.splits.values() for s in samples if s.group is not None}
    return np.array([groups.get(path, f"path {path}") for path in paths]) if groups else None


def _fill_buffer(
    args: ExtractArgs,
    data: Data,
    dataset: ImageDataset,
    extractor: Extractor,
    buffer: FeatureBuffer,
    reporter: Reporter,
) -> tuple[str, ...]:
    """Extract the features of all images, split by split, into a buffer; return the messages of skipped images.

    Raises DataError if no image can be read, and whatever the extractor and the feature cache raise.
    """
    pipeline = _cut_at_head(args, extractor)
    num_workers = data.num_workers if args.num_workers is None else args.num_workers
    loader_config = LoaderConfig(
        dataset.root,
        data.on_corrupt_image,
        choose_num_workers(num_workers, extractor.device, dataset),
        rehash=args.rehash,
    )
    num_images = sum(map(len, dataset.splits.values()))
    skipped: list[str] = []
    start_time = time.monotonic()
    batches = (
        _compute_features(dataset, loader_config, args.batch_size or data.batch_size, extractor)
        if pipeline is None
        else _read_head_features(dataset, loader_config, pipeline, extractor, reporter)
    )
    for split, batch in batches:
        skipped += [skipped_image.message for skipped_image in batch.skipped]
        if batch.paths:
            buffer.add(batch, split)
        num_done = len(buffer) + len(skipped)
        reporter.update_progress(
            Progress("extracting", num_done, num_images, num_done / (time.monotonic() - start_time))
        )
    if not len(buffer):
        raise DataError(f"extract: none of {format_count(num_images, 'image')} can be read; the first: {skipped[0]}")
    return tuple(skipped)


def _cut_at_head(args: ExtractArgs, extractor: Extractor) -> FeaturePipeline | None:
    """Return the model cut at its head if the head's input is the only layer and the cache is used."""
    if not args.use_cache or [layer.kind for layer in extractor.layers] != ["input"]:
        return None
    head_path = extractor.layers[0].target
    return cut_at_head(extractor.model, head_path, extractor.preprocessing, extractor.device, extractor.precision)


def _compute_features(
    dataset: ImageDataset, loader_config: LoaderConfig, batch_size: int, extractor: Extractor
) -> Iterator[tuple[str, FeatureBatch]]:
    """Yield the features of each split, computed by the whole network."""
    transform = build_eval_transform(extractor.preprocessing)
    for split, samples in dataset.splits.items():
        num_workers = min(loader_config.num_workers, -(-len(samples) // batch_size) - 1)  # none for a single batch
        split_config = replace(loader_config, num_workers=num_workers, pin_memory=extractor.device.type == "cuda")
        with ImageLoader(samples, transform, batch_size, split_config) as loader:
            for batch in extractor.extract(loader):
                yield split, batch


def _read_head_features(
    dataset: ImageDataset,
    loader_config: LoaderConfig,
    pipeline: FeaturePipeline,
    extractor: Extractor,
    reporter: Reporter,
) -> Iterator[tuple[str, FeatureBatch]]:
    """Yield the features of each split from the cached inputs of the head.

    All splits are computed together, so that only one batch is not full.
    """
    samples = [sample for split in dataset.splits.values() for sample in split]
    with open_head_features(pipeline, samples, loader_config, ProgressTask("extracting", reporter)) as loader:
        start = 0
        for split, split_samples in dataset.splits.items():
            for batch in extractor.pool_cached(loader, range(start, start + len(split_samples))):
                yield split, batch
            start += len(split_samples)


def _fit_probes(
    args: ExtractArgs,
    source: ExtractionSource,
    dataset: ImageDataset,
    buffer: FeatureBuffer,
    skipped: Sequence[str],
    reporter: Reporter,
) -> tuple[Probe, ...]:
    assert args.probe is not None
    labels, splits, groups = buffer.labels, np.array(buffer.splits), _list_groups(dataset, buffer.paths)
    if skipped:
        _check_readable_images(args, dataset, labels, splits, groups, skipped)
    probes: list[Probe] = []
    for layer_index, layer in enumerate(buffer.layers):
        feature_set = FeatureSet(buffer.features(layer_index).reshape(len(buffer), -1), labels, splits, groups)
        probes.append(fit_probe(args.probe, layer, feature_set, dataset.classes, source.recipe_file.recipe.seed))
        accuracy = f"{probes[-1].score.cv_accuracy:.1%}"
        reporter.update_progress(
            Progress(f"fitting {args.probe}", layer_index + 1, len(buffer.layers), details=accuracy)
        )
    return tuple(probes)


def _check_readable_images(
    args: ExtractArgs,
    dataset: ImageDataset,
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    groups: NDArray[np.str_] | None,
    skipped: Sequence[str],
) -> None:
    """Raise DataError if no probe can be fitted to the images that could be read."""
    try:
        check_probe_labels(labels, splits, dataset.classes, f"--probe {args.probe}", groups)
    except DataError as error:
        skipped_message = (
            f"--probe {args.probe}: {format_count(len(skipped), 'corrupt image')} skipped; the first: {skipped[0]}"
        )
        raise DataError(*error.messages, skipped_message) from error


def _describe_extraction(
    args: ExtractArgs, loaded: LoadedModel, dataset: ImageDataset, layers: Sequence[LayerSpec]
) -> FeatureMetadata:
    return FeatureMetadata(
        source=args.source_args.source,
        model=loaded.name,
        weights=loaded.weights,
        weights_sha256=loaded.sha256,
        layers=tuple(layer.name for layer in layers),
        pool=args.pool or "default",
        classes=dataset.classes,
        preprocessing=loaded.preprocessing.to_dict(),
        dtype=args.dtype or "float32",
    )


def _to_feature_layer(layer: LayerSpec, shape: tuple[int, ...]) -> FeatureLayer:
    return FeatureLayer(layer.name, layer.output_shape, shape, layer.depth)


def _build_result(
    args: ExtractArgs,
    loaded: LoadedModel,
    buffer: FeatureBuffer,
    layers: tuple[FeatureLayer, ...],
    probes: Sequence[Probe],
    seconds: float,
    skipped: tuple[str, ...],
) -> ExtractResult:
    scores = tuple(probe.score for probe in probes)
    # The first of equals: it needs the least computation.
    best_index = max(range(len(layers)), key=lambda n: scores[n].cv_accuracy if scores else n)
    return ExtractResult(
        source=args.source_args.source,
        weights=loaded.weights,
        output=args.out,
        layer=layers[best_index].name,
        images=len(buffer),
        dimensions=layers[best_index].dimensions,
        seconds=seconds,
        probe=scores[best_index] if scores else None,
        layers=layers,
        probes=scores,
        head=args.save_head,
        skipped=skipped,
        next_command=None if args.save_head is None else f"ftcli evaluate {shlex.quote(str(args.save_head))}",
        splits={split: buffer.splits.count(split) for split in dict.fromkeys(buffer.splits)},
        pool=args.pool,
    )
