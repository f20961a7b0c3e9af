#!/usr/bin/env bash
# Drift: how far the teachers part, from each other, from the consensus and along the reasoning; drift.json, drift.html.
#
#   bash scripts/drift.sh STUDIES.jsonl [--image-root DIR] [--out DIR] [options]
#
#   STUDIES.jsonl      study records with trajectories (data/README.md); their consensus, where they have one, is used
#   --image-root DIR   what image paths are relative to          (default: the folder of the studies)
#   --out DIR          drift.json and drift.html                 (default: runs/drift)
#   --sample N         studies shown on the page                 (default: 40; all are measured)
#   --seed N           of the sample and the permutations        (default: 0)
#   --permutations N   of each test of drift along the reasoning (default: 1000)
#   --workers N        processes                                 (default: one a CPU, at most 8)
#
# The page needs no network. It shows films and texts: keep it where the studies may be kept.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -P -m apo.drift "$@"
