"""Small files in the original layouts of GLUE, XNLI, SQuAD, MLQA and XQuAD, out of the words of tests/parts/tiny.py."""

import json
import random
from pathlib import Path

# Header, and the columns of a row with these texts, label and number.
GLUE = {
    "mnli": (
        "MNLI",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
        "sentence1\tsentence2\tlabel1\tgold_label",
        lambda a, b, label, n: [n, n, n, "g", "(", "(", "(", "(", a, b, label, label],
    ),
    "sst2": ("SST-2", "sentence\tlabel", lambda a, b, label, n: [a, label]),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", lambda a, b, label, n: [n, a, b, label]),
    "cola": ("CoLA", None, lambda a, b, label, n: ["gj04", label, "*", a]),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", lambda a, b, label, n: [n, a, b, label]),
    "mrpc": ("MRPC", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", lambda a, b, label, n: [label, n, n, a, b]),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        lambda a, b, label, n: [n, n, n, a, b, label],
    ),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        lambda a, b, label, n: [n, "g", "f", "y", n, "s", "s", a, b, label],
    ),
}
LABELS = {
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "stsb": ["0.0", "2.5", "5.000"],
}
XNLI_HEADER = (
    "language\tgold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\t"
    "sentence2\tpromptID\tpairID\tgenre\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tsentence1_tokenized\tsentence2_tokenized\tmatch"
)


def words(rng: random.Random, count: int = 5) -> str:
    return " ".join(f"w{rng.randrange(3, 45)}" for _ in range(count))


def write_lines(path: Path, rows: list[list], header: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in rows]
    path.write_text("\n".join(([header] if header is not None else []) + lines) + "\n", encoding="utf-8")
    return path


def labelled(task: str, count: int, seed: int) -> list[tuple[str, str, str]]:
    """Rows whose first word gives the label, and is no other word."""
    rng, labels = random.Random(seed), LABELS.get(task, ["0", "1"])
    return [(f"w{n % len(labels)} {words(rng)}", words(rng), labels[n % len(labels)]) for n in range(count)]


def write_glue(folder: Path, task: str, train: int = 24, dev: int = 12) -> Path:
    """The task's folder below ``folder``."""
    name, header, columns = GLUE[task]
    files = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for seed, (file, count) in enumerate([("train", train), *((file, dev) for file in files)]):
        rows = [columns(a, b, label, n) for n, (a, b, label) in enumerate(labelled(task, count, seed))]
        write_lines(folder / name / f"{file}.tsv", rows, header)
    return folder / name


def write_multinli(folder: Path, undecided: int = 1) -> Path:
    """MultiNLI as published: training rows end after the first annotator's label, some dev rows have no gold label."""
    header = "gold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\tgenre\t" + "\t".join(
        f"label{number}" for number in range(1, 6)
    )
    for seed, (kind, count) in enumerate({"train": 24, "dev_matched": 12, "dev_mismatched": 12}.items()):
        all_labels = 1 if kind == "train" else 5
        rows = [
            [label, "(", a, b, n, "g", *[label] * all_labels]
            for n, (a, b, label) in enumerate(labelled("mnli", count, seed))
        ]
        if kind != "train":
            rows = [["-", *row[1:]] if number < undecided else row for number, row in enumerate(rows)]
        write_lines(folder / f"multinli_1.0_{kind}.txt", rows, header)
    return folder


def write_raw_mrpc(folder: Path, train: int = 24, test: int = 12) -> Path:
    """MRPC as Microsoft publishes it: lines end as on Windows."""
    _, header, columns = GLUE["mrpc"]
    for seed, (kind, count) in enumerate({"train": train, "test": test}.items()):
        rows = [columns(a, b, label, n) for n, (a, b, label) in enumerate(labelled("mrpc", count, seed))]
        path = write_lines(folder / f"msr_paraphrase_{kind}.txt", rows, header)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return folder


def write_xtreme(folder: Path, languages: list[str], test: bool = False) -> Path:
    """XNLI as XTREME lays it out."""
    write_lines(folder / "train-en.tsv", labelled("mnli", 24, 0))
    for seed, language in enumerate(languages, 1):
        write_lines(folder / f"dev-{language}.tsv", labelled("mnli", 9, seed))
        if test:
            write_lines(folder / f"test-{language}.tsv", labelled("mnli", 12, 10 + seed))
    return folder


def write_xnli(folder: Path, languages: list[str]) -> Path:
    """XNLI as published."""
    rows = [(a, b, label.replace("contradiction", "contradictory")) for a, b, label in labelled("mnli", 24, 0)]
    write_lines(folder / "XNLI-MT-1.0/multinli/multinli.train.en.tsv", rows, "premise\thypo\tlabel")
    for seed, file in enumerate(("dev", "test"), 1):
        content = [
            [language, label, *"1234", a, b, *"12345678", a, b, "True"]
            for language in languages
            for a, b, label in labelled("mnli", 6 * seed, seed * 10 + ord(language[0]))
        ]
        write_lines(folder / f"XNLI-1.0/xnli.{file}.tsv", content, XNLI_HEADER)
    return folder


def questions(count: int, seed: int, unanswerable: bool = False, length: int = 30) -> list[dict]:
    """Paragraphs with one question each. Its answer is the only word of w40 to w44; where there is none, it has no answer."""
    rng, paragraphs = random.Random(seed), []
    for number in range(count):
        context = [f"w{rng.randrange(1, 40)}" for _ in range(length)]
        place, impossible = rng.randrange(1, length - 1), unanswerable and number % 3 == 0
        if not impossible:
            context[place] = f"w{40 + number % 5}"
        text = " ".join(context)
        answer = {"text": context[place], "answer_start": len(" ".join(context[:place])) + 1}
        qa = {"id": f"q{seed}-{number}", "question": f"w{number % 40} w0", "answers": [answer]}
        if unanswerable:
            qa |= {"is_impossible": impossible, "answers": [] if impossible else [answer]}
        paragraphs.append({"context": text, "qas": [qa]})
    return paragraphs


def blanked(paragraphs: list[dict]) -> list[dict]:
    """The same questions with their answers blanked, as XTREME leaves its test sets."""
    blank = [{"answer_start": 0, "text": ""}]
    return [each | {"qas": [qa | {"answers": blank} for qa in each["qas"]]} for each in paragraphs]


def write_squad(path: Path, paragraphs: list[dict], version: str | None = "1.1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"data": [{"title": "t", "paragraphs": paragraphs}]} | ({"version": version} if version else {})
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# --- tasks that train nothing -----------------------------------------------------------------------------------------


def write_sts_b(folder: Path, split: str, count: int = 6) -> Path:
    """STS-B's own file of a split: tabs, no header; some rows name their sources after the texts."""
    rows = labelled("stsb", count, len(split))
    lines = [
        ["main-news", "MSRpar", "2012test", n, label, a, b, *["src"] * (n % 3)] for n, (a, b, label) in enumerate(rows)
    ]
    return write_lines(folder / f"sts-{split}.csv", lines)


def write_semeval(folder: Path, source: str, count: int = 6, blank: int = 0, prefix: str = "STS") -> Path:
    """A source of a year of SemEval's STS, its first ``blank`` pairs without a label."""
    rows = labelled("stsb", count, len(source))
    write_lines(folder / f"{prefix}.input.{source}.txt", [[a, b, "from", "here"] for a, b, _ in rows])
    labels = [[""] if n < blank else [label] for n, (*_, label) in enumerate(rows)]
    return write_lines(folder / f"{prefix}.gs.{source}.txt", labels)


def write_sick(folder: Path, whole: bool) -> Path:
    """SICK's three splits: in one file, or in SemEval's files."""
    head = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set"
    rows = {
        split: [
            [n, a, b, "NEUTRAL", 1 + n % 5, split] for n, (a, b, _) in enumerate(labelled("stsb", 4 + n_split, n_split))
        ]
        for n_split, split in enumerate(("TRAIN", "TRIAL", "TEST"))
    }
    if whole:
        return write_lines(folder / "SICK.txt", [row for own in rows.values() for row in own], head)
    names = {"TRAIN": "SICK_train.txt", "TRIAL": "SICK_trial.txt", "TEST": "SICK_test_annotated.txt"}
    for split, name in names.items():
        write_lines(folder / name, [row[:-1] for row in rows[split]], head.rpartition("\t")[0])
    return folder


def write_lee(folder: Path, count: int = 5) -> list[str]:
    """Documents, one of them with a letter of Latin-1, and the upper half of their similarities."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    documents = [f"{words(rng, 8)} caf\xe9" for _ in range(count)]
    (folder / "lee.cor").write_bytes("\n".join(documents).encode("latin-1") + b"\n")
    table = [[1 if i == j else round(rng.random(), 2) if i < j else 0 for j in range(count)] for i in range(count)]
    write_lines(folder / "similarities0-1.txt", table)
    return documents
