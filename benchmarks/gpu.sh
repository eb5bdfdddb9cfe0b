#!/usr/bin/env bash
# Builds for the GPU of this machine, runs the tests that need one, all GPU benchmarks and compute-sanitizer on the tests
# of the ops, in less than nine minutes, and writes ONE file. Runs unattended and needs no network; a stage that fails
# does not stop the next one.
#
#   benchmarks/gpu.sh [RESULTS.json]      default: benchmarks/results/<date>_gpu.json
#
# LTH_FAST_DATA   folder of the genuine data sets, as far as they are there; random images of their shape otherwise
# PYTHON          interpreter that has torch (default python3)
# SECONDS_IN_ALL  time for everything (default 530)
set -uo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
results="$(realpath -m "${1:-benchmarks/results/$(date +%F)_gpu.json}")"
in_all="${SECONDS_IN_ALL:-530}"
logs="$(mktemp -d)"
mkdir -p "$(dirname "$results")"

# Whatever happens, what there is by then is written.
finish() {
  "$python" benchmarks/gpu/results.py "$logs" "$results"
  rm -rf "$logs"
}
trap finish EXIT
trap 'exit 143' TERM INT

# stage NAME SECONDS COMMAND...: its output, exit status and duration are kept; it ends in time for what follows.
stage() {
  local name="$1" most="$2"
  shift 2
  local left=$((in_all - SECONDS))
  if ((left < 5)); then
    echo "not run: no time was left" >"$logs/$name.log"
    echo "skipped 0" >"$logs/$name.status"
    return 1
  fi
  ((most < left)) || most="$left"
  echo "== $name (at most $most s)"
  local began="$SECONDS"
  timeout --kill-after=5 "$most" "$@" >"$logs/$name.log" 2>&1
  local status="$?"
  echo "$status $((SECONDS - began))" >"$logs/$name.status"
  tail -n 15 "$logs/$name.log"
  return "$status"
}

build() {
  export LTH_FAST_CUDA=ON
  # Where pip cannot (an old setuptools, a folder that may not be written to), build in place.
  "$python" -m pip install --no-build-isolation --no-deps -e . ||
    { "$python" setup.py build_ext --inplace && "$python" -c "import lth_fast"; }
}
export -f build
export python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Warnings of the libraries of another machine are no failures there; a file that lacks a test library is passed over.
pytest=("$python" -m pytest -q -p no:cacheprovider -W default --continue-on-collection-errors)

stage device 30 bash -c 'nvidia-smi; nvcc --version; "$python" --version; echo "data: ${LTH_FAST_DATA:-none}"; ls "${LTH_FAST_DATA:-/nonexistent}"'
stage build 200 bash -c build || exit 1
stage info 60 "$python" -m lth_fast info
stage benchmarks 170 "${pytest[@]}" benchmarks/gpu --benchmark-json="$logs/benchmarks.json"
stage tests 130 "${pytest[@]}" -m gpu tests

# The sanitizer must see every allocation: torch's caching allocator would hide what lies beyond a tensor's end.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck; do
  if command -v compute-sanitizer >/dev/null; then
    stage "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 99 --target-processes all \
      "${pytest[@]}" -m gpu tests/ops
  else
    echo "compute-sanitizer is not installed" >"$logs/$tool.log"
    echo "skipped 0" >"$logs/$tool.status"
  fi
done
exit 0
