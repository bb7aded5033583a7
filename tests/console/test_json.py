"""Tests of the field names in the documents of --json. Programs depend on them, so they do not change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ftcli import results
from ftcli.console import print_result
from ftcli.results import DownloadResult, PredictResult, Result, SchemaResult

FIELDS = {
    "BoundaryTensorInfo": "name shape",
    "CacheEntry": "name kind about records bytes used",
    "CacheResult": "folder limit bytes shelves cleared freed",
    "ClassMetrics": "name images precision recall f1 recall_low recall_high roc_auc average_precision",
    "ClassScore": "name probability",
    "CompareResult": "runs settings split images differences why picture warnings",
    "ComparedRun": "name run checkpoint epochs seconds val_loss val_accuracy accuracy low high loss",
    "ConfigDifference": "key values",
    "ConfusedPair": "label predicted images share",
    "DownloadResult": "name root images splits",
    "EpochMetrics": "stage epoch train_loss train_accuracy val_loss val_accuracy lr seconds images_per_second",
    "EvaluateResult": "checkpoint split images loss accuracy figures per_class confusion classes calibration "
    "reliability worst unsure confused thresholds views scaling predictions report skipped",
    "EvaluatedImage": "path label predicted probability",
    "ExtractResult": "source weights output layer images dimensions seconds probe layers probes picture head skipped "
    "next_command splits pool",
    "FeatureLayer": "name output_shape shape depth",
    "HeadInfo": "path type in_features out_features",
    "InitResult": "recipe images classes splits looked_at width height grey broken backbone out next_command",
    "InspectResult": "name parameters trainable multiply_adds head layers weights preprocessing classes stages "
    "checkpoint loaded pictures estimate",
    "LayerInfo": "name type output_shape parameters trainable depth",
    "LoadedWeights": "source sha256 tensors left_out",
    "MemoryBreakdown": "parameters gradients optimizer activations working process",
    "Metric": "name value low high method",
    "ModelEntry": "name parameters multiply_adds image_size accuracy weights",
    "ModelListResult": "models glob",
    "PairwiseTest": "first second only_first only_second difference low high p_value p_corrected significant words",
    "Prediction": "path classes",
    "PredictionError": "path why",
    "Preprocessing": "image_size resize_size resize interpolation mean std",
    "ProbeScore": "name layer parameters folds cv_accuracy train_images val_accuracy test_accuracy test_low test_high "
    "test_images seconds test_majority",
    "ReliabilityBin": "low high images confidence accuracy",
    "StageEstimate": "stage epochs images validation_images from_data batch_size measured_batch seconds_per_step "
    "seconds_per_validation_image seconds_per_image_read kept_bytes seconds_frozen seconds memory memory_bytes",
    "StageResult": "name epochs start_val_loss val_loss val_accuracy seconds trainable_parameters times",
    "StageSummary": "name trainable frozen trained_layers frozen_layers cut",
    "StageTimes": "frozen data compiling forward backward optimizer solving validation checkpoints other",
    "TemperatureScaling": "temperature split images log_loss_before log_loss_after error_before error_after checkpoint",
    "TestResult": "loss accuracy images",
    "Threshold": "positive goal wanted threshold precision recall f1 chosen_on",
    "TrainResult": "run best_loss stages test skipped next_command bottleneck",
    "WeightsEntry": "name accuracy parameters url default",
}
RESULT_TYPES = {
    name: value
    for name, value in vars(results).items()
    if isinstance(value, type) and issubclass(value, Result) and value is not Result
}


@pytest.mark.parametrize("name", sorted(RESULT_TYPES.keys() - {"SchemaResult"}))
def test_json_fields_do_not_change(name: str) -> None:
    fields = dataclasses.fields(RESULT_TYPES[name])  # type: ignore[arg-type]  # all results are dataclasses
    assert " ".join(field.name for field in fields) == FIELDS[name]


def test_json_fields_cover_all_results() -> None:
    assert RESULT_TYPES.keys() - {"SchemaResult"} == FIELDS.keys()
    assert not issubclass(PredictResult, Result)  # a stream; tests/commands/test_predict.py checks its document


def test_print_result_writes_fields_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(DownloadResult("x", Path("/x"), 1, {"train": {"a": 1}}), as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "name": "x",
        "root": "/x",
        "images": 1,
        "splits": {"train": {"a": 1}},
    }
    print_result(SchemaResult({"type": "object"}), as_json=False)
    assert json.loads(capsys.readouterr().out) == {"type": "object"}
