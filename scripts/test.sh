#!/usr/bin/env bash
# Everything that must hold before a change lands: linter, formatter, shell linter, tests.
#
#     bash scripts/test.sh                            all tests, a process for each core (8 at most)
#     bash scripts/test.sh PYTEST ARGUMENT ...        in one process, e.g. bash scripts/test.sh tests/apo -k loss
#
# Installs what it needs first (scripts/setup.sh --test). CPU only.

set -euo pipefail
case "${1:-}" in
    -h | --help) sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
esac
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

bash scripts/setup.sh --test
# shellcheck source=scripts/env.sh
. scripts/env.sh
bin="$(dirname -- "$PYTHON")"

"$bin/ruff" check .
"$bin/ruff" format --check .
if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run
else # unpacked from an archive
    printf '%s\0' ./*.sh scripts/*.sh .ci/run
fi | xargs -0 "$bin/shellcheck" -x
if [[ $# -eq 0 ]]; then
    # By file: what a module sets up once is not set up by every process. One thread each: their threads would wait for
    # each other's cores, at twice the time.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    set -- -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
fi
# Last, so that its summary is the last line.
exec "$PYTHON" -m pytest "$@"
