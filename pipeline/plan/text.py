"""A plan as text for a terminal, or as JSON."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.engines.traffic import dense_bytes, rows_bytes, sends_rows
from pipeline.models.configs import takes_published_shape
from pipeline.models.precision import DTYPES
from pipeline.plan.comparison import Comparison
from pipeline.plan.hardware import GIB, MIB
from pipeline.plan.planning import FRAMEWORK, SPARE, Plan
from pipeline.plan.times import MAP_BYTES, POOLING_BYTES
from pipeline.plan.zero import offloads
from pipeline.settings.recipe import layers_in_words


def report(plan: Plan, others: list[Plan], on_nodes: list[Plan], remedies: list[str]) -> str:
    """The plan for a terminal; ``others`` are the plans for other kinds of GPU, ``on_nodes`` those for other nodes."""
    about = (about_models, about_memory, about_batch, about_gathers, about_time)
    sections = [verdict(plan, remedies), *(section(plan) for section in about)]
    sections += [nodes_table(plan, on_nodes), table(others), about_disk(plan), assumptions(plan)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def verdict(plan: Plan, remedies: list[str]) -> list[str]:
    """Whether it fits, and how long it takes or what would make it fit."""
    recipe, cluster = plan.recipes[0], plan.cluster
    stage = f", stage {recipe.stage}" if recipe.stage else ""
    if plan.fits:
        text = f"fits, {plan.memory.peak / GIB:.1f} of {cluster.memory / GIB:g} GiB a GPU; "
        text += f"{plan.times.days:.2f} days at {cluster.share:.0%} of the peak rate"
    else:
        text = f"does not fit, a GPU lacks {plan.missing / GIB:.2f} GiB; each of these would do: {', '.join(remedies)}"
    return [f"{recipe.source.split(',')[0]}{stage} on {cluster}: {text}"]


def _labelled(label: str, text: str) -> str:
    """A sentence behind its label, in lines of a terminal's width."""
    return textwrap.fill(text, 120, initial_indent=f"{label:10}", subsequent_indent=" " * 10, break_on_hyphens=False)


def about_models(plan: Plan) -> list[str]:
    """Sizes of teacher and students, and the teacher's hosting."""
    recipe, models, hosting = plan.recipes[0], plan.models, plan.hosting
    lines = [
        _labelled(
            "Teacher",
            f"{recipe.teacher.model}: {layers_in_words(plan.recipes)} of {models.config.num_hidden_layers}, width "
            f"{models.teacher.width}, {models.teacher.parameters / 1e6:,.1f} M parameters up to that layer, "
            f"{models.teacher.embeddings / 1e6:,.1f} M of them embeddings",
        )
    ]
    if not recipe.previous and takes_published_shape(recipe.teacher.model, recipe.teacher.revision):
        lines.append(
            _labelled("", "its config.json is not on this machine: this is the published shape; a run reads the file")
        )
    for own, cut in zip(plan.recipes, models.students, strict=True):
        size = f"{(cut.parameters + cut.tail) / 1e6:,.1f} M parameters, {cut.parameters / 1e6:,.1f} M of them trained"
        name = f"{Path(own.out).name}, " if len(plan.recipes) > 1 else ""
        lines.append(_labelled("Student", f"{name}{own.student.layers} layers × {own.student.hidden}: {size}"))
    lines.append(_labelled("Hosting", f"{hosting.kind}: {hosting.reason}"))
    if hosting.shards > 1:
        group = "all GPUs" if hosting.shards == plan.cluster.world else "the GPUs of a node"
        shards = f"layers in {hosting.shards} shards, over {group}; embeddings whole on each"
        if offloads(recipe):
            held = DTYPES[recipe.precision].itemsize * models.teacher.body / hosting.shards * plan.cluster.gpus
            shards += f"; shards in the host's memory, {held / GIB:.1f} GiB a node, and the way from there is not timed"
        lines.append(_labelled("", shards))
    return lines


def about_memory(plan: Plan) -> list[str]:
    """The parts, and the sum at the largest moment of each phase."""
    moments = sorted(plan.memory.phases.items(), key=lambda item: -item[1])
    return [
        "Memory of a GPU, GiB",
        *(f"{value / GIB:9.2f}  {name}" for name, value in plan.memory.parts.items() if value),
        "Largest moments, GiB",
        *(f"{value / GIB:9.2f}  {name}" for name, value in moments),
        f"{plan.usable / GIB:9.2f}  can be used",
    ]


def about_batch(plan: Plan) -> list[str]:
    """The batch on all GPUs, and the largest micro-batch that fits."""
    recipe, world = plan.recipes[0], plan.cluster.world
    most = f"at most micro-batch {plan.largest} fits" if plan.largest else "not even micro-batch 1 fits"
    accumulation = f"accumulation {recipe.accumulation(world)}"
    text = f"{recipe.batch} sequences = {world} GPUs × micro-batch {recipe.micro_batch} × {accumulation}; {most}"
    if recipe.micro_batch != plan.asked:
        text += f"; micro_batch = {plan.asked} of the recipe does not come out: run it with micro_batch={recipe.micro_batch}"
    lines = [_labelled("Batch", text)]
    if recipe.embeds:
        lines.append(
            _labelled("", "another micro-batch is another loss: a text is compared with the others of its own")
        )
    if recipe.layout == "packed":
        short = "planned with the attention and the loss of one sequence in each row: with shorter ones both take less"
        lines.append(_labelled("", short))
    return lines


def about_gathers(plan: Plan) -> list[str]:
    """The sharded teacher's traffic, whether it hides, and what would help."""
    gathers, cluster, recipe = plan.gathers, plan.cluster, plan.recipes[0]
    if not gathers:
        return []
    rate, layer = cluster.link(gathers.over_nodes) / 1e9, plan.models.teacher.layer
    forwards = f"{gathers.forwards} forward{'s' if gathers.forwards > 1 else ''}"
    where = "between nodes" if gathers.over_nodes else "inside a node"
    lines = [
        _labelled(
            "Gathers",
            f"{gathers.received / 1e9:.1f} GB a step into each GPU, in {forwards}, {where} at {rate:g} GB/s: "
            f"{gathers.seconds * 1e3:,.0f} ms next to {plan.times.teacher * 1e3:,.0f} ms of the teacher's arithmetic. They "
            f"hide from {gathers.needed:,.0f} tokens a GPU and forward on; there are {gathers.tokens:,}",
        )
    ]
    if gathers.ahead < 1:
        lines.append(
            _labelled(
                "",
                f"Only {gathers.ahead:.0%} of a layer is gathered ahead of its turn; all of it with "
                f"stage3_prefetch_bucket_size = {layer} and stage3_max_live_parameters = {2 * layer} in "
                "a copy of teacher_zero3_prefetch.json",
            )
        )
    if gathers.over_nodes and gathers.exposed:
        shard = DTYPES[recipe.precision].itemsize * plan.models.teacher.body / cluster.gpus / GIB
        instead = f"for {shard:.2f} GiB of layers a GPU instead of {shard / cluster.nodes:.2f}"
        lines.append(_labelled("", f"teacher.shard_group=node keeps them inside a node, {instead}"))
    if gathers.exposed and gathers.forwards > 1:
        lines.append(_labelled("", f"teacher.micro_batch={recipe.batch // cluster.world} gathers once a step"))
    return lines


def about_time(plan: Plan) -> list[str]:
    """A step's time by part, and the run's."""
    times = plan.times
    parts = {
        "teacher": times.teacher, "students": times.students,
        "pooling" if plan.recipes[0].embeds else "relation loss": times.loss,
        "waiting for gathers": times.gathers, "averaging gradients": times.gradients,
    }  # fmt: skip
    shown = ", ".join(f"{name} {seconds * 1e3:,.0f}" for name, seconds in parts.items() if seconds)
    speed = f"{times.tokens_per_second:,.0f} tokens/s; {plan.recipes[0].steps:,} steps in {times.days:.2f} days"
    return [
        _labelled("Time", f"{times.step * 1e3:,.0f} ms a step: {shown}"),
        _labelled("", speed),
        *about_words(plan),
        _labelled("", about_loss(plan)),
    ]


def about_words(plan: Plan) -> list[str]:
    """What the word embeddings that travel as rows are, in bytes of a step."""
    lines = []
    for recipe, cut in zip(plan.recipes, plan.models.students, strict=True):
        if sends_rows(recipe, cut.words, plan.cluster.world):
            whole = dense_bytes(recipe, cut.words.rows * cut.words.width, plan.cluster.world)
            rows = rows_bytes(recipe, cut.words, plan.cluster.world)
            text = f"the word embedding of {recipe.student.layers} × {recipe.student.hidden} travels as rows, one for each "
            text += f"token: {rows / 1e6:,.1f} MB a step into each GPU instead of {whole / 1e6:,.1f} MB"
            lines.append(_labelled("", text))
    return lines


def about_loss(plan: Plan) -> str:
    """What the time of the loss rests on."""
    share = plan.cluster.share
    if plan.recipes[0].embeds:
        return f"pooling's by {POOLING_BYTES} bytes of traffic for a hidden number; the texts' similarities take none"
    if plan.fused:
        text = "the relation loss's by instructions of its compiled kernel at full rate, not measured"
        return f"{text}; at {share:g} of it {plan.times.loss / share * 1e3:,.0f} ms"
    text = f"the relation loss's by products in fp32 at {share:g} of the peak rate"
    return f"{text}, and {MAP_BYTES} bytes of traffic for each entry of its maps"


def nodes_table(plan: Plan, on_nodes: list[Plan]) -> list[str]:
    """The same run on more and fewer nodes: the fastest and the cheapest that fit are marked; below, whether more is slower."""
    fitting = [each for each in on_nodes if each.fits]
    fastest = max(fitting, key=lambda each: each.times.tokens_per_second, default=None)
    cheapest = min(fitting, key=lambda each: each.times.gpu_hours, default=None)
    lines = [
        f"{'nodes':>5} {'GPUs':>5} {'ms a step':>9} {'gradients':>9} {'tokens/s':>12} {'days':>7} {'GPU-hours':>9}"
    ]
    for each in on_nodes:
        times, cluster = each.times, each.cluster
        line = f"{cluster.nodes:5} {cluster.world:5} {times.step * 1e3:9,.1f} {times.gradients * 1e3:9,.1f} "
        line += f"{times.tokens_per_second:12,.0f} {times.days:7.2f} {times.gpu_hours:9,.1f}"
        words = {"fastest": each is fastest, "cheapest": each is cheapest, "does not fit": not each.fits}
        marks = ", ".join(word for word, holds in words.items() if holds)
        lines.append(f"{line}  {marks}".rstrip())
    if fastest and plan.cluster.nodes > fastest.cluster.nodes:
        fewer, times = fastest.cluster.nodes, plan.times
        warning = f"{plan.cluster.nodes} nodes are slower than {fewer}: averaging gradients takes "
        warning += f"{times.gradients * 1e3:,.1f} of {times.step * 1e3:,.1f} ms; "
        warning += f"take {fewer}, a larger batch, or a faster network (--nic)"
        lines.append(_labelled("warning:", warning))
    return lines


def table(plans: list[Plan]) -> list[str]:
    """The same run on as many GPUs of each kind."""
    width = max([8, *(len(plan.cluster.gpu.name) for plan in plans)])
    lines = [
        f"{'GPU':{width}} {'GB':>4} {'TFLOP/s':>8} {'GB/s':>6} {'link':>5} {'tokens/s':>12} {'days':>7} {'GiB':>7}  teacher"
    ]
    for plan in plans:
        gpu = plan.cluster.gpu
        rate = gpu.rate(plan.recipes[0].precision) / 1e3
        line = f"{gpu.name:{width}} {gpu.memory:4} {rate:8,.0f} {gpu.bandwidth:6,.0f} {gpu.link:5,.0f} "
        line += f"{plan.times.tokens_per_second:12,.0f} {plan.times.days:7.2f} {plan.memory.peak / GIB:7.2f}  "
        line += plan.hosting.kind
        notes = [note for note in (gpu.note, "" if plan.fits else "does not fit") if note]
        if notes:
            line += f" ({'; '.join(notes)})"
        lines.append(line)
    return lines


def about_disk(plan: Plan) -> list[str]:
    """Bytes of shards and of checkpoints."""
    disk, recipe = plan.disk, plan.recipes[0]
    if disk.prepared:
        data = f"{disk.data / 1e9:,.1f} GB of shards: {recipe.data} holds {disk.tokens:,} tokens"
    else:
        data = f"at most {disk.data / 1e9:,.1f} GB of shards: {recipe.data} is not there, and the run reads "
        data += f"{disk.tokens:,} tokens, those of a smaller corpus several times"

    kept = f"keep_checkpoints = {recipe.keep_checkpoints}"
    if recipe.keep_every:
        kept += f", one of every {recipe.keep_every:,} steps"
    size = f"{disk.checkpoints / 1e9:,.1f} GB of checkpoints, {disk.checkpoint / 1e9:.2f} GB each"
    return [_labelled("Disk", data), _labelled("", f"{size}: {kept}, and one that is being written")]


def assumptions(plan: Plan) -> list[str]:
    """The numbers that are assumed, not measured."""
    cluster = plan.cluster
    return [
        _labelled(
            "Assumed",
            f"products at {cluster.share:g} of the peak rate (--share-of-peak; narrow students reach less); "
            f"{cluster.nic:g} GB/s into a node (--nic); gradients averaged after backward; {FRAMEWORK / GIB:g} GiB for CUDA, "
            f"NCCL and cuBLAS; {SPARE:.0%} of the memory lost to fragments; GB of a GPU's memory are 2³⁰ bytes; reading, "
            "evaluation and checkpoints take no time. The memory model is checked by runs on CPUs (--measure), times are not.",
        )
    ]


def as_json(plan: Plan, others: list[Plan], on_nodes: list[Plan], remedies: list[str]) -> str:
    """One object, in bytes and seconds."""
    models = plan.models
    whole = {
        "recipe": plan.recipes[0].source, "fits": plan.fits, "missing": plan.missing, "ways_out": remedies,
        "cluster": asdict(plan.cluster), "teacher": asdict(models.teacher), "students": [asdict(c) for c in models.students],
        "published_shape": takes_published_shape(plan.recipes[0].teacher.model, plan.recipes[0].teacher.revision),
        "hosting": asdict(plan.hosting), "asked_micro_batch": plan.asked, "micro_batch": plan.recipes[0].micro_batch,
        "largest_micro_batch": plan.largest, "parts": plan.memory.parts, "phases": plan.memory.phases,
        "peak": plan.memory.peak, "gathers": asdict(plan.gathers) if plan.gathers else None,
        "times": asdict(plan.times) | {"step": plan.times.step}, "fused_loss": plan.fused,
        "disk": asdict(plan.disk) | {"data": plan.disk.data},
        "gpus": {other.cluster.gpu.name: _row(other) for other in others},
        "nodes": {each.cluster.nodes: _row(each) for each in on_nodes},
    }  # fmt: skip
    return json.dumps(whole, indent=1)


def _row(plan: Plan) -> dict[str, Any]:
    """What a row of a table has."""
    times = plan.times
    return {
        "fits": plan.fits, "peak": plan.memory.peak, "hosting": plan.hosting.kind,
        "tokens_per_second": times.tokens_per_second, "days": times.days, "gpu_hours": times.gpu_hours, "step": times.step,
    }  # fmt: skip


def report_check(rows: Sequence[Comparison], ranks: int) -> str:
    """The memory model next to a run."""
    lines = [f"Memory above the framework's own, {ranks} rank{'s' if ranks > 1 else ''} on this machine, MiB"]
    lines.append(f"  {'':26} {'model':>9} {'run':>9} {'model / run':>12}")
    for row in rows:
        lines.append(f"  {row.what:26} {row.model / MIB:9.1f} {row.run / MIB:9.1f} {1 + row.error:12.3f}")
    lines.append(
        "The run: random weights, compile = 'none', at most 2 micro-batches a step, second update; freed memory goes back to "
        "the system\nat once (mallopt). On CPUs attention with dropout keeps its maps, and bf16 products may be taken in fp32: "
        "the model here counts both."
    )
    return "\n".join(lines)
