#!/usr/bin/env bash
# Scores one checkpoint on studies with known findings: its greedy answers, then presence accuracy by finding beside the
# teachers, the majority class and the consensus that the studies carry.
#
#   bash scripts/evaluate.sh CHECKPOINT STUDIES.jsonl [--image-root DIR] [--out DIR] [options]
#
#   CHECKPOINT         checkpoint-N of a training run (full weights or a LoRA adapter), or a model folder
#   STUDIES.jsonl      study records with `findings` (data/README.md); --studies FILE says the same
#   --image-root DIR   what image paths are relative to      (default: the folder of the studies)
#   --out DIR          predictions.jsonl and results.json    (default: runs/evaluate)
#   --split NAME       which studies are scored               (default: test)
#   --name NAME        the row's name; "learn" and "critique" are known as stages (default: checkpoint)
#   --limit N          only the first N studies of the split
#   --seed N           of the bootstrap                       (default: 0)
#   --uncertain STATE  "possible ..." counts as present or absent (default: present)
#   --base DIR, --max-new-tokens N, --batch-size N, --device cuda|cpu, --overwrite   as in `python -m eval.predict --help`
#
# Interrupted, the same command goes on where it stopped. On a GPU it runs in bfloat16, on a CPU in float32.
set -euo pipefail

usage() {
    sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
}
fail() {
    echo "error: $1" >&2
    exit 2
}

[[ $# -gt 0 ]] || { usage >&2; exit 2; }
checkpoint="" studies="" out="runs/evaluate" name="checkpoint"
predict=() score=() both=()
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --overwrite) predict+=("$1"); shift; continue ;;
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
        --image-root | --base | --max-new-tokens | --batch-size | --device) predict+=("$1" "$2") ;;
        *) fail "unknown flag $1; see bash scripts/evaluate.sh --help" ;;
    esac
    shift 2
done
[[ -n $checkpoint ]] || fail "no checkpoint given; see bash scripts/evaluate.sh --help"
[[ -n $studies ]] || fail "no STUDIES.jsonl given; see bash scripts/evaluate.sh --help"

# shellcheck source=scripts/env.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

"$PYTHON" -P -m eval.predict "$checkpoint" --studies "$studies" --out "$out/predictions.jsonl" "${both[@]}" "${predict[@]}"
"$PYTHON" -P -m eval.phantom --studies "$studies" --predictions "$name=$out/predictions.jsonl" --out "$out/results.json" \
    "${both[@]}" "${score[@]}"
