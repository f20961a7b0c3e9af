"""Compares the measured cases of `apo.bench`: how far apart their numbers are, and how their times and peaks relate."""

from pathlib import Path

import numpy as np

OURS, CACHED, PLAIN = "shared_split", "shared_split_cached", "plain_rows"


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max())


def gradient_difference(ours: dict, theirs: dict) -> float:
    """Largest relative difference of a parameter's gradient: norm of the difference over the norm.

    Raises:
        RuntimeError: the two cases do not train the same parameters, so nothing is compared.
    """
    names = {name for name in theirs if name.startswith("grad/")}
    if not names or names != {name for name in ours if name.startswith("grad/")}:
        raise RuntimeError("the cases that are compared do not have gradients of the same parameters")
    return max(
        float(np.linalg.norm(ours[name] - theirs[name]) / max(np.linalg.norm(theirs[name]), 1e-30)) for name in names
    )


def differences(folder: Path, checks: dict[str, dict]) -> dict:
    """By case, how far its log-probs (nats a token), loss and gradients are from those of plain rows.

    The learn stage is held against stock ms-swift on separate rows. Stock pairs have another loss: there the summed
    log-probs of the responses are compared, relative to their size.
    """
    arrays = {}
    for name in checks:
        with np.load(folder / name / "check.npz") as file:
            arrays[name] = {key: file[key] for key in file.files}
    found: dict[str, dict[str, float]] = {}
    for name in ("shared_mask", OURS, CACHED):
        if name in checks and PLAIN in checks:
            found[name] = {
                "token_logps": largest_difference(arrays[name]["logps/tokens"], arrays[PLAIN]["logps/tokens"]),
                "loss": abs(checks[name]["loss"] - checks[PLAIN]["loss"]),
                "gradient_relative": gradient_difference(arrays[name], arrays[PLAIN]),
            }
    if "learn_shared" in checks and "learn_rows" in checks:
        found["learn_shared"] = {
            "loss": abs(checks["learn_shared"]["loss"] - checks["learn_rows"]["loss"]),
            "gradient_relative": gradient_difference(arrays["learn_shared"], arrays["learn_rows"]),
        }
    if "stock_pairs" in checks and PLAIN in checks:
        studies = arrays[PLAIN]["logps/sums"].reshape(checks[PLAIN]["films_of_studies"], -1)
        negatives = studies.shape[1] - 1
        chosen, rejected = np.repeat(studies[:, 0], negatives), studies[:, 1:].ravel()
        stock = arrays["stock_pairs"]
        found["stock_pairs"] = {
            "summed_logps_relative": max(
                largest_difference(stock["logps/chosen"] / chosen, np.ones_like(chosen)),
                largest_difference(stock["logps/rejected"] / rejected, np.ones_like(rejected)),
            )
        }
    worst = {}
    for key in ("token_logps", "loss", "gradient_relative"):
        values = [difference[key] for difference in found.values() if key in difference]
        if values:
            worst[key] = max(values)
    return {"max_difference": worst, "difference_by_case": found}


def token_limits(shapes: list[list[int]], *, longest: bool = False) -> float:
    """Tokens of separate rows over tokens of shared rows, (N+1)(P+R) / (P+(N+1)R) for equal responses.

    Args:
        shapes: by study (prefix, response 0, response 1, ...) in tokens.
        longest: count rows as long as the longest of the batch, as they are computed.
    """
    if longest:
        rows = sum(len(r) for _, *r in shapes) * max(p + max(r) for p, *r in shapes)
    else:
        rows = sum(p * len(r) + sum(r) for p, *r in shapes)
    return rows / sum(map(sum, shapes))


def ratios(cases: dict[str, dict], limits: dict[str, float]) -> dict[str, float]:
    """Other over ours from the medians and peaks of one run, for the cases that were run; ours is shared, split.

    `memory_*` compare peaks of a whole process, libraries and weights included; `memory_step_*` what a step adds to
    that. `share_*` divide a ratio by its limit in `limits`.
    """
    found = {}
    pairs = {
        "stock_pairs": ("stock_pairs", OURS),
        "plain_rows": (PLAIN, OURS),
        "shared_mask": ("shared_mask", OURS),
        "learn_rows": ("learn_rows", "learn_shared"),
        "stock_pairs_cached": ("stock_pairs", CACHED),
        "plain_rows_cached": (PLAIN, CACHED),
    }
    for name, (other, ours) in pairs.items():
        if other in cases and ours in cases:
            found[name] = cases[other]["median_seconds"] / cases[ours]["median_seconds"]
            found[f"flops_{name}"] = cases[other]["flops"] / cases[ours]["flops"]
            if not name.endswith("_cached"):
                found[f"memory_{name}"] = cases[other]["peak_mb"] / cases[ours]["peak_mb"]
                step = [max(cases[c]["peak_mb"] - cases[c]["loaded_mb"], 1.0) for c in (other, ours)]
                found[f"memory_step_{name}"] = step[0] / step[1]
    if "plain_rows" in found and "plain_rows" in limits:
        found["share_of_token_ratio"] = found["plain_rows"] / limits["plain_rows"]
    if "learn_rows" in found and "learn_rows" in limits:
        found["share_of_learn_token_ratio"] = found["learn_rows"] / limits["learn_rows"]
    return found


def find_limits(checks: dict[str, dict], negatives: int) -> dict[str, float]:
    """The token ratios that bound the speed-ups, from the real numbers of tokens, and the padded ones."""
    limits = {}
    shapes = next((c["shapes"] for name, c in checks.items() if name.startswith("shared") and c["shapes"]), None)
    if shapes is not None:
        pairs = sum(p * 2 * negatives + negatives * chosen + sum(rest) for p, chosen, *rest in shapes)
        limits["stock_pairs"] = pairs / sum(map(sum, shapes))
        limits["plain_rows"] = token_limits(shapes)
        limits["plain_rows_padded"] = token_limits(shapes, longest=True)
    learn = checks.get("learn_shared", {}).get("shapes")
    if learn is not None:
        limits["learn_rows"] = token_limits(learn)
        limits["learn_rows_padded"] = token_limits(learn, longest=True)
    return limits
