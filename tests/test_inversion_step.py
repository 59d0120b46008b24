"""The benchmark of an inversion step, as a dry run."""

import pytest
from click.testing import CliRunner


def test_the_benchmark_prints_a_row_per_batch():
    from benchmarks.inversion_step import HEADER, main

    options = ["tiny", "--batch", "1", "--batch", "2", "--steps", "1", "--peak", "1"]
    done = CliRunner().invoke(main, [*options, "--dtype", "float32", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    title, _, header, _, *rows = done.output.splitlines()
    assert title.startswith("CPU, ")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert cells[0] == HEADER
    assert [row[:3] for row in cells[1:]] == [["tiny", "1", "no"], ["tiny", "2", "no"]]
    for row in cells[1:]:
        # Of a peak of 1 TFLOP/s the share is the rate.
        assert 0 < float(row[4]) == pytest.approx(float(row[5]), abs=0.005)
