"""pipeline.doctor.between: real probes in the place of hosts, whose clocks, ports, folders and locks are broken."""

import time

import pytest

from pipeline.doctor.between import check_clocks, check_connections, check_shared, clock_offset
from pipeline.doctor.judge import FAIL, OK, WARN, Finding
from tests.parts.doctored import own_mounts


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.host: finding.level for finding in findings}


def test_clocks_that_agree_are_green(probes):
    probes("a")
    found = check_clocks(probes("b"))
    assert levels(found) == {"a": OK, "b": OK}
    assert all(abs(each.values["seconds"]) <= each.values["error"] < 1 for each in found)


def test_of_three_clocks_the_one_that_is_wrong_is_red(probes):
    probes("a", "import time; right = time.time; time.time = lambda: right() + 90")
    probes("b")
    found = {each.host: each for each in check_clocks(probes("c"))}
    assert levels(found.values()) == {"a": FAIL, "b": OK, "c": OK}
    assert abs(found["a"].values["seconds"] - 90) < 1
    assert " s ahead of " in found["a"].text and "start chrony or ntpd there" in found["a"].text


def test_an_offset_is_measured_from_the_middle_of_the_round_trip():
    class Ahead:
        def ask(self, question):
            time.sleep(0.01)
            there = time.time() + 5
            time.sleep(0.01)
            return there

    offset, error = clock_offset(Ahead())
    assert abs(offset - 5) <= error and 0.01 <= error < 0.5


def test_a_clock_that_cannot_be_read_in_time_is_warned_of():
    class Slow:
        def __init__(self, name):
            self.name = name

        def ask(self, question):
            time.sleep(0.02)
            return time.time()

    with pytest.MonkeyPatch.context() as patch:  # a second is 50 of ours
        real = time.time
        patch.setattr(time, "time", lambda: real() * 100)
        found = check_clocks({name: Slow(name) for name in "ab"})
    assert sorted(levels(found).values()) == [OK, WARN]


def test_hosts_connect_to_each_other(probes):
    probes("a")
    found = check_connections(probes("b"), {"a": "127.0.0.1", "b": "127.0.0.1"})
    assert [(each.host, each.level, each.text) for each in found] == [("a", OK, "to b"), ("b", OK, "to a")]


def test_a_dead_port_is_red_and_names_both_ends(probes):
    deaf = "from pipeline.doctor.probe import Answers; heard = Answers.listen\ndef listen(self):\n port = heard(self)\n"
    deaf += " self._listener.shutdown(2); self._listener.close(); return port\nAnswers.listen = listen"
    probes("a")
    found = check_connections(probes("b", deaf), {"a": "127.0.0.1", "b": "127.0.0.1"})
    assert levels(found) == {"a": FAIL, "b": OK}
    assert "cannot connect to b (127.0.0.1 port " in found[0].text
    assert found[0].text.endswith("): connection refused; open all ports between the hosts")


def test_a_shared_folder_is_green_and_left_empty(probes, tmp_path):
    probes("a")
    found = check_shared(probes("b"), str(tmp_path))
    assert [(each.host, each.level) for each in found] == [("a", OK), ("b", OK)]
    assert found[0].text == f"{tmp_path}: files are seen by all, locks exclude"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_one_host_has_for_itself_is_red_with_its_path(probes, tmp_path):
    wrapper = own_mounts(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)])
    probes("a", wrapper=wrapper)
    probes("b")
    found = {each.host: each for each in check_shared(probes("c"), str(tmp_path))}
    assert levels(found.values()) == {"a": FAIL, "b": OK, "c": OK}
    assert found["a"].text.startswith(f"{tmp_path}: what b, c write there is not here: not shared; mount it")


def test_a_folder_that_is_missing_or_read_only_is_red(probes, tmp_path):
    probes("a")
    found = check_shared(probes("b", f"os.rename({str(tmp_path)!r}, {str(tmp_path) + 'x'!r})"), str(tmp_path))
    assert [each.text for each in found] == [f"{tmp_path}: no such file or directory"] * 2
    assert {each.level for each in found} == {FAIL}


def test_locks_that_do_not_exclude_are_red(probes, tmp_path):
    probes("a")
    found = {each.host: each for each in check_shared(probes("b", _NO_LOCKS.format("None")), str(tmp_path))}
    assert levels(found.values()) == {"a": FAIL, "b": FAIL}
    assert "could lock what a had locked; mount it so that locks are passed on" in found["b"].text


def test_a_file_system_without_locks_is_red(probes, tmp_path):
    before = _NO_LOCKS.format("(_ for _ in ()).throw(OSError(37, 'No locks available'))")
    probes("a")
    found = {each.host: each for each in check_shared(probes("b", before), str(tmp_path))}
    assert found["b"].level == FAIL and found["b"].text == f"{tmp_path}: no locks available"


_NO_LOCKS = "import fcntl; fcntl.flock = lambda *a: {}"


def test_one_host_alone_tries_its_own_lock(probes, tmp_path):
    assert [each.text for each in check_shared(probes("a"), str(tmp_path))] == [f"{tmp_path}: locks exclude"]


def test_a_lock_that_stays_is_red(probes, tmp_path):
    keeping = "from pipeline.doctor.probe import Answers; Answers.unlock = lambda self: None"
    probes("a", keeping)
    found = {each.host: each for each in check_shared(probes("b"), str(tmp_path))}
    assert "could not lock what a had unlocked" in found["b"].text
