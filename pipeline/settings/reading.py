"""Recipes read from TOML: bases, stages, several students, overrides of the command line."""

import copy
import dataclasses
import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.cli import UserError, from_home
from pipeline.settings.recipe import OF_RELATIONS, OWN, PATHS, PLACE, TEXTS, Recipe, Student
from pipeline.settings.values import Tables, build

_OF_OTHERS = (*OF_RELATIONS, "transfer", "teacher_layer")  # in a [[student]], than of a stage that learns vectors
SHIPPED = Path(__file__).parent.parent / "recipes"


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a file that has one student. Raises UserError for one with several."""
    recipes = load_recipes(path, overrides)
    if len(recipes) > 1:
        raise UserError(f"{path}: has {len(recipes)} students; this takes a recipe with one")
    return recipes[0]


def load_recipes(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> list[Recipe]:
    """The recipes of a file that has one stage, or of that which the override ``stage=NAME`` picks.

    ``[student]`` gives one recipe. Each of several ``[[student]]`` has a ``name`` and gives one with ``out`` = OUT/NAME: they
    differ in that table and in the keys OWN, which it may hold as well, share one teacher pass, and each could be run alone.
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
    before. One that learns vectors goes on with the students of the stage before, and has the teacher of the first. A file
    without stages is one stage.
    """
    for override in overrides:
        if len(override.splitlines()) > 1 or override.endswith(("\n", "\r")):
            raise UserError(
                f"command line: {override!r}: holds a line break; give each key=value as an argument of its own"
            )
    file = find_recipe(path)
    values = _read(file)
    picks = [text for key, _, text in (override.partition("=") for override in overrides) if key.strip() == "stage"]
    picked = picks[-1] if picks else None
    overrides = [override for override in overrides if override.partition("=")[0].strip() != "stage"]
    if "stage" not in values:
        if picked is not None:
            raise UserError(f"command line: stage={picked}: {file.name} has no stages")
        for override in overrides:
            _override(values, override)
        return [_recipes_of(values, file.name, str(values.get("out")), {})]
    stages: list[list[Recipe]] = []
    for number, (name, tables) in enumerate(_stages(values, file, overrides)):
        root, source, previous = tables.pop("root"), f"{file.name}, stage {name}", None
        if number and _embeds(tables):
            _go_on(tables, stages, source)
            recipes = _recipes_of(tables, source, str(root), {"stage": name})
            stages.append([_begun(recipe, stages[-1]) for recipe in recipes])
            continue
        if number:
            if len(stages[-1]) > 1:
                raise UserError(f"{source}: the stage before has {len(stages[-1])} students; a teacher is one")
            previous = stages[-1][0]
            own = {"model": str(previous.exported), "layer": previous.student.layers, "revision": "main"}
            given = tables.get("teacher", {})
            tables["teacher"] = given | own if isinstance(given, dict) else given  # which is refused as any other's
        stages.append(_recipes_of(tables, source, str(root), {"stage": name, "previous": previous}))
    names = [recipes[0].stage for recipes in stages]
    if picked is not None and picked not in names:
        raise UserError(f"command line: stage={picked}: {file.name} has the stages {', '.join(names)}")
    return [recipes for recipes, name in zip(stages, names, strict=True) if picked in (None, name)]


def _embeds(tables: Tables) -> bool:
    return tables.get("transfer") == "embedding"


def _go_on(tables: Tables, stages: list[list[Recipe]], source: str) -> None:
    """Give the ``tables`` of a stage that learns vectors the first stage's teacher, and the students of the stage before."""
    first, before = stages[0][0].teacher, stages[-1]
    given, student = tables.get("teacher", {}), tables.get("student", {})
    teacher = {"model": first.model, "layer": first.layer, "revision": first.revision}
    tables["teacher"] = teacher | given if isinstance(given, dict) else given
    begun = {Path(recipe.out).name: dataclasses.asdict(recipe.student) | _start(recipe) for recipe in before}
    if isinstance(student, dict) and len(before) == 1:
        (own,) = begun.values()
        tables["student"] = own | student | _start(before[0])
        return
    tables["student"] = each = student or [{"name": name} for name in begun]
    names = [one.get("name") for one in each if isinstance(one, dict)] if isinstance(each, list) else []
    if not names or not {*names} <= begun.keys():
        raise UserError(
            f"{source}: student: it goes on with those of the stage before; leave it out, or name each as there: "
            f"{', '.join(begun)}"
        )
    tables["student"] = [begun[one["name"]] | one | {"init": begun[one["name"]]["init"]} for one in each]


def _start(recipe: Recipe) -> Tables:
    return {"init": str(recipe.exported)}


def _begun(recipe: Recipe, before: list[Recipe]) -> Recipe:
    """The recipe with the one that it goes on with. Raises UserError if its student is to have another shape."""
    start = next(other for other in before if str(other.exported) == recipe.student.init)
    for key in ("layers", "hidden", "heads", "model_type", "vocab"):
        theirs = getattr(start.student, key)
        if getattr(recipe.student, key) != theirs:
            recipe.refuse(
                f"student.{key}", f"it goes on with the stage before's student, which has {theirs!r}; leave it out"
            )
    return dataclasses.replace(recipe, start=start)


def _at_home(tables: Tables, source: str, prefix: str = "") -> Tables:
    """The tables with ``~`` at the start of a path replaced by the home folder, as a shell does for a word of its own.

    Raises UserError for the home of a user who is not known.
    """
    ready = dict(tables)
    for key, value in tables.items():
        if isinstance(value, dict):
            ready[key] = _at_home(value, source, f"{prefix}{key}.")
        elif prefix + key in PATHS and isinstance(value, str):
            ready[key] = path = from_home(value)
            if path.startswith("~"):
                raise UserError(
                    f"{source}: {prefix}{key} = {value!r}: no such user's home; for a folder of this name write ./ before it"
                )
    return ready


def _recipes_of(values: Tables, source: str, root: str, place: Tables) -> list[Recipe]:
    """The checked recipe of each student."""
    built = [build(Recipe, _at_home(tables, named), named) for tables, named in _one_by_one(values, source)]
    recipes = [dataclasses.replace(recipe, **place, root=from_home(root)) for recipe in built]
    for recipe in recipes:
        recipe.check()
    for one, other in itertools.combinations(recipes, 2):
        if dataclasses.replace(one, out=other.out) == other:
            raise UserError(
                f"{other.source}: becomes what student {Path(one.out).name} becomes, bit for bit; give it a key of its own, "
                "as student.seed, or leave it out"
            )
    return recipes


def _read(file: Path, above: tuple[Path, ...] = ()) -> Tables:
    """The tables of a recipe file, over those of its ``base``."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}") from None
    return _over_base(values, file, (*above, file.resolve()))


def _over_base(values: Tables, file: Path, above: tuple[Path, ...]) -> Tables:
    if "base" not in values:
        return values
    name = values["base"]
    if not isinstance(name, str):
        raise UserError(f"{file}: base = {name!r}: must be a recipe's file or the name of a shipped one")
    name = from_home(name)
    neighbour = file.parent / name
    base = neighbour if neighbour.is_file() else find_recipe(name)
    if base.resolve() in above:
        raise UserError(f"{file}: base = {name!r}: goes around in a circle")
    return _merged(_read(base, above), {key: value for key, value in values.items() if key != "base"})


def _merged(under: Tables, over: Tables) -> Tables:
    """``over`` over ``under``, table by table."""
    tables = {
        key: _merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return under | over | tables


def _stages(values: Tables, file: Path, overrides: list[str]) -> Iterator[tuple[str, Tables]]:
    """Name and tables of each stage, and in them the root; overrides reach all, one by stage.NAME.key, or the first."""
    stages, common = values["stage"], {key: value for key, value in values.items() if key != "stage"}
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UserError(f"{file.name}: stage = {stages!r}: write each as a table [[stage]] with a name")
    names = [_named(stage, [other.get("name") for other in stages], "stage", file.name) for stage in stages]
    if "out" not in common and not any(override.startswith("out=") for override in overrides):
        raise UserError(f"{file.name}: out is missing; stages need one, their run folders are OUT/NAME")
    own_tables = [{key: value for key, value in stage.items() if key != "name"} for stage in stages]
    merged = [_over_common(own, common, file) for own in own_tables]
    embeds = [_embeds(tables) for tables in merged]
    _check_overrides(overrides, names, embeds, file)
    for number, (name, own, tables) in enumerate(zip(names, own_tables, merged, strict=True)):
        for key in _keys(own):
            if why := _not_a_stages(key, number, embeds[number]):
                raise UserError(f"{file.name}, stage {name}: {key} is given; {why}")
        for override in overrides:
            key, _, value = override.partition("=")
            parts = key.strip().split(".")
            if parts[0] == "stage":
                if parts[1] == name:
                    _override(tables, f"{'.'.join(parts[2:])}={value}")
            elif key.strip() == "out" or not _not_a_stages(key.strip(), number, embeds[number]):
                _override(tables, override)
        tables["root"] = out = tables.get("out")
        if isinstance(out, str):
            tables["out"] = str(Path(out, name))
        yield name, tables


def _over_common(own: Tables, common: Tables, file: Path) -> Tables:
    """A stage's tables over its base and what the stages have in common, which may hold keys of relations for others."""
    tables = _merged(_over_base(own, file, (file.resolve(),)), common)
    over = {key: value for key, value in own.items() if key != "base"}
    if _embeds(tables | over):
        tables = _without(tables, OF_RELATIONS)
        if isinstance(students := tables.get("student"), list):
            tables["student"] = [_without(each, _OF_OTHERS) if isinstance(each, dict) else each for each in students]
    return copy.deepcopy(_merged(tables, over))


def _without(tables: Tables, keys: Iterable[str]) -> Tables:
    return {key: value for key, value in tables.items() if key not in keys}


def _keys(tables: Tables) -> Iterator[str]:
    """The keys of a stage's own tables, those of inner ones as table.key."""
    for key, value in tables.items():
        inner = value if isinstance(value, list) else [value]
        held = [f"{key}.{name}" for one in inner if isinstance(one, dict) for name in one]
        yield from held or [key]


def _not_a_stages(key: str, number: int, embeds: bool) -> str:
    """Why stage ``number``, from 0, which ``embeds`` or not, cannot have this key of its own; empty if it can."""
    if key == "out":
        return "its run folder is OUT/NAME"
    of_a_student = key.startswith("student.") and key.rpartition(".")[2] in _OF_OTHERS
    if embeds and (key in OF_RELATIONS or of_a_student):
        return "it learns vectors, not relations"
    if number and embeds and key == "student.init":
        return "it goes on with the student of the stage before"
    if number and not embeds and key in ("teacher.model", "teacher.layer", "teacher.revision"):
        return "its teacher is the student of the stage before"
    return ""


def _check_overrides(overrides: list[str], names: list[str], embeds: list[bool], file: Path) -> None:
    """Raise UserError for an override of a stage that is not there, or of what a stage cannot have."""
    for override in overrides:
        key = override.partition("=")[0].strip().split(".")
        if key[0] != "stage":
            continue
        if len(key) < 3 or key[1] not in names:
            raise UserError(f"command line: {override}: write stage.NAME.key=value; {file.name} has {', '.join(names)}")
        number = names.index(key[1])
        if why := _not_a_stages(".".join(key[2:]), number, embeds[number]):
            raise UserError(f"command line: {override}: {why}")


def _named(table: Tables, names: list[Any], kind: str, source: str) -> str:
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


def _one_by_one(values: Tables, source: str) -> Iterator[tuple[Tables, str]]:
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
        named = f"{source}, student {student['name']}"
        one = _tables_of_one(values, _without(student, ("name",)), named)
        if isinstance(values.get("out"), str):
            one["out"] = str(Path(values["out"], student["name"]))
        yield one, named


def _tables_of_one(values: Tables, student: Tables, source: str) -> Tables:
    """The tables of the recipe of one of several students, whose own table is ``student``.

    Raises UserError for a key in it that all students of a run share.
    """
    shared = {spec.name for spec in dataclasses.fields(Recipe)} - {spec.name for spec in dataclasses.fields(Student)}
    for key in student:
        if key in shared - OWN.keys() - {"student", *PLACE}:
            hint = " (which of its layers teaches is a student's own: teacher_layer)" if key == "teacher" else ""
            raise UserError(
                f"{source}: {key} = {student[key]!r}: the students of a run share the teacher's pass, samples and steps, and "
                f"so this{hint}; set it for all of them, or train this one by a recipe of its own"
            )
    own: Tables = {"student": _without(student, OWN)}
    for key, place in OWN.items():
        if key in student:
            table, _, last = place.rpartition(".")
            own = _merged(own, {table: {last: student[key]}} if table else {last: student[key]})
    one = _merged(values, own)
    if _embeds(one) != _embeds(values):
        raise UserError(
            f"{source}: transfer = {one['transfer']!r}: of the students of a run all learn vectors or none; set it for all "
            "of them, or in a [[stage]] of its own"
        )
    return one


def find_recipe(path: str | Path) -> Path:
    """The recipe's file: the path itself, or a recipe that is shipped under this name."""
    file = Path(from_home(str(path)))
    if file.is_file():
        return file
    shipped = SHIPPED / f"{file.name.removesuffix('.toml')}.toml"
    if file.parent == Path() and shipped.is_file():
        return shipped
    names = sorted(p.stem for p in SHIPPED.glob("*.toml"))
    raise UserError(f"{path}: no such recipe file; shipped recipes are {', '.join(names)}")


def _own_to_each(key: str, students: list[Any]) -> str:
    """The name in [[student]] of a recipe's ``key`` that each of the students has of its own; or ""."""
    own = {place: name for name, place in OWN.items()}.get(key, "")
    return own if own and all(isinstance(student, dict) and own in student for student in students) else ""


def _override(values: Tables, override: str) -> None:
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
    if isinstance(students, list) and (own := _own_to_each(key.strip(), students)):
        raise UserError(
            f"command line: {override}: each student has its own {own}; write student.{own}={text} for all, or "
            f"student.NAME.{own}={text} for one"
        )
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"command line: {key}: {table} is a value, not a table")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    # A name is taken as it is typed: a revision or a folder may look like a number. So is what TOML would cut at a comment.
    if not isinstance(value, str | list | dict) and (last in TEXTS or "#" in text):
        value = text.strip()
    values[last] = value
