# shellcheck shell=bash
# Sourced by every launcher: `. scripts/env.sh`. Chooses the Python and makes the repository importable from any process,
# ms-swift's torchrun workers included. Sets AD_ROOT, PYTHON and PYTHONPATH; does not change the working directory.

# Here and in every script links are followed: it may be called by one from another folder.
AD_ROOT="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)"

if [[ -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
elif [[ -x "$AD_ROOT/.venv/bin/python" ]]; then
    PYTHON="$AD_ROOT/.venv/bin/python"
else
    PYTHON="$(command -v python3 || true)"
fi

# find_spec looks ms-swift up without importing it (the import alone takes several seconds).
if [[ -z "$PYTHON" ]] || ! "$PYTHON" -c 'import importlib.util as u, sys
sys.exit(u.find_spec("swift") is None or not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
    echo "error: ${PYTHON:-python3} is not Python 3.11 or 3.12 with ms-swift; run: bash scripts/setup.sh" >&2
    # `return` when sourced (the only intended use), `exit` when run by mistake.
    # shellcheck disable=SC2317
    return 2 2>/dev/null || exit 2
fi

export AD_ROOT PYTHON
export PYTHONPATH="$AD_ROOT${PYTHONPATH:+:$PYTHONPATH}"
# Tokenizers' own threads fork badly with dataloader workers.
export TOKENIZERS_PARALLELISM=false
# In a locale without UTF-8 libraries read their own files as ASCII: trl's template of a model card broke the first
# checkpoint. Set even against the user's PYTHONUTF8=0.
export PYTHONUTF8=1
