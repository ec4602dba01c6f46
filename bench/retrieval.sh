#!/usr/bin/env bash
# Retrieval results: fine-tunes one encoder plain and with SB-MoE, evaluates in-domain and zero-shot.
#   bench/retrieval.sh MOE_RUN MODEL DATA OUT "nfcorpus tldr" [extra train options]
# DOCUMENT_LENGTH (128) caps documents; ZERO_SHOT_FROM names the one set whose models also run zero-shot (all).
# Every row lands as one JSON object in OUT/rows.jsonl; finished rows are kept, so the script resumes.
set -euo pipefail
run=$1 model=$2 data=$3 out=$4 sets=$5
shift 5
mkdir -p "$out"
metrics=nDCG@10,MRR@10,Recall@100,MAP@100

# row NAME TRAINED_ON EVALUATED_ON JSON
row() {
  printf '{"row": "%s", "trained_on": "%s", "set": "%s", "result": %s}\n' "$1" "$2" "$3" "$4" >> "$out/rows.jsonl"
}
have() { grep -qs "\"row\": \"$1\", \"trained_on\": \"$2\", \"set\": \"$3\"" "$out/rows.jsonl"; }

evaluate() {  # NAME TRAINED_ON SET MODEL_FOLDER
  have "$1" "$2" "$3" && return 0
  row "$1" "$2" "$3" "$("$run" eval -q --json -m "$4" -d "$data/$3" --split test --metrics $metrics \
    --document-length ${DOCUMENT_LENGTH:-128} --save-run "$out/$1-$2-$3.trec")"
}

options() {
  case "$1" in
    plain) ;;
    faithful) echo "--moe faithful --experts 6 --moe-lr 1e-4" ;;
    trained-gate) echo "--moe trained-gate --experts 6 --moe-k 2 --lambda 0.2 --learn-lambda --moe-lr 1e-4" ;;
  esac
}

for set in $sets; do
  have bm25 - "$set" || row bm25 - "$set" "$("$run" eval -q --json --bm25 on -d "$data/$set" --metrics $metrics \
    --save-run "$out/bm25---$set.trec")"
  evaluate zero-shot - "$set" "$model"
  for variant in ${VARIANTS:-plain faithful trained-gate}; do
    # shellcheck disable=SC2046
    [ -d "$out/$set-$variant/last" ] ||
      "$run" train -m "$model" -d "$data/$set" -o "$out/$set-$variant" --document-length ${DOCUMENT_LENGTH:-128} --lr 2e-5 \
        --false-negatives mask $(options $variant) "$@"
    evaluate "$variant" "$set" "$set" "$out/$set-$variant/best"
    [ -n "${ZERO_SHOT_FROM:-}" ] && [ "$ZERO_SHOT_FROM" != "$set" ] && continue
    for other in cranfield npl; do evaluate "$variant" "$set" "$other" "$out/$set-$variant/best"; done
  done
done
for other in cranfield npl; do
  have bm25 - "$other" || row bm25 - "$other" "$("$run" eval -q --json --bm25 on -d "$data/$other" --metrics $metrics)"
  evaluate zero-shot - "$other" "$model"
done
