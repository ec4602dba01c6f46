#!/usr/bin/env python3
"""Compares the measures of `moe-run eval` with trec_eval and ranx on random rankings.

trec_eval, through pytrec_eval: ties, graded and negative judgements, queries missing from the run, queries
without judgements, queries with nothing relevant. pytrec_eval holds scores in float32, hence --float32; half of
the rankings have scores that differ in double and tie in float32. ranx has no rule for ties, so it gets
rankings without. Every per-query value and every mean must agree to 6 decimals.

A query whose judgements are all negative is left out: trec_eval 9.0 sizes its table of grades by the highest one and
then writes outside of it (form_res_rels.c: memset of max_rel + 1 entries). Ours gives 0 there (metrics_test.cc).

    pip install pytrec_eval-terrier ranx
    tests/golden/metrics_parity.py --command "build/moe-run eval"
"""
import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile

METRICS = ["nDCG", "nDCG@1", "nDCG@3", "nDCG@10", "nDCG@100", "MAP", "MAP@5", "MAP@100", "MRR", "MRR@10",
           "Recall@1", "Recall@10", "Recall@100", "P@1", "P@5", "P@10", "P@100", "Success@1", "Success@5",
           "Success@10"]
CUTOFFS = "1,3,5,10,100"
TREC = {"nDCG": "ndcg", "MAP": "map", "MRR": "recip_rank"}
TREC_AT = {"nDCG": "ndcg_cut", "MAP": "map_cut", "Recall": "recall", "P": "P", "Success": "success"}
RANX = {"nDCG": "ndcg", "MAP": "map", "MRR": "mrr", "Recall": "recall", "P": "precision", "Success": "hit_rate"}
TOLERANCE = 1e-6


def random_case(generator, ties):
    """Judgements and a run over up to 12 queries and 200 documents."""
    documents = generator.sample([f"d{i}" for i in range(100)] + [f"D-{i}_x" for i in range(60)]
                                 + [str(i) for i in range(40)], generator.choice([5, 30, 200]))
    qrels, run = {}, {}
    for i in range(generator.randint(1, 12)):
        query = f"q{i}"
        if generator.random() < 0.95:
            grades = [0, 0, 1] if generator.random() < 0.5 else [-2, -1, 0, 0, 1, 2, 3, 10]
            if generator.random() < 0.05:
                grades = [0, -1]
            judged = generator.sample(documents, generator.randint(1, len(documents)))
            qrels[query] = {document: generator.choice(grades) for document in judged}
            if max(qrels[query].values()) < 0:
                qrels[query][judged[0]] = 0
        if generator.random() < 0.85:
            retrieved = generator.sample(documents, generator.randint(1, len(documents)))
            if ties == "none":
                scores = generator.sample(range(-100000, 100000), len(retrieved))
                scores = [score / 1024 for score in scores]
            elif ties == "float32":
                scores = [generator.choice([0.3, 0.7, 12.5]) + generator.randint(0, 9) * 1e-9 for _ in retrieved]
            else:
                scores = [generator.randint(-3, 8) / 4 for _ in retrieved]
            run[query] = dict(zip(retrieved, scores))
    if not qrels:
        qrels["q0"] = {documents[0]: 1}
    return qrels, run


def split(metric):
    name, _, cutoff = metric.partition("@")
    return name, int(cutoff) if cutoff else 0


def trec_values(pytrec_eval, qrels, run):
    """metric -> query -> value; missing queries get 0, as trec_eval -c does."""
    wanted = {f"{name}.{CUTOFFS}" for name in TREC_AT.values()} | set(TREC.values())
    results = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)

    def value(metric, query):
        if query not in results:
            return 0.0
        name, cutoff = split(metric)
        if name == "MRR" and cutoff:  # trec_eval has no cutoff here: the rank decides
            reciprocal = results[query]["recip_rank"]
            return reciprocal if reciprocal * cutoff >= 1 - 1e-9 else 0.0
        return results[query][f"{TREC_AT[name]}_{cutoff}" if cutoff else TREC[name]]

    return {metric: {query: value(metric, query) for query in qrels} for metric in METRICS}


def ranx_values(ranx, qrels, run):
    """The same from ranx, which wants equal sets of queries and does not know negative grades."""
    names = {metric: RANX[split(metric)[0]] + (f"@{split(metric)[1]}" if "@" in metric else "") for metric in METRICS}
    ranked = ranx.Run({query: run[query] for query in qrels})
    ranx.evaluate(ranx.Qrels(qrels), ranked, list(names.values()))
    return {metric: {query: ranked.scores[name][query] for query in qrels} for metric, name in names.items()}


def ours(command, folder, qrels, run, options):
    qrels_path, run_path = os.path.join(folder, "qrels.txt"), os.path.join(folder, "run.txt")
    with open(qrels_path, "w") as out:
        for query, grades in qrels.items():
            out.writelines(f"{query} 0 {document} {grade}\n" for document, grade in grades.items())
    with open(run_path, "w") as out:
        for query, scores in run.items():  # the rank column is wrong on purpose: it must play no part
            out.writelines(f"{query} Q0 {document} 1 {score!r} parity\n" for document, score in scores.items())
    done = subprocess.run(command + ["--qrels", qrels_path, "--run", run_path, "--metrics", ",".join(METRICS),
                                     "--json", "--per-query"] + options, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(done.args)} failed with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def differences(got, expected, label):
    lines = []
    for metric, by_query in expected.items():
        for query, value in by_query.items():
            if abs(got["per_query"][query][metric] - value) > TOLERANCE:
                lines.append(f"{label} {query} {metric}: {got['per_query'][query][metric]!r}, expected {value!r}")
        mean = sum(by_query.values()) / len(by_query)
        if abs(got["metrics"][metric] - mean) > TOLERANCE:
            lines.append(f"{label} mean {metric}: {got['metrics'][metric]!r}, expected {mean!r}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", required=True, help='what to run, for example "build/moe-run eval"')
    parser.add_argument("--cases", type=int, default=1000, help="random cases against trec_eval (default 1000)")
    parser.add_argument("--ranx-cases", type=int, default=200, help="random cases against ranx (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    command = shlex.split(arguments.command)
    generator = random.Random(arguments.seed)
    wrong, values = [], 0
    import pytrec_eval
    with tempfile.TemporaryDirectory() as folder:
        for case in range(arguments.cases):
            qrels, run = random_case(generator, "float32" if case % 2 else "many")
            got = ours(command, folder, qrels, run, ["--float32"])
            expected = trec_values(pytrec_eval, qrels, run)
            wrong += differences(got, expected, f"trec_eval case {case}")
            counts = {"queries": len(qrels), "missing": len(qrels.keys() - run.keys()),
                      "unjudged": len(run.keys() - qrels.keys()),
                      "without_relevant": sum(max(grades.values()) < 1 for grades in qrels.values())}
            wrong += [f"trec_eval case {case}: {key} {got[key]}, expected {count}" for key, count in counts.items()
                      if got[key] != count]
            values += len(qrels) * len(METRICS)
        print(f"trec_eval: {arguments.cases} cases, {values} per-query values, {len(wrong)} differences", flush=True)
        if arguments.ranx_cases:
            import ranx
            before, values = len(wrong), 0
            for case in range(arguments.ranx_cases):
                qrels, run = random_case(generator, "none")
                qrels = {query: {document: max(grade, 0) for document, grade in grades.items()}
                         for query, grades in qrels.items() if query in run and max(grades.values()) > 0}
                if not qrels:
                    continue
                run = {query: run[query] for query in qrels}
                wrong += differences(ours(command, folder, qrels, run, []), ranx_values(ranx, qrels, run),
                                     f"ranx case {case}")
                values += len(qrels) * len(METRICS)
            print(f"ranx: {arguments.ranx_cases} cases, {values} per-query values, {len(wrong) - before} differences")
    for line in wrong[:40]:
        print(line)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
