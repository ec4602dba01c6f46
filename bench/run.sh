#!/usr/bin/env bash
# Speed beside peers: SGEMM against OpenBLAS and oneDNN (found at configure time), BERT forward and training step
# against ONNX Runtime and PyTorch (found at run time in the Python given by PYTHON). JSON under bench/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/install_packages.sh bench
cmake -S . -B build -G Ninja -DMOE_BENCH=ON >/dev/null
cmake --build build --target bench_gemm moe-run
export OMP_PROC_BIND=close OMP_PLACES=cores
for threads in 1 2; do
  ./build/bench_gemm --threads "$threads" --json "bench/results/gemm-${threads}t.jsonl"
done
for threads in 1 2; do
  env -u OMP_PROC_BIND -u OMP_PLACES "${PYTHON:-python3}" bench/models.py --moe-run build/moe-run --threads "$threads" \
    --json "bench/results/models-${threads}t.jsonl" || echo "models: skipped (no PyTorch or ONNX Runtime in ${PYTHON:-python3})"
done
