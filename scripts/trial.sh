#!/usr/bin/env bash
# The whole method on real films and real trajectories, at the real vocabulary, on a CPU.
#
#     bash scripts/trial.sh --data-root DIR [--out DIR] [--films N] [--steps N]
#
#     --data-root DIR   holds hannover/ (chest films, data.csv) and cxr_max_case/trajectories.jsonl
#     --out DIR         where everything goes (default runs/trial); must be new or empty
#     --films N         take the first N films (default: all)
#     --steps N         optimizer steps a training run (default 3)
#
# It shows that learn, compare, critique and generate run on real input: 1 rank and 2 ranks, LoRA and full fine-tuning,
# and DeepSpeed ZeRO-2; that 2 ranks train like 1; and that the first loss is log(N+1). The student is a random one of toy
# size with the published vocabulary of 151,936, and the trajectories belong to another film, so NO accuracy is claimed
# or printed. About 10 minutes on two cores.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -P -m scripts.trial "$@"
