"""Random draws that stay the same whatever else a file holds."""

import hashlib
import random


def study_rng(study: dict, seed: int = 0) -> random.Random:
    """A random generator that depends on the seed and the study id only, not on its place in a file or shard."""
    return random.Random(int.from_bytes(hashlib.sha256(f"{seed}:{study['id']}".encode()).digest()[:8], "big"))
