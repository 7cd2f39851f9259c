"""The texts of the measured embedding models: sentences, each a document, from packages of Debian and files of known layouts.

    python -m tests.parts.sentences english DATA en.txt --wordnet /usr/share/wordnet
    python -m tests.parts.sentences five DATA texts/ --debian / --messages .cache/demo-multilingual/text

DATA has eval/{RTE,XNLI,SQuAD2,XQuAD} in their publishers' files and corpora/books/*.txt.xz of Project Gutenberg. Neither the
sentences nor the translations that the models are scored on are read. ``five`` writes a file for each language, in which texts
begin with "query: ".
"""

import argparse
import csv
import gzip
import json
import lzma
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

BOOK_SENTENCES = 220_000  # of the English set; of each of the five languages at most MOST texts of any kind
MOST = 60_000
END = re.compile(r"(?<=[.!?])[\"”’']?\s+(?=[\"“‘']?[A-ZÄÖÜÁÉÍÓÚÑ¿¡])|(?<=[。！？])[”」]?")
WORDS = {"en": {"the", "and", "of", "to"}, "de": {"der", "die", "und", "nicht"}, "es": {"de", "que", "y", "los"}}
# By language: GNOME's and LibreOffice's folders, Debian reference's file, the demo's catalogues.
FIVE = {
    "en": ("C", "en-US", "en", ("en",)),
    "de": ("de", "de", "de", ("de",)),
    "es": ("es", "es", "es", ("es", "es_MX", "es_AR")),
    "zh": ("zh_CN", "zh-CN", "zh-cn", ("zh_Hans",)),
    "sw": ("sw", "sw", "sw", ("sw",)),
}


def cut(text: str) -> list[str]:
    """The sentences of a paragraph."""
    return [part for part in END.split(re.sub(r"\s+", " ", text).strip()) if part]


def wordnet(folder: Path) -> Iterator[str]:
    """Glosses and their examples."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text().splitlines():
            if not line.startswith("  ") and "|" in line:
                yield from (part.strip().strip('"') for part in line.split("|", 1)[1].split(";"))


def table(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def rte(folder: Path) -> Iterator[str]:
    for row in (row for side in ("train", "dev") for row in table(folder / f"{side}.tsv")):
        yield from (sentence for text in (row["sentence1"], row["sentence2"]) for sentence in cut(text))


def xnli(path: Path) -> Iterator[str]:
    for row in table(path):
        yield from (text for column, text in row.items() if column != "label" and text)


def squad(path: Path) -> Iterator[str]:
    """Sentences of the paragraphs, and the questions."""
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            yield from cut(paragraph["context"])
            yield from (question["question"] for question in paragraph["qas"])


def books(folder: Path, language: str) -> Iterator[str]:
    """Sentences of the books in which a language's commonest words are common."""
    for path in sorted(folder.glob("*.xz")) if language in WORDS else ():
        with lzma.open(path, "rt", encoding="utf-8-sig") as file:
            text = file.read()
        inner = re.search(r"\*\*\* ?START OF.*?\*\*\*(.*)\*\*\* ?END OF", text, re.S)
        text = inner[1] if inner else text
        words = re.findall(r"\w+", text[20_000:60_000].lower())
        if sum(word in WORDS[language] for word in words) >= 0.08 * len(words) > 0:
            for paragraph in re.split(r"\r?\n\s*\r?\n", text):
                yield from (each for each in cut(paragraph.replace("_", "")) if len(each) >= 20)


class Paragraphs(HTMLParser):
    """``found``: the text of each element of a page that holds a sentence, a cell or a heading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, _: object) -> None:
        if tag in ("p", "td", "li", "h1", "h2", "h3"):
            self.found.append("")

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1] += data


def pages(folder: Path) -> Iterator[str]:
    """LibreOffice's help, in HTML, without what each page says of itself."""
    for path in sorted(folder.rglob("*.html")):
        parser = Paragraphs()
        parser.feed(path.read_text(encoding="utf-8"))
        shown = (
            text for text in parser.found if not text.lstrip().startswith(("This page is", "Title is", "Help content"))
        )
        yield from (sentence for text in shown for sentence in cut(text))


def mallard(folder: Path) -> Iterator[str]:
    """GNOME's help."""
    for path in sorted(folder.rglob("*.page")):
        for element in ElementTree.parse(path).iter():
            if element.tag.rpartition("}")[2] in ("p", "title"):
                yield from cut("".join(element.itertext()))


def reference(path: Path) -> Iterator[str]:
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (sentence for paragraph in file.read().split("\n\n") for sentence in cut(paragraph))


def messages(folder: Path, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        with lzma.open(folder / f"{name}.txt.xz", "rt", encoding="utf-8") as file:
            yield from file


def kept(texts: Iterable[str], least: int, most: int) -> list[str]:
    """Each text once, in one line, of ``least`` to ``most`` characters."""
    lines = (re.sub(r"\s+", " ", text).strip() for text in texts)
    return list(dict.fromkeys(line for line in lines if least <= len(line) <= most))


def english(data: Path, out: Path, of_wordnet: Path) -> None:
    evaluated = data / "eval"
    others = [*wordnet(of_wordnet), *rte(evaluated / "RTE"), *xnli(evaluated / "XNLI" / "dev-en.tsv")]
    others += [*squad(evaluated / "SQuAD2" / "train-v2.0.json"), *squad(evaluated / "XQuAD" / "xquad.en.json")]
    of_books = kept(books(data / "corpora" / "books", "en"), 20, 300)
    random.Random(1).shuffle(of_books)
    texts = kept([*others, *of_books[:BOOK_SENTENCES]], 12, 400)
    random.Random(2).shuffle(texts)
    write(texts, out)


def five(data: Path, out: Path, debian: Path, catalogues: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for language, (gnome, office, debians, names) in FIVE.items():
        share = debian / "usr" / "share"
        found = [*messages(catalogues, names), *mallard(share / "help" / gnome)]
        found += [*pages(share / "libreoffice" / "help" / office / "text")]
        found += [*reference(share / "debian-reference" / f"debian-reference.{debians}.txt.gz")]
        found += [*xnli(data / "eval" / "XNLI" / f"dev-{language}.tsv")]
        if (path := data / "eval" / "XQuAD" / f"xquad.{language}.json").exists():
            found += squad(path)
        found += books(data / "corpora" / "books", language)
        if language == "zh":
            texts = [text for text in kept(found, 4, 150) if re.search("[一-鿿]", text)]
        else:
            texts = kept(found, 12, 400)
        random.Random(1).shuffle(texts)
        write([f"query: {text}" for text in texts[:MOST]], out / f"{language}.txt")


def write(texts: list[str], path: Path) -> None:
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print(f"{path}: {len(texts):,} texts, {sum(map(len, texts)) / 1e6:.1f} M characters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, options in (("english", ["--wordnet"]), ("five", ["--debian", "--messages"])):
        verb = verbs.add_parser(name)
        for argument in ("data", "out", *options):
            verb.add_argument(argument, type=Path, **({"required": True} if argument[0] == "-" else {}))
    given = parser.parse_args()
    if given.verb == "english":
        english(given.data, given.out, given.wordnet)
    else:
        five(given.data, given.out, given.debian, given.messages)


if __name__ == "__main__":
    main()
