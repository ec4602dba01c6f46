#!/usr/bin/env python3
"""Compares a BERT tokenizer command with the Rust `tokenizers` package, id by id.

The command reads one JSON string a line and prints the ids of each, blank-separated, with [CLS] and
[SEP]. The exit status is 1 when anything differs.

  python tokenizer_parity.py --model DIR --data DATA --command "moe-run tokenize --model DIR --ids"

DIR holds tokenizer.json. DATA is a folder of collections; those that are not there are reported and
left out.
"""

import argparse
import json
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

BATCH = 20000


def code_points():
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000:
            yield chr(c)
            yield f"a{chr(c)}b"


def collections(data):
    for name in ("nfcorpus", "tldr", "medquad"):
        for file in ("corpus.jsonl", "queries.jsonl"):
            path = data / name / file
            if not path.exists():
                print("left out, not there:", path)
                continue
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    yield " ".join(x for x in (row.get("title", ""), row["text"]) if x)
    plain = [
        data / "cranfield/cran.all.1400",
        data / "cranfield/cran.qry",
        data / "npl/doc-text",
        data / "npl/query-text",
    ]
    plain += sorted(
        p for p in data.glob("tasks/**/*") if p.suffix in (".txt", ".tsv", ".csv", ".json")
    )
    plain += sorted(data.glob("tldr/commands/*.tsv"))
    for path in plain:
        if not path.exists():
            print("left out, not there:", path)
            continue
        yield from path.read_text(encoding="utf-8", errors="replace").split("\n")


def random_texts(count, vocabulary):
    rng = random.Random(20240607)
    blocks = [
        (0x20, 0x7E),
        (0, 0x2FF),
        (0x300, 0x36F),
        (0x370, 0x5FF),
        (0x600, 0x8FF),
        (0x900, 0xDFF),
        (0xE00, 0x10FF),
        (0x1100, 0x11FF),
        (0x1680, 0x1FFF),
        (0x2000, 0x206F),
        (0x2070, 0x2BFF),
        (0x3000, 0x30FF),
        (0x3400, 0x9FFF),
        (0xA640, 0xABFF),
        (0xAC00, 0xD7A3),
        (0xE000, 0xFFFF),
        (0x10000, 0x11FFF),
        (0x16E40, 0x1D1FF),
        (0x1E000, 0x1FAFF),
        (0x20000, 0x2FA1F),
        (0xE0000, 0x10FFFF),
    ]
    # Marks of many combining classes, nonspacing and not, old and new: for canonical ordering.
    marks = [
        0x300,
        0x301,
        0x316,
        0x323,
        0x327,
        0x334,
        0x345,
        0x5B0,
        0x64B,
        0x93C,
        0x94D,
        0xE38,
        0xF71,
        0x1039,
        0x302A,
        0x302E,
        0x302F,
        0x3099,
        0x8D4,
        0x1DF6,
        0x1E8D0,
        0x1E944,
        0x1D165,
        0x1D16D,
        0x1D172,
        0x11070,
        0x1ABF,
        0x1734,
        0x1B44,
        0xA953,
        0xA9C0,
        0x16FF0,
        0x1B,
        0x200D,
    ]
    specials = [
        "[MASK]",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
        "[mask]",
        "[MASK",
        "MASK]",
        "[[MASK]]",
        "[unused1]",
        "\u200d",
        "\ufe0f",
        "\u00ad",
        "\ufeff",
        "\u1e9e",
        "\u0130",
        "\u03a3",
        "\ufb01",
        "\U0001f469\u200d\U0001f4bb",
    ]
    spaces = [
        " ",
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\u0085",
        "\x0b",
        "",
    ]
    for i in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.35:
                word = rng.choice(vocabulary).removeprefix("##")
                word = (
                    word.upper()
                    if rng.random() < 0.2
                    else word.title() if rng.random() < 0.2 else word
                )
                parts.append(word)
            elif kind < 0.65:
                low, high = rng.choice(blocks)
                run = (rng.randint(low, high) for _ in range(rng.randint(1, 8)))
                parts.append("".join(chr(c) for c in run if not 0xD800 <= c < 0xE000))
            elif kind < 0.75:
                base = rng.choice(
                    [
                        "e",
                        "A",
                        "o",
                        "\u1100",
                        "\u0915",
                        "\u05d0",
                        "\uac00",
                        "\u00c5",
                        "",
                        "\U0001d158",
                    ]
                )
                parts.append(
                    base + "".join(chr(rng.choice(marks)) for _ in range(rng.randint(1, 6)))
                )
            elif kind < 0.85:
                parts.append(rng.choice(specials))
            elif kind < 0.88:
                parts.append(
                    rng.choice(["a", "ab", "\u00e9", "\u0431", "\uac00"]) * rng.randint(30, 130)
                )
            else:
                parts.append(
                    "".join(
                        rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789")
                        for _ in range(rng.randint(1, 5))
                    )
                )
            parts.append(rng.choice(spaces))
        yield "".join(parts)


def goldens(model):
    texts, ids = model / "golden/wordpiece.inp", model / "golden/wordpiece.out"
    if not texts.exists():
        print("left out, not there:", texts)
        return [], []
    parts = texts.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = ids.read_text().split("\n")
    return parts[:46], [[int(x) for x in line.split()] for line in lines[:46]]


class Comparison:
    def __init__(self, command, oracle):
        self.command, self.oracle, self.failed = command, oracle, False

    def ours(self, texts):
        with tempfile.TemporaryFile("w+") as file:
            file.writelines(json.dumps(text) + "\n" for text in texts)
            file.seek(0)
            done = subprocess.run(
                self.command, stdin=file, stdout=subprocess.PIPE, text=True, check=True
            )
        lines = done.stdout.split("\n")[:-1]
        if len(lines) != len(texts):
            sys.exit(f"the command printed {len(lines)} lines for {len(texts)} texts")
        return [[int(x) for x in line.split()] for line in lines]

    def check(self, name, texts):
        rows = differences = 0
        batch = []

        def flush():
            nonlocal rows, differences
            ours = self.ours(batch)
            for text, mine, right in zip(batch, ours, self.oracle.encode_batch(batch)):
                rows += 1
                if mine != right.ids:
                    differences += 1
                    if differences <= 5:
                        print(f"  {text!r}\n    ours      {mine}\n    reference {right.ids}")
            batch.clear()

        for text in texts:
            batch.append(text)
            if len(batch) == BATCH:
                flush()
        if batch:
            flush()
        self.report(name, rows, differences)

    def report(self, name, rows, differences):
        self.failed |= differences > 0
        print(f"{name}: {rows} texts, {differences} differences", flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=pathlib.Path, required=True)
    arguments.add_argument("--data", type=pathlib.Path)
    arguments.add_argument("--command", required=True)
    arguments.add_argument("--random", type=int, default=100_000, help="number of random texts")
    options = arguments.parse_args()
    oracle = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    oracle.no_truncation()
    oracle.no_padding()
    comparison = Comparison(shlex.split(options.command), oracle)

    texts, wanted = goldens(options.model)
    got = comparison.ours(texts) if texts else []
    comparison.report("goldens", len(texts), sum(g[1:-1] != w for g, w in zip(got, wanted)))
    vocabulary = sorted(oracle.get_vocab(), key=oracle.get_vocab().get)
    comparison.check("random", random_texts(options.random, vocabulary))
    comparison.check("code points", code_points())
    if options.data:
        comparison.check("collections", collections(options.data))
    sys.exit(comparison.failed)


if __name__ == "__main__":
    main()
