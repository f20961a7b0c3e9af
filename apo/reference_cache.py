"""Log-probs of the frozen reference on disk: computed once, then read.

The reference never changes, so neither do its log-probs. A cache folder belongs to exactly one reference:
`identity.json` names everything the numbers depend on (weights, configuration, dtype, attention, template, library
versions), and opening the folder under another identity is an error. A number is found by a digest of the prompt's
token ids, the film's pixels and the response's token ids. `--beta` is not part of it: rewards are formed afterwards.

Every process appends to a file of its own, one line a response, so ranks and restarted runs cannot disturb each other.
`complete.json` is written by the `apo_cache_only` pass once every response of the training set was found again; from
then on a response that is missing is an error, because the rows or the films have changed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from apo.refusals import of_adapter

IDENTITY, COMPLETE = "identity.json", "complete.json"
# What a model's configuration says that no number depends on, or that identity.json has under a name of its own.
UNUSED = ("transformers_version", "architectures", "use_cache", "dtype", "torch_dtype")


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    # Through a byte view: numpy has no bfloat16.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def weights_digest(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Digest of names, dtypes, shapes and every byte of the given parameters (about a second a gigabyte)."""

    def parts() -> Iterator[bytes]:
        for name, parameter in sorted(named_parameters, key=lambda item: item[0]):
            if parameter.numel() == 0:
                raise ValueError(
                    "the reference's weights are partitioned (ZeRO-3, FSDP) and cannot be identified; "
                    "leave apo_cache_dir out or use ZeRO-2"
                )
            yield f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode()
            yield _tensor_bytes(parameter)

    return _digest(parts())


def reference_parameters(model: nn.Module, adapter: str | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters that the reference uses: the base model, and `adapter` where the reference is one."""
    own = "ref_adapter" if adapter is None else adapter
    for name, parameter in model.named_parameters():
        if not of_adapter(name) or f".{own}" in name:
            name = name.removeprefix("base_model.model.").replace(".token_adapter.base_layer", "")
            yield name.replace(".base_layer", "").replace(".original_module", ""), parameter


def config_digest(model: nn.Module, adapter: str | None) -> str:
    """Digest of the settings that the numbers depend on beside the weights: the model's configuration (rotary scaling,
    norms, window) without names, versions and caches, and the scale of the reference's adapter where it is one."""

    def settled(value):
        if isinstance(value, dict):
            kept = {k: settled(v) for k, v in value.items() if not str(k).startswith("_")}
            return {k: v for k, v in kept.items() if k not in UNUSED}
        return value

    settings = settled(model.config.to_dict())
    adapters = getattr(model, "peft_config", {})
    if adapter is not None or "ref_adapter" in adapters:
        own = adapters[adapter or "ref_adapter"]
        settings["adapter"] = {k: getattr(own, k, None) for k in ("r", "lora_alpha", "use_rslora")}
    return _digest([json.dumps(settings, sort_keys=True, default=str).encode()])


def response_keys(group: dict) -> list[str]:
    """A key for each response of an encoded study, from prompt ids, every film tensor and the response's own ids."""
    prefix = [torch.tensor(group["input_ids"]).numpy().tobytes()]
    for name in sorted(key for key, value in group.items() if isinstance(value, torch.Tensor)):
        prefix += [name.encode(), str(tuple(group[name].shape)).encode(), _tensor_bytes(group[name])]
    study = _digest(prefix).encode()
    return [_digest([study, torch.tensor(ids).numpy().tobytes()]) for ids in group["responses"]]


def own_name() -> str:
    """A file name that no other process takes, on no other node: ranks in containers may share a process id."""
    return f"{os.environ.get('RANK', '0')}-{os.getpid()}-{os.urandom(4).hex()}"


class ReferenceCache:
    """An open cache folder. `logps` maps key to (summed log-prob in nats, number of tokens)."""

    def __init__(self, folder: str | os.PathLike, identity: dict[str, str]):
        """Open `folder`, or found it for `identity`.

        Raises:
            ValueError: the folder belongs to another identity (what differs is named), or a file in it is damaged.
        """
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(identity)
        self.logps: dict[str, tuple[float, int]] = {}
        self._read_until: dict[Path, int] = {}
        self._own = None
        self.hits = self.computed = 0
        self.reload()
        self.complete = (self.folder / COMPLETE).exists()

    def _claim(self, identity: dict[str, str]) -> None:
        path = self.folder / IDENTITY
        partial = self.folder / f".{IDENTITY}.{own_name()}"
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(identity, indent=2, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # of several ranks one founds the folder, the others find it
        except FileExistsError:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise ValueError(f"{path}: is damaged; delete that folder, it is computed anew") from None
            differing = sorted(k for k in found.keys() | identity.keys() if found.get(k) != identity.get(k))
            if differing:
                changes = "; ".join(f"{k}: cache {found.get(k)}, run {identity.get(k)}" for k in differing)
                raise ValueError(
                    f"reference cache {self.folder} belongs to another reference ({changes}); "
                    "give another apo_cache_dir, or delete that folder to compute it anew"
                ) from None
        finally:
            partial.unlink(missing_ok=True)

    def reload(self) -> None:
        """Read what this and other processes have appended since the last look."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read_until.get(path, 0))
                for number, line in enumerate(file):
                    if not line.endswith(b"\n"):
                        break  # still being written, or torn by a kill: that response is computed again
                    try:
                        key, logp, tokens = json.loads(line)
                        self.logps[key] = (float(logp), int(tokens))
                    except (ValueError, TypeError):
                        raise ValueError(
                            f"{path}: record {number + 1} after byte {self._read_until.get(path, 0)} is damaged; "
                            "delete that file, its responses are computed again"
                        ) from None
                    self._read_until[path] = self._read_until.get(path, 0) + len(line)

    def reread(self) -> None:
        """Forget what is known and read what is on the disk: only that will be there for the next process."""
        self.logps, self._read_until = {}, {}
        self.reload()

    def lookup(self, keys: list[str], counts: list[int]) -> list[float] | None:
        """Log-probs of all `keys`, or None if any has to be computed.

        Args:
            counts: tokens of each response, compared with the record.

        Raises:
            ValueError: a key is missing from a complete cache, or was recorded with another number of tokens.
        """
        if not all(key in self.logps for key in keys):
            self.reload()
        missing = sum(key not in self.logps for key in keys)
        if missing and self.complete:
            raise ValueError(
                f"reference cache {self.folder} is complete, yet {missing} response(s) of this micro-batch are not in "
                "it: rows, films, max_pixels or template have changed. Give another apo_cache_dir, or delete the folder"
            )
        if missing:
            self.computed += len(keys)
            return None
        for key, count in zip(keys, counts, strict=True):
            if self.logps[key][1] != count:
                raise ValueError(
                    f"reference cache {self.folder}: key {key} was recorded with {self.logps[key][1]} tokens and is "
                    f"asked for with {count}; the folder is damaged, delete it"
                )
        self.hits += len(keys)
        return [self.logps[key][0] for key in keys]

    def append(self, keys: list[str], logps: list[float], counts: list[int]) -> None:
        """Record computed log-probs; on disk when this returns."""
        if self._own is None:
            path = self.folder / f"{own_name()}.jsonl"
            self._own = path.open("ab", buffering=0)
        lines = []
        for key, logp, count in zip(keys, logps, counts, strict=True):
            self.logps[key] = (logp, count)
            lines.append(json.dumps([key, logp, count]) + "\n")
        self._write("".join(lines).encode())

    def _write(self, whole: bytes) -> None:
        """All of it or nothing: half a record would make the next one unreadable."""
        start, left = self._own.seek(0, os.SEEK_END), memoryview(whole)
        try:
            while left:
                left = left[self._own.write(left) :]  # a disk that is filling up takes a part without an error
        except OSError:
            self._own.truncate(start)
            raise

    def sync(self) -> None:
        """Flush this process's records through the operating system to the disk."""
        if self._own is not None:
            os.fsync(self._own.fileno())

    def mark_complete(self) -> None:
        """Declare that every response of the training set is in the folder; the caller has checked."""
        partial = self.folder / f".{COMPLETE}.{own_name()}"
        partial.write_text(json.dumps({"responses": len(self.logps)}) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / COMPLETE)
        self.complete = True
