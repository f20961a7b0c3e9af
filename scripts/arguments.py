"""ms-swift's training arguments and what each takes, known without importing ms-swift (ten seconds or more).

    python -m scripts.arguments --write    # after changing the pinned versions: renew scripts/arguments.json

The table is used only with the versions that it was made from; with any others ms-swift itself is asked.
"""

import argparse
import json
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data.errors import run_cli
from data.files import write_atomic

TABLE = Path(__file__).with_suffix(".json")
# Their dataclasses are what ms-swift's arguments inherit from.
SOURCES = ("ms-swift", "transformers", "trl")

# What an argument takes: "bool" (which may stand alone), "int", "float" or "word", with "+" for one or more; or one of
# a list of choices (of SEVERAL one or more).
Kind = str | list[str]
SEVERAL = ("callbacks", "report_to")
# Those to whose choices an `external_plugins` may add.
PLUGGABLE = ("tuner_type", "optimizer", "callbacks", "eval_metric")


def installed_versions(packages: tuple[str, ...] = SOURCES) -> dict[str, str | None]:
    """Versions by distribution name, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def ask_swift() -> dict[str, dict[str, Kind]]:
    """{stage: {argument: kind}}, sorted, by ms-swift's own parsers: "learn" `swift sft`, "critique" `swift rlhf`."""
    from swift.arguments import RLHFArguments, SftArguments
    from swift.arguments.base_args.base_args import get_supported_tuners
    from swift.callbacks import callbacks_map
    from swift.metrics import eval_metrics_map
    from swift.optimizers import optimizers_map
    from transformers import HfArgumentParser
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import IntervalStrategy, SchedulerType

    # Plain words to the parser, refused when the model is loaded or the trainer made.
    late = {"lr_scheduler_type": SchedulerType, "eval_strategy": IntervalStrategy}
    late = {name: [choice.value for choice in choices] for name, choices in late.items()}
    late["report_to"] = ["all", "none", *sorted(INTEGRATION_TO_CALLBACK)]
    pluggable = (get_supported_tuners(), optimizers_map, callbacks_map, eval_metrics_map)
    late |= {name: sorted(choices) for name, choices in zip(PLUGGABLE, pluggable, strict=True)}
    found = {}
    for stage, arguments in (("learn", SftArguments), ("critique", RLHFArguments)):
        # nargs 0: --help, and --no_NAME beside a --NAME that is true by default.
        actions = [action for action in HfArgumentParser([arguments])._actions if action.nargs != 0]
        found[stage] = {action.dest: _kind(action) for action in sorted(actions, key=lambda action: action.dest)} | late
    return found


def _kind(action: argparse.Action) -> Kind:
    from transformers.hf_argparser import string_to_bool

    if action.choices:
        return [str(choice) for choice in action.choices]
    word = {string_to_bool: "bool", int: "int", float: "float"}.get(action.type, "word")
    return f"{word}+" if action.nargs == "+" else word


@cache
def known_arguments(stage: str) -> dict[str, Kind]:
    """What `swift sft` (stage "learn") or `swift rlhf` (stage "critique") accepts, and what each argument takes."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return (table["arguments"] if table["versions"] == installed_versions() else ask_swift())[stage]


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        print(__doc__)
        return
    table = {"versions": installed_versions(), "arguments": ask_swift()}
    write_atomic(TABLE, json.dumps(table, indent=1) + "\n")
    print(f"{TABLE}: {', '.join(f'{stage} {len(names)}' for stage, names in table['arguments'].items())}")


if __name__ == "__main__":
    run_cli(main)
