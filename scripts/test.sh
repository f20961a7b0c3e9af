#!/usr/bin/env bash
# Everything that must hold before a change lands: linter, formatter, shell linter, tests.
#
#     bash scripts/test.sh [PYTEST ARGUMENT ...]      e.g. bash scripts/test.sh tests/apo -k loss
#
# Installs what it needs first (scripts/setup.sh --test). CPU only.

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --test
# shellcheck source=scripts/env.sh
. scripts/env.sh
bin="$(dirname -- "$PYTHON")"

"$bin/ruff" check .
"$bin/ruff" format --check .
git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run | xargs -0 "$bin/shellcheck" -x
# Last, so that its summary is the last line.
exec "$PYTHON" -m pytest "$@"
