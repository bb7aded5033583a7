"""Evaluation of classifiers: logits, metrics with intervals, calibration, thresholds, predictions, reports."""
