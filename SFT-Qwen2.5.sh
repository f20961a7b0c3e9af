#!/usr/bin/env bash
# Learn: supervised fine-tuning of Qwen2.5-VL on all teachers' trajectories pooled (stage 1 of 3).
#
#     bash SFT-Qwen2.5.sh [CONFIG.yaml] [--flag value ...] [--dry-run]
#
#     bash SFT-Qwen2.5.sh --dataset studies.jsonl --image_root films      # the published 7B setting
#     bash SFT-Qwen2.5.sh configs/sft_phantom.yaml                        # the same stage on a CPU, phantom films
#     NPROC_PER_NODE=4 bash SFT-Qwen2.5.sh --num_train_epochs 2 --dry-run # print the command, run nothing
#
# Default configuration: configs/sft_qwen2_5_vl_7b.yaml
#     hardware          2 GPUs of 80 GB (2 processes when two or more are visible, 1 when one is)
#     tuning            LoRA rank 8, alpha 32, all linear layers of the language model; bfloat16
#     optimiser         AdamW, learning rate 1e-4, 5 % warm-up, 1 epoch
#     batch             32 studies' trajectories a step, whatever the number of GPUs: 2 a GPU x accumulation
#     length            2304 tokens, film included; nothing is ever cut
#
# Every argument of `swift sft` is a flag, and a key of the YAML; flags win. `dataset` takes study records (data/README.md:
# one row for each trajectory of the split "train"; "validate" becomes the validation set) or ms-swift rows.
# Of this project: --image_root DIR, --share_prefix true (a row is a study: film and prompt once, then its trajectories),
# --overlong drop (rows over max_length are left out, named and counted), --check_images true (decodes every film first),
# --allow_outside true; configs/README.md has them all.
# Environment: NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, CUDA_VISIBLE_DEVICES.
#
# Result: OUTPUT_DIR/checkpoint-N and OUTPUT_DIR/launch.json (what was run, on what).
# Go on:  --resume_from_checkpoint OUTPUT_DIR/checkpoint-N, or `last`: the newest whole one there, step 0 if there is none
# Next:   merge the adapter, then   bash scripts/compare.sh MODEL STUDIES.jsonl --out CONSENSUS.jsonl
# Score:  bash scripts/evaluate.sh OUTPUT_DIR/checkpoint-N STUDIES.jsonl

set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/scripts/env.sh"
# -P: a folder of the caller's named `scripts` or `data` must not be taken for ours.
exec "$PYTHON" -P -m scripts.launch sft "$@"
