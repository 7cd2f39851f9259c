"""What a recipe may say and hardly means: values far outside what runs of this method have."""

from pipeline.settings.recipe import Recipe

# key: from and to what a value is usual, and what the papers' runs have. 0 is always a way to switch a thing off.
_USUAL = {
    "learning_rate": (1e-6, 1e-2, "3e-4 to 6e-4"),
    "weight_decay": (0.0, 0.3, "0.01"),
    "adam_eps": (1e-12, 1e-4, "1e-6"),
    "gradient_clipping": (1e-2, 100.0, "1"),
    "student.dropout": (0.0, 0.5, "0.1"),
    "sampling_alpha": (0.0, 2.0, "0.3 to 1"),
}


def doubts(recipe: Recipe) -> list[str]:
    """A note for each value that is allowed and implausible, with the usual one."""
    found = []
    for key, (least, most, usual) in _USUAL.items():
        value = recipe.value_of(key)
        if value and not least <= value <= most:
            found.append(f"{key} = {value:g} is unusual; the papers' runs have {usual}")
    if recipe.adam_betas[1] < 0.9:
        found.append(f"adam_betas = {list(recipe.adam_betas)} is unusual; the papers' runs have [0.9, 0.999]")
    if recipe.steps <= recipe.warmup_steps:
        found.append("the run ends inside the warm-up and never reaches its learning rate")
    return found
