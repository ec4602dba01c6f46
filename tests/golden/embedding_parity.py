#!/usr/bin/env python3
"""Embeddings of a real model folder against sentence-transformers, in fp32: largest absolute difference over 300 varied
texts (short, long, other scripts, odd characters). Fails above 2e-5."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy


def texts(data):
    made = ["", " ", "a", "What is Deep Learning?", "naïve café ÀÉÎ", "日本語のテキスト", "Привет, мир! Как дела?",
            "emoji 😀 and 👩‍👩‍👧", "tabs\tand  double  spaces", "word " * 400, "x" * 150, "[CLS] inside [MASK] text [SEP]",
            "1,234.5 + 6e-7 = ?", "ﬁne ligature", "עברית עם ניקוד שָׁלוֹם", "हिन्दी में लिखा", "한국어 문장"]
    real = []
    for name in ("nfcorpus", "tldr", "medquad"):
        path = pathlib.Path(data or "/nonexistent") / name / "corpus.jsonl"
        if path.exists():
            with open(path, encoding="utf-8") as f:
                real += [json.loads(line)["text"] for i, line in enumerate(f) if i % 37 == 0][:95]
    topics = ["glaciers", "interest rates", "photosynthesis", "the fall of Rome", "jet engines", "sourdough bread"]
    while len(made) + len(real) < 300:
        i = len(made)
        made.append(f"Passage {i} about {topics[i % 6]}, " + "which goes on " * (i % 40) + f"and ends with {i * 37 % 101}.")
    return (made + real)[:300]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--moe-run", required=True)
    parser.add_argument("--data")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    rows = texts(args.data)
    expected = SentenceTransformer(args.model, device="cpu").encode(rows, batch_size=16, convert_to_numpy=True)
    with tempfile.TemporaryDirectory() as work:
        corpus = os.path.join(work, "corpus.jsonl")
        with open(corpus, "w", encoding="utf-8") as f:
            for i, text in enumerate(rows):
                f.write(json.dumps({"_id": str(i), "text": text}) + "\n")
        subprocess.run([args.moe_run, "embed", "-q", "-m", args.model, "-i", corpus, "--out", os.path.join(work, "out")],
                       check=True)
        ours = numpy.load(os.path.join(work, "out", "embeddings.npy"))
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    gap = numpy.abs(ours - expected).max(axis=1)
    print(f"{len(rows)} texts, largest difference {gap.max():.2e} (text {gap.argmax()}), mean {gap.mean():.2e}")
    sys.exit(0 if gap.max() <= 2e-5 else 1)


if __name__ == "__main__":
    main()
