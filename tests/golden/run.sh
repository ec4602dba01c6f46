#!/usr/bin/env bash
# golden: makes the committed expected values again.   parity MODEL DATA: checks against the Python implementations on
# a real model folder and real data. Uses the Python in PYTHON, or a virtual environment it makes in .venv/.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:?golden or parity} model=${2:-} data=${3:-}

if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv/bin/python
  if [ ! -x "$PYTHON" ]; then
    python3 -m venv .venv
    .venv/bin/pip install -q -r tests/golden/requirements.txt
  fi
fi

case "$mode" in
  golden)
    "$PYTHON" tests/golden/make_bert.py tests/golden/bert_tiny
    "$PYTHON" tests/golden/make_files.py
    "$PYTHON" tests/golden/make_unicode_tables.py
    ;;
  parity)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for shape in "4,312,12,1200,30522,512" "12,768,12,3072,30522,512"; do
      "$PYTHON" tests/golden/make_bert.py "$work/bert" --shape "$shape" --dtype float32 --amplitude 0.04 \
        --rate 1e-5 --batch 17,64,128,5
      MOE_BERT_PARITY="$work/bert" build/moe_tests --gtest_filter='Bert.FullSizeParity'
    done
    "$PYTHON" tests/golden/metrics_parity.py --command "build/moe-run eval"
    if [ -n "$model" ]; then
      "$PYTHON" tests/golden/embedding_parity.py --model "$model" --moe-run build/moe-run ${data:+--data "$data"}
      "$PYTHON" tests/golden/tokenizer_parity.py --model "$model" ${data:+--data "$data"} \
        --command "build/moe-run tokenize --model $model --ids --json-input"
    else
      echo "SKIPPED: embedding and tokenizer parity (give MODEL=folder, and DATA=folder for more texts)"
    fi
    ;;
  *) echo "unknown mode '$mode': golden or parity" >&2; exit 2 ;;
esac
