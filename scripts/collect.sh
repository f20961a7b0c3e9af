#!/usr/bin/env bash
# Collect: asks several vision-language APIs about every film.   bash scripts/collect.sh CONFIG.yaml [--out STUDIES.jsonl]
#   --dry-run    checks everything, counts and prices it, sends nothing
#   --limit N    only the first N studies
# The same command goes on where an interrupted run stopped. configs/collect_example.yaml explains the config.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -P -m data.collect "$@"
