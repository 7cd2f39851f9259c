"""Students: their config, and what they start from."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from pipeline.models.families import FAMILIES, attention_kinds, family_of, longest_input
from pipeline.models.weights import Weights
from pipeline.settings.recipe import evenly_spaced


def student_config(
    teacher: PreTrainedConfig,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    dropout: float,
    layer: int | None = None,
    model_type: str | None = None,
    ids: np.ndarray | None = None,
) -> PreTrainedConfig:
    """A student of ``teacher`` at ``layer`` (None: its last): its vocabulary, padding and positions, and its family.

    Where layers attend globally or locally, each does as the teacher's in its place (of ``layer``, evenly spaced): it may
    start from that one or learn from it, and the last attends as ``layer``, globally. Heads share keys as the teacher's
    if their number allows it. Another ``model_type`` gives a plain model of that family, with position embeddings.
    ``ids`` [vocabulary]: the student's id of each of the teacher's, -1 for none.
    """
    if model_type in (None, teacher.model_type):
        kept = teacher.to_dict()
        for gone in ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "model_type"):
            kept.pop(gone, None)
        own_names, family = teacher.attribute_map, family_of(teacher)
    else:
        kept = {"vocab_size": teacher.vocab_size, "pad_token_id": teacher.pad_token_id}
        kept["max_position_embeddings"] = longest_input(teacher)
        own_names, family = {}, FAMILIES[model_type]
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    values = kept | {own_names.get(key, key): value for key, value in sizes.items()}
    values |= {family.ffn: ffn} | dict.fromkeys(family.dropouts, dropout)
    if "embedding_size" in values:
        values["embedding_size"] = hidden
    if "layer_types" in values:
        places = evenly_spaced(layer or teacher.num_hidden_layers, layers)
        values["layer_types"] = [attention_kinds(teacher)[max(place, 1) - 1] for place in places]
    if "num_key_value_heads" in values:
        sharing = teacher.num_attention_heads // teacher.num_key_value_heads
        values["num_key_value_heads"] = heads // sharing if heads % sharing == 0 else heads
        values["head_dim"] = hidden // heads
    if ids is not None:
        values["vocab_size"] = int(ids.max()) + 1
        for key in [key for key in values if key.endswith("_token_id") and isinstance(values[key], int)]:
            values[key] = int(ids[values[key]]) if ids[values[key]] >= 0 else None
    return AutoConfig.for_model(model_type or teacher.model_type, **values)


def student_ffn(teacher: PreTrainedConfig, hidden: int, model_type: str | None = None) -> int:
    """4 · hidden, as in the papers. A gated FFN, which they do not have, keeps the teacher's proportion."""
    family = FAMILIES[model_type or teacher.model_type]
    return getattr(teacher, family.ffn) * hidden // teacher.hidden_size if family.gated else 4 * hidden


def build_student(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A randomly initialised fp32 model, the same on every rank: its numbers follow from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, dtype=torch.float32)


def copy_every_kth_layer(
    teacher: Weights, student: PreTrainedModel, last: int, ids: np.ndarray | None = None
) -> list[int]:
    """Initialise ``student`` from evenly spaced layers of ``teacher``, ending with layer ``last``; returns them.

    With 12 layers and ``last`` = 12 a 6-layer student takes layers 2, 4, … 12. Embeddings are copied too, and the pooler
    if the teacher has one. ``ids``: as in student_config; the student gets its pieces' embeddings.
    """
    chosen = evenly_spaced(last, student.config.num_hidden_layers)
    prefix = next(n for n, m in student.named_modules() if m is family_of(student.config).layers(student)) + "."
    origins = {}
    for name, tensor in student.state_dict().items():
        origin = name
        if name.startswith(prefix):
            index, rest = name[len(prefix) :].split(".", 1)
            origin = f"{prefix}{chosen[int(index)] - 1}.{rest}"
        if origin in teacher or not name.startswith("pooler."):
            origins[origin] = tensor
    shapes = {origin: tuple(tensor.shape) for origin, tensor in origins.items()}
    embeddings = cast(Tensor, student.get_input_embeddings().weight)
    (table,) = (name for name, parameter in student.named_parameters() if parameter is embeddings)
    if ids is not None:
        shapes[table] = (len(ids), embeddings.shape[1])
    teacher.check(shapes)
    for origin, tensor in origins.items():
        found = teacher.tensor(origin)
        tensor.copy_(found if ids is None or origin != table else found[ids >= 0])
    return chosen


def copy_whole(origin: Weights, student: PreTrainedModel) -> None:
    """Give ``student`` all weights of a model of its shape; its pooler stays random where that model has none."""
    own = {name: x for name, x in student.state_dict().items() if name in origin or not name.startswith("pooler.")}
    origin.check({name: tuple(tensor.shape) for name, tensor in own.items()})
    for name, tensor in own.items():
        tensor.copy_(origin.tensor(name))


def project_embeddings(
    teacher: Weights, config: PreTrainedConfig, student: PreTrainedModel, ids: np.ndarray | None = None
) -> None:
    """Initialise the embeddings of a ``student`` of any family, at most as wide, by those of ``teacher``; nothing else.

    ``config``: the teacher's. Its embeddings of words, positions and token types are multiplied by the
    ``principal_components`` of the words', so that their sums, which is what the student reads, are projected alike. Where
    one of the two has no such table, or more rows of it, the student's stay random. ``ids``: as in student_config.
    """
    with torch.device("meta"):
        theirs = _embedding_tables(AutoModel.from_config(config))
    own, first_position = _embedding_tables(student), family_of(student.config).first_position(student.config)
    teacher.check({name: tuple(parameter.shape) for name, parameter in theirs.values()})
    tables = {role: teacher.tensor(name) for role, (name, _) in theirs.items() if role in own}
    if ids is not None:
        tables["words"] = tables["words"][ids >= 0]
    components = principal_components(tables["words"], student.config.hidden_size)
    with torch.no_grad():
        for role, table in tables.items():
            into: Tensor = own[role][1]
            if role == "position_embeddings":  # both from the first one that is used
                table, into = table[family_of(config).first_position(config) :], into[first_position:]
            count = min(len(into), len(table))
            torch.matmul(table[:count].float(), components, out=into[:count])


def _embedding_tables(model: PreTrainedModel) -> dict[str, tuple[str, nn.Parameter]]:
    """The tables whose rows are added up, by what they embed: name in the model, and numbers [rows, width]."""
    words = model.get_input_embeddings().weight
    tables = {}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if parameter is words:
            tables["words"] = name, parameter
        elif kind in ("position_embeddings", "token_type_embeddings"):
            tables[kind] = name, parameter
    return tables


def principal_components(table: Tensor, width: int) -> Tensor:
    """The directions [d, width] in which the rows of ``table`` [n, d] differ most, of length 1, at right angles.

    Eigenvectors of the rows' covariance, largest eigenvalue first; the entry of largest size of each is positive, so that
    their sign is no chance.
    """
    chunks = table.split(8192)
    mean = sum(chunk.double().sum(0) for chunk in chunks) / len(table)
    covariance = sum((centred := chunk.double() - mean).T @ centred for chunk in chunks)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :width]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).float()
