"""transformers' trainer, resumed where it had ended."""

import os
import subprocess
import sys

import pytest
import torch
from swift.dataloader.shard import BatchSamplerShard
from transformers import Trainer, TrainingArguments

from apo.resume import ResumesWhole, left_out
from scripts.plan import ROOT, free_port


class Ours(ResumesWhole, Trainer):
    pass


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}


def test_rows_that_ranks_cannot_share_are_counted(monkeypatch):
    """And ms-swift does leave out just these, in every epoch."""
    assert left_out(range(8), 2) is left_out(iter(range(9)), 2) is left_out(range(9), 1) is None
    assert left_out(range(11), 4).startswith("the last 3 of 11 rows are never trained on")
    monkeypatch.setattr(BatchSamplerShard, "world_size", 4)
    seen = set()
    for rank in range(4):
        monkeypatch.setattr(BatchSamplerShard, "rank", rank)
        sampler = BatchSamplerShard(11, 1, shuffle=True, drop_last=False, data_seed=0)
        for epoch in range(20):
            sampler.set_epoch(epoch)
            seen |= {row for batch in sampler for row in batch}
    assert seen == set(range(8))


def train(trainer, out, steps, resume=None):
    """Four rows, batches of one: an epoch has four steps."""
    rows = [{"x": torch.tensor([float(k)]), "labels": torch.tensor([1.0])} for k in range(4)]
    args = TrainingArguments(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=1,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo" if "RANK" in os.environ else None,
    )
    args.max_epochs = None  # asked for once ms-swift was imported by another test
    made = trainer(model=Line(), args=args, train_dataset=rows)
    made.train(resume_from_checkpoint=resume)
    return made.state.global_step, sorted(path.name for path in out.glob("checkpoint-*"))


# The second case is transformers' own, and why the first is needed.
@pytest.mark.parametrize(("trainer", "step"), [(Ours, 3), (Trainer, 4)])
def test_a_run_that_had_ended_takes_no_step_more(trainer, step, tmp_path):
    assert train(Ours, tmp_path, 3)[0] == 3
    end, kept = train(trainer, tmp_path, 3, tmp_path / "checkpoint-3")
    assert end == step
    assert kept == [f"checkpoint-{k}" for k in range(1, step + 1)]


def test_one_that_had_not_ended_goes_on(tmp_path):
    assert train(Ours, tmp_path, 2)[0] == 2
    assert train(Ours, tmp_path, 3, tmp_path / "checkpoint-2")[0] == 3
    assert train(Ours, tmp_path, 5, tmp_path / "checkpoint-3")[0] == 5


RANKS = """
import os
from pathlib import Path
from tests.apo.test_resume import Ours, train
out = Path({out!r}) / os.environ["RANK"]
train(Ours, out, 3, out / "checkpoint-1" if os.environ["RANK"] in {resumed!r} else None)
print("ended at 3")
"""


@pytest.mark.parametrize(("resumed", "error"), [("0", "different steps (1, 0, by rank)"), ("01", "")])
def test_nodes_that_see_different_checkpoints_are_refused(tmp_path, resumed, error):
    """Two ranks with a folder each, as two nodes without a shared disk: the second may lack the first's checkpoints."""
    for rank in "01":
        train(Ours, tmp_path / rank, 1)
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(out=str(tmp_path), resumed=resumed), encoding="utf-8")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    done = subprocess.run(
        [*words, str(script)], capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode != 0) == bool(error), done.stderr[-2000:]
    if error:
        assert error in done.stderr and "a disk that all nodes share" in done.stderr
    else:
        assert done.stdout.count("ended at 3") == 2


def test_fewer_rows_than_ranks_are_counted_and_what_is_left_out_is_told(monkeypatch):
    from types import SimpleNamespace

    from apo import resume

    class Base:
        def _init_training_state(self, *_args, **_kwargs):
            return 1, 0

    class Stub(ResumesWhole, Base):
        train_dataset, state = range(3), SimpleNamespace(global_step=0)
        accelerator = SimpleNamespace(num_processes=4, device="cpu", gather=lambda steps: steps)

        def is_world_process_zero(self):
            return True

    told = []
    monkeypatch.setattr(resume.logger, "warning", told.append)
    Stub()._init_training_state(3, 1, 1)
    assert len(told) == 1 and told[0].startswith("the last 3 of 3 rows are never trained on")
