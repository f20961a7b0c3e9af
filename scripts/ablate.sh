#!/usr/bin/env bash
# The ablation matrix on the phantom cohort: rows of configs/ablation/, each the real launchers with overrides.
#
#   bash scripts/ablate.sh [--world W ...] [--seed N ...] [--list] [--smoke] [configs/ablation/*.yaml]
#
#   --world W      worlds of data/phantom/teachers.py, separated by commas or given again   (default: published)
#   --seed N       seeds, likewise; 0-4 is a range                                          (default: 0-4)
#   --out DIR      everything that is made: DIR/WORLD/seed-N      (default: runs/ablation; smoke: runs/ablation-smoke)
#   --ledger FILE  one line for each finished run   (default: docs/results/phantom.jsonl; with --smoke DIR/ledger.jsonl)
#   --train N, --validate N, --test N    films a split (default: 1500, 60, 400)
#   --processes N  processes of a row's own training (default: 2; with 1, another command with other seeds may run beside
#                  it)
#   --shared-processes N   of what rows share, Learn too, whatever --processes is, so that all rows of a seed start alike
#                  (default: 2); keep to those that a seed was begun with
#   --list         what is done and what is left; runs nothing
#   --smoke        a few films and steps, to see that a row runs; its numbers mean nothing
#
# Rows: default all of configs/ablation/. What rows share (cohort, student, Learn, consensus) is made once a world and
# seed. Interrupted, the same command goes on; a run whose world, row, seed and settings are in the ledger is not
# repeated. A row that fails is reported with its log, the others go on, and the exit status is 1 at the end.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
# On a CPU, whatever the machine has: every line of the ledger was made so.
export CUDA_VISIBLE_DEVICES=
exec "$PYTHON" -P -m scripts.ablate "$@"
