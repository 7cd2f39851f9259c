"""The plan: units, samples, shares and budgets; extend and refresh."""

import json
import lzma
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import __main__ as command
from data_prep import shards as shards_module
from data_prep.cli import UserError
from data_prep.description import Description, ResolvedSource, parse_source
from data_prep.forecast import amount, duration, forecast
from data_prep.formats.readers import PIECE
from data_prep.inputs import InputFile
from data_prep.plan import Budget, Plan
from data_prep.prepare import asked_plan, extend, planned_again, prepare
from data_prep.sampling import Sample, measure
from data_prep.shards import open_corpus, verify, write_shard
from data_prep.units import cut
from tests.parts.corpora import noise, run_cli, tree, write_vocab

UNIT = 0.0625  # MiB: one piece
SIZES = {"en": 6000, "de": 1500, "sw": 150}


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return write_vocab(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three languages of very different sizes."""
    folder = tmp_path_factory.mktemp("cc")
    for seed, (name, count) in enumerate(SIZES.items()):
        (folder / f"{name}.txt").write_text("\n\n".join(noise(count, seed)))
    return folder


def options(folder, vocab, *names, heldout=0.02):
    sources = [option for name in names for option in ("--source", f"{name}=text:{folder}/{name}.txt")]
    return [*sources, "--tokenizer", vocab, "--unit-mib", UNIT, "--heldout", heldout]


def asked(folder, vocab, *names, budget=None, alpha=None, heldout=0.02):
    sources = tuple(parse_source(f"{name}=text:{folder}/{name}.txt") for name in names)
    return asked_plan(Description(sources, str(vocab), heldout, UNIT, alpha), budget)


def written(data):
    return {path: path.stat().st_mtime_ns for path in data.rglob("*.npy")}


def test_large_files_are_cut_and_small_neighbours_share_a_unit():
    sizes = [10, 3 * PIECE + 1, PIECE, 5, 0, 2 * PIECE, 7]
    files = [InputFile(str(number), size, "", Path(str(number))) for number, size in enumerate(sizes)]
    units = cut("s", "text", None, files, 2)
    described = [(unit.stem, [(part.file.name, *part.span) for part in unit.parts]) for unit in units]
    assert described == [
        ("00000-00000", [("0", 0, 10)]),
        ("00001-00000", [("1", 0, 2 * PIECE)]),
        ("00001-00001", [("1", 2 * PIECE, 3 * PIECE + 1)]),
        ("00002-00000", [("2", 0, PIECE), ("3", 0, 5), ("4", 0, 0)]),
        ("00005-00000", [("5", 0, 2 * PIECE)]),
        ("00006-00000", [("6", 0, 7)]),
    ]
    assert sum(unit.size for unit in units) == sum(sizes)


def test_a_unit_never_holds_more_than_a_thousand_files():
    files = [InputFile(str(number), 1, "", Path(str(number))) for number in range(2500)]
    assert [len(unit.parts) for unit in cut("s", "text", None, files, 1)] == [1024, 1024, 452]


def test_a_sample_of_a_small_source_is_all_of_it(corpus, vocab):
    plan, encoder = asked(corpus, vocab, "sw", heldout=0)
    sample = measure(plan.sources["sw"], encoder)
    assert sample.bytes == plan.sources["sw"].bytes and sample.documents == SIZES["sw"]
    ids = encoder.encode_batch((corpus / "sw.txt").read_text().split("\n\n"))
    assert sample.tokens == sum(len(document) + 1 for document in ids)


@pytest.mark.slow
def test_a_forecast_comes_near_what_is_prepared(corpus, vocab, tmp_path):
    plan, encoder = asked(corpus, vocab, *SIZES, heldout=0.02)
    samples = {name: measure(source, encoder) for name, source in plan.sources.items()}
    entries = {entry.source.name: entry for entry in forecast(plan, samples, 0.3)}
    done = run_cli("prepare", "--out", tmp_path / "d", *options(corpus, vocab, *SIZES))
    assert done.returncode == 0, done.stderr
    for name, source in open_corpus(tmp_path / "d").sources.items():
        assert entries[name].tokens == pytest.approx(source.tokens, rel=0.05)
        arrays = [path for side in ("", "heldout/") for path in (tmp_path / "d" / side / name).glob("*.npy")]
        assert entries[name].disk == pytest.approx(sum(path.stat().st_size - 128 for path in arrays), rel=0.05)
    weights = {name: entry.tokens**0.3 for name, entry in entries.items()}
    for name, entry in entries.items():
        assert entry.share == pytest.approx(weights[name] / sum(weights.values()))


def forecast_of(tokens_by_source, budget, alpha, unit_pieces=1):
    """A forecast without any text: a token per byte."""
    sources = {
        name: ResolvedSource(name, "text", None, (InputFile(name, count, name, Path(name)),))
        for name, count in tokens_by_source.items()
    }
    tokenizer = {"vocab_size": 100}
    plan = Plan(Path(), tokenizer, {}, 0.0, unit_pieces / 16, sources, {}, Budget(budget, alpha))
    samples = {name: Sample(1000, 1000, 10, 1.0) for name in sources}
    return {entry.source.name: entry for entry in forecast(plan, samples, alpha)}


def test_under_a_budget_only_what_a_run_reads_is_prepared():
    entries = forecast_of({"en": 10_000 * PIECE, "de": 1000 * PIECE, "sw": 10 * PIECE}, 300 * PIECE, 0.3)
    assert sum(entry.share for entry in entries.values()) == pytest.approx(1)
    for entry in entries.values():
        assert entry.read == pytest.approx(entry.share * 300 * PIECE)
    en, de, sw = entries.values()
    assert en.share / de.share == pytest.approx(10**0.3)
    for entry in (en, de):
        assert entry.read * 1.03 <= entry.prepared < entry.read * 1.03 + PIECE and entry.units < entry.cut
    assert sw.units == sw.cut == 10 and sw.read > 2 * sw.tokens  # read more than twice over


def test_at_least_one_unit_of_each_source_is_prepared():
    entries = forecast_of({"en": 10_000 * PIECE, "sw": 10 * PIECE}, 10, 0.3)
    assert [entry.units for entry in entries.values()] == [1, 1]


@pytest.mark.slow
def test_a_budget_makes_a_corpus_whose_shares_are_those_of_the_whole(corpus, vocab, tmp_path):
    budget = ["--budget-tokens", "0.2M", "--alpha", 0.3]
    done = run_cli("prepare", "--out", tmp_path / "part", *options(corpus, vocab, *SIZES), *budget)
    assert done.returncode == 0, done.stderr
    assert run_cli("prepare", "--out", tmp_path / "all", *options(corpus, vocab, *SIZES)).returncode == 0
    part, whole = (open_corpus(tmp_path / name).sources for name in ("part", "all"))
    weights = {name: source.tokens**0.3 for name, source in whole.items()}
    for name, source in part.items():
        assert source.size == pytest.approx(whole[name].size, rel=0.02) and whole[name].size == whole[name].tokens
        share = weights[name] / sum(weights.values())
        assert source.tokens >= min(share * 0.2e6, whole[name].tokens)
    assert part["en"].tokens < 0.3 * whole["en"].tokens and part["sw"].tokens == whole["sw"].tokens
    shards = tree(tmp_path / "all")
    assert all(shards[name] == content for name, content in tree(tmp_path / "part").items() if name.endswith(".npy"))


@pytest.mark.slow
def test_the_plan_is_reported_as_a_table_with_free_space(corpus, vocab, tmp_path):
    done = run_cli(
        "plan", *options(corpus, vocab, *SIZES), "--budget-tokens", "1e6", "--alpha", 0.3, "--out", tmp_path / "new"
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert {*SIZES, "all", "source"} <= rows.keys() and "1.00 M" in done.stdout
    assert f"are free at {tmp_path}/new" in done.stdout and not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(corpus, vocab, monkeypatch):
    monkeypatch.setattr(command, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr("sys.argv", ["data_prep", "plan", *map(str, options(corpus, vocab, "sw"))])
    with pytest.raises(UserError, match=r"--out \.: needs about .* kB, but 1.00 kB are free; name another disk"):
        command.main()


@pytest.mark.slow
def test_extend_adds_a_language_and_makes_nothing_again(corpus, vocab, tmp_path):
    data = tmp_path / "d"
    assert run_cli("prepare", "--out", data, *options(corpus, vocab, "en", "sw")).returncode == 0
    before = written(data)
    done = run_cli("extend", data, "--source", f"de=text:{corpus}/de.txt")
    assert done.returncode == 0, done.stderr
    assert {*open_corpus(data).sources} == {"de", "en", "sw"}
    assert before.items() <= written(data).items() and len(written(data)) > len(before)
    assert verify(data, deep=True) == []
    assert run_cli("prepare", "--out", tmp_path / "e", *options(corpus, vocab, "en", "sw", "de")).returncode == 0
    assert tree(data) == tree(tmp_path / "e")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["d", "--alpha", "1"], "d, of None"),
        (["d", "cc100"], "d, of cc100"),
        (["cc100", "--out", "d"], "d, of cc100"),
        (["--out", "d"], "d, of None"),
        ([], "no folder is named; write extend DIR, with what to add: --source, CORPUS or --budget-tokens"),
        (["d", "cc100", "--out", "e"], "--out e: and d are two folders to extend; name one"),
    ],
)
def test_extend_takes_its_folder_as_the_other_verbs_do_or_by_its_option(monkeypatch, words, folder):
    arguments = command.parser().parse_args(["extend", *words])

    def planned_again(out):
        raise UserError(f"{out}, of {arguments.corpus}")

    monkeypatch.setattr(command, "planned_again", planned_again)
    with pytest.raises(UserError, match=f"^{folder}$"):
        arguments.run(arguments)


@pytest.mark.slow
def test_extend_enlarges_a_budget_and_makes_nothing_again(corpus, vocab, tmp_path):
    data, settings = tmp_path / "d", options(corpus, vocab, *SIZES)
    assert run_cli("prepare", "--out", data, *settings, "--budget-tokens", "2e5", "--alpha", 0.3).returncode == 0
    before = written(data)
    done = run_cli("extend", "--out", data, "--budget-tokens", "4e5")
    assert done.returncode == 0, done.stderr
    assert before.items() <= written(data).items() and len(written(data)) > len(before)
    fresh = tmp_path / "e"
    assert run_cli("prepare", "--out", fresh, *settings, "--budget-tokens", "4e5", "--alpha", 0.3).returncode == 0
    assert tree(data) == tree(fresh)
    done = run_cli("extend", "--out", data, "--budget-tokens", "1e5")
    assert done.returncode == 2 and "the budget was 400000 tokens at alpha 0.3; a corpus only grows" in done.stderr
    done = run_cli("extend", "--out", data, "--budget-tokens", "4e5")
    assert done.returncode == 0 and "nothing to add" in done.stderr, done.stderr
    assert written(data).keys() == {data / path.relative_to(fresh) for path in written(fresh)}


@pytest.mark.slow
def test_extend_rejects_what_does_not_agree(corpus, vocab, tmp_path):
    data = tmp_path / "d"
    assert run_cli("prepare", "--out", data, *options(corpus, vocab, "sw")).returncode == 0

    def rejected(message, *arguments):
        done = run_cli("extend", "--out", data, *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr

    rejected("source sw had 1 files, now 1; not in both: de.txt, sw.txt", "--source", f"sw=text:{corpus}/de.txt")
    rejected("--heldout was 0.02, now 0.5", "--source", f"de=text:{corpus}/de.txt", "--heldout", 0.5)
    rejected("sw.txt: is in source again and already in source sw", "--source", f"again=text:{corpus}/sw.txt")
    other = tmp_path / "vocab.txt"
    other.write_text(vocab.read_text() + "zebra\n")
    rejected("the tokenizer was another one", "--source", f"de=text:{corpus}/de.txt", "--tokenizer", other)
    done = run_cli("extend", "--out", tmp_path / "none", "--budget-tokens", 5)
    assert done.returncode == 2 and "has no plan.json, so there is nothing to continue" in done.stderr


@pytest.mark.slow
def test_extend_goes_by_what_is_there_once_it_holds_the_folder(corpus, vocab, tmp_path):
    data = tmp_path / "d"
    (tmp_path / "sw.txt").write_text((corpus / "sw.txt").read_text())
    prepare(data, *asked(tmp_path, vocab, "sw"), 1)
    before, encoder = planned_again(data)
    more, _ = asked(corpus, vocab, "de")
    extend(data, before, more, encoder, None, 1)
    (tmp_path / "la.txt").write_text("\n\n".join(noise(100, 9)))
    extend(data, before, asked(tmp_path, vocab, "la")[0], encoder, None, 1)  # from a plan that is no longer there
    assert {*open_corpus(data).sources} == {"de", "la", "sw"} and verify(data, deep=True) == []
    (tmp_path / "sw.txt").write_text("other")
    with pytest.raises(UserError, match=r"sw.txt of source sw has changed since .*; prepare with --refresh first"):
        extend(data, planned_again(data)[0], more, encoder, None, 1)


@pytest.mark.slow
def test_prepare_alone_continues_the_plan_that_is_there(corpus, vocab, tmp_path):
    data = tmp_path / "d"
    assert (
        run_cli("prepare", "--out", data, *options(corpus, vocab, "sw", "de"), "--budget-tokens", "1e5").returncode == 0
    )
    whole = tree(data)
    for path in [data / "manifest.json", *sorted((data / "de").glob("*.npy"))[:3]]:
        path.unlink()
    done = run_cli("prepare", "--out", data)
    assert done.returncode == 0 and "units are done; continuing" in done.stderr, done.stderr
    assert tree(data) == whole


def changed(folder, data, vocab, content):
    """A corpus of three files, in which one then changes; what prepare says without and with --refresh."""
    folder.mkdir()
    texts = noise(4000)
    for number in range(3):
        (folder / f"{number}.txt").write_text("\n\n".join(texts[number * 1200 : number * 1200 + 1200]))
    arguments = [
        "prepare",
        "--out",
        data,
        "--source",
        f"s=text:{folder}/*.txt",
        "--tokenizer",
        vocab,
        "--unit-mib",
        UNIT,
    ]
    assert run_cli(*arguments).returncode == 0
    (folder / "1.txt").write_text(content(texts))
    return arguments


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1150, 300, 2400])
def test_refresh_makes_only_the_units_of_a_changed_file_again(vocab, tmp_path, kept):
    data = tmp_path / "d"
    arguments = changed(tmp_path / "in", data, vocab, lambda texts: "\n\n".join(texts[1200 : 1200 + kept]))
    before = written(data)
    rejected = run_cli(*arguments)
    assert rejected.returncode == 2 and "1.txt of source s has changed since" in rejected.stderr
    assert "take the files as they are now with --refresh" in rejected.stderr and written(data) == before
    done = run_cli(*arguments, "--refresh")
    assert done.returncode == 0, done.stderr
    after = written(data)
    again = {path.name[:5] for path in after if before.get(path) != after[path]}
    assert again == {"00001"}
    fresh = [argument if argument != data else tmp_path / "e" for argument in arguments]
    assert run_cli(*fresh).returncode == 0
    assert tree(data) == tree(tmp_path / "e")
    assert verify(data, deep=True) == []


def test_a_refresh_that_is_cut_short_leaves_no_manifest_of_other_bytes(vocab, tmp_path):
    data = tmp_path / "d"
    arguments = changed(tmp_path / "in", data, vocab, lambda texts: "")
    (tmp_path / "in" / "1.txt").write_bytes("no".encode("utf-16"))
    done = run_cli(*arguments, "--refresh")
    assert done.returncode == 2 and "1.txt: UTF-16" in done.stderr
    assert not (data / "manifest.json").exists()


def test_refresh_is_for_changed_content_alone(vocab, tmp_path):
    data = tmp_path / "d"
    arguments = changed(tmp_path / "in", data, vocab, lambda texts: "other")
    (tmp_path / "in" / "3.txt").write_text("more")
    done = run_cli(*arguments, "--refresh")
    assert done.returncode == 2 and "source s had 3 files, now 4; not in both: 3.txt" in done.stderr


@pytest.mark.slow
def test_a_damaged_file_is_reported_while_all_others_are_done_and_refresh_mends_it(vocab, tmp_path):
    texts = ["\n\n".join(noise(3000, seed)).encode() for seed in range(3)]
    folder, data = tmp_path / "in", tmp_path / "d"
    folder.mkdir()
    for number, text in enumerate(texts):
        packed = lzma.compress(text)
        (folder / f"{number}.xz").write_bytes(packed if number != 1 else packed[: len(packed) * 2 // 3])
    arguments = [
        "prepare",
        "--out",
        data,
        "--source",
        f"s=cc100:{folder}/*.xz",
        "--tokenizer",
        vocab,
        "--unit-mib",
        UNIT,
    ]
    done = run_cli(*arguments, "--workers", 2)
    assert done.returncode == 2 and "1.xz: the xz data breaks off at byte" in done.stderr
    assert "All other units are done" in done.stderr and "--refresh" in done.stderr and "Traceback" not in done.stderr
    assert {path.name[:5] for path in (data / "s").glob("*.json")} >= {"00000", "00002"}
    before = written(data)
    (folder / "1.xz").write_bytes(lzma.compress(texts[1]))
    done = run_cli(*arguments, "--refresh")
    assert done.returncode == 0, done.stderr
    assert {path: when for path, when in before.items() if "/00001-" not in str(path)}.items() <= written(data).items()
    fresh = [argument if argument != data else tmp_path / "e" for argument in arguments]
    assert run_cli(*fresh).returncode == 0
    assert tree(data) == tree(tmp_path / "e")


@pytest.mark.slow
def test_a_plan_that_was_tampered_with_is_rejected(corpus, vocab, tmp_path):
    data = tmp_path / "d"
    assert run_cli("prepare", "--out", data, *options(corpus, vocab, "sw")).returncode == 0
    plan = json.loads((data / "plan.json").read_text())
    older = json.dumps(plan | {"version": 1})
    for content, message in (
        ("{", "not valid JSON"),
        (older, "format version 1"),
        ("{}", "not a plan"),
        ("[]", "not a JSON object"),
    ):
        (data / "plan.json").write_text(content)
        done = run_cli("prepare", "--out", data)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    (data / "plan.json").write_text(json.dumps(plan | {"settings": {"heldout": 0.3, "unit_mib": UNIT}}))
    assert "plan.json: was edited or is damaged; delete it, and the same" in run_cli("prepare", "--out", data).stderr
    (data / "plan.json").unlink()
    done = run_cli("prepare", "--out", data, *options(corpus, vocab, "sw"))
    assert done.returncode == 0 and "already complete" in done.stderr, done.stderr
    assert json.loads((data / "plan.json").read_text()) == plan
    (data / "plan.json").write_text(json.dumps(plan))
    (data / ".inputs.json").unlink()
    done = run_cli("prepare", "--out", data)
    assert done.returncode == 2 and "has no .inputs.json, so there is nothing to continue; name a corpus" in done.stderr
    rejected = run_cli("prepare", "--out", data, *options(corpus, vocab, "sw", heldout=0.3))
    assert rejected.returncode == 2 and "--heldout was 0.02, now 0.3" in rejected.stderr
    done = run_cli("prepare", "--out", data, *options(corpus, vocab, "sw"))
    assert done.returncode == 0 and "already complete" in done.stderr and (data / ".inputs.json").exists()


def test_amounts_and_durations_are_for_people():
    assert [amount(n, "B") for n in (0, 999, 1000, 2.5e9, 3e12)] == ["0 B", "999 B", "1.00 kB", "2.50 GB", "3.00 TB"]
    assert [duration(n) for n in (1, 89, 90, 7200, 200_000)] == ["1.0 s", "89.0 s", "1.5 min", "2.0 h", "2.3 d"]


def test_a_file_that_is_written_to_while_it_is_prepared_is_reported(corpus, vocab, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(noise(500)))
    plan, encoder = asked_plan(Description((parse_source(f"s=text:{path}"),), str(vocab), 0, UNIT))
    path.write_text(path.read_text().replace("a", "b"))
    with pytest.raises(UserError, match=r"a.txt: was written to since this run began; start it again"):
        prepare(tmp_path / "d", plan, encoder, 1)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_a_receipt_never_stays_with_arrays_of_other_bytes(tmp_path, monkeypatch):
    first = write_shard(tmp_path, "00000-00000", np.arange(9, dtype=np.uint16), [4, 9], {})
    monkeypatch.setattr(shards_module, "write_json", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "00000-00000", np.ones(9, np.uint16), [4, 9], {})
    assert first and not (tmp_path / "00000-00000.json").exists()


def test_a_source_of_the_wrong_format_is_reported_before_anything_is_planned(corpus, vocab, tmp_path):
    data = tmp_path / "d"
    assert run_cli("prepare", "--out", data, *options(corpus, vocab, "sw")).returncode == 0
    before = tree(data)
    done = run_cli("extend", "--out", data, "--source", f"w=wikipedia:{corpus}/de.txt")
    assert done.returncode == 2 and "not XML, so not a MediaWiki dump" in done.stderr
    assert tree(data) == before
    done = run_cli(
        "prepare", "--out", tmp_path / "e", *options(corpus, vocab, "sw"), "--source", f"j=jsonl:{corpus}/de.txt"
    )
    assert done.returncode == 2 and "line 1 is not JSON" in done.stderr and not (tmp_path / "e").exists()


@pytest.mark.parametrize("groups", [1, 20])
def test_the_forecast_of_a_parquet_file_does_not_depend_on_its_row_groups(tmp_path, vocab, monkeypatch, groups):
    path = tmp_path / "a.parquet"
    texts = noise(2000)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=len(texts) // groups, compression="none")
    monkeypatch.setattr("data_prep.sampling._PIECES", 1)
    plan, encoder = asked_plan(Description((parse_source(f"s=parquet:{path}"),), str(vocab), 0, UNIT))
    [entry] = forecast(plan, {"s": measure(plan.sources["s"], encoder)}, 1.0)
    assert entry.tokens == pytest.approx(sum(len(ids) + 1 for ids in encoder.encode_batch(texts)), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--heldout", "0.5"], "--heldout: is for CORPUS or --source, and neither is given"),
        (["prepare", "--languages", "de"], "--languages: is for CORPUS or --source, and neither is given"),
        (
            ["extend", "--budget-tokens", "5e5"],
            "was prepared without a budget, so its sources are there in full already",
        ),
        (["extend", "--alpha", "7"], "argument --alpha: '7' is not from 0 (all sources alike) to 1"),
        (["extend", "--root", "x", "--source", "a=text:*"], "--root: is for CORPUS, not for --source"),
    ],
)
def test_options_that_could_do_nothing_are_rejected(corpus, vocab, tmp_path, arguments, message):
    assert run_cli("prepare", "--out", tmp_path / "d", *options(corpus, vocab, "sw")).returncode == 0
    done = run_cli(arguments[0], "--out", tmp_path / "d", *arguments[1:])
    assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.slow
def test_mistakes_with_files_and_folders_are_reported_in_one_line(corpus, vocab, tmp_path):
    data, plain = tmp_path / "d", tmp_path / "plain"
    assert run_cli("prepare", "--out", data, *options(corpus, vocab, "sw")).returncode == 0
    plain.write_text("x")
    odd = tmp_path / os.fsdecode(b"caf\xe9.txt")
    odd.write_text("x")
    for arguments, message in (
        (["status", plain], "no plan.json, so no corpus was begun here"),
        (["prepare", "--out", plain], "has no plan.json, so there is nothing to continue"),
        (["stats", plain], "no such folder"),
        (["plan", "--source", "s=text:~nobody-of-this-name/*.txt", "--tokenizer", vocab], "no file matches ~nobody"),
        (
            ["plan", "--source", f"s=text:{tmp_path}/caf*", "--tokenizer", vocab],
            "this name is not UTF-8; rename the file",
        ),
        (["plan", "--source", f"{'s' * 300}=text:*", "--tokenizer", vocab], "cannot be a source's name"),
    ):
        done = run_cli(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr, done.stderr
    (data / "sw").rename(data / "away")
    (data / "sw").write_text("x")
    done = run_cli("prepare", "--out", data)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
