#!/usr/bin/env python3
"""Expected values of BERT from the public implementation (torch + transformers).

    make_bert.py OUT --shape layers,hidden,heads,ffn,vocab,positions [--dtype float64] [--batch 5,9,1,3]

Writes OUT/{config.json, model.safetensors, expected.safetensors}: a BertForMaskedLM whose weights come from a closed
formula, its hidden states and pooled vectors, every gradient of
    sum(hidden * cotangent) + sum(pooled * pooled_cotangent),
and the losses of ten AdamW steps on a masked-language-model objective. The C++ side is tests/bert_test.cc.
"""
import argparse
import json
import math
import os
import zlib

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel


def formula(name, shape, dtype, amplitude):
    """amplitude * (2 frac(43758.5453 sin(12.9898 i + phase(name))) - 1): a fixed, scattered number for every element.
    (A plain sine would make every matrix of rank 2, and a deep model of such matrices amplifies round-off.)"""
    count = math.prod(shape)
    phase = (zlib.crc32(name.encode()) % 1000) / 100
    i = torch.arange(count, dtype=torch.float64)
    scattered = torch.frac(torch.abs(43758.5453 * torch.sin(12.9898 * i + phase)))
    return (amplitude * (2 * scattered - 1)).reshape(shape).to(dtype)


def fill(model, dtype, amplitude):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                p.copy_(1 + formula(name, p.shape, dtype, 0.1))
            else:
                p.copy_(formula(name, p.shape, dtype, amplitude))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--shape", default="2,24,2,40,50,16")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--batch", default="5,9,1,3")
    parser.add_argument("--amplitude", type=float, default=0.2)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    layers, hidden, heads, ffn, vocab, positions = map(int, args.shape.split(","))
    dtype = getattr(torch, args.dtype)
    config = BertConfig(vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=ffn, max_position_embeddings=positions, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0)
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    encoder = BertModel(config).to(dtype).eval()
    fill(encoder, dtype, args.amplitude)
    lm = BertForMaskedLM(config).to(dtype).eval()
    fill(lm, dtype, args.amplitude)
    lm.bert.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("pooler")}, strict=False)

    lengths = list(map(int, args.batch.split(",")))
    total = sum(lengths)
    ids = (torch.arange(total) * 7 + 3) % vocab
    types = (torch.arange(total) // 2) % 2
    cotangent = formula("cotangent", (total, hidden), dtype, 1.0)
    pooled_cotangent = formula("pooled_cotangent", (len(lengths), hidden), dtype, 1.0)

    expected = {"ids": ids, "types": types, "lengths": torch.tensor(lengths), "cotangent": cotangent,
                "pooled_cotangent": pooled_cotangent}
    hiddens, pooled, loss, start = [], [], 0, 0
    for row, n in enumerate(lengths):  # one text at a time: no padding anywhere
        part = slice(start, start + n)
        out = encoder(input_ids=ids[part][None], token_type_ids=types[part][None])
        hiddens.append(out.last_hidden_state[0])
        pooled.append(out.pooler_output[0])
        loss = loss + (out.last_hidden_state[0] * cotangent[part]).sum() + (out.pooler_output[0] * pooled_cotangent[row]).sum()
        start += n
    loss.backward()
    expected["hidden"] = torch.cat(hiddens).detach().contiguous()
    expected["pooled"] = torch.stack(pooled).detach().contiguous()
    for name, p in encoder.named_parameters():
        expected["grad." + name] = p.grad.detach().contiguous()

    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "config.json"), "w") as f:
        json.dump(json.loads(config.to_json_string(use_diff=False)) | {"model_type": "bert"}, f, indent=1, sort_keys=True)
    # The state dict as a user's file has it: "bert." prefix, pooler and head, the decoder's tied copy.
    state = {"bert." + k: v.clone().contiguous() for k, v in encoder.state_dict().items()}
    state |= {k: v.clone().contiguous() for k, v in lm.state_dict().items() if k.startswith("cls.")}
    save_file(state, os.path.join(args.out, "model.safetensors"), metadata={"format": "pt"})

    # Ten steps: every third token is masked by id 1 and predicted.
    masked = torch.arange(total) % 3 == 1
    inputs = torch.where(masked, torch.ones_like(ids), ids)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=args.rate, weight_decay=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss, start = 0, 0
        for n in lengths:
            part = slice(start, start + n)
            logits = lm(input_ids=inputs[part][None], token_type_ids=types[part][None]).logits[0]
            chosen = masked[part]
            if chosen.any():
                loss = loss + torch.nn.functional.cross_entropy(logits[chosen], ids[part][chosen], reduction="sum")
            start += n
        loss = loss / masked.sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    expected["mlm_inputs"] = inputs
    expected["mlm_masked"] = masked.to(torch.int64)
    expected["mlm_losses"] = torch.tensor(losses, dtype=torch.float64)
    save_file(expected, os.path.join(args.out, "expected.safetensors"))
    print(f"{args.out}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
