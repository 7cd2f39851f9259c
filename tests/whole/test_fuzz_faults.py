"""A few rounds of the fuzz with a fixed seed, and a product that is broken on purpose, which it must find out."""

import pytest

from tests import fuzz_faults
from tests.fuzz_faults import Fuzz, Launch, Outcome


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """With its reference, which all rounds are compared with."""
    fuzz = Fuzz(tmp_path_factory.mktemp("fuzz"), seed=1)
    try:
        fuzz.reference()
        yield fuzz
    finally:
        Launch.end_all()


@pytest.mark.slow
def test_after_faults_the_run_leads_to_the_same_student_or_says_why_not(fuzz):
    for number, kind in enumerate(("kill-save", "torn-newest"), 1):
        fuzz.round(number, kind)
    fuzz.finish()
    assert not fuzz.wrong, "\n".join(outcome.text for outcome in fuzz.outcomes)


@pytest.mark.slow
def test_a_broken_product_is_found_out(fuzz):
    fuzz.broken = "hash"  # and round 6 flips a bit of a tensor
    try:
        outcome = fuzz.round(6, "torn-newest")
    finally:
        fuzz.broken = None
    assert outcome.verdict == "WRONG" and "differs from the undisturbed run's" in outcome.text


def test_the_summary_counts_rounds_by_fault_and_by_what_came_of_them():
    outcomes = [Outcome(1, "nan", "", "refused"), Outcome(2, "nan", "", "WRONG"), Outcome(3, "clock", "", "same")]
    rows = [line.split() for line in fuzz_faults.summary(outcomes).splitlines()]
    assert rows[1:] == [["clock", "1", "1", "0", "0"], ["nan", "2", "0", "1", "1"], ["all", "3", "1", "1", "1"]]


def test_a_kind_of_fault_that_does_not_exist_is_refused_with_the_kinds_that_do(capsys):
    with pytest.raises(SystemExit, match="2"):
        fuzz_faults.main(["--only", "earthquake"])
    assert "no such kind; there are kill-start, kill-step" in capsys.readouterr().err
