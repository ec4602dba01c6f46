#!/bin/bash
# Drives the built program as a person would: exit codes, messages, JSON, signals, full and closed pipes.
#   usage: bash tests/cli_test.sh path/to/moe-run        prints a line per failure and a count; exit 1 on failures
set -u
program=$(realpath "$1")
data=$(realpath "$(dirname "$0")/../tools/demo_data")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset MOE_DEVICE MOE_THREADS MOE_CPU
passed=0
failed=0

pass() { passed=$((passed + 1)); }
fail() {
  failed=$((failed + 1))
  echo "FAILED: $1"
  [ -s err ] && sed 's/^/    stderr: /' err | head -5
}

# expect NAME CODE [TEXT] -- COMMAND...   TEXT must stand in stdout or stderr
expect() {
  local name=$1 code=$2 text=
  shift 2
  if [ "$1" != -- ]; then text=$1; shift; fi
  shift
  "$@" >out 2>err
  local got=$?
  if [ $got -ne "$code" ]; then fail "$name: exit $got, expected $code"; return; fi
  if [ -n "$text" ] && ! grep -qF -e "$text" out err; then fail "$name: no '$text' in the output"; return; fi
  pass
}
check() {  # check NAME COMMAND...
  local name=$1
  shift
  if "$@"; then pass; else fail "$name"; fi
}
run() { "$program" "$@"; }
valid_json() {  # every line of the file is one JSON value
  if command -v python3 >/dev/null; then
    python3 -c 'import json, sys; [json.loads(line) for line in open(sys.argv[1])]' "$1"
  else
    ! grep -qv '^[{[].*[]}]$' "$1"
  fi
}

# ---- help and usage
expect "version" 0 "moe-run " -- run version
expect "--version" 0 "moe-run " -- run --version
expect "--help" 0 "Exit codes" -- run --help
expect "no command shows the help" 0 "train" -- run
for command in demo train embed search eval inspect tokenize convert bench doctor; do
  expect "$command --help has examples" 0 "Examples:" -- run "$command" --help
  expect "help $command" 0 "Examples:" -- run help "$command"
done
expect "unknown command" 2 "did you mean 'search'" -- run serch
expect "unknown option" 2 "did you mean '--model'" -- run embed --modle x
expect "unknown option with a value" 2 "did you mean '--input'" -- run embed --inptu=x
expect "missing required option" 2 "--out" -- run embed -m x -i y
expect "number expected" 2 -- run bench --repetitions many
expect "not one of the choices" 2 "document" -- run embed -m x -i y -o z --kind both
expect "help on an unknown command" 2 "no command" -- run help nothing
expect "unknown device" 2 "unknown device" -- run embed -m "$data" -i "$data" -o x --device abacus
expect "bad environment variable" 2 -- env MOE_THREADS=many "$program" doctor

# ---- a tiny model, trained here
train=(run train -m "$data" --scratch 1,32,2,64 -d "$data" -b 32 --query-length 16 --document-length 24 -q)
expect "train --dry-run" 0 "parameters" -- "${train[@]}" -o dry --dry-run
check "a dry run writes no model" test ! -e dry/best
expect "train" 0 "nDCG@10" -- "${train[@]}" -o runs/plain -e 1 --max-steps 6
check "the best model is there" test -s runs/plain/best/model.safetensors
model=runs/plain/best
expect "train an SB-MoE block" 0 -- "${train[@]}" -o runs/moe -e 1 --max-steps 4 --moe trained-gate --experts 3 --json
check "its result is JSON" valid_json out
expect "finished training is not repeated" 0 -- "${train[@]}" -o runs/plain -e 1 --max-steps 6
expect "another configuration is not resumed" 2 "another" -- "${train[@]}" -o runs/plain -e 1 --max-steps 7

# ---- inspect, tokenize, doctor, bench
expect "inspect a model" 0 "pooling" -- run inspect $model
expect "inspect shows the block" 0 "SB-MoE" -- run inspect runs/moe/best --tensors --hash
expect "inspect --json" 0 '"kind":"model"' -- run inspect $model --json
check "inspect --json is JSON" valid_json out
expect "inspect a tensor file" 0 "word_embeddings" -- run inspect $model/model.safetensors
expect "inspect a run" 0 "every hash agrees" -- run inspect runs/plain
expect "inspect nothing" 66 "no such file" -- run inspect nowhere
expect "inspect an unknown kind" 2 "Known endings" -- run inspect "$data/vocab.txt"
expect "tokenize" 0 "[CLS]" -- run tokenize -m $model "the blue whale"
expect "tokenize --info" 0 "WordPiece" -- run tokenize -m $model --info
expect "tokenize --json" 0 '"ids":[' -- run tokenize -m $model --json "the blue whale"
check "tokenize --json is JSON" valid_json out
printf 'one\n\ntwo three\n' >lines
run tokenize -m $model --ids <lines >ids 2>err
check "tokenize gives a line per line" test "$(wc -l <ids)" -eq 3
printf '"one"\n""\n"two three"\n' | run tokenize -m $model --ids --json-input >ids2 2>err
check "JSON strings give the same" cmp -s ids ids2
expect "JSON input that is none" 65 "standard input:2" -- bash -c "printf '\"a\"\nb\n' | '$program' tokenize -m $model --json-input"
expect "doctor" 0 "threads" -- run doctor
expect "doctor --json" 0 '"level"' -- run doctor --json
check "doctor --json is JSON" valid_json out
expect "bench" 0 "GFLOP/s" -- run bench --what gemm --shape 1,32,2,64 --batches 1x8 -r 1
expect "bench --json" 0 '"milliseconds"' -- run bench --what forward --shape 1,32,2,64 --batches 1x8 -r 1 --json
check "bench --json is JSON" valid_json out
expect "bench with a bad shape" 2 "--shape" -- run bench --shape 1,2

# ---- embed, search, eval
expect "embed" 0 -- run embed -m $model -i "$data" -o index --max-length 24 --chunk 100
check "embed: as many ids as documents" test "$(wc -l <index/ids.txt)" -eq "$(wc -l <"$data/corpus.jsonl")"
expect "embed again" 0 "already complete" -- run embed -m $model -i "$data" -o index --max-length 24 --chunk 100
expect "embed over other settings" 2 "--no-resume" -- run embed -m $model -i "$data" -o index --max-length 20
expect "inspect embeddings" 0 "agree" -- run inspect index
expect "inspect an array" 0 "float32" -- run inspect index/embeddings.npy
expect "embed --json" 0 '"model_hash"' -- run embed -m $model -i "$data" -o queries --kind query --max-length 24 --json -q
check "embed --json is JSON" valid_json out
check "--quiet is quiet" test ! -s err
expect "embed standard input" 0 -- bash -c "'$program' embed -m $model -i - -o typed <lines"
check "ids of lines are their numbers" test "$(tr '\n' ' ' <typed/ids.txt)" = "1 2 3 "
expect "search" 0 -- run search --index index --query-embeddings queries -k 10 -o ready.trec
expect "search embeds queries" 0 -- run search --index index -m $model --max-length 24 --queries "$data" -k 10 -o embedded.trec
check "both ways give the same run" cmp -s ready.trec embedded.trec
expect "search in words" 0 "   1  " -- run search --index index -m $model --max-length 24 -d "$data" --text "whales in the sea" -k 3
check "three results" test "$(grep -c '^ \+[1-3]  ' out)" -eq 3
expect "search --json" 0 '"title"' -- run search --index index -m $model --max-length 24 -d "$data" --text "whales" -k 3 --json
check "search --json is JSON" valid_json out
expect "search with another model warns" 0 "warning: the index was made with model weights" -- \
  run search --index index -m runs/moe/best --text "whales" -k 3
expect "search without a source" 2 "search needs" -- run search --index index -m $model
expect "search without an index" 66 "no such folder" -- run search --index nowhere -m $model --text x
expect "eval" 0 "nDCG@10" -- run eval --qrels "$data/qrels/test.tsv" --run ready.trec
expect "eval --json" 0 "nDCG@10" -- run eval --qrels "$data/qrels/test.tsv" --run ready.trec --json
check "eval --json is JSON" valid_json out

# ---- convert
expect "convert a folder" 0 -- run convert --from $model --to half --dtype bf16
expect "the converted folder works" 0 "BF16" -- run inspect half --tensors
expect "convert does not overwrite" 2 "there already" -- run convert --from $model --to half
expect "convert a file" 0 -- run convert --from $model/model.safetensors --to one.safetensors

# ---- bad and missing files
expect "no model folder" 66 "nowhere" -- run embed -m nowhere -i "$data" -o x
expect "no input" 66 "nowhere" -- run embed -m $model -i nowhere.jsonl -o x
expect "no run file" 66 "nowhere" -- run eval --qrels "$data/qrels/test.tsv" --run nowhere.trec
cp -r $model broken
head -c 5000 $model/model.safetensors >broken/model.safetensors
expect "truncated weights" 65 "broken/model.safetensors" -- run embed -m broken -i "$data" -o x
head -c 3 $model/model.safetensors >cut.safetensors
expect "truncated tensor file" 65 "cut.safetensors" -- run inspect cut.safetensors
head -c 300 "$data/corpus.jsonl" >cut.jsonl
expect "truncated corpus names the line" 65 "cut.jsonl:1" -- run embed -m $model -i cut.jsonl -o x
printf 'q1 Q0 d1 1 high tag\n' >bad.trec
expect "bad run file" 65 "bad.trec:1" -- run eval --qrels "$data/qrels/test.tsv" --run bad.trec
head -c 2000 index/embeddings.npy >cut.npy
expect "truncated array" 65 "cut.npy" -- run inspect cut.npy
printf '{"model_type": "llama"}' >llama.json
mkdir llama && mv llama.json llama/config.json
expect "another architecture" 65 "llama" -- run inspect llama

# ---- configuration file
printf '[tokenize]\nids = true\nmodel = "%s"\n' "$work/$model" >options.toml
expect "options from a file" 0 -- run --config options.toml tokenize "the"
check "the file's option acts" bash -c "! grep -q CLS out"
printf '[tokenize]\nidz = true\n' >options.toml
expect "unknown key in a file" 2 -- run --config options.toml tokenize -m $model "the"
expect "no configuration file" 2 -- run --config nowhere.toml tokenize -m $model "the"

# ---- devices
if ! run doctor --json 2>/dev/null | grep -q '"cuda":"none'; then
  echo "skipped: absent device (this machine has one)"
else
  expect "absent device" 69 "not available" -- run embed -m $model -i "$data" -o x --device cuda
  expect "absent device by environment" 69 "not available" -- env MOE_DEVICE=cuda "$program" embed -m $model -i "$data" -o x
fi

# ---- output that cannot be written
if [ -e /dev/full ]; then
  expect "full disk on stdout" 74 -- bash -c "'$program' tokenize -m $model the >/dev/full"
  expect "full disk, much output" 74 -- bash -c "'$program' help train >/dev/full"
  expect "full disk, output in many pieces" 74 -- \
    bash -c "'$program' search --index index --query-embeddings queries --json >/dev/full"
  expect "full disk, help" 74 -- bash -c "'$program' --version >/dev/full"
fi
expect "closed stdout" 74 -- bash -c "'$program' version >&-"
for i in $(seq 20000); do echo "the blue whale eats $i"; done >many
run tokenize -m $model --ids <many 2>err | head -1 >/dev/null
code=${PIPESTATUS[0]}
check "reader that went away: exit $code" test "$code" -eq 74

# ---- signals
wait_for() {  # wait_for FILE LINES PID: until the file has that many lines; false when the process ends first
  for _ in $(seq 3000); do
    [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ] && return 0
    kill -0 "$3" 2>/dev/null || return 1
    sleep 0.02
  done
  return 1
}
long=("${train[@]:1}" -e 3 --max-steps 60)
"$program" "${long[@]}" -o runs/whole >out 2>err
check "a run without interruption" test $? -eq 0
"$program" "${long[@]}" -o runs/stopped >out 2>err &
pid=$!
wait_for runs/stopped/log.jsonl 5 $pid
kill -INT $pid
wait $pid
code=$?
check "Ctrl-C while training: exit $code" test $code -eq 130
check "a checkpoint was saved" bash -c 'ls -d runs/stopped/checkpoint-* >/dev/null 2>&1'
"$program" "${long[@]}" -o runs/stopped >out 2>err &
pid=$!
wait_for runs/stopped/log.jsonl 20 $pid
kill -TERM $pid
wait $pid
code=$?
check "SIGTERM while training: exit $code" test $code -eq 143
"$program" "${long[@]}" -o runs/stopped >out 2>err
check "the run goes on to its end" test $? -eq 0
check "interrupted twice, the weights are the same" cmp -s runs/whole/last/model.safetensors runs/stopped/last/model.safetensors
losses() { grep '"event":"step"' "$1/log.jsonl"; }
check "and so is every logged step" cmp -s <(losses runs/whole) <(losses runs/stopped)

newest=$(ls -d runs/stopped/checkpoint-* | sort -t- -k2 -n | tail -1)
truncate -s 1000 "$newest/model.safetensors"
expect "a damaged checkpoint is named" 0 "$(basename "$newest")" -- run inspect runs/stopped
"$program" "${long[@]}" -o runs/stopped >out 2>err
check "training goes on without a damaged checkpoint" test $? -eq 0
check "and ends with the same weights" cmp -s runs/whole/last/model.safetensors runs/stopped/last/model.safetensors

"$program" embed -m $model -i - -o typed2 </dev/zero >out 2>err &
pid=$!
sleep 0.3
kill -KILL $pid
wait $pid 2>/dev/null
expect "an unfinished folder is no index" 66 -- run search --index typed2 -m $model --text x

# Killed at any moment, an embedding run continues to the same files.
embed=(embed -m $model -i "$data" --max-length 24 -q)
"$program" "${embed[@]}" --chunk 5 -o exact >out 2>err
for moment in 0.05 0.1 0.15 0.2 0.3; do
  "$program" "${embed[@]}" --chunk 5 -o killed >out 2>err &
  pid=$!
  sleep $moment
  kill -KILL $pid 2>/dev/null
  wait $pid 2>/dev/null
done
expect "a killed embedding run continues" 0 -- run "${embed[@]}" --chunk 5 -o killed
for file in embeddings.npy ids.txt manifest.json; do
  check "killed five times: $file is the same" cmp -s exact/$file killed/$file
done
"$program" "${embed[@]}" -o interrupted --chunk 1 >out 2>err &
pid=$!
wait_for interrupted/ids.txt.partial 3 $pid
kill -INT $pid
wait $pid
code=$?
check "Ctrl-C while embedding: exit $code" test $code -eq 130

echo "cli: $passed passed, $failed failed"
[ $failed -eq 0 ]
