#!/usr/bin/env bash
# The whole method on simulated films, on a laptop: seven drifting teachers in, an evaluated student out.
#
#   bash scripts/quickstart.sh [--out DIR] [--seed N] [--second-round] [--smoke]
#
#   --out DIR        where everything goes (default: runs/quickstart; with --smoke runs/smoke)
#   --seed N         one seed for films, teachers, student and training (default: 0)
#   --second-round   compare and critique once more, the critiqued student as one more voice; also after a run without
#   --smoke          a few films and steps, to see that every stage runs; its numbers mean nothing
#
# 12 to 27 minutes on two CPU cores after installation, about half as many more with a second round. Run it again and
# finished stages are recognised, not repeated, and an interrupted one goes on; with another seed or an edited config, the
# stages that depend on it run anew. The launchers of stages 3 to 5 are those that train a 7B student on GPUs: only the
# config and the paths differ (README.md).
#
# Research use only. The teachers are noise models with a name, not the products.
set -euo pipefail

OUT="" SEED=0 SECOND="" SMOKE=""
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --second-round) SECOND=1; shift ;;
        --smoke) SMOKE=1; shift ;;
        --out | --seed)
            [[ $# -ge 2 ]] || { echo "error: $1 needs a value" >&2; exit 2; }
            if [[ $1 == --out ]]; then OUT=$2; else SEED=$2; fi
            shift 2
            ;;
        *) echo "error: unknown flag $1; see bash scripts/quickstart.sh --help" >&2; exit 2 ;;
    esac
done
[[ $SEED =~ ^[0-9]+$ ]] || { echo "error: --seed $SEED: must be a whole number from 0" >&2; exit 2; }
[[ -z $OUT ]] || OUT=$(realpath -m -- "$OUT") # relative to where the command was typed
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
OUT=${OUT:-$PWD/runs/$([[ $SMOKE ]] && echo smoke || echo quickstart)}

# The environment: an active virtual environment is taken as it is; otherwise .venv, made and filled at the first run.
[[ -n ${VIRTUAL_ENV:-} ]] || bash scripts/setup.sh
# shellcheck source=scripts/env.sh
. scripts/env.sh
# shellcheck source=scripts/signals.sh
. scripts/signals.sh

# Sizes. Films: enough for a student of 1 to 2 million parameters to learn the five findings from seven voices in
# minutes; 400 held-out films put the 95 % interval of a mean accuracy at about +-2 points. Training lengths, learning
# rates and batch sizes stand in the two configs.
FILMS=(--train 1500 --validate 60 --test 400)
STEPS=() HEARD=()
if [[ $SMOKE ]]; then
    FILMS=(--train 48 --validate 8 --test 24)
    STEPS=(--max_steps 4 --logging_steps 1) # the last step is always saved
    HEARD=(--allow-unheard)                 # a student of four steps never ends an answer
fi

# Two training processes, as the 7B student has two GPUs: on two cores that is faster than one process with two threads.
# The batch is the same with one. Each takes half of the cores.
CORES=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # which counts by them, not by the machine
RANKS=$((CORES > 1 ? 2 : 1))
# On a CPU, whatever the machine has: so its numbers are those of the README.
export CUDA_VISIBLE_DEVICES=
export NPROC_PER_NODE=$RANKS OMP_NUM_THREADS=$((CORES > 1 ? CORES / 2 : 1))

STAGES=(cohort student learn compare critique)
[[ -z $SECOND ]] || STAGES+=(compare-again critique-again)
STAGES+=(evaluate report)
# stage NAME [--keep] [--outputs "..."] -- COMMAND ... [--then COMMAND ...]   once, with a log; see scripts/stages.py
stage() {
    run "$PYTHON" scripts/stages.py --out "$OUT" --chain "${STAGES[*]}" --stage "$@"
}
# The newest checkpoint-N of a training stage.
newest() {
    "$PYTHON" -P -m data.checkpoints latest "$OUT/$1"
}

# 1. Simulated chest films with known truth, and what seven simulated teachers say of each: every teacher with its own
#    sensitivity and specificity by finding, wrong sides, style, length and refusals.
stage cohort -- "$PYTHON" -P -m data.phantom --out "$OUT/cohort" --seed "$SEED" "${FILMS[@]}"

# 2. A Qwen2.5-VL of a few layers from random weights, with a small vocabulary learnt from the teachers' training texts.
stage student -- "$PYTHON" -P -m data.phantom.student --out "$OUT/student" --seed "$SEED" \
    --texts "$OUT/cohort/studies.jsonl"

# 3. Learn: supervised fine-tuning on all teachers' trajectories pooled, right and wrong alike. The student comes out
#    about as good as the teachers' average, and drifts as they do.
stage learn --keep -- bash SFT-Qwen2.5.sh configs/sft_phantom.yaml --model "$OUT/student" \
    --dataset "$OUT/cohort/studies.jsonl" --output_dir "$OUT/learn" --seed "$SEED" --data_seed "$SEED" \
    --resume_from_checkpoint last "${STEPS[@]}"
LEARN=$(newest learn)

# 4. Compare: one consensus a film. The paper lets the learnt student read all seven trajectories and write it. A student
#    this small was never taught to read others' texts in its context, so the quickstart takes the label-free strategy:
#    it estimates every teacher's sensitivity and specificity by finding from their agreement alone (Dawid and Skene 1979)
#    and writes the decisions down in one plain form. `--strategy self` is the paper's.
stage compare --keep -- bash scripts/compare.sh "$LEARN" "$OUT/cohort/studies.jsonl" --strategy dawid_skene \
    --out "$OUT/compare/studies.jsonl" --image-root "$OUT/cohort"

# 5. Critique: APO. The consensus is preferred to all of a film's trajectories at once; the learnt student is the frozen
#    reference; its log-probs are kept in OUT/reference and computed once, not once an epoch.
# critique STAGE STUDENT STUDIES REFERENCE
critique() {
    stage "$1" --keep --outputs "$1 $4" -- \
        bash APO-Qwen2.5.sh configs/apo_phantom.yaml --model "$2" \
        --model_kwargs "{\"apo_cache_dir\": \"$OUT/$4\"}" \
        --dataset "$3" --image_root "$OUT/cohort" --output_dir "$OUT/$1" \
        --seed "$SEED" --data_seed "$SEED" --resume_from_checkpoint last "${STEPS[@]}"
}
critique critique "$LEARN" "$OUT/compare/studies.jsonl" reference
CRITIQUE=$(newest critique)
LAST=$CRITIQUE

# How students answer. The wordiest teacher writes up to 140 tokens; an answer that has not ended at 160 is running on, and
# what it says up to there is scored.
ANSWER=(--image-root "$OUT/cohort" --max-new-tokens 160 --batch-size 50)

# 5b. A second round: the critiqued student reads every film, and is heard beside the teachers in a new consensus; then it
#     is critiqued on that, as its own reference. What this gives, over five seeds: docs/evidence.md.
if [[ $SECOND ]]; then
    stage compare-again --keep -- bash scripts/second_round.sh "$CRITIQUE" "$OUT/compare/studies.jsonl" \
        --out "$OUT/compare-again" "${ANSWER[@]}" --processes "$RANKS" "${HEARD[@]}"
    critique critique-again "$CRITIQUE" "$OUT/compare-again/compare/studies.jsonl" reference-again
    LAST=$(newest critique-again)
fi

# 6. Evaluate: the students answer the held-out films, and everyone is scored on the same films: students, teachers,
#    consensus, and the majority class that never looks at a film.
TEST=(--studies "$OUT/compare/studies.jsonl" --split test)
# The benchmarks of real films have siblings on the cohort. They show that the path runs, on 40 items: this student was
# never asked to choose an option or to say yes or no, and its numbers there mean nothing.
BENCHMARKS=(--benchmark phantom-presence --benchmark phantom-progression --benchmark phantom-zeroshot)
ANSWERS=(--predictions "learn=$OUT/evaluate/learn.jsonl" --predictions "critique=$OUT/evaluate/critique.jsonl")
ASK_AGAIN=() AGAIN_CONSENSUS=() AGAIN_LOG=()
if [[ $SECOND ]]; then
    ASK_AGAIN=("$PYTHON" -P -m eval.predict "$LAST" "${TEST[@]}" "${ANSWER[@]}" --out "$OUT/evaluate/again.jsonl" --then)
    ANSWERS+=(--predictions "second round=$OUT/evaluate/again.jsonl")
    AGAIN_CONSENSUS=(--consensus "second round=$OUT/compare-again/compare/studies.jsonl")
    AGAIN_LOG=(--second-log "$OUT/critique-again/logging.jsonl")
fi
stage evaluate --keep --outputs "evaluate results.json" -- \
    "$PYTHON" -P -m eval.predict "$LEARN" "${TEST[@]}" "${ANSWER[@]}" --out "$OUT/evaluate/learn.jsonl" --then \
    "$PYTHON" -P -m eval.predict "$CRITIQUE" "${TEST[@]}" "${ANSWER[@]}" --out "$OUT/evaluate/critique.jsonl" --then \
    "${ASK_AGAIN[@]}" \
    "$PYTHON" -P -m eval.phantom "${TEST[@]}" "${ANSWERS[@]}" "${AGAIN_CONSENSUS[@]}" --seed "$SEED" \
    --out "$OUT/results.json" --table "$OUT/evaluate/table.txt" --then \
    "$PYTHON" -P -m eval.run "$LAST" "${BENCHMARKS[@]}" --data-root "$OUT/cohort" --limit 40 \
    --out "$OUT/evaluate/benchmarks"
"$PYTHON" scripts/stages.py --out "$OUT" --seconds-into "$OUT/results.json"

# 7. Report: one page with the table, the curves and a few films with all that was said of them. Opens anywhere, offline.
stage report --outputs report.html -- \
    "$PYTHON" -P -m eval.report --results "$OUT/results.json" --studies "$OUT/compare/studies.jsonl" \
    --image-root "$OUT/cohort" "${ANSWERS[@]}" "${AGAIN_CONSENSUS[@]}" --learn-log "$OUT/learn/logging.jsonl" \
    --critique-log "$OUT/critique/logging.jsonl" "${AGAIN_LOG[@]}" --out "$OUT/report.html"
"$PYTHON" scripts/stages.py --out "$OUT" --seconds-into "$OUT/results.json"

echo
cat "$OUT/evaluate/table.txt"
[[ -z $SMOKE ]] || echo "Smoke run: a few steps on a few films. These numbers mean nothing."
echo
echo "results: $OUT/results.json"
echo "report:  $OUT/report.html"
