#!/usr/bin/env bash
# Compare again, after Critique: the critiqued student reads every film and speaks beside the teachers in a new consensus.
# Makes the study file of a second Critique.
#
#   bash scripts/second_round.sh CHECKPOINT STUDIES.jsonl --out DIR [options]
#
#   CHECKPOINT         of Critique (full weights or a LoRA adapter)
#   STUDIES.jsonl      the study file that it was critiqued on
#   --out DIR          DIR/compare/studies.jsonl is what Critique reads; the student's answers stay in DIR/voice
#   --strategy NAME    of scripts/compare.sh                       (default: dawid_skene)
#   --labels FILE      of scripts/compare.sh, for dawid_skene; with it --label-limit N
#   --image-root DIR   what image paths are relative to            (default: the folder of the studies)
#   --name NAME        of the student among the teachers           (default: student)
#   --processes N      answers side by side, one process a GPU     (default: 1)
#   --backend NAME     transformers or vllm                        (default: transformers)
#   --allow-unheard    go on, though no answer of the student can be heard and the consensus is the first again
#   --overwrite        ask the student again, even if there are answers of other settings
#   --base DIR, --max-new-tokens N, --batch-size N, --device cuda|cpu, --allow-outside   for answers and consensus
#
# The student's own answers are no negatives of the second Critique: they are taken out again after they were heard. An
# interrupted run goes on with the same command, which also notices studies and labels that have changed since. Why and
# how much it gives: docs/evidence.md.
set -euo pipefail
case " $* " in
    *" -h "* | *" --help "*) sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
esac
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -P -m scripts.second_round "$@"
