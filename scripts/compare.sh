#!/usr/bin/env bash
# Compare: adds a consensus to every study.   bash scripts/compare.sh CHECKPOINT STUDIES.jsonl --out FILE [options]
#   --strategy self          the student writes it from film, prompt and all trajectories (default; --processes N: one a GPU)
#   --strategy dawid_skene   by finding, from agreement alone; CHECKPOINT may be "-". --labels FILE: what is known of some
#                            training films turns findings round on which most teachers are wrong
#   --strategy vote          by finding, majority; CHECKPOINT may be "-"
#   --strategy medoid        the trajectory closest to all others, whole; Critique then needs --on_identical drop-negative
#   --strategy oracle        phantom cohort only: the truth, an upper bound and no method
# All options: bash scripts/compare.sh --help
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -P -m apo.compare "$@"
