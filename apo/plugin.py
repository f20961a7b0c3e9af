"""ms-swift plugin of this project: `swift sft|rlhf|infer ... --external_plugins apo/plugin.py`.

- templates: placeholder ids from the processor, and a study with all its responses encoded as one group;
- `swift sft` on rows with `positive_messages`: a study's trajectories behind one film and prompt (apo/learn.py);
- `swift rlhf --rlhf_type dpo --loss_type plackett_luce`: the APO objective (apo/loss.py), or `pairwise` for comparison.
  Every other loss type runs stock ms-swift DPO;
- a clock that was set back deletes no new checkpoint (apo/rotation.py);
- ranks on CPUs end without an abort (apo/gloo.py);
- numbers below 1e-38 are zero on CPUs in ms-swift's processes. Where the consensus has won, the negatives' gradients
  are such numbers, which an x86 core multiplies so slowly that a step took up to eight times as long.

Kept thin: ms-swift loads this file under a private module name, and classes made here could not be pickled by spawned
data-loader workers.
"""

import atexit
import os
import sys

import torch
import transformers.trainer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:  # `swift infer` from another folder reloads the plugin without our launchers
    sys.path.append(ROOT)

from swift.trainers import TrainerFactory  # noqa: E402

from apo.gloo import wait_for_gloo  # noqa: E402
from apo.rotation import rotate_checkpoints  # noqa: E402
from apo.template import register_templates  # noqa: E402

transformers.trainer.rotate_checkpoints = rotate_checkpoints
register_templates()
if __name__ != "apo.plugin":  # loaded by ms-swift; a program that imports it keeps its own arithmetic
    torch.set_flush_denormal(True)  # of this thread, which on a CPU does the backward pass, and of all that it starts
atexit.register(wait_for_gloo)
TrainerFactory.TRAINER_MAPPING |= {"dpo": "apo.trainer.APOTrainer", "causal_lm": "apo.learn.LearnTrainer"}
