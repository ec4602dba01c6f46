#!/usr/bin/env python3
"""Writes the README's result tables from the files under bench/results/, between its markers. No number is typed.

    bench/report.py [--demo FILE]     FILE: the output of `make demo`
"""
import argparse
import json
import pathlib

root = pathlib.Path(__file__).resolve().parent.parent
results = root / "bench" / "results"


def rows(name):
    path = results / name
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def retrieval():
    data = rows("retrieval.jsonl")
    if not data:
        return "Not measured yet.\n"
    names = {"bm25": "BM25 (k1 0.9, b 0.4)", "zero-shot": "MiniLM, zero-shot", "plain": "MiniLM, plain fine-tuning",
             "faithful": "MiniLM + SB-MoE faithful", "trained-gate": "MiniLM + SB-MoE trained-gate"}
    sets = sorted({r["set"] for r in data}, key=["nfcorpus", "tldr", "cranfield", "npl"].index)
    lines = ["| row | trained on | " + " | ".join(f"{s} nDCG@10 | R@100" for s in sets) + " |",
             "|---|---|" + "---:|---:|" * len(sets)]
    keys = []
    for r in data:
        if (r["row"], r["trained_on"]) not in keys:
            keys.append((r["row"], r["trained_on"]))
    for key in keys:
        cells = []
        for s in sets:
            hit = [r for r in data if (r["row"], r["trained_on"]) == key and r["set"] == s]
            m = hit[0]["result"]["metrics"] if hit else None
            cells.append(f"{m['nDCG@10']:.4f} | {m['Recall@100']:.4f}" if m else " | ")
        lines.append(f"| {names.get(key[0], key[0])} | {key[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def speed():
    lines = ["| what | shape | threads | ours | peer | ratio (above 1: ours is faster) |", "|---|---|---:|---:|---|---:|"]
    for threads in (1, 2):
        for r in rows(f"models-{threads}t.jsonl"):
            for peer, p in r["peers"].items():
                lines.append(f"| {r['what']}, {r['model']} | {r['texts']} x {r['tokens']} | {threads} | "
                             f"{r['milliseconds']:.1f} ms | {peer}: {p['milliseconds']:.1f} ms | {p['ratio']:.2f} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def gemm():
    out = ""
    for threads in (1, 2):
        data = rows(f"gemm-{threads}t.jsonl")
        groups = {}
        dropped = 0
        for r in data:
            for key, ratio in r.items():
                if key.startswith("over_") and key != "over_ours_plain":
                    # With several threads a row in which somebody lacked a core proves nothing.
                    if threads > 1 and min(r["ours_cpu_share"], r[key[5:] + "_cpu_share"]) < 0.9:
                        dropped += 1
                        continue
                    size = "M >= 128" if r["m"] >= 128 else f"M = {r['m']}"
                    groups.setdefault((r["form"].upper(), size, key[5:]), []).append(ratio)
        if not groups:
            continue
        out += f"\nSGEMM, {threads} thread{'s' if threads > 1 else ''}: ratio of our GFLOP/s to the peer's, over the shapes of a BERT\n\n"
        out += "| form | rows | peer | worst | median | best |\n|---|---|---|---:|---:|---:|\n"
        for (form, size, peer), values in sorted(groups.items()):
            values = sorted(values)
            out += f"| {form} | {size} | {peer} | {values[0]:.2f} | {values[len(values) // 2]:.2f} | {values[-1]:.2f} |\n"
        if dropped:
            out += f"\n({dropped} comparisons left out: another process held a core while they ran.)\n"
    return out


def put(text, name, content):
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = text.split(begin)
    return head + begin + "\n" + content.rstrip() + "\n" + end + rest.split(end)[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo")
    args = parser.parse_args()
    readme = root / "README.md"
    text = readme.read_text()
    machine = (results / "machine.txt").read_text().strip() if (results / "machine.txt").exists() else ""
    text = put(text, "results", f"**Retrieval** ({(results / 'retrieval.txt').read_text().strip() if (results / 'retrieval.txt').exists() else ''})\n\n"
               + retrieval() + f"\n**Speed** ({machine})\n\n" + speed() + gemm())
    if args.demo:
        lines = pathlib.Path(args.demo).read_text().rstrip()
        text = put(text, "demo", "```text\n" + lines + "\n```")
    readme.write_text(text)


if __name__ == "__main__":
    main()
