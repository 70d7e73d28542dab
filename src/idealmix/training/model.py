"""Loads a causal language model and its tokenizer, from the hub or a folder, or says plainly why not.

Only safetensors weights, never a checkpoint's own code. A folder of LoRA adapters gives its base model with
the adapters on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from idealmix.errors import InputError
from idealmix.training.quiet import quiet

_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(path: str | Path, dtype: str = "auto") -> Any:
    """A causal language model in eval mode, on the CPU.

    Args:
        path: hub name, or a folder that holds ``config.json`` or ``adapter_config.json``.
        dtype: of the weights: ``auto`` (as stored), ``float32`` or ``bfloat16``. Adapters stay float32.

    Raises:
        InputError: not found, not a causal language model, weights missing or not safetensors.
    """
    path = str(path)
    if (Path(path) / "adapter_config.json").is_file():
        return _with_adapters(path, dtype)
    config = _causal_config(path)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=_DTYPES.get(dtype, "auto"),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise _unloadable(path, error) from error
    model, report = loaded
    lacking = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if lacking:
        raise InputError(
            f"the checkpoint lacks {len(lacking)} of the model's weights, the first being {lacking[0]}",
            where=path,
            mend="give a complete checkpoint of a causal language model",
        )
    return model.eval()


def weights_dtype(path: str | Path) -> str:
    """``float32`` or ``bfloat16``: what a checkpoint is stored in (other types count as float32)."""
    stored = str(getattr(_causal_config(str(path)), "dtype", None)).removeprefix("torch.")
    return "bfloat16" if stored == "bfloat16" else "float32"


def positions(path: str | Path) -> int | None:
    """How many tokens the model can tell apart by position; None where it does not say."""
    folder = Path(path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return positions(_base_of(folder))
    config = _causal_config(str(path))
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def computing_dtype(path: str | Path, wanted: str) -> str:
    """``float32`` or ``bfloat16``: what to compute in, where the configuration says `wanted`.

    ``auto`` is the checkpoint's own type on an accelerator, and float32 on a CPU: one without bfloat16 instructions is
    many times slower in it.
    """
    if wanted != "auto":
        return wanted
    return weights_dtype(path) if torch.cuda.is_available() else "float32"


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a pad token pads with its end token (labels are not concerned).

    Raises:
        InputError: no tokenizer there, or neither a pad nor an end token.
    """
    path = str(path)
    _refuse_missing(path)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise InputError(
            f"no tokenizer could be loaded: {_first_line(error)}",
            where=path,
            mend="put the tokenizer's files beside the model (tokenizer.json, tokenizer_config.json)",
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has neither a pad token nor an end token",
                where=path,
                mend="set eos_token in its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    _check_embeddings(path, len(tokenizer))
    return tokenizer


def _check_embeddings(path: str, tokens: int) -> None:
    """Refuse a tokenizer that can write what the model has no embedding for."""
    if not (Path(path) / "config.json").is_file():
        return
    rows = getattr(_causal_config(path).get_text_config(), "vocab_size", None)
    if isinstance(rows, int) and tokens > rows:
        raise InputError(
            f"the tokenizer has {tokens:,} tokens, and the model embeddings for {rows:,}",
            where=path,
            mend="give the model its own tokenizer, or resize_token_embeddings and save it again",
        )


def _with_adapters(path: str, dtype: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(
            "this folder holds LoRA adapters, and peft is not installed",
            where=path,
            mend="pip install 'idealmix[lora]'",
        ) from error
    base_path = _base_of(Path(path))
    if not (Path(path) / "adapter_model.safetensors").is_file():
        raise InputError("no adapter_model.safetensors beside adapter_config.json", where=path)
    base = load_model(base_path, dtype)
    try:
        with quiet():
            return PeftModel.from_pretrained(base, path).eval()
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise _unloadable(path, error) from error


def refuse_adapters(path: str | Path) -> None:
    """Refuse a folder of adapters as the model to train: nothing of it would take a gradient.

    Raises:
        InputError: it is one.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise InputError(
            "the base model is itself a folder of adapters",
            where=str(path),
            mend="merge them into their base first",
        )


def _base_of(folder: Path) -> str:
    """The base model that a folder of adapters names; one that leads back to the same folder is refused."""
    base = _named_base(folder)
    at, seen = base, {folder.resolve()}
    while (Path(at) / "adapter_config.json").is_file():
        if Path(at).resolve() in seen:
            raise InputError(
                "these adapters are their own base",
                where=str(folder / "adapter_config.json"),
                mend="let base_model_name_or_path name the model that they were trained on",
            )
        seen.add(Path(at).resolve())
        at = _named_base(Path(at))
    return base


def _named_base(folder: Path) -> str:
    place = folder / "adapter_config.json"
    try:
        return str(json.loads(place.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"not the configuration of adapters: {_first_line(error)}",
            where=str(place),
            mend="give a folder that peft's save_pretrained wrote; it names its base_model_name_or_path",
        ) from error


def _causal_config(path: str) -> Any:
    """The model's configuration, known to be that of a causal language model."""
    _refuse_missing(path)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(path, error) from error
    head = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    stored = getattr(config, "architectures", None) or [head]
    # Without this check an encoder or a headless model would load with a random head and train to nonsense.
    if head is None or head not in stored or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"not a causal language model: it holds {', '.join(map(str, stored))} (type {config.model_type!r})",
            where=path,
            mend="give a decoder-only model with its language-model head, such as LlamaForCausalLM",
        )
    if head == "BertLMHeadModel" and not getattr(config, "is_decoder", False):
        raise InputError("an encoder: its attention looks at later tokens", where=path)
    return config


def _refuse_missing(path: str) -> None:
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    if folder.is_file() or (looks_local and not folder.is_dir()):
        raise InputError(
            "it is a file, not a model's folder" if folder.is_file() else "no such folder",
            where=path,
            mend="give the folder that holds config.json and the safetensors weights, or a hub name",
        )
    if folder.is_dir() and not any(
        (folder / name).is_file() for name in ("config.json", "adapter_config.json", "tokenizer_config.json")
    ):
        raise InputError(
            "the folder holds no config.json",
            where=path,
            mend="give the folder that save_pretrained wrote",
        )


def _unloadable(path: str, error: Exception) -> InputError:
    text = _first_line(error)
    if not Path(path).is_dir():
        return InputError(
            f"no such folder, and the hub does not give a model of that name: {text}",
            where=path,
            mend="check the spelling and the network, or give the folder of a downloaded model",
        )
    if isinstance(error, SafetensorError):
        return InputError(f"the weights are damaged: {text}", where=path, mend="copy or download them again")
    if any((Path(path) / name).is_file() for name in _PICKLED):
        return InputError(
            "the weights are stored by pickle, which can run any code; only safetensors is read",
            where=path,
            mend="convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder) writes safetensors",
        )
    if "safetensors" in str(error) or "pytorch_model" in str(error):
        return InputError(
            "the folder holds no weights as safetensors, the only format that is read",
            where=path,
            mend="save the model again with save_pretrained(folder)",
        )
    if "ignore_mismatched_sizes" in str(error):
        return InputError(
            "its weights have other shapes than its config.json says",
            where=path,
            mend="give the config.json that was saved with these weights",
        )
    return InputError(f"the model could not be loaded: {text}", where=path)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
