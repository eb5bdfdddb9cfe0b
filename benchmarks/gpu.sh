#!/usr/bin/env bash
# Builds for the GPU of this machine, runs the tests that need one, all GPU benchmarks and compute-sanitizer on the tests
# of the ops, in less than nine minutes, and writes ONE file. Runs unattended and needs no network; a stage that fails
# or takes too long stops no other (without a device or a build there is none) but is told by the exit status, and what was
# left out is in the file, with the reason.
#
#   benchmarks/gpu.sh [RESULTS.json]      default: benchmarks/results/<date>_gpu.json
#
# LTH_FAST_DATA   folder of the genuine data sets, as far as they are there; random images of their shape otherwise
# PYTHON          interpreter that has torch (default python3)
# SECONDS_IN_ALL  time for everything (default 525)
set -uo pipefail
cd "$(dirname "$0")/.."

python="$(command -v "${PYTHON:-python3}")" || { echo "${PYTHON:-python3} was not found: PYTHON names an interpreter" >&2; exit 1; }
results="$(realpath -m "${1:-benchmarks/results/$(date +%F)_gpu.json}")"
in_all="${SECONDS_IN_ALL:-525}"
logs="$(mktemp -d)"
mkdir -p "$(dirname "$results")"

# Whatever happens, what there is by then is written.
finish() {
  "$python" benchmarks/gpu/results.py "$logs" "$results"
  rm -rf "$logs"
}
trap finish EXIT
failed=0 stopped="" running="" told=""
interrupt() { [ -z "$running" ] || { told=yes && kill -INT "$running"; }; }
trap 'stopped=yes; interrupt' TERM INT

left_out() { # NAME REASON
  echo "$2" | tee "$logs/$1.log"
  echo "skipped 0" >"$logs/$1.status"
}

# stage NAME SECONDS COMMAND...: its output, exit status and duration are kept; it ends in time for what follows.
stage() {
  local name="$1" most="$2"
  shift 2
  local left=$((in_all - SECONDS))
  if ((left < 15)); then
    left_out "$name" "$name was not run: no time was left"
    return 1
  fi
  ((most < left - 10)) || most=$((left - 10))
  echo "== $name (at most $most s)"
  local began="$SECONDS" status
  # An interrupt, so that pytest writes what it has measured so far. In the background, for bash hears of a signal when
  # its command has ended, or in `wait`; as a job of its own, for others in the background do not hear of interrupts.
  set -m
  timeout --signal=INT --kill-after=10 "$most" "$@" </dev/null >"$logs/$name.log" 2>&1 &
  running="$!"
  set +m
  [ -z "$stopped" ] || [ -n "$told" ] || interrupt # the signal came while the command was being started
  until wait "$running"; status="$?"; ! kill -0 "$running" 2>/dev/null; do :; done
  running=""
  echo "$status $((SECONDS - began))" >"$logs/$name.status"
  tail -n 15 "$logs/$name.log"
  [ -z "$stopped" ] || exit 143
  ((status == 0 || status == 5)) || failed=1 # 5: pytest found nothing to run, for want of a package
  return "$status"
}

# What the machine is, and what it lacks. Fails where nothing could run.
machine() {
  nvidia-smi
  nvcc --version
  "$python" --version
  echo "data: ${LTH_FAST_DATA:-none}"
  ls "${LTH_FAST_DATA:-/nonexistent}" 2>/dev/null
  "$python" - <<'EOF'
import importlib.util, shutil, sys

needed = "torch", "numpy", "safetensors", "tqdm", "pybind11", "setuptools", "pytest", "pytest_benchmark"
useful = {"torchvision": "its benchmarks", "hypothesis": "its tests", "jax": "the twin in JAX"}
missing = [name for name in needed if importlib.util.find_spec(name) is None]
missing += [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
for name, what in useful.items():
    if importlib.util.find_spec(name) is None:
        print(f"not installed: {name}; left out: {what}")
if missing:
    sys.exit(f"not installed, but needed: {', '.join(missing)}")
import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device: every test would be skipped and nothing measured")
EOF
}

# In place, from a folder without the project's pyproject.toml: an old setuptools does not read it, and pip is not needed.
build() {
  local folder="$logs/in_place" repository="$PWD"
  mkdir "$folder"
  ln -s "$repository/lth_fast" "$folder/lth_fast"
  cd "$folder" && LTH_FAST_CUDA=ON "$python" "$repository/setup.py" build_ext --inplace && "$python" -c "import lth_fast"
}
export -f machine build
export python logs
# The tools of a virtual environment that is not activated stand beside its interpreter.
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$(dirname "$python"):$PATH"
export PATH PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# Warnings of the libraries of another machine are no failures there; a file that lacks a test library is passed over.
pytest=("$python" -m pytest -q -p no:cacheprovider -W default --continue-on-collection-errors)

# Tests share the device, benchmarks do not.
side_by_side=()
if "$python" -c "import xdist" 2>/dev/null; then side_by_side=(-n "$((($(nproc) + 1) / 2 < 8 ? ($(nproc) + 1) / 2 : 8))"); fi

stage machine 60 bash -c machine || exit 1
stage build 200 bash -c build || exit 1
stage info 60 "$python" -m lth_fast info
stage tests_of_layers 110 "${pytest[@]}" "${side_by_side[@]}" -m gpu tests/ops tests/nn tests/optim
# Each file by itself: an error of the device ends the process that met it.
declare -A most=([magnitude_threshold]=45 [masked_linear]=60 [lenet_step]=60 [network_step]=70 [twin_in_jax]=45)
for name in magnitude_threshold masked_linear lenet_step network_step twin_in_jax; do
  stage "benchmark_$name" "${most[$name]}" \
    "${pytest[@]}" "benchmarks/gpu/test_$name.py" --benchmark-json="$logs/$name.json"
done
stage tests_of_training 70 "${pytest[@]}" "${side_by_side[@]}" -m gpu tests --ignore=tests/ops --ignore=tests/nn --ignore=tests/optim

# The sanitizer must see every allocation: torch's caching allocator would hide what lies beyond a tensor's end.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck; do
  if ! command -v compute-sanitizer >/dev/null; then
    left_out "$tool" "compute-sanitizer is not installed"
    continue
  fi
  ours=() # torch's kernels take most of the time and are not the question
  if compute-sanitizer --help 2>&1 | grep -q -- --kernel-name; then ours=(--kernel-name kns=lth_fast); fi
  stage "$tool" 100 compute-sanitizer --tool "$tool" --error-exitcode 99 "${ours[@]}" \
    "${pytest[@]}" -m gpu -k "not finite_differences" tests/ops
done
exit "$failed"
