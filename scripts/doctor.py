"""Says before anything is computed what a run would stumble over: one line a finding, with the remedy.

    python -m scripts.doctor [CONFIG.yaml ...] [--stage sft|apo] [--json] [--flag value ...]

CONFIG.yaml is a configuration of Learn, Critique or Collect (configs/); flags are those of the launchers and win over
the files of trainings. Without one only the machine is looked at. The launchers make the same checks first. Nothing is
written and no GPU is needed; the memory estimate at the end loads transformers, everything before does not.

Exit status: 0 nothing in the way (notes are advice), 2 at least one error.
"""

import scripts.packages  # noqa: F401  # first: what follows needs them

# isort: split
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from data import manifest
from data.errors import Problems, UserError, run_cli
from data.files import home
from scripts import estimate, machine, sampling
from scripts.plan import (
    MODEL_TYPES,
    STAGES,
    Plan,
    apo_options,
    check_adapters,
    check_model,
    check_resume,
    refuse_used_folder,
    resolve,
)
from scripts.settings import as_bool, as_list, parse_command, stage_of
from scripts.training_data import (
    KIND,
    check_loss,
    length_inputs,
    overlong_of,
    refuse_missing,
    refuse_other_negatives,
    row_options,
    split_sample,
)

USAGE = "write: python -m scripts.doctor [CONFIG.yaml ...] [--stage sft|apo] [--json] [--flag value ...]"
DEEPSPEED = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


class Report(NamedTuple):
    """Findings of one run: `errors` stop it, `notes` do not; each "where: what; remedy". `facts` for --json."""

    errors: list[str]
    notes: list[str]
    facts: dict[str, Any]


def new_report() -> Report:
    return Report([], [], {})


def attempt(report: Report, check, *args) -> Any:
    """`check(*args)`; its UserError becomes an error of the report."""
    try:
        return check(*args)
    except UserError as error:
        report.errors.append(str(error))
        return None


def examine(plan: Plan, *, memory: bool | None = None) -> Report:
    """Every check of a training run that is resolved; tells ms-swift what a local model is, as `check_model` does.

    Args:
        memory: estimate the memory, which loads torch; None: only for a run on GPUs, which has loaded it already.
    """
    report = new_report()
    attempt(report, check_model, plan, False)
    attempt(report, check_adapters, plan)
    attempt(report, check_loss, plan)
    attempt(report, check_resume, plan)
    attempt(report, refuse_used_folder, plan)
    errors, notes = machine.package_problems({"deepspeed"} if plan.settings.get("deepspeed") else set())
    report.errors.extend(errors)
    report.notes.extend(notes)
    _surroundings(report, plan)
    samples = _samples(report, plan)
    if not report.errors:
        _estimate(report, plan, samples, memory)
    return report


def refuse(where: object, report: Report) -> None:
    """Print the notes of a report and raise UserError with its errors, if any."""
    for note in report.notes:
        print(f"note: {note}", flush=True)
    problems = Problems(where)
    for error in report.errors:
        problems.add(error)
    problems.refuse()


def before(job: str, out: Path) -> None:
    """The checks of a job that trains nothing ("collect", "compare", "evaluate"): packages, and a place to write.

    Raises UserError with what is in the way.
    """
    errors, notes = machine.package_problems({job})
    folder = out.parent
    lines = [machine.write_problem("--out", folder), machine.disk_problem("--out", folder, 0, "answers and records")]
    refuse(job, Report([*errors, *filter(None, lines)], notes, {}))


def _surroundings(report: Report, plan: Plan) -> None:
    """Plugin, template, DeepSpeed, port, places to write."""
    settings = plan.settings
    for path in as_list(settings.get("external_plugins")):
        if not Path(path).is_file():
            report.errors.append(f"external_plugins {path}: no such file; name a Python file or leave it out")
    template = settings.get("template")
    if template and template not in MODEL_TYPES:
        report.errors.append(f"template {template}: this project trains {', '.join(MODEL_TYPES)}; use one of them")
    zero = str(settings.get("deepspeed") or "zero0")
    if zero not in DEEPSPEED and not zero.startswith("{") and not Path(zero).is_file():
        report.errors.append(f"deepspeed {zero}: neither a file nor one of {', '.join(DEEPSPEED)}; name one")
    first = plan.environment.get("NODE_RANK", "0") == "0"
    if first and (port := plan.environment.get("MASTER_PORT")):
        report.errors.extend(filter(None, [machine.port_problem(port)]))
    report.errors.extend(filter(None, [machine.write_problem("output_dir", plan.output_dir)]))
    if plan.stage == "critique" and (cache := apo_options(settings).cache_dir):
        report.errors.extend(filter(None, [machine.write_problem("apo_cache_dir", Path(home(cache)))]))


def _samples(report: Report, plan: Plan) -> list[sampling.Sample]:
    """Look at every dataset file that is there; its facts go into the report, a missing file is an error."""
    samples = []
    options, overlong = attempt(report, row_options, plan), attempt(report, overlong_of, plan)
    if options is None or overlong is None:
        return samples
    lengths = length_inputs(plan)
    for name in ("dataset", "val_dataset"):
        for entry in as_list(plan.settings.get(name)):
            file, _ = split_sample(entry)
            path = Path(file)
            if not path.exists():
                attempt(report, refuse_missing, file)
                continue
            look = functools.partial(sampling.look, path, KIND[plan.stage], options, lengths=lengths, overlong=overlong)
            sample = attempt(report, look)
            if sample is None:
                continue
            report.errors.extend(sample.problems)
            attempt(report, refuse_other_negatives, plan, path)
            report.facts.setdefault("datasets", []).append(sample.facts())
            report.notes.extend(attempt(report, manifest.stale, path) or [])
            if name == "dataset":
                samples.append(sample)
    # A file that is named twice, or a line that nobody could read, is told once.
    report.errors[:] = dict.fromkeys(report.errors)
    return samples


def _estimate(report: Report, plan: Plan, samples: list[sampling.Sample], memory: bool | None) -> None:
    cpu = as_bool(plan.settings, "use_cpu")
    devices = [] if cpu else machine.gpus()
    processes = estimate.ranks(plan) // int(plan.environment.get("NNODES", 1))
    room = machine.memory_gib() / processes if cpu else min((gpu["free_gib"] for gpu in devices), default=80.0)
    found = report.facts["estimate"] = estimate.steps_and_tokens(plan, samples)
    one = estimate.checkpoint_bytes(plan)
    if not cpu if memory is None else memory:
        try:
            peak = estimate.peak(plan, samples, room)
        except UserError as error:
            report.notes.append(str(error))
        else:
            one = peak["checkpoint_bytes"]
            found |= {"memory_gib_a_process": round(peak["process_gib"], 2), "memory_gib_there": round(room, 1)}
            report.notes.extend(peak["notes"])
            if peak["remedies"] and (cpu or devices):
                report.notes.append(
                    f"memory: about {peak['process_gib']:.1f} GiB a process are needed, {room:.1f} are there; "
                    f"try {', or '.join(peak['remedies'])}"
                )
    needed = estimate.disk_bytes(plan, samples, found["steps"], found["epochs"], one)
    found["disk_gib"] = round(needed / machine.GIB, 3)
    fewer = "keep fewer checkpoints (--save_total_limit)"
    full = machine.disk_problem("output_dir", plan.output_dir, needed, "checkpoints and rows", fewer)
    report.errors.extend(filter(None, [full]))


def examine_collect(path: Path) -> Report:
    """Every check of a collection that sends nothing: names and values, manifest, films, keys, place to write."""
    from data.collect.plan import read_manifest
    from data.collect.settings import read_config, read_key
    from data.records import require_images, root_of

    report = new_report()
    errors, notes = machine.package_problems({"collect"})
    report.errors.extend(errors)
    report.notes.extend(notes)
    config = attempt(report, read_config, path)
    if config is None:
        return report
    for teacher in config.teachers:
        attempt(report, read_key, teacher)
    studies = attempt(report, read_manifest, config)
    root = attempt(report, root_of, config.studies, config.image_root)
    if studies and root:
        attempt(report, require_images, config.studies, studies, root)
        report.facts["datasets"] = [{"path": config.studies, "kind": "studies", "records": len(studies)}]
        report.facts["questions"] = len(studies) * len(config.teachers)
    report.errors.extend(filter(None, [machine.write_problem("out", Path(config.out).parent)]))
    return report


def machine_report() -> Report:
    report = Report(*machine.package_problems(), {})
    gpus = machine.gpus()
    report.facts["gpus"] = [{**gpu, **{k: round(gpu[k], 1) for k in ("total_gib", "free_gib")}} for gpu in gpus]
    report.facts["memory_gib"] = round(machine.memory_gib(), 1)
    report.facts["disk_free_gib"] = round(machine.shutil.disk_usage(".").free / machine.GIB, 1)
    return report


def parse(words: list[str]) -> tuple[list[Path], str | None, bool, list[str]]:
    """(configurations, stage or None, --json, the other flags)."""
    words = list(words)
    configs: list[Path] = []
    while words and not words[0].startswith("--"):
        configs.append(Path(words.pop(0)))
    as_json, stage, rest = False, None, []
    while words:
        word = words.pop(0)
        flag, equals, joined = word.partition("=")
        if flag not in ("--json", "--stage"):
            rest.append(word)
            continue
        if equals:
            words.insert(0, joined)
        if flag == "--json":
            as_json = True
        else:
            name = words.pop(0) if words else ""
            if name not in STAGES:
                raise UserError(f"--stage {name}: must be {' or '.join(STAGES)}; {USAGE}")
            stage = STAGES[name]
        if words and not words[0].startswith("--"):
            takes = "one value" if flag == "--stage" else "no value"
            raise UserError(f"{words[0]!r} after {flag}, which takes {takes}: name configurations first; {USAGE}")
    if rest and not configs:
        raise UserError(f"{rest[0]} belongs to no configuration; {USAGE}")
    for path in configs:
        if path.suffix not in (".yaml", ".yml"):
            raise UserError(f"{path}: is no .yaml file; {USAGE}")
    return configs, stage, as_json, rest


def examine_config(path: Path, stage: str | None, flags: list[str]) -> tuple[str, Report]:
    """(its stage, every finding) of one configuration under the flags."""
    stage = stage or stage_of(path)
    if stage == "collect":
        found = examine_collect(path)
        if flags:
            found.errors.append(f"{flags[0]}: is read by trainings alone; write what a collection needs into {path}")
        return stage, found
    report = new_report()
    command = attempt(report, parse_command, stage, [str(path), *flags])
    plan = command and attempt(report, resolve, stage, command)
    if command and plan is None:
        # Without a GPU, say, the rest can still be looked at as for a dry run.
        plan = attempt(new_report(), resolve, stage, dataclasses.replace(command, dry_run=True))
    if plan is None:
        return stage, report
    found = examine(plan, memory=True)
    return stage, Report([*report.errors, *found.errors], [*plan.notes, *found.notes], found.facts)


def show(title: str, report: Report) -> str:
    """A report as lines for people: findings first, then the facts."""
    lines = [title, *(f"  error: {line}" for line in report.errors), *(f"  note: {line}" for line in report.notes)]
    for data in report.facts.get("datasets", []):
        line = f"  {data['path']}: {data['records']:,} {data['kind']}"
        if "looked_at" in data:
            line += f", {data['looked_at']} looked at; about {data['rows']:,} training rows"
        if data.get("answers_a_row"):
            sizes = data["answers_a_row"]
            line += f", {sizes['least']} to {sizes['most']} answers each (median {sizes['median']:g})"
        if data.get("tokens"):
            tokens = data["tokens"]
            line += f"; tokens: prompt and film {tokens['prompt']}, answer {tokens['answer']}"
            line += f", longest row {tokens['longest_row']}"
        lines.append(line)
    found = report.facts.get("estimate")
    if found:
        tokens = "unknown" if found["tokens"] is None else f"{found['tokens']:,}"
        line = f"  about {found['steps']:,} steps of {found['rows_a_step']} rows ({found['epochs']:g} epochs), "
        line += f"{tokens} tokens; {found['disk_gib']:.2f} GiB on disk"
        if "memory_gib_a_process" in found:
            line += f"; {found['memory_gib_a_process']:.1f} GiB a process, {found['memory_gib_there']:.1f} there"
        lines.append(line)
    if "questions" in report.facts:
        lines.append(f"  {report.facts['questions']:,} questions at most (studies x teachers)")
    if "memory_gib" in report.facts:
        gpus = [f"{gpu['name']} {gpu['free_gib']:.0f} of {gpu['total_gib']:.0f} GiB" for gpu in report.facts["gpus"]]
        free = (
            f"{report.facts['memory_gib']:.0f} GiB of memory and {report.facts['disk_free_gib']:.0f} GiB of disk free"
        )
        lines.append(f"  GPUs: {', '.join(gpus) or 'none'}; {free}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv):
        print(__doc__.strip())
        return 0
    configs, stage, as_json, flags = parse(argv)
    reports = [("machine", machine_report())]
    for path in configs:
        kind, report = examine_config(path, stage, flags)
        reports.append((f"{path} ({kind})", report))
    wrong = sum(len(report.errors) for _, report in reports)
    if as_json:
        whole = {"ok": not wrong, "runs": [{"name": name, **report._asdict()} for name, report in reports]}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        print("\n".join(show(name, report) for name, report in reports))
        print(f"{wrong} error(s)" if wrong else "nothing in the way")
    return 2 if wrong else 0


if __name__ == "__main__":
    run_cli(main)
