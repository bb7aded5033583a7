"""Counts, durations and sizes as text."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return a duration such as 8 s, 3 min 20 s or 2 h 5 min."""
    total_seconds = round(seconds)
    if total_seconds < 60:
        return f"{max(1, total_seconds)} s"
    if total_seconds < 3600:
        return f"{total_seconds // 60} min {total_seconds % 60} s"
    return f"{total_seconds // 3600} h {total_seconds % 3600 // 60} min"


def format_count(number: int, noun: str) -> str:
    """Return a count with its noun, such as 1 epoch or 1,200 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_percent(fraction: float) -> str:
    """Return a fraction in percent, such as 85.4%."""
    return f"{fraction:.1%}"


def format_size(num_bytes: int) -> str:
    """Return a size in MB or GB, such as 12.3 MB."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
