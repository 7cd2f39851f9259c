"""``prepare`` and ``extend``: from what the user names to a whole corpus; they continue where an earlier run stopped."""

import sys
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.cli import UserError
from data_prep.description import Description, ResolvedSource, check_files, check_names, describe_table
from data_prep.differences import budget_words, cleanup_difference, difference, settings_difference, source_difference
from data_prep.encode import Encoder, load_encoder
from data_prep.forecast import with_units
from data_prep.formats.readers import PIECE
from data_prep.inputs import InputFile, describe_file, tokenizer_path
from data_prep.locks import finishing, holders, node_of, one_of_nodes, sole_process
from data_prep.manifest import manifest
from data_prep.packing import FOLDER
from data_prep.plan import INPUTS, MIB, Budget, Plan, places_known, read_plan, software
from data_prep.sampling import check_start
from data_prep.shards import MANIFEST, PLAN, SIDES, open_corpus, shard_folder, write_manifest
from data_prep.units import Unit, finished
from data_prep.workers import Progress, run_units


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does, as node ``node`` of ``nodes``."""

    node: int = 0
    nodes: int = 1

    def of(self, units: list[Unit]) -> list[Unit]:
        """The units that begin in this node's stretch of all bytes, so that few files are read by two nodes."""
        total, before = sum(unit.size for unit in units), 0
        mine: list[Unit] = []
        for unit in units:
            if min(before * self.nodes // max(total, 1), self.nodes - 1) == self.node:
                mine.append(unit)
            before += unit.size
        return mine

    def others(self, data: Path) -> str | None:
        """Another node that is at work in DATA."""
        mine = ("", f"{self.node}/{self.nodes}")
        return next((holder for name, holder, _ in holders(data) if node_of(name) not in mine), None)

    def lock(self, data: Path) -> AbstractContextManager[None]:
        """The lock to hold while this node is at work."""
        return one_of_nodes(data, self.node, self.nodes, say) if self.nodes > 1 else sole_process(data, say)


def asked_plan(description: Description, budget_tokens: float | None = None) -> tuple[Plan, Encoder]:
    """The plan that a description asks for, its files found but no units chosen yet, and the tokenizer.

    Raises UserError for any fault of the settings or the files.
    """
    heldout = 0.01 if description.heldout is None else description.heldout
    unit_mib = 64 if description.unit_mib is None else description.unit_mib
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout {heldout}: must be at least 0 and below 1")
    if not PIECE / MIB <= unit_mib <= MIB:
        raise UserError(f"--unit-mib {unit_mib}: must be from {PIECE / MIB} to {MIB}")
    if description.tokenizer is None:
        raise UserError("--tokenizer: none is named; give a folder, a file or a model id of the hub")

    path = tokenizer_path(description.tokenizer)
    encoder = load_encoder(path)
    check_names(source.name for source in description.sources)
    resolved = [source.resolve() for source in description.sources]
    for warning in check_files(resolved):
        say(warning)
    for source in resolved:
        check_start(source)

    sources = {source.name: source for source in resolved}
    plan = Plan(
        tokenizer_path=path,
        tokenizer=encoder.fingerprint(),
        software=software(resolved),
        heldout=float(heldout),
        unit_mib=float(unit_mib),
        sources=sources,
        units={},
        budget=budget(budget_tokens, description.alpha),
    )
    return plan, encoder


def budget(tokens: float | None, alpha: float | None) -> Budget | None:
    """The budget of ``tokens`` at ``alpha`` (1 if None); None for None. Raises UserError for impossible numbers."""
    alpha = 1.0 if alpha is None else alpha
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha {alpha}: must be from 0 (all sources alike) to 1 (in proportion to their tokens)")
    if tokens is not None and not tokens > 0:
        raise UserError(f"--budget-tokens {tokens}: must be above 0")
    return None if tokens is None else Budget(float(tokens), float(alpha))


def planned_again(data: Path) -> tuple[Plan, Encoder]:
    """Read the plan of DATA again, with its files as they are now, and the tokenizer.

    Raises UserError if there is no plan, or if its files or tokenizer are not where they were.
    """
    plan = read_plan(data)
    if plan is None or not places_known(data):
        missing = INPUTS if plan else PLAN
        raise UserError(
            f"{data}: has no {missing}, so there is nothing to continue; name a corpus, or sources and a tokenizer"
        )
    try:
        encoder = load_encoder(plan.tokenizer_path)
        sources = {
            name: replace(source, files=tuple(map(_as_it_is_now, source.files)), templates=_table_as_it_is_now(source))
            for name, source in plan.sources.items()
        }
    except UserError as error:
        raise UserError(f"{error}; if it has been moved, name the corpus and its tokenizer again") from None
    now = software(sources.values())
    return replace(plan, tokenizer=encoder.fingerprint(), software=now, sources=sources), encoder


def _as_it_is_now(file: InputFile) -> InputFile:
    return file if file.hub else describe_file(file.path)


def _table_as_it_is_now(source: ResolvedSource) -> InputFile | None:
    return source.templates and describe_table(source.templates.path)


def prepare(
    data: Path, asked: Plan, encoder: Encoder, workers: int, share: Share | None = None, refresh: bool = False
) -> None:
    """Make the corpus ``asked`` in ``data``, or this node's share of it.

    ``refresh``: units of files that have changed since the plan, or whose text an earlier version of the clean-up made,
    are made again. Raises UserError if ``data`` holds another plan or something else, or for a fault of the input.
    """
    share = share or Share()
    _check_workers(workers)
    _make_folder(data)
    with share.lock(data):
        if share.nodes == 1:
            _remove_leftovers(data)
        _prepare_locked(data, _agree(data, asked, encoder, share, refresh), workers, share)


def extend(data: Path, before: Plan, more: Plan | None, encoder: Encoder, larger: Budget | None, workers: int) -> None:
    """Add sources, or a larger budget, to the corpus in ``data``. Nothing that is there is made again.

    ``before``: as by ``planned_again``. Raises UserError if ``more`` does not agree with what is there.
    """
    _check_workers(workers)
    with sole_process(data, say):
        if (known := read_plan(data)) != before:  # another run has changed the plan since, or files have changed
            before, _ = planned_again(data)
            if known and (changed := difference(known, before, contents=True)):
                raise UserError(f"{data / PLAN}: {changed}; prepare with --refresh first")
        if larger and (before.budget is None or larger.tokens < before.budget.tokens):
            raise UserError(f"{data / PLAN}: the budget was {budget_words(before.budget)}; a corpus only grows")

        plan = replace(before, budget=larger or before.budget)
        if more is not None:
            if changed := settings_difference(before, more):
                raise UserError(f"{data / PLAN}: {changed}; a corpus is extended with the same settings")
            for name in before.sources.keys() & more.sources.keys():
                if changed := source_difference(before.sources[name], more.sources[name], contents=True):
                    raise UserError(f"{data / PLAN}: {changed}; give the new files a name of their own")
            sources = before.sources | more.sources
            plan = replace(plan, sources=sources, software=software(sources.values()))
            check_files(plan.sources.values())

        plan = with_units(plan, encoder, say, at_least=before.units)
        if plan.units == before.units:
            say(f"{data}: nothing to add; all {sum(plan.units.values())} units of this plan are there already")
        plan.write(data)
        _prepare_locked(data, plan, workers, Share())


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")


def _make_folder(data: Path) -> None:
    """Make DATA, or find it empty or begun by an earlier prepare. Raises UserError if it is anything else."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        strangers = [entry.name for entry in data.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"--out {data}: {error.strerror}; name a new or an empty folder") from None
    if strangers and not {PLAN, MANIFEST} & {*strangers} and not places_known(data):
        raise UserError(f"--out {data}: holds {min(strangers)} but no {PLAN}; name a new or an empty folder")


def _agree(data: Path, asked: Plan, encoder: Encoder, share: Share, refresh: bool) -> Plan:
    """The plan to follow, written to DATA.

    Raises UserError naming what differs from the plan that work was done for, or that another node is working at.
    """
    before = read_plan(data)
    if before is None:
        plan = with_units(asked, encoder, say, at_least={})
    elif changed := difference(before, asked, contents=True):
        plan = _replaced(data, before, asked, changed, encoder, share, refresh)
    else:
        plan = replace(asked, units=before.units)
    plan.write(data)
    return plan


def _replaced(
    data: Path, before: Plan, asked: Plan, changed: str, encoder: Encoder, share: Share, refresh: bool
) -> Plan:
    """The plan ``asked`` in the place of another one, from which it differs as ``changed`` says."""
    if others := share.others(data):
        raise UserError(
            f"{data / PLAN}: {changed}; {others} is at work on that plan; wait until it has ended, or stop it"
        )
    if not any(data.glob("**/[0-9]*.json")):  # nothing was made of it
        return with_units(asked, encoder, say, at_least={})
    beyond_contents = difference(before, asked, contents=False)
    if refresh and not beyond_contents:
        say(f"{changed}; its units are made again")
        (data / MANIFEST).unlink(missing_ok=True)  # until then there is no corpus
        return with_units(asked, encoder, say, at_least=before.units)
    if not refresh and changed == cleanup_difference(before, asked):
        raise UserError(f"{data / PLAN}: {changed}; make it again with --refresh, or prepare into a new folder")
    same = "" if not refresh or changed == beyond_contents else "; --refresh is for files whose content has changed"
    hint = "" if beyond_contents else ", or take the files as they are now with --refresh"
    raise UserError(f"{data / PLAN}: {changed}{same}; go back to that{hint}, or prepare into a new folder")


def _prepare_locked(data: Path, plan: Plan, workers: int, share: Share) -> None:
    """Make this node's units, and with the last of all nodes' units the manifest."""
    job = plan.job(data)
    units = plan.all_units()
    mine = share.of(units)
    pending = [unit for unit in mine if not finished(job, unit)]
    if not pending and share.nodes == 1 and _is_whole(data, plan):
        say(f"{data}: already complete, nothing to do ({_summary(data)})")
        return
    if len(pending) < len(mine):
        say(f"{len(mine) - len(pending):,} of {len(mine):,} units are done; continuing with the others")
    elif len(pending) < min(workers, 8):
        say(
            f"{len(pending)} units for {workers} workers; a smaller --unit-mib than {plan.unit_mib:g} gives all of them work"
        )

    total = sum(unit.size for unit in mine)
    with closing(Progress(total, total - sum(unit.size for unit in pending))) as progress:
        try:
            run_units(job, pending, workers, progress)
        except KeyboardInterrupt:
            progress.say("stopped; what is finished is kept, and the same command continues")
            raise
        finally:
            if share.nodes == 1:  # workers that were stopped have left theirs, perhaps on a full disk
                _remove_leftovers(data)

    receipts = {unit: receipt for unit in units if (receipt := finished(job, unit))}
    if missing := len(units) - len(receipts):
        say(f"{data}: node {share.node}/{share.nodes} is done; others have {missing:,} of {len(units):,} units to do")
        return
    with finishing(data):
        current = read_plan(data)
        if current is None or current.describe() != plan.describe():
            raise UserError(f"{data / PLAN}: was replaced while this run was at work; start the same prepare again")
        _remove_strays(data, plan, units)
        write_manifest(data, manifest(plan, receipts, say))
    say(f"{data}: complete ({_summary(data)})")


def _is_whole(data: Path, plan: Plan) -> bool:
    """Whether the manifest is that of this plan. Raises UserError if it is damaged."""
    if not (data / MANIFEST).exists():
        return False
    entries = open_corpus(data).manifest["sources"]
    return {name: entry["units"] for name, entry in entries.items()} == plan.units


def _remove_leftovers(data: Path) -> None:
    """Remove what killed processes left half-written. An index of packed rows may be in the making; it has its own lock."""
    for path in data.glob("**/.*.tmp"):
        if FOLDER not in path.relative_to(data).parts:
            path.unlink(missing_ok=True)


def _remove_strays(data: Path, plan: Plan, units: list[Unit]) -> None:
    """Remove, from the folders of the plan's sources, shards that are not of its units, and what was left half-written."""
    stems: dict[str, set[str]] = {name: set() for name in plan.sources}
    for unit in units:
        stems[unit.source].add(unit.stem)
    for name in plan.sources:
        for side in SIDES:
            folder = shard_folder(data, name, side)
            strays = (path for path in folder.glob("[0-9]*-[0-9]*.*") if path.name.split(".")[0] not in stems[name])
            for path in (*strays, *folder.glob(".*.tmp")):
                path.unlink(missing_ok=True)


def _summary(data: Path) -> str:
    """What a whole corpus holds, in a line."""
    corpus = open_corpus(data)
    sources = list(corpus.sources.values())
    parts = [f"{source.name}: {source.documents:,} documents, {source.tokens:,} tokens" for source in sources[:5]]
    if len(sources) > 5:
        total = sum(source.tokens for source in sources)
        parts.append(f"and {len(sources) - 5} more sources, {total:,} tokens in all")
    return f"{'; '.join(parts)}; id {corpus.id[:12]}"


def say(line: str) -> None:
    """Print a line for the person at the terminal."""
    print(f"prepare: {line}", file=sys.stderr, flush=True)
