#!/usr/bin/env python3
"""BERT forward and training step: moe-run beside PyTorch and ONNX Runtime, alternating in rounds.

Random weights of the same shapes, random ids, no padding; fp32. Each round runs every contender once; a contender's
figure is the median of its rounds. Peers that cannot be imported are named as absent. JSON lines, one a row.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def moe_run(path, what, shape, batch, threads, repetitions):
    env = dict(os.environ)
    out = subprocess.run([path, "bench", "--what", what, "--shape", ",".join(map(str, shape)), "--batches",
                          f"{batch[0]}x{batch[1]}", "-r", str(repetitions), "-t", str(threads), "--json", "-q"],
                         env=env, check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        row = json.loads(line)
        if "milliseconds" in row:
            return row["milliseconds"]
    raise SystemExit("moe-run bench printed no row with milliseconds:\n" + out)


def timed(f, repetitions):
    f()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        f()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def torch_model(shape):
    import torch
    from transformers import BertConfig, BertModel
    layers, hidden, heads, ffn = shape
    config = BertConfig(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=ffn,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    return BertModel(config, add_pooling_layer=False), torch


def torch_forward(shape, batch, threads):
    model, torch = torch_model(shape)
    torch.set_num_threads(threads)
    model.eval()
    ids = torch.randint(1000, 30000, batch)
    def run():
        with torch.inference_mode():
            model(input_ids=ids)
    return run, f"PyTorch {torch.__version__}"


def torch_train(shape, batch, threads):
    model, torch = torch_model(shape)
    torch.set_num_threads(threads)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    q, d = torch.randint(1000, 30000, batch), torch.randint(1000, 30000, batch)
    target = torch.arange(batch[0])
    def run():
        optimizer.zero_grad()
        a = torch.nn.functional.normalize(model(input_ids=q).last_hidden_state.mean(1))
        b = torch.nn.functional.normalize(model(input_ids=d).last_hidden_state.mean(1))
        torch.nn.functional.cross_entropy(a @ b.T / 0.05, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return run, f"PyTorch {torch.__version__}"


def onnx_forward(shape, batch, threads):
    import io
    import onnxruntime
    model, torch = torch_model(shape)
    model.eval()
    model.config._attn_implementation = "eager"
    ids = torch.randint(1000, 30000, batch)
    mask = torch.ones_like(ids)
    buffer = io.BytesIO()
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    torch.onnx.export(Wrapper(model), (ids, mask), buffer, input_names=["ids", "mask"], output_names=["hidden"],
                      dynamic_axes={"ids": {0: "b", 1: "t"}, "mask": {0: "b", 1: "t"}}, opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {"ids": ids.numpy(), "mask": mask.numpy()}
    return lambda: session.run(None, feed), f"ONNX Runtime {onnxruntime.__version__}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--moe-run", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="only MiniLM-L6 shapes")
    args = parser.parse_args()
    l6, base, tiny = (6, 384, 12, 1536), (12, 768, 12, 3072), (2, 128, 2, 512)
    rows = [("forward", "L6", l6, (1, 16)), ("forward", "L6", l6, (1, 128)), ("forward", "L6", l6, (32, 128)),
            ("train", "tiny", tiny, (32, 64)), ("train", "L6", l6, (32, 64))]
    if not args.quick:
        rows += [("forward", "base", base, (1, 16)), ("forward", "base", base, (1, 128)), ("forward", "base", base, (32, 128))]
    out = open(args.json, "w") if args.json else sys.stdout
    for what, name, shape, batch in rows:
        small = batch[0] * batch[1] < 1000
        repetitions = 20 if small else 3
        peers = {}
        makers = [torch_forward, onnx_forward] if what == "forward" else [torch_train]
        for make in makers:
            try:
                run, label = make(shape, batch, args.threads)
                peers[label] = run
            except Exception as error:
                print(f"{make.__name__}: absent ({type(error).__name__}: {str(error)[:100]})", file=sys.stderr)
        ours, theirs = [], {label: [] for label in peers}
        for _ in range(args.rounds):
            ours.append(moe_run(args.moe_run, what, shape, batch, args.threads, repetitions))
            for label, run in peers.items():
                theirs[label].append(timed(run, repetitions))
        mine = statistics.median(ours)
        row = {"what": what, "model": name, "texts": batch[0], "tokens": batch[1], "threads": args.threads,
               "milliseconds": round(mine, 3),
               "peers": {label: {"milliseconds": round(statistics.median(t), 3), "ratio": round(statistics.median(t) / mine, 3)}
                         for label, t in theirs.items()}}
        print(json.dumps(row), file=out, flush=True)
        print(json.dumps(row), file=sys.stderr)


if __name__ == "__main__":
    main()
