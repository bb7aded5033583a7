"""The arithmetic of the benchmarks, the order of their rounds, what they write down, and the recipes that they try."""

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
from benchmarks import matches, views
from benchmarks.contestants import Contestant, Measurement, Place
from benchmarks.data import make_data, share_out, spread
from benchmarks.figures import Spread, compare_rounds, extend, reach, standard_error
from benchmarks.growth import Growth, check_scaling, draw_growth, list_match
from benchmarks.jobs import DataSet, Job, Stage
from benchmarks.machine import find_peers
from benchmarks.matches import Book, Match, order_round, play
from benchmarks.page import judge, render_rows, render_table
from benchmarks.peers import own_loop
from benchmarks.peers.parts import MEAN, STD
from benchmarks.processes import read_document, run_program
from benchmarks.recipes import write_recipe
from benchmarks.rows import FULL, QUICK, Comparison, Row, list_rows
from benchmarks.startup import Answer
from benchmarks.views import CASES, VIEWS, Outcome, choose_views, name_go, read_outcomes
from ftcli.recipe import schema
from ftcli.recipe.loading import read_recipe

JOB = Job(DataSet("noise", 8, 4), "resnet18", (Stage("backbone", 2),))


def _spent(seconds: float, **rest: object) -> Measurement:
    return dataclasses.replace(Measurement(seconds, seconds + 5, 1_000_000), **rest)  # type: ignore[arg-type]


def _contestant(name: str, after: str = "", epochs: int = 0) -> Contestant:
    return Contestant(name, "train", JOB, after=after, epochs=epochs)


def test_a_ratio_is_that_of_the_medians_and_its_range_is_that_of_the_rounds() -> None:
    assert compare_rounds([10.0, 30.0, 20.0], [1.0, 2.0, 4.0]) == Spread(10.0, 5.0, 15.0)
    assert compare_rounds([10.0, 30.0], [1.0]) == Spread(10.0, 10.0, 10.0)


def test_a_training_is_scaled_by_its_mean_epoch_and_keeps_what_it_cost_beside() -> None:
    assert _spent(7.0, epochs=(2.0, 4.0)).scale(10) == 1.0 + 10 * 3.0
    assert _spent(7.0, epochs=(2.0, 4.0)).scale(0) == 7.0


def test_an_accuracy_is_reached_at_the_end_of_the_first_epoch_that_has_it() -> None:
    assert reach((1.0, 2.5, 4.0), (0.7, 0.8, 0.9), 0.8) == 2.5
    assert reach((1.0, 2.5), (0.7, 0.8), 0.81) is None
    assert standard_error(0.8, 400) == pytest.approx(0.02)
    assert extend((10.0, 30.0), (1, 5), 3) == 20.0


def test_every_round_begins_with_another_and_a_warm_go_follows_the_one_that_filled_its_cache() -> None:
    groups = Match("m", (_contestant("a"), _contestant("b"), _contestant("x", "a"), _contestant("y", "a")), 3).group(
        {"b", "x", "y"}
    )
    played = [[one.name for group in order_round(groups, number) for one in group] for number in range(3)]
    assert played == [["a", "x", "y", "b"], ["b", "a", "y", "x"], ["a", "x", "y", "b"]]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Goes that were played, by name, and whether they found a cache; each takes as many seconds as were before it."""
    goes: list[tuple[str, bool]] = []

    def measure(contestant: Contestant, place: Place) -> Measurement:
        goes.append((contestant.name, place.cache.exists()))
        place.cache.mkdir(exist_ok=True)
        return _spent(float(len(goes)))

    monkeypatch.setattr(matches, "measure", measure)
    monkeypatch.setattr(matches, "make_data", lambda _: None)
    return goes


def test_a_match_goes_on_where_it_stopped_and_caches_are_shared_within_a_group_alone(
    tmp_path: Path, played: list[tuple[str, bool]]
) -> None:
    match, names = Match("m", (_contestant("a"), _contestant("warm", "a"), _contestant("b")), 2), {"warm", "b"}
    play(match, names, Book.open(tmp_path / "m.json", "1"), Path())
    whole = [("a", False), ("warm", True), ("b", False), ("b", False), ("a", False), ("warm", True)]
    assert played == whole
    book = Book.open(tmp_path / "m.json", "1")
    assert {name: [go.seconds for go in goes] for name, goes in book.read(match.contestants).items()} == {
        "a": [1.0, 5.0],
        "warm": [2.0, 6.0],
        "b": [3.0, 4.0],
    }
    play(match, names, book, Path())
    assert played == whole  # nothing is measured twice
    book.forget({"b"})
    play(match, names, book, Path())
    assert played[6:] == [("b", False), ("b", False)]
    play(match, names, Book.open(tmp_path / "m.json", "2"), Path())
    assert len(played) == 14  # of another state of the code, all is


def test_a_program_tells_its_document_its_memory_and_its_fault() -> None:
    size = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 100_000_000
    program = f"text = 'x' * {size}; print('said before'); print('{{\"seconds\": 1.5}}')"
    told = run_program([sys.executable, "-c", program])
    assert told.document == {"seconds": 1.5}
    assert size < told.peak < size + 100_000_000
    assert read_document('{\n  "a": {\n    "b": 1\n  }\n}\n') == {"a": {"b": 1}}
    assert read_document("{'loss': 1}\n\n{\"a\": 1}\n") == {"a": 1}
    with pytest.raises(SystemExit, match="ended with 3\nno luck"):
        run_program([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])


def test_the_other_loops_need_their_environment(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        find_peers(tmp_path)
    assert str(refused.value) == f"{tmp_path}: no environment with the other loops is there; make bench makes it"


def test_images_are_shared_among_classes_and_taken_evenly() -> None:
    assert share_out([601, 1367], 300) == [92, 208]
    assert share_out([1, 1, 1], 2) == [1, 1, 0]
    assert [path.name for path in spread([Path(str(n)) for n in range(10)], 4)] == ["0", "2", "5", "7"]


def test_noise_is_distinct_and_its_fold_has_others_validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ROOT", tmp_path)
    data = DataSet("noise", 8, 4)
    make_data(data)
    folder = tmp_path / data.folder
    images = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    assert (len(images), len(set(images.values()))) == (12, 12)
    rows = [line.split(",") for line in (folder / "fold.csv").read_text().split()[1:]]
    assert {path for path, _, _ in rows} == set(images)
    assert [split for path, _, split in rows if path.startswith("val/")] == ["train"] * 4
    assert sum(split == "val" for _, _, split in rows) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_hand_written_loop_reads_what_it_should_in_order_by_threads_or_by_processes(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    job = dataclasses.replace(JOB, augment="none", image_size=32, resize="squash", batch_size=3)
    make_data(job.data)
    assert own_loop.share(job) == 0  # as ftcli has it for images as small as these
    files = sorted((tmp_path / job.data.folder / "train").rglob("*.png"))
    order = [5, 0, 7, 2, 1]
    images, labels = zip(*own_loop.open_batches(job, "train", order, num_workers), strict=True)
    wanted = torch.stack([torch.from_numpy(np.array(Image.open(files[place]))) for place in order]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert [len(batch) for batch in images] == [3, 2]
    assert torch.equal(torch.cat(images), (wanted.float() / 255 - mean) / std)
    assert torch.cat(labels).tolist() == [int(files[place].parent.name == "b") for place in order]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in images)
    assert sum(len(batch) for batch, _ in own_loop.open_batches(job, "val", None, num_workers)) == 4


def test_every_job_of_the_benchmarks_is_a_recipe_and_survives_its_journey(tmp_path: Path) -> None:
    played = [row.match for size in (FULL, QUICK) for row in list_rows(size)]
    played += [list_match(), *(case.match for case in CASES)]
    contestants = {one for match in played for one in match.contestants}
    for number, one in enumerate(sorted(contestants, key=repr)):
        assert Job.from_text(one.job.to_text()) == one.job
        cache = "off" if one.cache == "off" else {"views": int(one.cache) if one.cache.isdigit() else one.cache}
        path = tmp_path / f"{number}.yaml"
        path.write_text(write_recipe(one.job, cache))
        recipe = read_recipe(path, one.settings).recipe
        stages = [stage for stage in recipe.stages if isinstance(stage, schema.Stage)]
        assert [stage.epochs for stage in stages] == [stage.epochs for stage in one.job.stages]
        kept = stages[0].cache
        assert (kept if isinstance(kept, str) else str(kept.views)) == one.cache


def test_rows_name_contestants_that_are_there() -> None:
    for size in (FULL, QUICK):
        rows = list_rows(size)
        assert {row.number for row in rows} == {*size.rows, 8}
        for row in rows:
            assert row.wanted <= {one.name for one in row.match.contestants}
            assert len({one.name for one in row.match.contestants}) == len(row.match.contestants)


def test_a_comparison_says_what_it_found_and_whether_that_is_enough() -> None:
    match = Match("m", (_contestant("ours"), _contestant("theirs", epochs=10)), 2)
    row = Row(1, "a row", match, (Comparison("ours", "theirs", 4.0),))
    results = {
        "ours": [_spent(2.0, accuracies=(0.5, 0.8), course=(1.0, 2.0)), _spent(4.0, accuracies=(0.6,))],
        "theirs": [_spent(6.0, epochs=(1.0,), accuracies=(0.7,)), _spent(5.0, epochs=(0.0,), accuracies=(0.7,))],
    }
    assert judge(row.comparisons[0], row, results) == ("3.33 (1.25 to 7.50)", "no")
    assert judge(Comparison("ours", "theirs", 0.9, "peak"), row, results) == ("1.00", "yes")
    assert judge(Comparison("ours", "theirs", 2.0, "reach"), row, results) == ("3.00", "yes")
    assert judge(Comparison("ours", "theirs"), row, results)[1] == "-"
    found = {name: [dataclasses.replace(go, accuracies=(0.0, 0.1)) for go in goes] for name, goes in results.items()}
    found["theirs"][0] = _spent(6.0, accuracies=(0.8,))
    assert judge(Comparison("ours", "theirs", 2.0, "reach"), row, found) == ("never reached 0.800", "no")
    assert judge(Comparison("ours", "theirs", figure="accuracy"), row, results) == (
        "accuracy +0.000, one standard error 0.229",
        "yes",
    )


def test_the_page_has_a_line_for_each_contestant_and_marks_what_was_scaled_and_what_is_missing() -> None:
    match = Match("m", (_contestant("ours"), _contestant("theirs", epochs=10), _contestant("late")), 1)
    row = Row(1, "a row", match, (Comparison("ours", "theirs", 2.0), Comparison("ours", "late", 3.0)), "A note.")
    contestants = (_contestant("ours"), dataclasses.replace(_contestant("theirs"), program="extract"))
    missing = Row(2, "no go", Match("n", contestants, 1), (Comparison("ours", "theirs", figure="accuracy"),))
    results = {"ours": [_spent(2.0, accuracies=(0.5,)), _spent(2.0)], "theirs": [_spent(3.0, epochs=(1.0,))]}
    assert render_rows([row, missing], {"m": results}) == "\n\n".join(
        (
            render_table(
                ("row", "ours", "theirs", "rounds", "epochs", "theirs over ours", "asked", "holds"),
                [
                    ("1. a row", "ours", "theirs", "1", "2", "6.00", "2", "yes"),
                    ("1. a row", "ours", "late", "-", "2", "not measured yet", "3", "-"),
                    ("2. no go", "ours", "theirs", "-", "2 : -", "not measured yet", "-", "-"),
                ],
            ),
            "### 1. a row",
            "| contestant | rounds | epochs | seconds | whole process | memory | val accuracy |\n"
            "| --- | --: | --: | --: | --: | --: | --: |\n"
            "| ours | 2 | 2 | 2.00 (2.00 to 2.00) | 7.0 | 1 MB | 0.500 |\n"
            "| theirs | 1 | 2 | 12.00\\* | 8.0 | 1 MB | - |\n"
            "| late | - | 2 | not measured yet | - | - | - |",
            "\\* Fewer epochs were measured and scaled; the accuracy is that after those.",
            "A note.",
        )
    )


def test_what_is_not_measured_is_scaled_along_views_epochs_and_images() -> None:
    growth = Growth(_spent(30.0, frozen=2.0), _spent(10.0, frozen=5.0, epochs=(0.5, 1.0, 0.5, 1.0, 0.75)))
    assert (growth.scale(500, 1), growth.scale(500, 5)) == (2.0 + 2.0, 10.0)
    assert growth.scale(1_000, 9) == 2 * (
        5.0 + 8.0
    )  # more than for fewer epochs, though the brief training took longer
    assert growth.scale(500, 2) == 3.0 + 2.75
    results = {one.name: [_spent(2.0, epochs=(1.0,))] for one in list_match().contestants}
    assert set(check_scaling(results).values()) == {0.5}
    assert draw_growth(results).startswith(b"\x89PNG")


def test_a_cold_cache_costs_what_fewer_views_had_left_in_it_too() -> None:
    results = {
        name_go(views, seed): [_spent(4.0, frozen=3.0, accuracies=(0.1, 0.8))] for views in VIEWS for seed in (0, 1, 2)
    }
    outcomes = read_outcomes(results)
    assert [one.seconds for one in outcomes] == [4.0, 7.0, 10.0, 13.0, 16.0]
    assert [one.accuracy for one in outcomes] == pytest.approx([0.8] * 5)


def test_the_fewest_views_are_those_that_are_good_enough_everywhere() -> None:
    def outcomes(*accuracies: float) -> list[Outcome]:
        return [Outcome(views, (value,), 1.0) for views, value in zip(VIEWS, accuracies, strict=True)]

    first, second = outcomes(0.75, 0.81, 0.79, 0.79, 0.8), outcomes(0.9, 0.87, 0.89, 0.9, 0.9)
    assert choose_views([(first, 400)]) == "2"
    assert choose_views([(first, 400), (second, 400)]) == "4"


def test_json_keeps_a_contestant_as_it_is(tmp_path: Path) -> None:
    book = Book.open(tmp_path / "m.json", "1")
    book.add(_contestant("a"), 0, _spent(1.0, epochs=(1.0, 2.0)))
    again = Book.open(tmp_path / "m.json", "1")
    assert again.find(_contestant("a"), 0)
    assert not again.find(dataclasses.replace(_contestant("a"), cache="1"), 0)
    assert not again.find(_contestant("a"), 1)
    assert again.read([_contestant("a")])["a"] == [_spent(1.0, epochs=(1.0, 2.0))]
    assert again.read([dataclasses.replace(_contestant("a"), cache="1")]) == {}  # what is asked for is another job now
    assert not again.is_older([_contestant("a")])
    assert Book.open(tmp_path / "m.json", "2").is_older([_contestant("a"), _contestant("b")])
    assert json.loads((tmp_path / "m.json").read_text())["a"]["code"] == "1"


def _pretend(match: Match, wanted: set[str], book: Book, _: Path) -> None:
    for one in match.contestants:
        if one.name in wanted:
            book.add(one, 0, _spent(2.0, epochs=(1.0,), accuracies=(0.8,), course=(2.0,)))


@pytest.fixture
def pretending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pages and results; whatever is measured takes two seconds, and what starts up half a second."""
    for module in (program, views):
        monkeypatch.setattr(module, "play", _pretend)
        monkeypatch.setattr(module, "PAGE", tmp_path / f"{module.__name__}.md")
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(views, "RESULTS", tmp_path / "views")
    monkeypatch.setattr(program, "find_peers", lambda _: Path(sys.executable))
    monkeypatch.setattr(program, "describe_machine", lambda _: ["Two cores."])
    monkeypatch.setattr(program, "digest_code", lambda: "new")
    answer = Answer("ftcli --help", "python -c pass", 0.5, 0.25, (2.0, 1.5, 2.5), 3)
    monkeypatch.setattr(program, "measure_pairs", lambda _: [answer])
    return tmp_path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    program.main()


def test_the_pages_are_written_from_what_was_measured(pretending: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch)
    page = (pretending / "benchmarks.__main__.md").read_text()
    assert "- Two cores.\n" in page
    assert (
        "| 1. resnet18, head stage of ten epochs, one view | ftcli, one view | ftcli, cache: off | 1 | 10 : 2 | 5.50 |"
    ) in page
    assert "| `ftcli --help` | 3 | 0.50 | `python -c pass` | 0.25 | 2.00 (1.50 to 2.50) |" in page
    assert "As a check, 1,000 images took, over what was scaled from 500: ftcli, four views 0.50" in page
    assert "### 8." not in page  # it is measured apart
    assert page.count("not measured yet") == 3  # the seeds of row 8
    assert "earlier state" not in page
    assert (pretending / "benchmarks.__main__.png").is_file()
    views.main()
    page = (pretending / "benchmarks.views.md").read_text()
    assert "| 1 | 0.800 ± 0.016 | 0.800, 0.800, 0.800 | 2.0 |" in page
    assert page.endswith("in every case: **1**.\n")


def test_a_page_of_a_part_says_what_is_missing_and_what_is_older(
    pretending: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(monkeypatch, "--rows", "1,12")
    first = list_match().contestants[0]
    Book.open(pretending / "results/growth.json", "new").add(first, 0, _spent(1.0))  # interrupted after that
    monkeypatch.setattr(program, "digest_code", lambda: "newer")
    _run(monkeypatch, "--rows", "9")
    page = (pretending / "benchmarks.__main__.md").read_text()
    assert "- Measured with an earlier state of the code, in part at least: growth, head-mobilenet_v3_small, " in page
    assert ", head-resnet18, start-up.\n" in page
    assert "### 9. " in page
    assert "### 3. " not in page
    assert "## Cost against size\n\nNot measured yet.\n" in page
    assert "| 2. resnet18, head stage of ten epochs, one view | ftcli, one view | fastai | - | 10 : 1 | not me" in page


def test_a_quick_look_is_printed_with_the_rows_that_it_has(
    pretending: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(monkeypatch, "--quick", "--rows", "7")
    told = capsys.readouterr().out
    assert "### 7. " in told
    assert told.endswith("\n\nNot measured yet.\n")  # start-up
    assert "| 9." not in told
    assert not (pretending / "benchmarks.__main__.md").exists()
    with pytest.raises(SystemExit) as refused:
        _run(monkeypatch, "--quick", "--rows", "4,7,13")
    assert str(refused.value) == "--rows: there is no 4, 13 here; there are 1, 2, 3, 6, 7, 8, 9, 10, 12"
