"""Statistics, rounds, result files and recipes of the benchmarks."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as program
from benchmarks import data as making
from benchmarks import runner, views
from benchmarks.candidates import Candidate, Environment, Measurement
from benchmarks.comparison_stats import Spread, compare_rounds, interpolate_linearly, standard_error, time_to_accuracy
from benchmarks.data import make_data, pick_evenly, split_proportionally
from benchmarks.jobs import BenchmarkData, Job, JobStage
from benchmarks.machine import find_peer_python
from benchmarks.page import evaluate_comparison, render_rows, render_table
from benchmarks.peers import own_loop
from benchmarks.peers.training import MEAN, STD
from benchmarks.processes import parse_last_json, run_program
from benchmarks.recipes import write_recipe
from benchmarks.rows import FULL, QUICK, BenchmarkRow, Comparison, list_rows
from benchmarks.runner import Benchmark, ResultsFile, order_round, run_benchmark
from benchmarks.scaling import ScalingModel, check_scaling, plot_scaling, scaling_benchmark
from benchmarks.startup import StartupTiming
from benchmarks.views import CASES, VIEWS, ViewsResult, choose_views, run_name, summarize_views
from ftcli.recipe import schema
from ftcli.recipe.loading import read_recipe

JOB = Job(BenchmarkData("noise", 8, 4), "resnet18", (JobStage("backbone", 2),))


def _measurement(seconds: float, **rest: object) -> Measurement:
    return dataclasses.replace(Measurement(seconds, seconds + 5, 1_000_000), **rest)  # type: ignore[arg-type]


def _candidate(name: str, after: str = "", epochs: int = 0) -> Candidate:
    return Candidate(name, "train", JOB, cache_from=after, scaled_epochs=epochs)


def test_compare_rounds_returns_ratio_of_medians() -> None:
    assert compare_rounds([10.0, 30.0, 20.0], [1.0, 2.0, 4.0]) == Spread(10.0, 5.0, 15.0)
    assert compare_rounds([10.0, 30.0], [1.0]) == Spread(10.0, 10.0, 10.0)


def test_measurement_scales_by_mean_epoch() -> None:
    assert _measurement(7.0, epochs=(2.0, 4.0)).scale(10) == 1.0 + 10 * 3.0
    assert _measurement(7.0, epochs=(2.0, 4.0)).scale(0) == 7.0


def test_time_to_accuracy_returns_first_epoch() -> None:
    assert time_to_accuracy((1.0, 2.5, 4.0), (0.7, 0.8, 0.9), 0.8) == 2.5
    assert time_to_accuracy((1.0, 2.5), (0.7, 0.8), 0.81) is None
    assert standard_error(0.8, 400) == pytest.approx(0.02)
    assert interpolate_linearly((10.0, 30.0), (1, 5), 3) == 20.0


def test_order_round_rotates_groups() -> None:
    groups = Benchmark(
        "m", (_candidate("a"), _candidate("b"), _candidate("x", "a"), _candidate("y", "a")), 3
    ).group_by_cache({"b", "x", "y"})
    played = [[one.name for group in order_round(groups, number) for one in group] for number in range(3)]
    assert played == [["a", "x", "y", "b"], ["b", "a", "y", "x"], ["a", "x", "y", "b"]]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return a record of fake runs by name; each takes as many seconds as runs came before it."""
    goes: list[tuple[str, bool]] = []

    def measure(candidate: Candidate, place: Environment) -> Measurement:
        goes.append((candidate.name, place.cache_dir.exists()))
        place.cache_dir.mkdir(exist_ok=True)
        return _measurement(float(len(goes)))

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(runner, "make_data", lambda _: None)
    return goes


def test_run_benchmark_resumes_and_isolates_caches(tmp_path: Path, played: list[tuple[str, bool]]) -> None:
    match, names = Benchmark("m", (_candidate("a"), _candidate("warm", "a"), _candidate("b")), 2), {"warm", "b"}
    run_benchmark(match, names, ResultsFile.open(tmp_path / "m.json", "1"), Path())
    whole = [("a", False), ("warm", True), ("b", False), ("b", False), ("a", False), ("warm", True)]
    assert played == whole
    book = ResultsFile.open(tmp_path / "m.json", "1")
    assert {name: [go.seconds for go in goes] for name, goes in book.read(match.candidates).items()} == {
        "a": [1.0, 5.0],
        "warm": [2.0, 6.0],
        "b": [3.0, 4.0],
    }
    run_benchmark(match, names, book, Path())
    assert played == whole  # nothing is measured again
    book.remove({"b"})
    run_benchmark(match, names, book, Path())
    assert played[6:] == [("b", False), ("b", False)]
    run_benchmark(match, names, ResultsFile.open(tmp_path / "m.json", "2"), Path())
    assert len(played) == 14  # with other code everything is measured again


def test_run_program_reports_result_memory_and_error() -> None:
    size = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 100_000_000
    program = f"text = 'x' * {size}; print('text before'); print('{{\"seconds\": 1.5}}')"
    result = run_program([sys.executable, "-c", program])
    assert result.document == {"seconds": 1.5}
    assert size < result.peak_memory < size + 100_000_000
    assert parse_last_json('{\n  "a": {\n    "b": 1\n  }\n}\n') == {"a": {"b": 1}}
    assert parse_last_json("{'loss': 1}\n\n{\"a\": 1}\n") == {"a": 1}
    with pytest.raises(SystemExit, match="ended with 3\nno luck"):
        run_program([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])


def test_find_peer_python_requires_environment(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        find_peer_python(tmp_path)
    assert str(refused.value) == f"{tmp_path}: the environment of the other loops does not exist; run make bench"


def test_split_proportionally_and_pick_evenly() -> None:
    assert split_proportionally([601, 1367], 300) == [92, 208]
    assert split_proportionally([1, 1, 1], 2) == [1, 1, 0]
    assert [path.name for path in pick_evenly([Path(str(n)) for n in range(10)], 4)] == ["0", "2", "5", "7"]


def test_make_data_writes_noise_and_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ROOT", tmp_path)
    data = BenchmarkData("noise", 8, 4)
    make_data(data)
    folder = tmp_path / data.folder
    images = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    assert (len(images), len(set(images.values()))) == (12, 12)
    rows = [line.split(",") for line in (folder / "fold.csv").read_text().split()[1:]]
    assert {path for path, _, _ in rows} == set(images)
    assert [split for path, _, split in rows if path.startswith("val/")] == ["train"] * 4
    assert sum(split == "val" for _, _, split in rows) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_own_loop_reads_batches_in_order(num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    job = dataclasses.replace(JOB, augment="none", image_size=32, resize="squash", batch_size=3)
    make_data(job.data)
    assert own_loop.choose_num_workers(job) == 0  # ftcli's choice for small images
    files = sorted((tmp_path / job.data.folder / "train").rglob("*.png"))
    order = [5, 0, 7, 2, 1]
    images, labels = zip(*own_loop.iterate_batches(job, "train", order, num_workers), strict=True)
    wanted = torch.stack([torch.from_numpy(np.array(Image.open(files[place]))) for place in order]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert [len(batch) for batch in images] == [3, 2]
    assert torch.equal(torch.cat(images), (wanted.float() / 255 - mean) / std)
    assert torch.cat(labels).tolist() == [int(files[place].parent.name == "b") for place in order]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in images)
    assert sum(len(batch) for batch, _ in own_loop.iterate_batches(job, "val", None, num_workers)) == 4


def test_jobs_round_trip_and_make_valid_recipes(tmp_path: Path) -> None:
    played = [row.benchmark for size in (FULL, QUICK) for row in list_rows(size)]
    played += [scaling_benchmark(), *(case.benchmark for case in CASES)]
    candidates = {one for match in played for one in match.candidates}
    for number, one in enumerate(sorted(candidates, key=repr)):
        assert Job.from_json(one.job.to_json()) == one.job
        cache = "off" if one.cache == "off" else {"views": int(one.cache) if one.cache.isdigit() else one.cache}
        path = tmp_path / f"{number}.yaml"
        path.write_text(write_recipe(one.job, cache))
        recipe = read_recipe(path, one.settings).recipe
        stages = [stage for stage in recipe.stages if isinstance(stage, schema.Stage)]
        assert [stage.epochs for stage in stages] == [stage.epochs for stage in one.job.stages]
        kept = stages[0].cache
        assert (kept if isinstance(kept, str) else str(kept.views)) == one.cache


def test_rows_name_known_candidates() -> None:
    for size in (FULL, QUICK):
        rows = list_rows(size)
        assert {row.number for row in rows} == {*size.rows, 8}
        for row in rows:
            assert row.candidate_names <= {one.name for one in row.benchmark.candidates}
            assert len({one.name for one in row.benchmark.candidates}) == len(row.benchmark.candidates)


def test_evaluate_comparison_reports_ratio_and_verdict() -> None:
    match = Benchmark("m", (_candidate("ours"), _candidate("theirs", epochs=10)), 2)
    row = BenchmarkRow(1, "a row", match, (Comparison("ours", "theirs", 4.0),))
    results = {
        "ours": [_measurement(2.0, accuracies=(0.5, 0.8), elapsed=(1.0, 2.0)), _measurement(4.0, accuracies=(0.6,))],
        "theirs": [
            _measurement(6.0, epochs=(1.0,), accuracies=(0.7,)),
            _measurement(5.0, epochs=(0.0,), accuracies=(0.7,)),
        ],
    }
    assert evaluate_comparison(row.comparisons[0], row, results) == ("3.33 (1.25 to 7.50)", "no")
    assert evaluate_comparison(Comparison("ours", "theirs", 0.9, "peak"), row, results) == ("1.00", "yes")
    assert evaluate_comparison(Comparison("ours", "theirs", 2.0, "reach"), row, results) == ("3.00", "yes")
    assert evaluate_comparison(Comparison("ours", "theirs"), row, results)[1] == "-"
    found = {name: [dataclasses.replace(go, accuracies=(0.0, 0.1)) for go in goes] for name, goes in results.items()}
    found["theirs"][0] = _measurement(6.0, accuracies=(0.8,))
    assert evaluate_comparison(Comparison("ours", "theirs", 2.0, "reach"), row, found) == ("never reached 0.800", "no")
    assert evaluate_comparison(Comparison("ours", "theirs", metric="accuracy"), row, results) == (
        "accuracy +0.000, one standard error 0.229",
        "yes",
    )


def test_render_rows_marks_scaled_and_missing() -> None:
    match = Benchmark("m", (_candidate("ours"), _candidate("theirs", epochs=10), _candidate("late")), 1)
    row = BenchmarkRow(
        1, "a row", match, (Comparison("ours", "theirs", 2.0), Comparison("ours", "late", 3.0)), "A note."
    )
    candidates = (_candidate("ours"), dataclasses.replace(_candidate("theirs"), program="extract"))
    missing = BenchmarkRow(
        2, "no go", Benchmark("n", candidates, 1), (Comparison("ours", "theirs", metric="accuracy"),)
    )
    results = {
        "ours": [_measurement(2.0, accuracies=(0.5,)), _measurement(2.0)],
        "theirs": [_measurement(3.0, epochs=(1.0,))],
    }
    assert render_rows([row, missing], {"m": results}) == "\n\n".join(
        (
            render_table(
                ("row", "ours", "theirs", "rounds", "epochs", "theirs over ours", "target", "met"),
                [
                    ("1. a row", "ours", "theirs", "1", "2", "6.00", "2", "yes"),
                    ("1. a row", "ours", "late", "-", "2", "not measured yet", "3", "-"),
                    ("2. no go", "ours", "theirs", "-", "2 : -", "not measured yet", "-", "-"),
                ],
            ),
            "### 1. a row",
            "| candidate | rounds | epochs | seconds | whole process | memory | val accuracy |\n"
            "| --- | --: | --: | --: | --: | --: | --: |\n"
            "| ours | 2 | 2 | 2.00 (2.00 to 2.00) | 7.0 | 1 MB | 0.500 |\n"
            "| theirs | 1 | 2 | 12.00\\* | 8.0 | 1 MB | - |\n"
            "| late | - | 2 | not measured yet | - | - | - |",
            "\\* Scaled from fewer epochs; the accuracy is measured after those.",
            "A note.",
        )
    )


def test_scaling_model_extrapolates() -> None:
    growth = ScalingModel(
        _measurement(30.0, feature_seconds=2.0),
        _measurement(10.0, feature_seconds=5.0, epochs=(0.5, 1.0, 0.5, 1.0, 0.75)),
    )
    assert (growth.scale(500, 1), growth.scale(500, 5)) == (2.0 + 2.0, 10.0)
    assert growth.scale(1_000, 9) == 2 * (
        5.0 + 8.0
    )  # more than for fewer epochs, although the short training took longer
    assert growth.scale(500, 2) == 3.0 + 2.75
    results = {one.name: [_measurement(2.0, epochs=(1.0,))] for one in scaling_benchmark().candidates}
    assert set(check_scaling(results).values()) == {0.5}
    assert plot_scaling(results).startswith(b"\x89PNG")


def test_summarize_views_adds_cost_of_fewer_views() -> None:
    results = {
        run_name(views, seed): [_measurement(4.0, feature_seconds=3.0, accuracies=(0.1, 0.8))]
        for views in VIEWS
        for seed in (0, 1, 2)
    }
    outcomes = summarize_views(results)
    assert [one.seconds for one in outcomes] == [4.0, 7.0, 10.0, 13.0, 16.0]
    assert [one.accuracy for one in outcomes] == pytest.approx([0.8] * 5)


def test_choose_views_returns_fewest_sufficient() -> None:
    def outcomes(*accuracies: float) -> list[ViewsResult]:
        return [ViewsResult(views, (value,), 1.0) for views, value in zip(VIEWS, accuracies, strict=True)]

    first, second = outcomes(0.75, 0.81, 0.79, 0.79, 0.8), outcomes(0.9, 0.87, 0.89, 0.9, 0.9)
    assert choose_views([(first, 400)]) == "2"
    assert choose_views([(first, 400), (second, 400)]) == "4"


def test_results_file_round_trips(tmp_path: Path) -> None:
    book = ResultsFile.open(tmp_path / "m.json", "1")
    book.add(_candidate("a"), 0, _measurement(1.0, epochs=(1.0, 2.0)))
    again = ResultsFile.open(tmp_path / "m.json", "1")
    assert again.has_result(_candidate("a"), 0)
    assert not again.has_result(dataclasses.replace(_candidate("a"), cache="1"), 0)
    assert not again.has_result(_candidate("a"), 1)
    assert again.read([_candidate("a")])["a"] == [_measurement(1.0, epochs=(1.0, 2.0))]
    assert again.read([dataclasses.replace(_candidate("a"), cache="1")]) == {}  # another job
    assert not again.is_outdated([_candidate("a")])
    assert ResultsFile.open(tmp_path / "m.json", "2").is_outdated([_candidate("a"), _candidate("b")])
    assert json.loads((tmp_path / "m.json").read_text())["a"]["code"] == "1"


def _fake_run_benchmark(match: Benchmark, wanted: set[str], book: ResultsFile, _: Path) -> None:
    for one in match.candidates:
        if one.name in wanted:
            book.add(one, 0, _measurement(2.0, epochs=(1.0,), accuracies=(0.8,), elapsed=(2.0,)))


@pytest.fixture
def pretending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for pages and results; fake measurements take two seconds, start-ups half a second."""
    for module in (program, views):
        monkeypatch.setattr(module, "run_benchmark", _fake_run_benchmark)
        monkeypatch.setattr(module, "PAGE", tmp_path / f"{module.__name__}.md")
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(views, "RESULTS", tmp_path / "views")
    monkeypatch.setattr(program, "find_peer_python", lambda _: Path(sys.executable))
    monkeypatch.setattr(program, "describe_machine", lambda _: ["Two cores."])
    monkeypatch.setattr(program, "hash_code", lambda: "new")
    answer = StartupTiming("ftcli --help", "python -c pass", 0.5, 0.25, (2.0, 1.5, 2.5), 3)
    monkeypatch.setattr(program, "measure_pairs", lambda _: [answer])
    return tmp_path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    program.main()


def test_main_writes_pages(pretending: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch)
    page = (pretending / "benchmarks.__main__.md").read_text()
    assert "- Two cores.\n" in page
    assert (
        "| 1. resnet18, head stage, ten epochs, one view | ftcli, one view | ftcli, cache: off | 1 | 10 : 2 | 5.50 |"
    ) in page
    assert "| `ftcli --help` | 3 | 0.50 | `python -c pass` | 0.25 | 2.00 (1.50 to 2.50) |" in page
    check = "the measured time for 1,000 images divided by the time scaled from 500 images: ftcli, four views 0.50"
    assert f"As a check, {check}" in page
    assert "### 8." not in page  # measured on request only
    assert page.count("not measured yet") == 3  # the seeds of row 8
    assert "earlier state" not in page
    assert (pretending / "benchmarks.__main__.png").is_file()
    views.main()
    page = (pretending / "benchmarks.views.md").read_text()
    assert "| 1 | 80.0% ± 1.6% | 80.0%, 80.0%, 80.0% | 2.0 |" in page
    assert page.endswith("on both data sets: **1**.\n")


def test_main_marks_missing_and_outdated(pretending: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, "--rows", "1,12")
    first = scaling_benchmark().candidates[0]
    ResultsFile.open(pretending / "results/growth.json", "new").add(first, 0, _measurement(1.0))  # interrupted here
    monkeypatch.setattr(program, "hash_code", lambda: "newer")
    _run(monkeypatch, "--rows", "9")
    page = (pretending / "benchmarks.__main__.md").read_text()
    assert "- Measured with an earlier version of the code, at least in part: growth, head-mobilenet_v3_small, " in page
    assert ", head-resnet18, start-up.\n" in page
    assert "### 9. " in page
    assert "### 3. " not in page
    assert "## Cost against data size\n\nNot measured yet.\n" in page
    assert "| 2. resnet18, head stage, ten epochs, one view | ftcli, one view | fastai | - | 10 : 1 | not me" in page


def test_main_quick_prints_selected_rows(
    pretending: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(monkeypatch, "--quick", "--rows", "7")
    printed = capsys.readouterr().out
    assert "### 7. " in printed
    assert printed.endswith("\n\nNot measured yet.\n")  # start-up
    assert "| 9." not in printed
    assert not (pretending / "benchmarks.__main__.md").exists()
    with pytest.raises(SystemExit) as refused:
        _run(monkeypatch, "--quick", "--rows", "4,7,13")
    assert str(refused.value) == "--rows: unknown 4, 13; known: 1, 2, 3, 6, 7, 8, 9, 10, 12"
