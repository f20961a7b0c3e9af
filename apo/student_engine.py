"""The student for generation: ms-swift's engines, set up as the checkpoint was trained.

Named so that it shadows nothing: inside a `swift` process this folder is on sys.path[0].
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.images import film_settings


class Student:
    """A loaded checkpoint that writes answers.

    Args:
        info: what `data.checkpoints.describe` says of the checkpoint.
        backend: "transformers", or "vllm" where that is installed.
        device: "cuda" (bfloat16) or "cpu" (float32; sdpa).
        batch_size: prompts a forward pass (transformers backend).

    Raises UserError for a backend that is not installed or has no GPU.
    """

    def __init__(self, info: dict, *, backend: str = "transformers", device: str = "cpu", batch_size: int = 8):
        if backend == "vllm" and (importlib.util.find_spec("vllm") is None or device != "cuda"):
            raise UserError("--backend vllm: needs a GPU and vllm (requirements-vllm.txt); use --backend transformers")
        args_file = Path(info["path"]) / "args.json"
        args = json.loads(args_file.read_text(encoding="utf-8")) if args_file.is_file() else {}
        given = args.get("model_kwargs") or {}
        given = json.loads(given) if isinstance(given, str) else given
        for key, value in film_settings(given).items():  # as in training; read from the environment, at import
            os.environ.setdefault(key.upper(), str(value))
        if args.get("use_hf"):  # nor the hub that an adapter's student is named by
            os.environ.setdefault("USE_HF", "1")
        import torch

        import apo.plugin  # noqa: F401  (templates that read the placeholder ids from the processor)

        adapters = [info["path"]] if info["kind"] == "adapter" else []
        common = {"adapters": adapters, "model_type": info["model_type"], "template_type": info["template"]}
        if backend == "vllm":
            from swift.infer_engine import VllmEngine

            self.engine = VllmEngine(info["model"], torch_dtype=torch.bfloat16, enable_lora=bool(adapters), **common)
        else:
            from swift.infer_engine import TransformersEngine

            self.engine = TransformersEngine(
                info["model"],
                torch_dtype=torch.bfloat16 if device == "cuda" else torch.float32,
                attn_impl="sdpa",
                device_map="cuda:0" if device == "cuda" else "cpu",
                max_batch_size=batch_size,
                **common,
            )
        if args.get("max_pixels"):  # ms-swift does not restore this one from args.json
            self.engine.template.max_pixels = args["max_pixels"]
        self.max_length: int = self.engine.max_model_len or 8192

    def _request(self, prompt: str, images: Sequence[str]):
        from swift.infer_engine import InferRequest

        return InferRequest(messages=[{"role": "user", "content": prompt}], images=list(images))

    def length(self, prompt: str, images: Sequence[str]) -> int:
        """Tokens of a prompt as the model gets it, film tokens included; max_length + 1 for any that it cannot take."""
        from swift.template.base import MaxLengthError

        template, mode = self.engine.template, self.engine.template.mode
        template.set_mode("transformers")  # for vllm a film is one token, which vllm itself replaces by all
        try:
            return len(template.encode(self._request(prompt, images))["input_ids"])
        except MaxLengthError:
            return self.max_length + 1
        finally:
            template.set_mode(mode)

    def answer(
        self, prompts: Sequence[tuple[str, Sequence[str]]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[tuple[str, str]]:
        """(text, finish_reason) for each (prompt, image paths). Temperature 0 is greedy; above it, what is drawn
        depends on the seed, the prompts and the names of their films, and not on what was asked before: a run that was
        interrupted draws what it would have drawn. PyTorch's own generators are seeded for it.
        """
        import torch
        from swift.infer_engine import RequestConfig

        if temperature > 0:  # the seed of a request is read by vllm alone
            asked = [(prompt, [Path(image).name for image in images]) for prompt, images in prompts]
            torch.manual_seed(int(hashlib.sha256(json.dumps([seed, asked]).encode()).hexdigest()[:15], 16))
        # The penalty is stated because a checkpoint's own generation_config.json may carry another (Qwen2.5-VL: 1.05).
        config = RequestConfig(max_tokens=max_new_tokens, temperature=temperature, repetition_penalty=1.0, seed=seed)
        requests = [self._request(prompt, images) for prompt, images in prompts]
        choices = [response.choices[0] for response in self.engine.infer(requests, config, use_tqdm=False)]
        return [(choice.message.content or "", choice.finish_reason) for choice in choices]
