#!/usr/bin/env bash
# On a machine with a GPU: builds pfengine, tests it on the device, measures it beside its peers. Under nine minutes.
#   OUT                    where gpu.json, gpu.md and a log of each step go; default build/gpu
#   PFENGINE_GPU_PARTS     what is run, always in this order: build,tests,goals,timeline,kernels,tables,peers,soak;
#                          default all but the soak, which takes two minutes.
#                          gpu.json has the figures of docs/results/gpu.json for what is not run
#   PFENGINE_GPU_COMMIT    what gpu.json says is measured, where the sources are not in a repository
#   PFENGINE_GPU_DOCS=1    gpu.json and gpu.md go to docs/results, too
#   PFENGINE_GPU_DEADLINE  seconds from now on after which nothing more is measured; default 510
#   PFENGINE_GPU_DRY=1     without a GPU: the whole way but the build on a CPU, kernels interpreted, tiny sizes
#   PYTHON                 default python3
# Exit status 0: everything was built, passed, and was measured or ran out of time.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
DRY=${PFENGINE_GPU_DRY:-0}
DEADLINE=${PFENGINE_GPU_DEADLINE:-510}
OUT=${OUT:-build/gpu}
PARTS=${PFENGINE_GPU_PARTS:-build,tests,goals,timeline,kernels,tables,peers}
TEST_SECONDS=$((DEADLINE * 150 / 510)) # for the tests, and for what runs beside them
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rm -f "$OUT"/{install,tests,memcheck,racecheck,warm,measure}.log "$OUT"/{gpu,dry}.{json,md}
PFENGINE_GPU_STARTED=$(date +%s)
export PFENGINE_GPU_STARTED PFENGINE_GPU_DEADLINE=$DEADLINE PFENGINE_GPU_OUT=$OUT
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
failed=()

# Not `python -m pytest`: the root of the repository must not be on sys.path.
PYTEST=$("$PYTHON" -c 'import os, sys; print(os.path.join(os.path.dirname(sys.executable), "pytest"))')
[ -x "$PYTEST" ] || PYTEST=$(command -v pytest) || { echo "there is no pytest beside $PYTHON" >&2; exit 2; }

workers=()
! "$PYTHON" -c 'import xdist' 2>/dev/null || workers=(-n $(($(nproc) < 8 ? $(nproc) : 8)))

if [ "$DRY" = 1 ]; then
    export TRITON_INTERPRET=1
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch sees no GPU on this machine, and bench/gpu.sh measures one; PFENGINE_GPU_DRY=1 tries the way on a CPU" >&2
    exit 2
fi

left() { echo $((PFENGINE_GPU_STARTED + DEADLINE - $(date +%s))); }

# step NAME SECONDS COMMAND...: its output goes to NAME.log; says how long it took and how it ended
step() {
    local name=$1 limit=$2 start=$SECONDS code=0 end=ok
    shift 2
    timeout --signal=INT --kill-after=8 "$limit" "$@" >>"$OUT/$name.log" 2>&1 || code=$?
    case $code in
        0) ;;
        124 | 137) end="stopped after $limit s" ;;
        *) end="exit status $code" ;;
    esac
    printf '%-9s %4d s  %s\n' "$name" $((SECONDS - start)) "$end"
    return $code
}

install() {
    PFENGINE_EXT=$1 step install 100 "$PYTHON" -m pip install -e . --no-deps --no-build-isolation --no-input \
        --disable-pip-version-check
}

tests_on_the_device() {
    local options=(-q -p no:cacheprovider --timeout=100)
    local where=(tests/kernels tests/training/test_recipes.py)
    # that one compiles for other chips, too, and needs no GPU
    options+=(--ignore=tests/kernels/test_report.py)
    [ ! -e tests/test_gpu.py ] || where+=(tests/test_gpu.py)
    [ "$DRY" != 1 ] || where=(tests/kernels/test_layer_norm.py)
    step tests "$TEST_SECONDS" "$PYTEST" "${where[@]}" "${options[@]}" "${workers[@]}"
}

# Triton's kernels under compute-sanitizer, every tensor an allocation of its own; 1 where it found something. Racecheck
# sees shared memory alone; what programs tell each other through atomics is in these tests, too.
SANITIZED="test_survivors or test_query_mean or test_merge or test_imitation or test_attention or test_layer_norm"
sanitized() {
    local tool log=$OUT/$1.log
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1) || true
    if [ -z "$tool" ]; then
        echo "$1          not run: there is no compute-sanitizer"
        return 0
    fi
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$1" "$TEST_SECONDS" "$tool" --tool "$1" \
        "$PYTEST" tests/kernels -k "$SANITIZED" -m 'not slow' -q -p no:cacheprovider -p no:randomly || true
    if grep -Eq 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log" && grep -q ' passed' "$log" && ! grep -q ' failed' "$log"; then
        echo "$1          nothing found"
    elif grep -Eq 'SUMMARY: [1-9]' "$log" && ! grep -q 'not supported' "$log"; then
        grep -E -m 5 'SUMMARY|Invalid|========= Error|hazard' "$log"
        return 1
    else
        echo "$1          does not work here, or had no time: $(grep -Ei -m 1 'not supported|error|skipped' "$log" || echo 'see its log')"
    fi
}

if [ "$DRY" != 1 ] && [[ ,$PARTS, == *,build,* ]]; then
    install cpu || failed+=(build)
fi

# Kernels are compiled by several workers at once, beside the tests, none of which is timed. In the background a
# shell ignores SIGINT, so there only time kills.
PFENGINE_GPU_WARM=$((1 - DRY)) step warm "$TEST_SECONDS" "$PYTEST" bench/gpu/test_gpu.py::test_warm -q -p no:cacheprovider \
    "${workers[@]}" &
warm=$!
if [[ ,$PARTS, == *,tests,* ]]; then
    { sanitized memcheck && sanitized racecheck; } &
    checked=$!
    tests_on_the_device || failed+=(tests)
    wait "$checked" || failed+=(compute-sanitizer)
    grep -E '^(FAILED|ERROR) |^(=+ )?[0-9]+ (passed|failed|error|skipped)' "$OUT/tests.log" | cut -c 1-200 | tail -n 25 || true
fi
wait "$warm" || true # what fails there fails again, and is said then

limit=$(($(left) + 2)) code=0
step measure $((limit > 5 ? limit : 5)) "$PYTEST" bench/gpu/test_gpu.py::test_measure -q -p no:cacheprovider \
    -W ignore::pytest.PytestUnraisableExceptionWarning || code=$?
# called off at the deadline is no failure
if [ "$code" != 0 ] && { [ "$code" != 124 ] || grep -Eq '^(FAILED|ERROR)' "$OUT/measure.log"; }; then
    failed+=(measuring)
fi
if [ "$DRY" != 1 ] && [ ! -e "$OUT/gpu.md" ]; then # it was killed
    PFENGINE_GPU_REPORT=1 PFENGINE_GPU_DOCS=0 step measure 15 "$PYTEST" bench/gpu/test_gpu.py::test_counted -q -p no:cacheprovider || true
fi
grep -E '(>=|<=) [0-9]|^(not measured|dry run|FAILED|ERROR)|^(=+ )?[0-9]+ (passed|failed|error|skipped)' \
    "$OUT/measure.log" | cut -c 1-200 | tail -n 70 || tail -n 5 "$OUT/measure.log"

echo "all of it $(($(date +%s) - PFENGINE_GPU_STARTED)) s; $OUT"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
