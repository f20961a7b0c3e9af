#!/usr/bin/env bash
# Installs the pinned stack into the active virtual environment, or into .venv, which it makes if needed.
#
#     bash scripts/setup.sh           what CPU and GPU share (requirements.txt): about 7 GB, some minutes
#     bash scripts/setup.sh --reports and the metrics of report generation (requirements-reports.txt)
#     bash scripts/setup.sh --test    and what scripts/test.sh needs (requirements-reports.txt, requirements-test.txt)
#     bash scripts/setup.sh --gpu     and flash-attn (requirements-gpu.txt); needs nvcc
#
# Run again, it returns at once unless a requirements file has changed. Needs Python 3.11 or 3.12.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

files=(requirements.txt)
gpu=
for flag in "$@"; do
    case "$flag" in
        --reports) files+=(requirements-reports.txt) ;;
        --test) files+=(requirements-reports.txt requirements-test.txt) ;;
        --gpu) files+=(requirements-gpu.txt) gpu=1 ;;
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) die "unknown flag $flag; write: bash scripts/setup.sh [--reports] [--test] [--gpu]" ;;
    esac
done

# The pinned numpy and scipy need 3.11; ms-swift's older dependencies are not known to work above 3.12.
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

if [[ -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
    venv="$VIRTUAL_ENV"
else
    venv="$PWD/.venv"
fi
python="$venv/bin/python"

if [[ -x "$python" ]] && ! fits "$python"; then
    die "$venv has $("$python" -V 2>&1), which the pinned packages do not support (3.11 or 3.12); remove it or leave it"
fi
if [[ ! -x "$python" ]]; then
    base=
    for candidate in python3 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && fits "$candidate"; then
            base="$candidate"
            break
        fi
    done
    [[ -n "$base" ]] || die "needs Python 3.11 or 3.12, found $(python3 -V 2>&1 || echo none); install one of them"
    echo "setup: making $venv with $("$base" -V)"
    "$base" -m venv --clear "$venv" || die "$base cannot make a virtual environment (Debian: apt-get install python3-venv)"
fi

if [[ -n "$gpu" ]] && ! command -v nvcc >/dev/null && [[ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]]; then
    die "--gpu builds flash-attn, which needs nvcc (CUDA toolkit); without it leave --gpu out: attention then uses sdpa"
fi

not_built() {
    die "flash-attn could not be built (the message is above). It needs the CUDA toolkit that torch was built for, with" \
        "CUDA_HOME set to its folder. Without it leave --gpu out: attention then uses sdpa"
}

# Builds flash-attn from its source. That asks for C++17, which torch refuses since 2.13; its developers have raised the flag
# to C++20 after 2.8.3.post2, so the flag is all that is changed here.
build_flash_attn() {
    local requirement version work
    requirement="$(grep '^flash-attn==' requirements-gpu.txt)"
    version="$("$python" -c 'import importlib.metadata as m; print(m.version("flash-attn"))' 2>/dev/null || true)"
    if [[ "$version" == "${requirement#*==}" ]]; then
        return
    fi
    work="$(mktemp -d)"
    # The build imports the installed torch, so it cannot be isolated from it.
    "$python" -m pip install "${options[@]}" setuptools wheel ninja packaging || not_built
    "$python" -m pip download "${options[@]}" --no-deps --no-build-isolation --no-binary :all: -d "$work" "$requirement" ||
        not_built
    tar -xzf "$work"/flash_attn-*.tar.gz -C "$work"
    sed -i 's/"-std=c++17"/"-std=c++20"/' "$work"/flash_attn-*/setup.py
    "$python" -m pip install "${options[@]}" --no-deps --no-build-isolation "$work"/flash_attn-*/ || not_built
    rm -rf -- "$work"
}

for file in "${files[@]}"; do
    # The stamp covers the files that FILE includes, too.
    stamp="$venv/.installed-$file"
    hash="$(cat requirements.txt "$file" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$hash" ]]; then
        continue
    fi
    echo "setup: installing $file into $venv"
    options=(--no-input --disable-pip-version-check)
    if [[ "$file" == requirements-gpu.txt ]]; then
        build_flash_attn # against torch, which the first of the files has brought
    fi
    # What is there already would bury the lines that show the progress.
    "$python" -m pip install "${options[@]}" -r "$file" | { grep -v '^Requirement already satisfied' || true; } ||
        die "pip could not install $file (its message is above)"
    printf '%s\n' "$hash" >"$stamp"
done
echo "setup: ready, $venv ($("$python" -V))"
