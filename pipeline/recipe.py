"""One run's settings: a frozen dataclass read from TOML, checked before anything heavy starts.

``python -m pipeline.recipe FILE [key=value …]`` prints the resolved recipe and the numbers that follow from it.
"""

import copy
import dataclasses
import difflib
import json
import math
import re
import sys
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import Parser, UserError, run_command
from pipeline.relations import PAIRS, VALUE_MSE

SHIPPED = Path(__file__).parent / "recipes"
DS_CONFIGS = Path(__file__).parent.parent / "ds_configs"


@dataclass(frozen=True)
class Teacher:
    """``[teacher]``: the frozen model, and where its relations are taken from."""

    model: str  # a Hugging Face folder or hub id
    layer: int  # counted from 1; its q, k, v are what the student learns
    revision: str = "main"
    micro_batch: int = 0  # sequences in one forward of the teacher, a multiple of micro_batch below; 0: the same
    hosting: Literal["auto", "replicate", "zero3"] = "auto"
    shard_group: Literal["world", "node"] = "world"  # zero3: shards over all ranks, or over those of each node
    ds_config: str = "teacher_zero3.json"


@dataclass(frozen=True)
class Student:
    """``[student]``: the model that is trained. Its FFN is 4 · hidden, as in the paper; its last layer learns.

    A gated FFN, which the paper does not have, keeps the teacher's proportion.
    """

    layers: int
    hidden: int
    heads: int = 12
    model_type: Literal["teacher", "bert"] = "teacher"  # the teacher's family, or BERT with the teacher's vocabulary
    vocab: str = ""  # a folder of pipeline.trim_vocab, whose smaller vocabulary the student has; "": the teacher's
    init: Literal["random", "teacher", "pca"] = (
        "random"  # what starts as the teacher's: layers, or projected embeddings
    )
    dropout: float = 0.1
    ds_config: str = "student_zero1.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result. Batch sizes are in sequences, lengths in tokens, steps in updates."""

    data: str  # folder that `python -m data_prep prepare` wrote
    out: str  # run folder
    teacher: Teacher
    student: Student
    steps: int
    batch: int  # sequences in an optimizer step, all ranks and micro-batches together
    micro_batch: int  # sequences in one forward on one rank
    learning_rate: float  # at the end of the warm-up; then linear decay to zero
    warmup_steps: int
    length: int = 512
    layout: Literal["full", "doc"] = "full"  # windows run across documents, or never do and are padded
    pairs: tuple[str, ...] = ("qk", "vv")  # v_mse among them: values by their squared difference
    transfer: Literal["last", "layer-to-layer"] = (
        "last"  # what learns: the last layer, or each from one of the teacher's
    )
    relation_heads: int = 12
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: Literal["none", "loss", "all"] = "loss"  # torch.compile: of the relation loss, or of the encoders as well
    weight_decay: float = 0.01
    adam_betas: tuple[float, ...] = (0.9, 0.999)
    adam_eps: float = 1e-6
    gradient_clipping: float = 1.0  # of the global norm; 0 = none
    sampling_alpha: float = 1.0  # sources are drawn in proportion to tokens ** alpha
    seed: int = 42
    log_every: int = 50
    eval_every: int = 5000
    eval_samples: int = 1024
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2  # the newest ones
    keep_every: int = 0  # those of steps that are multiples of this are kept as well; 0: none

    source: str = field(default="recipe", compare=False)  # the file it was read from, for messages
    root: str = field(default="", compare=False)  # what holds the launch's own files: `out` as the file gives it
    stage: str = field(default="", compare=False)  # its name, if the file has several
    former: "Recipe | None" = field(default=None, compare=False)  # the stage whose student is the teacher

    def accumulation(self, ranks: int) -> int:
        """Micro-batches that each of ``ranks`` ranks runs in one step. Raises UserError where they do not come out."""
        if self.batch < ranks:
            self._refuse(
                "batch",
                f"fewer sequences than the {ranks} ranks; raise batch or use fewer ranks",
            )
        if self.batch % (ranks * self.micro_batch):
            self._refuse(
                "batch",
                f"not a multiple of {ranks} ranks × micro_batch = {self.micro_batch}; "
                f"use a multiple of {ranks * self.micro_batch} or another micro_batch",
            )
        return self.batch // (ranks * self.micro_batch)

    def learning_rate_at(self, step: int) -> float:
        """The rate of update ``step`` (from 0): linear warm-up, then linear decay that would reach zero at ``steps``."""
        warm = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        decay = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * min(1.0, warm, decay)

    @property
    def relations(self) -> tuple[str, ...]:
        """The pairs that are relations."""
        return tuple(pair for pair in self.pairs if pair != VALUE_MSE)

    @property
    def layers(self) -> dict[int, int]:
        """Which layer of the student learns from which of the teacher, by the former, counted from 1."""
        if self.transfer == "last":
            return {self.student.layers: self.teacher.layer}
        from pipeline import encoders

        return dict(enumerate(encoders.evenly_spaced(self.teacher.layer, self.student.layers), 1))

    @property
    def teacher_batch(self) -> int:
        """Sequences in one forward of the teacher on one rank."""
        return self.teacher.micro_batch or self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    def check(self) -> None:
        """Everything that can be told without reading data or weights. Raises UserError naming file, key and value."""
        for key in (
            "steps",
            "batch",
            "micro_batch",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            self._need(key, getattr(self, key) >= 1, "at least 1")
        self._need("warmup_steps", self.warmup_steps >= 0, "at least 0")
        self._need("length", self.length >= 3, "at least 3: [CLS], a token, [SEP]")
        if self.batch % self.micro_batch:
            self._refuse("batch", f"not a multiple of micro_batch = {self.micro_batch}")
        if self.teacher.micro_batch < 0 or self.teacher.micro_batch % self.micro_batch:
            self._refuse(
                "teacher.micro_batch", f"must be a multiple of micro_batch = {self.micro_batch}, or 0 for the same"
            )
        for key in ("data", "out", "teacher.model"):
            self._need(key, self._at(key) != "", "a name")
        for key in ("learning_rate", "adam_eps"):
            self._need(key, 0 < getattr(self, key) < math.inf, "above 0 and finite")
        for key in ("weight_decay", "gradient_clipping", "sampling_alpha", "seed", "eval_samples", "keep_every"):
            self._need(key, 0 <= getattr(self, key) < math.inf, "at least 0 and finite")
        self._need(
            "adam_betas",
            len(self.adam_betas) == 2 and all(0 <= b < 1 for b in self.adam_betas),
            "two in [0, 1)",
        )
        good = self.relations and len(set(self.pairs)) == len(self.pairs) and set(self.pairs) <= {*PAIRS, VALUE_MSE}
        self._need("pairs", good, f"different pairs from {', '.join(PAIRS)}, with {VALUE_MSE!r} beside them at most")
        student = self.student
        self._need("student.layers", student.layers >= 1, "at least 1")
        self._need("student.dropout", 0 <= student.dropout < 1, "in [0, 1)")
        self._need("student.heads", student.heads >= 1, "at least 1")
        self._divides("student.hidden", student.hidden, student.heads, "attention heads")
        self._need("relation_heads", self.relation_heads >= 1, "at least 1")
        self._divides("student.hidden", student.hidden, self.relation_heads, "relation heads")

    def check_teacher(self, config) -> None:
        """What depends on the teacher's shape (a transformers config)."""
        layers, width = config.num_hidden_layers, config.hidden_size
        self._need(
            "teacher.layer",
            1 <= self.teacher.layer <= layers,
            f"one of the teacher's layers 1 to {layers}",
        )
        self._divides(
            "relation_heads",
            width,
            self.relation_heads,
            "relation heads",
            f"the teacher's width {width}",
        )
        from pipeline import encoders  # importing transformers' models takes seconds

        longest = encoders.longest_input(config)
        self._need(
            "length",
            self.length <= longest,
            f"at most the teacher's {longest} positions",
        )
        if self.transfer == "layer-to-layer":
            self._need(
                "student.layers", self.student.layers <= self.teacher.layer, "at most teacher.layer to learn from"
            )
        global_layers = encoders.global_layers(config)
        for layer in self.layers.values():
            if layer not in global_layers:
                self._refuse(
                    "teacher.layer",
                    f"the teacher's layer {layer} has local attention, whose maps are not what it attends to; "
                    f"its global layers are {', '.join(map(str, global_layers))}",
                )
        if self.student.vocab and len(self.student_ids()) != config.vocab_size:
            self._refuse(
                "student.vocab",
                f"made from a vocabulary of {len(self.student_ids()):,}, the teacher's has {config.vocab_size:,}; trim the "
                "teacher, or a model with its tokenizer",
            )
        student = self.student_config(config)
        size = self.student.hidden // self.student.heads
        if encoders.family_of(student).rotation and size % 2:
            self._refuse("student.heads", f"heads of width {size} cannot be rotated; use an even width")
        embedded = getattr(config, "embedding_size", width)
        if self.student.init == "pca" and self.student.hidden > embedded:
            self._refuse(
                "student.init",
                f"student.hidden is {self.student.hidden}, the teacher's embeddings have {embedded} components; use as many "
                "or fewer, or 'random'",
            )
        if self.student.init == "teacher":
            if student.model_type != config.model_type:
                self._refuse(
                    "student.init",
                    f"the student is a {student.model_type}, the teacher a {config.model_type}; use 'random' or 'pca', or "
                    "student.model_type = 'teacher'",
                )
            ffn = encoders.family_of(config).ffn
            for name, own, theirs in (
                ("student.hidden", self.student.hidden, width),
                ("student.heads", self.student.heads, config.num_attention_heads),
                ("the student's embedding", self.student.hidden, embedded),
                (
                    "the student's FFN",
                    getattr(student, ffn),
                    getattr(config, ffn),
                ),
            ):
                if own != theirs:
                    self._refuse(
                        "student.init",
                        f"{name} is {own}, the teacher's is {theirs}; use the same, or 'random' or 'pca'",
                    )
            self._need(
                "student.layers",
                self.student.layers <= self.teacher.layer,
                "at most teacher.layer to copy from",
            )

    def teacher_config(self):
        """The teacher's transformers config; that of a former stage's student is known before it exists."""
        from pipeline import encoders

        if self.former:
            return self.former.student_config(self.former.teacher_config())
        return encoders.load_config(self.teacher.model, self.teacher.revision)

    @property
    def exported(self) -> Path:
        """Where the student of a stage is exported to, to be evaluated, or to be the next one's teacher."""
        return Path(f"{self.out}-student")

    def student_config(self, teacher_config):
        from pipeline import encoders

        s = self.student
        model_type = None if s.model_type == "teacher" else s.model_type
        ffn = encoders.student_ffn(teacher_config, s.hidden, model_type)
        sizes = s.layers, s.hidden, s.heads, ffn, s.dropout
        return encoders.student_config(teacher_config, *sizes, self.teacher.layer, model_type, self.student_ids())

    def student_ids(self):
        """The student's id of each of the teacher's: int32 [vocabulary], -1 for none; None if they have the same."""
        from pipeline.trimmed import load_trimmed

        return load_trimmed(self.student.vocab) if self.student.vocab else None

    def to_dict(self) -> dict:
        """Plain values, in the order of the fields, without what tells where the recipe stands."""
        values = dataclasses.asdict(dataclasses.replace(self, former=None))
        return json.loads(json.dumps({key: value for key, value in values.items() if key not in _PLACE}))

    def _need(self, key: str, holds: bool, wanted: str) -> None:
        if not holds:
            self._refuse(key, f"must be {wanted}")

    def _divides(self, key: str, width: int, heads: int, what: str, of: str | None = None) -> None:
        if width < 1 or width % heads:
            lower = max(width // heads, 1) * heads
            self._refuse(
                key,
                f"{of or 'it'} is not divisible by {heads} {what}; "
                + ("change the heads" if of else f"use {lower} or {lower + heads}, or change the heads"),
            )

    def _refuse(self, key: str, why: str) -> typing.NoReturn:
        raise UserError(f"{self.source}: {key} = {self._at(key)!r}: {why}")

    def _at(self, key: str):
        value = self
        for part in key.split("."):
            value = getattr(value, part)
        return value


_PLACE = ("source", "root", "stage", "former")


def teacher_layers(recipes: list[Recipe]) -> tuple[int, ...]:
    """The teacher's layers that students who share its pass learn from, in order; the last one is teacher.layer."""
    return tuple(sorted({layer for recipe in recipes for layer in recipe.layers.values()}))


# --- reading ----------------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a file that has one student. Raises UserError for one with several."""
    recipes = load_recipes(path, overrides)
    if len(recipes) > 1:
        raise UserError(f"{path}: has {len(recipes)} students; this takes a recipe with one")
    return recipes[0]


def load_recipes(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> list[Recipe]:
    """The recipes of a file that has one stage, or of that which the override ``stage=NAME`` picks.

    ``[student]`` gives one recipe. Each of several ``[[student]]`` has a ``name`` and gives one with ``out`` = OUT/NAME: they
    differ in nothing else, share one teacher pass, and each could be run alone.
    """
    stages = load_stages(path, overrides)
    if len(stages) > 1:
        names = ", ".join(recipes[0].stage for recipes in stages)
        raise UserError(f"{path}: has the stages {names}; this takes one: pick it by stage=NAME")
    return stages[0]


def load_stages(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> list[list[Recipe]]:
    """Read a recipe file or a shipped recipe's name, apply ``key=value`` overrides, check it; the recipes of each stage.

    ``base`` names a recipe whose tables the file, or a stage, goes over. Each of several ``[[stage]]`` has a ``name``, goes
    over what the stages have in common, and gives recipes with ``out`` = OUT/NAME; its teacher is the student of the stage
    before. A file without stages is one stage.
    """
    file = find_recipe(path)
    values = _read(file)
    picked = next((o.partition("=")[2] for o in reversed(overrides) if o.partition("=")[0].strip() == "stage"), None)
    overrides = [o for o in overrides if o.partition("=")[0].strip() != "stage"]
    if "stage" not in values:
        if picked is not None:
            raise UserError(f"command line: stage={picked}: {file.name} has no stages")
        for override in overrides:
            _override(values, override)
        return [_recipes_of(values, file.name, {"root": values.get("out")})]
    stages: list[list[Recipe]] = []
    for number, (name, tables) in enumerate(_stages(values, file, overrides)):
        root, source, former = tables.pop("root"), f"{file.name}, stage {name}", None
        if number:
            if len(stages[-1]) > 1:
                raise UserError(f"{source}: the stage before has {len(stages[-1])} students; a teacher is one")
            former = stages[-1][0]
            own = {"model": str(former.exported), "layer": former.student.layers, "revision": "main"}
            given = tables.get("teacher", {})
            tables["teacher"] = given | own if isinstance(given, dict) else given  # which is refused as any other's
        stages.append(_recipes_of(tables, source, {"root": root, "stage": name, "former": former}))
    names = [recipes[0].stage for recipes in stages]
    if picked is not None and picked not in names:
        raise UserError(f"command line: stage={picked}: {file.name} has the stages {', '.join(names)}")
    return [recipes for recipes, name in zip(stages, names, strict=True) if picked in (None, name)]


def _recipes_of(values: dict, source: str, place: dict) -> list[Recipe]:
    """The checked recipe of each student."""
    built = [_build(Recipe, one, named, "") for one, named in _one_by_one(values, source)]
    recipes = [dataclasses.replace(recipe, **place) for recipe in built]
    for recipe in recipes:
        recipe.check()
    return recipes


def _read(file: Path, above: tuple[Path, ...] = ()) -> dict:
    """The tables of a recipe file, over those of its ``base``."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}") from None
    return _over_base(values, file, (*above, file.resolve()))


def _over_base(values: dict, file: Path, above: tuple[Path, ...]) -> dict:
    if "base" not in values:
        return values
    name = values["base"]
    if not isinstance(name, str):
        raise UserError(f"{file}: base = {name!r}: must be a recipe's file or the name of a shipped one")
    beside = file.parent / name
    base = beside if beside.is_file() else find_recipe(name)
    if base.resolve() in above:
        raise UserError(f"{file}: base = {name!r}: goes around in a circle")
    return _merged(_read(base, above), {key: value for key, value in values.items() if key != "base"})


def _merged(under: dict, over: dict) -> dict:
    """``over`` over ``under``, table by table."""
    tables = {
        key: _merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return under | over | tables


def _stages(values: dict, file: Path, overrides: list[str]) -> Iterator[tuple[str, dict]]:
    """Name and tables of each stage, and in them the root; overrides reach all, one by stage.NAME.key, or the first."""
    stages, common = values["stage"], {key: value for key, value in values.items() if key != "stage"}
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UserError(f"{file.name}: stage = {stages!r}: write each as a table [[stage]] with a name")
    names = [_named(stage, [other.get("name") for other in stages], "stage", file.name) for stage in stages]
    _check_overrides(overrides, names, file)
    if "out" not in common and not any(override.startswith("out=") for override in overrides):
        raise UserError(f"{file.name}: out is missing; stages need one, their run folders are OUT/NAME")
    for number, (name, stage) in enumerate(zip(names, stages, strict=True)):
        own = {key: value for key, value in stage.items() if key != "name"}
        teacher = own.get("teacher") if isinstance(own.get("teacher"), dict) else {}
        for key in ("out", *(f"teacher.{key}" for key in teacher)):
            if (key in own or key != "out") and (why := _not_a_stages(key, number)):
                raise UserError(f"{file.name}, stage {name}: {key} is given; {why}")
        tables = _merged(_over_base(own, file, (file.resolve(),)), common)
        tables = copy.deepcopy(_merged(tables, {key: value for key, value in own.items() if key != "base"}))
        for override in overrides:
            key, _, value = override.partition("=")
            parts = key.strip().split(".")
            if parts[0] == "stage":
                if parts[1] == name:
                    _override(tables, f"{'.'.join(parts[2:])}={value}")
            elif key.strip() == "out" or not _not_a_stages(key.strip(), number):
                _override(tables, override)
        out = tables.get("out")
        yield name, tables | {"root": out} | ({"out": str(Path(out, name))} if isinstance(out, str) else {})


def _not_a_stages(key: str, number: int) -> str:
    """Why stage ``number``, from 0, cannot have this key of its own; empty if it can."""
    if key == "out":
        return "its run folder is OUT/NAME"
    follows = number and key in ("teacher.model", "teacher.layer", "teacher.revision")
    return "its teacher is the student of the stage before" if follows else ""


def _check_overrides(overrides: list[str], names: list[str], file: Path) -> None:
    """Raise UserError for an override of a stage that is not there, or of what a stage cannot have."""
    for override in overrides:
        key = override.partition("=")[0].strip().split(".")
        if key[0] != "stage":
            continue
        if len(key) < 3 or key[1] not in names:
            raise UserError(f"command line: {override}: write stage.NAME.key=value; {file.name} has {', '.join(names)}")
        if why := _not_a_stages(".".join(key[2:]), names.index(key[1])):
            raise UserError(f"command line: {override}: {why}")


def _named(table: dict, names: list, kind: str, source: str) -> str:
    """The name of one of several tables [[kind]], which is that of a folder."""
    name = table.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
        raise UserError(
            f"{source}: [[{kind}]] name = {name!r}: each of several needs a name of letters, digits, '-', '_' and '.'"
        )
    if names.count(name) > 1:
        raise UserError(f"{source}: [[{kind}]] name = {name!r}: is given twice; their run folders are OUT/NAME")
    if f"{name}-student" in names:
        raise UserError(f"{source}: [[{kind}]] name = '{name}-student': {name}'s student is exported to that folder")
    return name


def recipe_of(values: object, source: str) -> Recipe:
    """The recipe that ``Recipe.to_dict`` gave these values of. Raises UserError naming ``source`` if none can have."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: recipe = {values!r} is not what a run writes")
    recipe = _build(Recipe, values, source, "")
    recipe.check()
    return recipe


def _one_by_one(values: dict, source: str) -> Iterator[tuple[dict, str]]:
    """The tables of each student's own recipe, and what to call it in messages."""
    students = values.get("student")
    if not isinstance(students, list):
        yield values, source
        return
    tables = [student if isinstance(student, dict) else {} for student in students]
    if not tables:
        raise UserError(f"{source}: student = []: name at least one [[student]]")
    for table in tables:
        _named(table, [other.get("name") for other in tables], "student", source)
    for student in students:
        own = {key: value for key, value in student.items() if key != "name"}
        out = {"out": str(Path(values["out"], student["name"]))} if isinstance(values.get("out"), str) else {}
        yield values | out | {"student": own}, f"{source}, student {student['name']}"


def find_recipe(path: str | Path) -> Path:
    """The recipe's file: the path itself, or a recipe that is shipped under this name."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = SHIPPED / f"{file.name.removesuffix('.toml')}.toml"
    if file.parent == Path() and shipped.is_file():
        return shipped
    names = sorted(p.stem for p in SHIPPED.glob("*.toml"))
    raise UserError(f"{path}: no such recipe file; shipped recipes are {', '.join(names)}")


def _override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: overrides are written key=value, as in steps=100 or student.layers=4")
    *tables, last = key.strip().split(".")
    students = values.get("student")
    if tables[:1] == ["student"] and isinstance(students, list):  # student.NAME.key: of this one; student.key: of all
        name = ".".join(tables[1:])
        chosen = [student for student in students if isinstance(student, dict) and name in ("", student.get("name"))]
        if not chosen:
            names = ", ".join(str(student.get("name")) for student in students if isinstance(student, dict))
            raise UserError(f"command line: {key}: no student {name!r}; the recipe has {names}")
        for student in chosen:
            _override(student, f"{last}={text}")
        return
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"command line: {key}: {table} is a value, not a table")
    try:
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text


def _build(kind: type, values: dict[str, Any], source: str, prefix: str):
    """``kind`` from a TOML table, each key checked against the dataclass's own annotations."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in _PLACE}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"allowed are {', '.join(fields)}"
            raise UserError(f"{source}: {prefix}{key} = {values[key]!r}: unknown key; {hint}")
    types = typing.get_type_hints(kind)
    ready = {}
    for name, spec in fields.items():
        if name in values:
            ready[name] = _value(types[name], values[name], source, prefix + name)
        elif spec.default is dataclasses.MISSING:
            raise UserError(f"{source}: {prefix}{name} is missing; it must be set to {_describe(types[name])}")
    if kind is Recipe:
        ready["source"] = source
    return kind(**ready)


def _value(kind, value, source: str, key: str):
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return _build(kind, value, source, key + ".")
    elif typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
    elif typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if isinstance(value, str) and inner is str:  # qk,vv on a command line
            value = value.split(",")
        if isinstance(value, list):
            return tuple(_value(inner, item, source, key) for item in value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"{source}: {key} = {value!r}: must be {_describe(kind)}")


def _describe(kind) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a list of " + {"str": "strings", "float": "numbers"}[typing.get_args(kind)[0].__name__]
    names = {int: "a whole number", float: "a number", str: "a string"}
    return names.get(kind, f"a table [{kind.__name__.lower()}]")


# --- printing ---------------------------------------------------------------------------------------------------------


def describe(recipe: Recipe, teacher_config) -> str:
    """The resolved recipe as TOML-like lines, and what follows from it."""
    from pipeline import encoders

    lines = []
    tables = {}
    for key, value in recipe.to_dict().items():
        if isinstance(value, dict):
            tables[key] = value
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    for name, table in tables.items():
        lines += [
            "",
            f"[{name}]",
            *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
        ]
    lines += ["", "# What follows from it"]
    for name, config in (
        ("teacher", teacher_config),
        ("student", recipe.student_config(teacher_config)),
    ):
        count = encoders.count_parameters(config)
        lines.append(
            f"# {name}: {config.num_hidden_layers} layers × {config.hidden_size}, {count['total'] / 1e6:.2f} M parameters = "
            f"{count['embeddings'] / 1e6:.1f} M word embeddings + {count['transformer'] / 1e6:.1f} M Transformer "
            f"+ {count['other'] / 1e6:.2f} M positions, norms and pooler"
        )
    padded = " (padding included)" if recipe.layout == "doc" else ""
    lines.append(
        f"# one step: {recipe.batch} sequences × {recipe.length} = {recipe.tokens_per_step:,} tokens{padded}; "
        f"all {recipe.steps:,} steps: {recipe.tokens_per_step * recipe.steps:,} tokens"
    )
    splits = [(ranks, recipe.batch // (ranks * recipe.micro_batch)) for ranks in (1, 2, 4, 8, 16, 32)]
    fitting = [
        f"{r} × {recipe.micro_batch} × {a}" for r, a in splits if a and not recipe.batch % (r * recipe.micro_batch)
    ]
    lines.append(f"# batch = ranks × micro_batch × accumulation: {', '.join(fitting) or 'no split over 1 to 32 ranks'}")
    if recipe.steps <= recipe.warmup_steps:
        lines.append("# note: the run ends inside the warm-up and never reaches its learning rate")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(prog="python -m pipeline.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as in steps=100 or student.layers=4",
    )
    options = parser.parse_intermixed_args()
    from pipeline.ds_config import load_ds_config

    described = []
    for recipe in (recipe for stage in load_stages(options.recipe, options.overrides) for recipe in stage):
        config = recipe.teacher_config()
        recipe.check_teacher(config)
        for name in (recipe.teacher.ds_config, recipe.student.ds_config):
            load_ds_config(name, recipe)
        described.append((f"# Stage {recipe.stage}\n" if recipe.stage else "") + describe(recipe, config))
    sys.stdout.write("\n\n".join(described) + "\n")


if __name__ == "__main__":
    run_command(main)
