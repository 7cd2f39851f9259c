"""Plans for tests: clusters, shipped recipes on them, and the largest public teacher counted by hand."""

from pipeline.plan.hardware import GIB, GPUS, Cluster
from pipeline.plan.planning import Plan, models_of, plan_run
from pipeline.settings.reading import load_recipes

XXL = "facebook/xlm-roberta-xxl"
# 250,880 ids, 514 positions and one token type × 4096; XL and XXL have no norm behind their embeddings.
XXL_EMBEDDINGS = (250880 + 514 + 1) * 4096
# 4 × (4096² + 4096) of attention, FFN 4096 × 16384 both ways with biases, two norms.
XXL_LAYER = 4 * (4096**2 + 4096) + 2 * 4096 * 16384 + 16384 + 4096 + 2 * 2 * 4096
# Of layer 48: three projections and the norm before them.
XXL_LAST = 3 * (4096**2 + 4096) + 2 * 4096
XXL_OVERRIDES = [f"teacher.model={XXL}", "teacher.layer=48", "relation_heads=64", "micro_batch=8"]


def cluster(nodes: int = 1, gpus: int = 8, gpu: str = "A100-80", memory: float | None = None, **more) -> Cluster:
    kind = GPUS[gpu]
    values = {"nic": 12.5, "share": 0.4} | more
    return Cluster(nodes, gpus, kind, (memory or kind.memory) * GIB, **values)


def planned(where: Cluster, recipe: str = "minilm_6x384", *overrides: str) -> Plan:
    recipes = load_recipes(recipe, overrides)
    return plan_run(recipes, models_of(recipes), where)


def squeezed(text: str) -> str:
    return " ".join(text.split())
