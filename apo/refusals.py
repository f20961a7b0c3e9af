"""Settings under which the responses of a study could not be found behind one prefix, each refused with the flag.

No heavy import: the launcher asks before a model is loaded, the trainers again with what ms-swift made of the flags.
"""

from collections.abc import Container, Iterable, Mapping

from apo.options import Options

# The values of --loss_type that train on studies; all others are stock DPO.
STUDY_LOSSES = ("plackett_luce", "pairwise")

# What the name of a parameter says that belongs to an adapter: turned off, it leaves the base model as it was.
ADAPTER_PARTS = (".lora_", "modules_to_save.", "trainable_tokens_")
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

# Options of ours that Learn on whole studies reads: how they are laid out.
READ_IN_SHARED_LEARN = ("layout", "shared_min_ratio", "attention", "chunk_size")
# By flag, for Learn on whole studies, which are trained by plain likelihood.
UNREAD = "is not read for whole studies (share_prefix, positive_messages); leave it out"
ALLOWED_IN_SHARED_LEARN = {
    "predict_with_generate": (("false",), UNREAD),
    "enable_dft_loss": (("false",), UNREAD),
    "enable_channel_loss": (("false",), UNREAD),
    "label_smoothing_factor": (("0", "0.0"), UNREAD),
    "loss_type": (("none", "null"), UNREAD),
}

# By flag, for a Critique.
ALLOWED_IN_CRITIQUE = {
    "neftune_noise_alpha": (
        ("0", "0.0", "none", "null"),
        "adds noise to log-probs that are compared with the reference's; leave it out",
    ),
    "label_smoothing_factor": (("0", "0.0"), "is not read by a preference loss; that of ours is --label_smoothing"),
    "sync_ref_model": (("false",), "is not read here: the reference stays frozen; leave it out"),
}
# The reference is the policy with its adapter turned off (with tuner_type full a copy, or the --ref_model): nothing may
# be trained or started otherwise that turning it off does not undo.
ALLOWED_WITH_REFERENCE = {
    "tuner_type": (
        ("lora", "full"),
        "trains weights that the reference shares, so that it would move with the policy; use lora or full",
    ),
    "lora_bias": (("none",), "trains biases that the reference shares; set it to none"),
    "init_weights": (
        ("true", "false", "gaussian"),
        "changes the base weights, which are the reference's, too; use true, false or gaussian",
    ),
}


def of_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return any(part in f".{name}" for part in ADAPTER_PARTS)


def refuse_settings(settings: Mapping[str, object]) -> None:
    """Refuse what cuts, moves or weighs a study's responses.

    Args:
        settings: values, or words of a command line, by ms-swift's flag names. What is missing or None is at its
            default; other flags pass.

    Raises:
        ValueError: the flag, the reason and what to write instead.
    """
    _refuse(ALLOWED, settings)


def refuse_shared_learn_settings(settings: Mapping[str, object]) -> None:
    """Refuse what would have no effect where Learn trains whole studies (`share_prefix`); else as `refuse_settings`."""
    _refuse(ALLOWED_IN_SHARED_LEARN, settings)


def refuse_critique_settings(settings: Mapping[str, object], *, reference_free: bool = False) -> None:
    """Refuse what would let the reference move, or would have no effect in a Critique; else as `refuse_settings`.

    Args:
        reference_free: no reference is asked, so that none can move (`apo_reference_free`).
    """
    _refuse(ALLOWED_IN_CRITIQUE, settings)
    tuner = str(settings.get("tuner_type") or "lora")
    if settings.get("ref_model") and tuner != "full":
        raise ValueError(
            f"--ref_model: ms-swift takes one with --tuner_type full alone, and this is {tuner}; leave it out"
        )
    if not reference_free:
        _refuse(ALLOWED_WITH_REFERENCE, settings)


def refuse_unread_options(given: Options, read: Container[str] = ()) -> None:
    """Refuse options of ours that a run would silently leave unread; `read`: names of those that it reads."""
    changed = {name for name, value in given._asdict().items() if value != getattr(Options(), name)}
    unread = [name for name in Options._fields if name in changed and name not in read]
    if unread:
        raise ValueError(f"{', '.join(f'apo_{name}' for name in unread)}: not read by this kind of training; leave out")


def refuse_moving_reference(trained: Iterable[str], *, is_adapter: bool) -> None:
    """Refuse a policy whose reference is itself without its adapter, unless only the adapter is trained.

    Args:
        trained: names of the parameters that are trained.
        is_adapter: whether the policy has an adapter that can be turned off (PEFT's).

    Raises:
        ValueError: a parameter that the reference shares, and what to do.
    """
    remedy = "train with --tuner_type lora or full (a copy of its own)"
    if not is_adapter:
        raise ValueError(f"the policy has no adapter to turn off, so that it would be its own reference; {remedy}")
    shared = [name for name in trained if not of_adapter(name)]
    if shared:
        raise ValueError(f"{shared[0]} is trained ({len(shared)} such), and the reference shares it; {remedy}")


def _refuse(table: Mapping[str, tuple[tuple[str, ...], str]], settings: Mapping[str, object]) -> None:
    for name, (allowed, why) in table.items():
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
