"""What a user gets from model folders: `python tests/parts/loaded.py OUT.json FOLDER …`, of whatever transformers it imports.

Nothing of this project is imported. For each folder: what its tokenizer gives for some texts, and the model's outputs on
them; or the error that loading ended with.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoTokenizer

TEXTS = (
    "The student is small.",
    "  Zwei  Wörter\tund Élan, naïve ﬁn e\u0301.  ",
    "w1 w7 w44 der unlich keitge schaulich",
    "a [MASK] b </s> [SEP] <mask> c [unused1] <s> [CLS]",
    "日本語 και λόγος 🙂",
    "",
    "der unlich keitge " * 60,
)


def load(folder: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(list(TEXTS), list(TEXTS[::-1]), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    alone = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {
        "inputs": sorted(tokenizer.model_input_names),
        "longest": tokenizer.model_max_length,
        "entries": len(tokenizer),
        "special": sorted(set(tokenizer.all_special_tokens)),
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "roles": {role: getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "pad", "unk", "mask")},
        "alone": alone,
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "pairs": dict(tokenizer(list(TEXTS), list(TEXTS[::-1]))),
        "padded": dict(tokenizer(list(TEXTS), list(TEXTS[::-1]), padding="max_length", truncation=True, max_length=24)),
        "cut": dict(tokenizer(list(TEXTS), padding=True, truncation=True, max_length=16)),
        "decoded": [tokenizer.decode(ids, skip_special_tokens=True) for ids in alone],
        "hidden": hidden.flatten().tolist(),
    }


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = {}
    for folder in sys.argv[2:]:
        try:
            found[Path(folder).name] = load(folder)
        except Exception as error:
            found[Path(folder).name] = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[1]).write_text(json.dumps({"version": transformers.__version__, "folders": found}))


if __name__ == "__main__":
    main()
