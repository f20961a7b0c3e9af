#!/usr/bin/env bash
# Makes the environment of RadEval, for clinical report metrics (CheXbert, RadGraph, RadCliQ, GREEN). Its packages cannot
# live beside the training stack, so it gets a folder of its own; texts go there and numbers come back by files.
#
#     bash scripts/radeval.sh            installs requirements-radeval.txt into .venv-radeval: about 7 GB, some minutes
#     bash scripts/radeval.sh --again    removes that folder first
#
# RADEVAL_VENV=DIR names another folder, here and when scoring. Then: bash scripts/evaluate.sh CHECKPOINT --benchmark
# mimic-report-findings --data-root DIR --set clinical=chexbert,radgraph. Each metric downloads its weights at the first
# use from the Hugging Face Hub (GREEN: 14 GB, Llama 2 licence). Run again, it returns at once. Needs Python 3.11 or 3.12.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

again=
for flag in "$@"; do
    case "$flag" in
        --again) again=1 ;;
        -h | --help)
            sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
            exit 0
            ;;
        *) die "unknown flag $flag; write: bash scripts/radeval.sh [--again]" ;;
    esac
done

venv="${RADEVAL_VENV:-$PWD/.venv-radeval}"
stamp="$venv/.installed"
if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
    die "$venv is there and is no virtual environment; name another folder with RADEVAL_VENV"
fi
if [[ -n "$again" ]]; then
    rm -rf -- "$venv"
fi
if [[ -f "$stamp" ]] && cmp -s "$stamp" requirements-radeval.txt; then
    echo "radeval: ready, $venv"
    exit 0
fi

base=
# -P, by which texts are kept apart from this repository's modules, came with 3.11; spaCy 3.7 has no wheels above 3.12.
for candidate in python3 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null &&
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        base="$candidate"
        break
    fi
done
[[ -n "$base" ]] || die "needs Python 3.11 or 3.12, found $(python3 -V 2>&1 || echo none); install one of them"
"$base" -m venv "$venv" || die "$base cannot make a virtual environment (Debian: apt-get install python3-venv)"
echo "radeval: installing requirements-radeval.txt into $venv"
"$venv/bin/python" -m pip install --no-input --disable-pip-version-check -r requirements-radeval.txt ||
    die "pip could not install requirements-radeval.txt (its message is above)"
"$venv/bin/python" -P -c 'import radeval' || die "RadEval is installed but cannot be imported; run: bash scripts/radeval.sh --again"
cp requirements-radeval.txt "$stamp"
echo "radeval: ready, $venv"
