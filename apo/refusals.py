"""Settings under which the responses of a study could not be found behind one prefix, each refused with the flag.

No heavy import: the launcher asks before a model is loaded, the trainers again with what ms-swift made of the flags.
"""

from collections.abc import Mapping

# The values of --loss_type that train on studies; all others are stock DPO.
STUDY_LOSSES = ("plackett_luce", "pairwise")

# By flag: the values that may stand, and why no other may.
ALLOWED = {
    "use_liger_kernel": (("false",), "replaces the head that the log-probs are read from; set it to false"),
    "padding_free": (("false",), "cuts studies apart; set it to false"),
    "packing": (("false",), "cuts studies apart; set it to false (film and prompt are shared without it)"),
    "sequence_parallel_size": (("1",), "splits a study, whose responses share one prefix, over GPUs; set it to 1"),
    "padding_side": (
        ("right",),
        "moves the responses, which are found by their place behind the prefix; set it to right",
    ),
    "truncation_strategy": (
        ("raise", "delete"),
        "would cut what all responses share; use delete, and --overlong drop to leave studies out that are too long",
    ),
    "loss_scale": (
        ("default", "last_round"),
        "weighs or leaves out tokens, but the log-prob of a response is a plain sum over all of its tokens; "
        "use last_round",
    ),
}


def refuse_settings(settings: Mapping[str, object]) -> None:
    """Refuse what cuts, moves or weighs a study's responses.

    Args:
        settings: values, or words of a command line, by ms-swift's flag names. What is missing or None is at its
            default; other flags pass.

    Raises:
        ValueError: the flag, the reason and what to write instead.
    """
    for name, (allowed, why) in ALLOWED.items():
        value = settings.get(name)
        if value is not None and str(value).lower() not in allowed:
            raise ValueError(f"--{name} {str(value).lower()} {why}")


def refuse_sliding_config(config: Mapping[str, object]) -> None:
    """Refuse a model, by its config.json, that has layers with a sliding window.

    Raises:
        ValueError: how many layers, and the option to set.
    """
    text = config.get("text_config") or config
    layers = text.get("num_hidden_layers") or 0
    kinds = text.get("layer_types") or []
    sliding = sum(kind != "full_attention" for kind in kinds)
    if not kinds and text.get("use_sliding_window") and text.get("sliding_window") is not None:
        sliding = max(0, layers - text.get("max_window_layers", layers))
    if sliding:
        raise ValueError(
            f"{sliding} of its {layers or len(kinds)} layers look through a sliding window; a shared prefix needs full "
            'attention everywhere. Use --model_kwargs \'{"apo_layout": "rows"}\''
        )
