"""The first difference between two plans, in words for the user."""

from data_prep.cli import some
from data_prep.description import ResolvedSource
from data_prep.plan import Budget, Plan

_CONTINUE = "`prepare` with --out alone continues what was planned"


def difference(before: Plan, now: Plan, contents: bool) -> str | None:
    """The first thing in which two plans differ; the content of files counts too if ``contents``."""
    if found := settings_difference(before, now):
        return found
    if before.budget != now.budget:
        budgets = f"the budget was {budget_words(before.budget)}, now {budget_words(now.budget)}"
        return f"{budgets} (`extend` enlarges it, {_CONTINUE})"
    if before.sources.keys() != now.sources.keys():
        sources = f"the sources were {some(sorted(before.sources), 5)}, now {some(sorted(now.sources), 5)}"
        return f"{sources} (`extend` adds to them, {_CONTINUE})"
    if contents and (found := cleanup_difference(before, now)):
        return found
    for name, source in now.sources.items():
        if found := source_difference(before.sources[name], source, contents):
            return found
    return None


def cleanup_difference(before: Plan, now: Plan) -> str | None:
    """The first format whose clean-up, so whose texts, differ between two plans of the same sources."""
    for form in sorted({source.format for source in before.sources.values()}):
        was, is_now = before.cleanup(form), now.cleanup(form)
        if was != is_now:
            age = "an earlier" if was < is_now else "a later"
            return f"it was prepared by {age} version of the clean-up of {form} ({was}, this program has {is_now})"
    return None


def settings_difference(before: Plan, now: Plan) -> str | None:
    """The first setting in which two plans differ, or software, or tokenizer."""
    for option, old, new in (
        ("--heldout", before.heldout, now.heldout),
        ("--unit-mib", before.unit_mib, now.unit_mib),
    ):
        if old != new:
            return f"{option} was {old}, now {new}"
    for name in before.software.keys() & now.software.keys():
        if before.software[name] != now.software[name]:
            return f"the version of {name} was {before.software[name]}, now {now.software[name]}"
    if before.tokenizer != now.tokenizer:
        hashes = [plan.tokenizer["sha256"][:12] for plan in (before, now)]
        how = f"sha256 {hashes[0]}, now {hashes[1]}"
        if hashes[0] == hashes[1]:
            how = "the same file, but it gives other ids: another version of its library"
        return f"the tokenizer was another one ({how})"
    return None


def source_difference(before: ResolvedSource, now: ResolvedSource, contents: bool) -> str | None:
    """The first thing in which two sources of one name differ; the content of files counts too if ``contents``."""
    if (before.format, before.field) != (now.format, now.field):
        was, is_now = (".".join(filter(None, (source.format, source.field))) for source in (before, now))
        return f"the format of source {now.name} was {was}, now {is_now}"
    old, new = ([file.name for file in source.files] for source in (before, now))
    if old != new:
        changed = ", ".join((sorted({*old} ^ {*new}) or new)[:3])
        return f"source {now.name} had {len(old)} files, now {len(new)}; not in both: {changed}"
    if contents and (was := _table_words(before)) != (is_now := _table_words(now)):
        return f"the templates of source {now.name} were {was}, now {is_now}"
    for previous, file in zip(before.files, now.files, strict=True):
        if contents and previous.entry != file.entry:
            return f"{file.name} of source {now.name} has changed since ({previous.bytes} bytes, now {file.bytes})"
    return None


def _table_words(source: ResolvedSource) -> str:
    """ "by words.txt (sha256 0123456789ab)", or "by the shipped table alone"."""
    if not (table := source.templates):
        return "by the shipped table alone"
    return f"by {table.name} (sha256 {table.sha256[:12]})"


def budget_words(budget: Budget | None) -> str:
    """ "2e+10 tokens at alpha 0.3", or "none"."""
    return f"{budget.tokens:g} tokens at alpha {budget.alpha:g}" if budget else "none"
