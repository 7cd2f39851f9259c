"""One run's settings as frozen values, the numbers that follow from them, and what can be checked without reading anything."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.cli import UserError
from data_prep.mirror import CACHE_GB, Cache
from pipeline.pairs import PAIRS, VALUE_MSE, VECTORS

INITS = ("random", "teacher", "pca")  # and any other student, by its folder or hub id
PAIR = 5  # positions of the shortest pair of segments: [CLS], a token, [SEP], a token, [SEP]


@dataclass(frozen=True)
class Teacher:
    """``[teacher]``: the frozen model, and where its relations are taken from."""

    model: str  # a Hugging Face folder or hub id
    layer: int  # counted from 1; its q, k, v are what the student learns, or the last one's pooled vectors
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
    init: str = "random"  # or the teacher's layers, 'teacher', or embeddings, 'pca'; or a student's folder or hub id
    dropout: float = 0.1
    seed: int = -1  # of its initial weights and dropout; -1: the recipe's, which also orders the samples
    ds_config: str = "student_zero1.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result. Batch sizes are in sequences, lengths in tokens, steps in updates."""

    data: str  # folder that `python -m data_prep prepare` wrote, or its URL: s3://, gs://, hf://, https://
    out: str  # run folder
    teacher: Teacher
    student: Student
    steps: int
    batch: int  # sequences in an optimizer step, all ranks and micro-batches together
    micro_batch: int  # sequences in one forward on one rank
    learning_rate: float  # at the end of the warm-up; then linear decay to zero
    warmup_steps: int
    length: int = 512
    layout: Literal["full", "doc", "packed"] = (
        "full"  # windows run across documents; or never do, and are padded, or packed into rows
    )
    segments: Literal["auto", "pairs", "single"] = "auto"  # pairs [CLS] A [SEP] B [SEP] where the teacher knows them
    pairs: tuple[str, ...] = ("qk", "vv")  # v_mse among them: values by their squared difference
    transfer: Literal["last", "layer-to-layer", "embedding"] = "last"  # last layer, each layer, or pooled vectors learn
    relation_heads: int = 12
    precision: Literal["bf16", "fp32"] = "bf16"
    arithmetic: Literal["auto", "native", "widened"] = "auto"  # of bf16 on CPUs: as it is, or in fp32 and rounded
    compile: Literal["none", "loss", "all"] = "loss"  # torch.compile: of the relation loss, or of the encoders as well
    loss_kernel: Literal["auto", "triton", "torch"] = "auto"  # the relation loss: fused on GPUs, or by torch
    deterministic: bool = False  # the same bits every time on a GPU too, more slowly; CPUs give them anyway
    weight_decay: float = 0.01
    adam_betas: tuple[float, ...] = (0.9, 0.999)
    adam_eps: float = 1e-6
    gradient_clipping: float = 1.0  # of the global norm; 0 = none
    sampling_alpha: float = 1.0  # sources are drawn in proportion to tokens ** alpha
    shuffle_shards: int = 0  # a source's shards that are read at a time, shuffled among each other; 0: all of them
    cache: str = ""  # folder for shards of data at a URL, which the ranks of a host share; "": in the user's ~/.cache
    cache_gb: float = CACHE_GB  # of shards that are kept there
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
    previous: "Recipe | None" = field(default=None, compare=False)  # the stage whose student is the teacher
    start: "Recipe | None" = field(default=None, compare=False)  # the stage whose student this one goes on with

    def accumulation(self, ranks: int) -> int:
        """Micro-batches that each of ``ranks`` ranks runs in one step. Raises UserError where they do not come out."""
        if self.batch < ranks:
            self.refuse("batch", f"fewer sequences than the {ranks} ranks; raise batch or use fewer ranks")
        if self.batch % (ranks * self.micro_batch):
            self.refuse(
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
    def student_seed(self) -> int:
        """What the student's initial weights and dropout follow from."""
        return self.seed if self.student.seed < 0 else self.student.seed

    @property
    def relations(self) -> tuple[str, ...]:
        """The pairs that are relations; none where vectors are learnt."""
        return () if self.embeds else tuple(pair for pair in self.pairs if pair != VALUE_MSE)

    @property
    def embeds(self) -> bool:
        """Whether the student learns vectors of texts, and not relations."""
        return self.transfer == "embedding"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts of its loss."""
        return VECTORS if self.embeds else self.pairs

    @property
    def layers(self) -> dict[int, int]:
        """The teacher's layer that each layer of the student learns from, by number of the student's; both counted from 1."""
        if self.transfer == "layer-to-layer":
            return dict(enumerate(evenly_spaced(self.teacher.layer, self.student.layers), 1))
        return {self.student.layers: self.teacher.layer}

    @property
    def teacher_batch(self) -> int:
        """Sequences in one forward of the teacher on one rank."""
        return self.teacher.micro_batch or self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    def check(self) -> None:
        """Check everything that does not need data or weights. Raises UserError naming file, key and value."""
        for key in (
            "steps",
            "batch",
            "micro_batch",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            self.need(key, getattr(self, key) >= 1, "at least 1")
        self.need("warmup_steps", self.warmup_steps >= 0, "at least 0")
        self.need("length", self.length >= 3, "at least 3: [CLS], a token, [SEP]")
        if self.segments == "pairs":
            wanted = f"at least {PAIR} with segments = 'pairs': [CLS], a token, [SEP], a token, [SEP]"
            self.need("length", self.length >= PAIR, wanted)
        if self.batch % self.micro_batch:
            self.refuse("batch", f"not a multiple of micro_batch = {self.micro_batch}")
        if self.teacher.micro_batch < 0 or self.teacher.micro_batch % self.micro_batch:
            self.refuse(
                "teacher.micro_batch", f"must be a multiple of micro_batch = {self.micro_batch}, or 0 for the same"
            )
        for key in ("data", "out", "teacher.model", "student.init"):
            self.need(key, self.value_of(key) != "", "a name")
        for key in ("learning_rate", "adam_eps"):
            self.need(key, 0 < getattr(self, key) < math.inf, "above 0 and finite")
        self.need("learning_rate", self.learning_rate <= 1, "at most 1: the papers' runs have 3e-4 to 6e-4")
        for key in ("weight_decay", "gradient_clipping", "eval_samples", "keep_every"):
            self.need(key, 0 <= getattr(self, key) < math.inf, "at least 0 and finite")
        self.need("sampling_alpha", 0 <= self.sampling_alpha <= 10, "from 0 (sources alike) to 10; 1 is in proportion")
        self.need("shuffle_shards", self.shuffle_shards >= 0, "at least 0")
        self.need("cache_gb", 0 < self.cache_gb < math.inf, "above 0 and finite")
        self.need("seed", 0 <= self.seed < 2**64, "at least 0 and below 2**64")
        self.need("steps", self.steps * self.batch < 2**63, "below 2**63 / batch: samples are numbered in 64 bits")
        self.need(
            "adam_betas",
            len(self.adam_betas) == 2 and all(0 <= b < 1 for b in self.adam_betas),
            "two in [0, 1)",
        )
        student = self.student
        self.need("student.layers", student.layers >= 1, "at least 1")
        self.need("student.dropout", 0 <= student.dropout < 1, "in [0, 1)")
        self.need("student.heads", student.heads >= 1, "at least 1")
        self.need("student.seed", -1 <= student.seed < 2**64, "at least 0 and below 2**64, or -1 for the recipe's seed")
        self.divided("student.heads", student.heads, "attention heads")
        if self.embeds:
            self._check_embedding()
        else:
            self._check_relations()

    def _check_relations(self) -> None:
        different = len(set(self.pairs)) == len(self.pairs)
        good = bool(self.relations) and different and set(self.pairs) <= {*PAIRS, VALUE_MSE}
        self.need("pairs", good, f"different pairs from {', '.join(PAIRS)}, with {VALUE_MSE!r} next to them at most")
        self.need("relation_heads", self.relation_heads >= 1, "at least 1")
        self.divided("relation_heads", self.relation_heads, "relation heads")

    def _check_embedding(self) -> None:
        usual = {spec.name: spec.default for spec in dataclasses.fields(Recipe)}
        for key in OF_RELATIONS:
            if getattr(self, key) != usual[key]:
                why = "is for relations, and transfer = 'embedding' learns vectors; leave it out, or as it is by default: "
                self.refuse(key, f"{why}{usual[key]!r}")
        if self.layout == "full":
            self.refuse("layout", "a window across documents is no text to embed; use layout = 'doc' or 'packed'")
        if self.segments == "pairs":
            self.refuse("segments", "a pair is no text to embed; use 'single' or 'auto'")
        if self.layout == "doc" and self.micro_batch == 1:
            self.refuse("micro_batch", "a text is compared with the others of its micro-batch; use 2 or more")

    @property
    def shards_cache(self) -> Cache:
        """Where shards of data at a URL are kept."""
        return Cache.of(self.cache, self.cache_gb)

    @property
    def exported(self) -> Path:
        """Where the student of a stage is exported to, to be evaluated, or to be the next one's teacher."""
        return Path(f"{self.out}-student")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields, without those that say where the recipe comes from."""
        values = dataclasses.asdict(dataclasses.replace(self, previous=None, start=None))
        plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in values.items() if k not in PLACE}))
        return plain

    def need(self, key: str, holds: bool, wanted: str) -> None:
        """Raise UserError naming ``key`` unless it ``holds``."""
        if not holds:
            self.refuse(key, f"must be {wanted}")

    def divided(self, key: str, heads: int, what: str, width: int = 0) -> None:
        """Raise UserError unless ``heads``, ``key``'s value, divide the student's width and the teacher's ``width``, if given.

        A student's width that neither its attention heads nor the relation heads divide is to blame itself.
        """
        hidden = self.student.hidden
        divisors = [self.student.heads, *[self.relation_heads] * (not self.embeds)]
        both, common = math.lcm(*divisors), math.gcd(hidden, width)
        if hidden < 1 or all(hidden % divisor for divisor in divisors):
            lower = max(hidden // both, 1) * both
            self.refuse(
                "student.hidden",
                f"it is not divisible by {heads} {what}; use {lower} or {lower + both}, or change {key}",
            )
        if common % heads == 0:
            return
        of = f"the student's width {hidden}" if hidden % heads else f"the teacher's width {width}"
        counts = [count for count in range(1, common + 1) if common % count == 0]
        near = [count for count in counts if count < heads][-1:] + [count for count in counts if count > heads][:1]
        self.refuse(key, f"{of} is not divisible by {heads} {what}; use {' or '.join(map(str, near))}")

    def refuse(self, key: str, why: str) -> typing.NoReturn:
        """Raise UserError with the file, the key, its value and why it is refused."""
        raise UserError(f"{self.source}: {key} = {self.value_of(key)!r}: {why}")

    def value_of(self, key: str) -> Any:
        """The value of a key, as in "student.hidden"."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value


PLACE = ("source", "root", "stage", "previous", "start")
# Keys that each of several [[student]] may have of its own, and what they are in its recipe.
OWN = {
    "teacher_layer": "teacher.layer",
    "pairs": "pairs",
    "relation_heads": "relation_heads",
    "transfer": "transfer",
    "learning_rate": "learning_rate",
}
OF_RELATIONS = ("pairs", "relation_heads", "loss_kernel")
TEXTS = {spec.name for kind in (Recipe, Teacher, Student) for spec in dataclasses.fields(kind) if spec.type is str}
PATHS = {
    "data",
    "cache",
    "out",
    "teacher.model",
    "teacher.ds_config",
    "student.vocab",
    "student.init",
    "student.ds_config",
}


def teacher_layers(recipes: list[Recipe]) -> tuple[int, ...]:
    """The teacher's layers that students who share its pass learn from, in order: the teacher is cut at the last one."""
    return tuple(sorted({layer for recipe in recipes for layer in recipe.layers.values()}))


def layers_in_words(recipes: list[Recipe]) -> str:
    """The ``teacher.layer`` of each of these recipes, as in "layer 12" or "layers 10, 11, 12"."""
    layers = sorted({recipe.teacher.layer for recipe in recipes})
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def evenly_spaced(last: int, count: int) -> list[int]:
    """``count`` layers up to ``last``, counted from 1: of 12 layers 6 are 2, 4, … 12."""
    return [round((i + 1) * last / count) for i in range(count)]
