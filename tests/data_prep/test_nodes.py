"""Several nodes at one corpus, and what status reports of them."""

import os
import signal
import time
from pathlib import Path

import pytest

from data_prep import locks
from data_prep.cli import UserError
from data_prep.description import Description, parse_source
from data_prep.forecast import with_units
from data_prep.inputs import InputFile, describe_file
from data_prep.locks import holders, one_of_nodes, sole_process
from data_prep.prepare import Share, asked_plan, prepare
from data_prep.status import status_lines
from data_prep.units import cut
from tests.parts.corpora import children, noise, run_cli, start_cli, tree, write_vocab


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "vocab").mkdir()
    write_vocab(folder / "vocab")
    for number, count in enumerate((3000, 40, 1500, 700)):
        (folder / f"{number}.txt").write_text("\n\n".join(noise(count, number)))
    return folder


def arguments(inputs, out, *more):
    source = ["--source", f"s=text:{inputs}/*.txt", "--tokenizer", inputs / "vocab" / "vocab.txt", "--unit-mib", 0.0625]
    return ["prepare", "--out", out, *source, "--heldout", 0.05, "--workers", 1, *more]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "d"
    done = run_cli(*arguments(inputs, out))
    assert done.returncode == 0, done.stderr
    return tree(out)


@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 100])
def test_each_unit_is_one_nodes_and_nodes_have_like_shares(inputs, nodes):
    units = cut("s", "text", None, [describe_file(path) for path in sorted(inputs.glob("*.txt"))], 1)
    parts = [Share(node, nodes).of(units) for node in range(nodes)]
    assert [unit for part in parts for unit in part] == units
    fair = sum(unit.size for unit in units) / nodes
    assert all(abs(sum(unit.size for unit in part) - fair) <= 65536 for part in parts)


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_units_without_a_byte_are_somebodys_too(nodes):
    files = [InputFile(str(number), size, "", Path(str(number))) for number, size in enumerate((0, 9 * 65536, 0))]
    units = cut("s", "text", None, files, 1)
    assert units[-1].size == 0
    assert [unit for node in range(nodes) for unit in Share(node, nodes).of(units)] == units


@pytest.mark.slow
def test_the_order_in_which_sources_are_named_does_not_matter_to_nodes(inputs, tmp_path):
    sources = [["--source", f"{name}=text:{inputs}/{number}.txt"] for name, number in (("w", 0), ("b", 2))]
    rest = [
        "--tokenizer",
        inputs / "vocab" / "vocab.txt",
        "--unit-mib",
        0.0625,
        "--workers",
        1,
        "--out",
        tmp_path / "d",
    ]
    assert run_cli("prepare", *sources[0], *sources[1], *rest, "--node", "0/2").returncode == 0
    done = run_cli("prepare", *sources[1], *sources[0], *rest, "--node", "1/2")
    assert done.returncode == 0 and "complete" in done.stderr, done.stderr


def test_a_plan_that_a_node_is_working_at_is_not_replaced(inputs, tmp_path):
    with one_of_nodes(tmp_path / "d", 0, 2, print):
        plan, encoder = asked(inputs, 0.05)
        plan = with_units(plan, encoder, print, {})
        plan.write(tmp_path / "d")
        with pytest.raises(UserError, match=r"--heldout was 0.05, now 0.3; process \d+ on .* is at work on that plan"):
            prepare(tmp_path / "d", *asked(inputs, 0.3), 1, Share(1, 2))


def asked(inputs, heldout):
    sources = (parse_source(f"s=text:{inputs}/1.txt"),)
    return asked_plan(Description(sources, str(inputs / "vocab" / "vocab.txt"), heldout, 0.0625))


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_nodes_one_after_another_write_the_bytes_of_one_run(inputs, whole, tmp_path, order):
    for place, node in enumerate(order):
        done = run_cli(*arguments(inputs, tmp_path / "d", "--node", f"{node}/3"))
        assert done.returncode == 0, done.stderr
        last = place == 2
        assert (tmp_path / "d" / "manifest.json").exists() == last
        assert ("complete" in done.stderr) == last and ("node" in done.stderr and "units to do" in done.stderr) != last
    assert tree(tmp_path / "d") == whole


@pytest.mark.slow
def test_nodes_at_the_same_time_write_the_bytes_of_one_run(inputs, whole, tmp_path):
    processes = [start_cli(*arguments(inputs, tmp_path / "d", "--node", f"{node}/4")) for node in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert tree(tmp_path / "d") == whole


@pytest.mark.slow
def test_a_lost_node_is_made_good_by_any_run(inputs, whole, tmp_path):
    lost = start_cli(*arguments(inputs, tmp_path / "d", "--node", "1/2"))
    while not children(lost.pid):
        time.sleep(0.01)
    os.killpg(lost.pid, signal.SIGKILL)
    lost.communicate()
    assert run_cli(*arguments(inputs, tmp_path / "d", "--node", "0/2")).returncode == 0
    assert run_cli("prepare", "--out", tmp_path / "d", "--workers", 1).returncode == 0
    assert tree(tmp_path / "d") == whole


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "1/0", "/2", "0/"])
def test_a_node_that_cannot_be_is_reported(tmp_path, text):
    done = run_cli("prepare", "--out", tmp_path / "d", f"--node={text}")
    assert done.returncode == 2 and f"{text!r} must be I/N with I from 0 to N-1, such as 0/4" in done.stderr


def test_nodes_share_a_folder_with_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    me = f"process {os.getpid()} on "
    with one_of_nodes(tmp_path, 0, 2, print):
        with one_of_nodes(tmp_path, 1, 2, print):
            assert [name for name, holder, _ in holders(tmp_path) if me in holder] == [
                ".lock",
                ".lock-0-of-2",
                ".lock-1-of-2",
            ]
        for other, message in (
            (sole_process(tmp_path, print), f"in use by {me}"),
            (one_of_nodes(tmp_path, 0, 2, print), f"in use by {me}"),
            (
                one_of_nodes(tmp_path, 1, 3, print),
                f"{me}.* is at work here as node 0/2; give all nodes the same number",
            ),
        ):
            with pytest.raises(UserError, match=message), other:
                pass
    with (
        sole_process(tmp_path, print),
        pytest.raises(UserError, match=f"in use by {me}"),
        one_of_nodes(tmp_path, 0, 2, print),
    ):
        pass
    assert holders(tmp_path) == []


@pytest.mark.slow
def test_status_reports_how_far_and_who_while_it_runs_and_after(inputs, tmp_path):
    out = tmp_path / "d"
    process = start_cli(*arguments(inputs, out, "--node", "1/2"))
    try:
        while len(list(out.glob("s/*.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGSTOP)
        lines = list(status_lines(out))
        assert f"at work: node 1/2 (process {process.pid} on " in lines[-2]
        assert lines[-1].startswith("speed: ") and " left at this speed" in lines[-1]
        done = len([path for path in out.glob("s/*.json") if (out / "heldout" / "s" / path.name).exists()])
        assert f"{out}: {done} of " in lines[0] and lines[1].split()[:2] == ["s", str(done)]
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        process.communicate(timeout=60)
    assert run_cli("prepare", "--out", out).returncode == 0
    shown = run_cli("status", out)
    assert shown.returncode == 0 and "(100.0%)" in shown.stdout
    assert shown.stdout.splitlines()[-2] == "at work: nobody" and shown.stdout.splitlines()[-1].startswith(
        "complete, id "
    )
    (out / "s" / "00000-00000.tokens.npy").unlink()
    assert list(status_lines(out))[-1] == "at work: nobody" and "21 of 22 units" in next(status_lines(out))
    assert run_cli("prepare", "--out", out).returncode == 0
    (out / "manifest.json").write_text("{")
    assert "prepare --out" in list(status_lines(out))[-1]


def test_status_of_a_run_that_has_no_plan_yet_names_it(tmp_path):
    with sole_process(tmp_path, print):
        [line] = status_lines(tmp_path)
    assert f"process {os.getpid()} on " in line and "no plan is written yet" in line


def test_status_of_nothing_is_reported(tmp_path):
    done = run_cli("status", tmp_path)
    assert done.returncode == 2 and "no plan.json, so no corpus was begun here" in done.stderr
