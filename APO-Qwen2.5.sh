#!/usr/bin/env bash
# Critique: Autonomous Preference Optimisation of the stage-one student (stage 3 of 3).
#
#     bash APO-Qwen2.5.sh [CONFIG.yaml] [--flag value ...] [--dry-run]
#
#     bash APO-Qwen2.5.sh --model MERGED --dataset consensus.jsonl --image_root films   # the 7B student
#     bash APO-Qwen2.5.sh configs/apo_phantom.yaml                                      # the same stage on a CPU
#     bash APO-Qwen2.5.sh --beta 0.2 --rpo_alpha 0.5 --dry-run                          # print the command, run nothing
#
# Runs stock `swift rlhf` with apo/plugin.py. The consensus of a study is its positive, all N teachers' trajectories are
# its negatives, and the loss is Plackett-Luce over the N+1:
#     -log( exp r+ / (exp r+ + sum_u exp r_u) ),   r = beta * log( policy / reference )
# The reference is the stage-one student itself, so `model` is the MERGED checkpoint of stage 1 (or its base model with
# `--adapters CHECKPOINT`: the reference then is that adapter, set by the launcher).
#
# Default configuration: configs/apo_qwen2_5_vl_7b.yaml
#     hardware          2 GPUs of 80 GB (2 processes when two or more are visible, 1 when one is), DeepSpeed ZeRO-2
#     tuning            LoRA rank 8, alpha 32, all linear layers of the language model; bfloat16
#     objective         beta 0.1 (not published: ms-swift's default for DPO); the likelihood of the consensus added
#                       (rpo_alpha 1, not in the paper; `--rpo_alpha 0` is the published objective)
#     optimiser         AdamW, learning rate 5e-7, 5 % warm-up, 1 epoch
#     batch             32 studies a step, whatever the number of GPUs: 2 a GPU x accumulation
#     length            4096 tokens a response with its film; nothing is ever cut
#
# Every argument of `swift rlhf` is a flag, and a key of the YAML; flags win. `--loss_type sigmoid --rpo_alpha 0` runs stock DPO,
# which takes only ms-swift rows with `rejected_response`; DPO on study records is `--loss_type pairwise --rpo_alpha 0`.
# `dataset` takes study records with a consensus (scripts/compare.sh writes them) or ms-swift rows with
# `negative_messages`. Of this project: --image_root DIR; for studies that give no row --on_missing_consensus drop,
# --on_missing_negative drop, --on_identical drop-negative; for those that are too long --overlong drop (named and counted);
# --check_images true (decodes every film first), --allow_outside true; configs/README.md has them all.
# Environment: NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, CUDA_VISIBLE_DEVICES.
#
# Result: OUTPUT_DIR/checkpoint-N and OUTPUT_DIR/launch.json (what was run, on what).
# Go on:  --resume_from_checkpoint OUTPUT_DIR/checkpoint-N, or `last`: the newest whole one there, step 0 if there is none
# Score:  bash scripts/evaluate.sh OUTPUT_DIR/checkpoint-N STUDIES.jsonl

set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/scripts/env.sh"
# -P: a folder of the caller's named `scripts` or `data` must not be taken for ours.
exec "$PYTHON" -P -m scripts.launch apo "$@"
