#!/usr/bin/env bash
# Scores one checkpoint: on benchmarks, or on studies with known findings.
#
#   bash scripts/evaluate.sh CHECKPOINT --benchmark NAME [--benchmark NAME ...] --data-root DIR [--out DIR] [options]
#   bash scripts/evaluate.sh --predictions FILE --benchmark NAME --data-root DIR [--out DIR] [options]
#   bash scripts/evaluate.sh --list-items --benchmark NAME --data-root DIR
#
# Benchmarks (docs/evaluation.md): results.json, table.md, report.html and the answers by item under --out. The second
# form scores existing answers of any model, without a GPU; the third prints the questions.
#
#   --data-root DIR    folder with the benchmark's tables and films; NAME=DIR where several benchmarks have their own
#   --set KEY=VALUE    an option of the benchmark, such as truth=chexpert
#   --out DIR          (default: runs/evaluate)
#   --gpus N           one process a GPU on N GPUs of this machine; --shard i/n does a part on each of several machines
#                      (with --device cpu: N processes on the CPU)
#   --train STUDIES    count the overlap with the training studies; --exclude-overlap leaves it out
#   and all others of `python -m eval.run --help`
#
#   bash scripts/evaluate.sh CHECKPOINT STUDIES.jsonl [--image-root DIR] [--out DIR] [options]
#
# Studies: greedy answers, then presence accuracy by finding beside the teachers, the majority class and the consensus
# that the studies carry.
#
#   CHECKPOINT         checkpoint-N of a training run (full weights or a LoRA adapter), or a model folder
#   STUDIES.jsonl      study records with `findings` (data/README.md); --studies FILE says the same. Studies without
#                      `findings` are left out of the score, counted and said
#   --image-root DIR   what image paths are relative to      (default: the folder of the studies)
#   --out DIR          predictions.jsonl and results.json    (default: runs/evaluate)
#   --split NAME       which studies are scored               (default: test)
#   --name NAME        the row's name; "learn" and "critique" are known as stages (default: checkpoint)
#   --limit N          only the first N studies of the split
#   --seed N           of the bootstrap                       (default: 0)
#   --uncertain STATE  "possible ..." counts as present or absent (default: present)
#   --base DIR, --max-new-tokens N, --batch-size N, --device cuda|cpu, --backend NAME, --processes N, --overwrite, --allow-outside
#                      as in `python -m eval.predict --help`
#
# Interrupted, the same command (without --overwrite) goes on where it stopped. On a GPU it runs in bfloat16, on a CPU in
# float32.
set -euo pipefail

usage() {
    sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
}
fail() {
    echo "error: $1" >&2
    exit 2
}

# shellcheck source=scripts/signals.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/signals.sh"

[[ $# -gt 0 ]] || { usage >&2; exit 2; }
# Refuses a word that is a flag of the other form only.
refuse_of_studies() {
    case ${1%%=*} in
        --processes) fail "--processes: only with STUDIES.jsonl; with --benchmark write --gpus" ;;
        --image-root) fail "--image-root: only with STUDIES.jsonl; with --benchmark write --data-root or --set images=DIR" ;;
        --studies | --split | --uncertain | --allow-outside) fail "${1%%=*}: only with STUDIES.jsonl, without --benchmark" ;;
    esac
}
refuse_of_benchmarks() {
    case ${1%%=*} in
        --gpus) fail "--gpus: only with --benchmark; with STUDIES.jsonl write --processes" ;;
        --data-root) fail "--data-root: only with --benchmark; with STUDIES.jsonl write --image-root" ;;
        --set | --shard | --train | --train-images | --exclude-overlap | --predictions | --no-image-predictions | \
            --skip-no-image | --missing-films | --list-items | --resamples) fail "${1%%=*}: only with --benchmark" ;;
    esac
}
# With --benchmark everything but --gpus goes to eval.run.
on_benchmarks=""
for word in "$@"; do
    case $word in
        --benchmark | --benchmark=*) on_benchmarks=1 ;;
        --overwrite) go_on="run the same command without --overwrite" ;; # which would begin again
    esac
done
if [[ $on_benchmarks ]]; then
    gpus=1 words=()
    while [[ $# -gt 0 ]]; do
        refuse_of_studies "$1"
        case $1 in
            -h | --help) usage; exit 0 ;;
            --gpus) [[ $# -ge 2 ]] || fail "--gpus needs a value"; gpus=$2; shift ;;
            --gpus=*) gpus=${1#*=} ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    [[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus $gpus: must be a whole number from 1"
    # shellcheck source=scripts/env.sh
    . "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
    [[ $gpus -gt 1 ]] || exec "$PYTHON" -P -m eval.run "${words[@]}"
    for word in "${words[@]}"; do
        case $word in
            --shard | --shard=* | --predictions | --predictions=* | --list-items) fail "--gpus and ${word%%=*}: give one" ;;
        esac
    done
    run "$PYTHON" -P -m eval.run "${words[@]}" --check-gpus "$gpus"
    if [[ " ${words[*]}" =~ " --device"[=\ ]"cpu" ]]; then
        devices=()
    else
        IFS=, read -r -a devices <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus - 1)))}"
        [[ ${#devices[@]} -ge $gpus ]] || fail "--gpus $gpus: CUDA_VISIBLE_DEVICES names ${#devices[@]} only"
    fi
    # The process that finishes last joins the answers and scores; one that failed leaves the rest to a second run.
    for ((i = 1; i <= gpus; i++)); do
        CUDA_VISIBLE_DEVICES=${devices[i - 1]:-} begin "$PYTHON" -P -m eval.run "${words[@]}" --shard "$i/$gpus"
    done
    finish
    exit
fi

checkpoint="" studies="" out="runs/evaluate" name="checkpoint"
predict=() score=() both=()
while [[ $# -gt 0 ]]; do
    refuse_of_benchmarks "$1"
    case $1 in
        --overwrite=* | --allow-outside=*) fail "${1%%=*} takes no value" ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case $1 in
        -h | --help) usage; exit 0 ;;
        --overwrite | --allow-outside) predict+=("$1"); shift; continue ;;
        --*) [[ $# -ge 2 ]] || fail "$1 needs a value" ;;
        *)
            if [[ -z $checkpoint ]]; then
                checkpoint=$1
            elif [[ -z $studies ]]; then
                studies=$1
            else
                fail "one checkpoint and one studies file at a time; unexpected: $1"
            fi
            shift
            continue
            ;;
    esac
    case $1 in
        --studies) studies=$2 ;;
        --out) out=$2 ;;
        --name) name=$2 ;;
        --split | --limit) both+=("$1" "$2") ;;
        --seed | --uncertain) score+=("$1" "$2") ;;
        --image-root | --base | --max-new-tokens | --batch-size | --device | --backend | --processes) predict+=("$1" "$2") ;;
        *) fail "unknown flag $1; see bash scripts/evaluate.sh --help" ;;
    esac
    shift 2
done
[[ -n $checkpoint ]] || fail "no checkpoint given; see bash scripts/evaluate.sh --help"
[[ " ${both[*]} " != *" --split all "* ]] || fail "--split all: scores are of one split; give train, validate or test"
[[ -n $studies ]] || fail "no STUDIES.jsonl given; see bash scripts/evaluate.sh --help"
[[ $name && $name != *=* && $name != *$'\n'* ]] || fail "--name ${name//$'\n'/ }: must not hold = or a line break, nor be empty"

# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"

score_with=("$PYTHON" -P -m eval.phantom --studies "$studies" --predictions "$name=$out/predictions.jsonl"
    --out "$out/results.json" "${both[@]}" "${score[@]}")
# What the score would refuse is refused before hours of answers.
run "${score_with[@]}" --check
run "$PYTHON" -P -m eval.predict "$checkpoint" --studies "$studies" --out "$out/predictions.jsonl" "${both[@]}" "${predict[@]}"
run "${score_with[@]}"
