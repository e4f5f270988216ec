"""Load a model by name, from a folder, or take one that is already there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from inlay.errors import ModelError
from inlay.model.model import Model

_BUNDLED = Path(__file__).parents[1] / "world" / "models"


def load(
    model: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    quantization_config: Any = None,
    sites: Mapping[str, Any] | None = None,
    example: Any = None,
    chat: bool | None = None,
    **kwargs: Any,
) -> Model:
    """Load a language model and find its Sites.

    Causal models are what inlay is made for; encoder-decoder models, encoders (masked language models) and classifiers
    of sequences or tokens can be read and edited, by the Sites that their structure allows.

    A model given as a module is taken as it is: its modes, `requires_grad`, hooks and configuration stay as they
    were. One loaded by name is in eval mode with frozen weights. Weights are read from safetensors only.

    Args:
        model: `"tidepool"` or `"tidepool-guard"`, which ship with inlay; a hub id, a folder, or a module (Hugging Face,
            `peft`-wrapped, compiled, or any with a list of blocks).
        tokenizer: a tokenizer, or the name of one; by default the one beside the model.
        dtype: `"auto"` for the checkpoint's own, or a torch dtype.
        device_map: as in `from_pretrained`.
        quantization_config: as in `from_pretrained`.
        sites, example, chat: see `Model`.
        **kwargs: passed on to `from_pretrained` (`revision=`, `attn_implementation=`, `trust_remote_code=` ...).

    Raises:
        ModelError: the name leads to no language model, or its blocks were not found.
    """
    if isinstance(model, nn.Module):
        if kwargs or device_map is not None or quantization_config is not None or dtype != "auto":
            raise ModelError("a module that is already loaded takes no loading arguments; load it by name to use them")
        if any(kind.__name__ == "FSDPModule" for one in model.modules() for kind in type(one).__mro__):
            raise ModelError(
                f"{type(model).__name__} is sharded already, and its Sites are found on whole weights: "
                "model = inlay.load(hf) first, then fully_shard the blocks of hf"
            )
        found = _tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
        return Model(model, found, sites=sites, example=example, chat=chat)
    name = where = str(model)
    if Path(name).expanduser().is_dir():
        name = where = str(Path(name).expanduser())
    elif (_BUNDLED / name / "config.json").is_file():
        where = str(_BUNDLED / name)
    if not kwargs.pop("use_safetensors", True):
        raise ModelError("weights are read from safetensors only: convert the checkpoint with save_pretrained")
    hf = _causal(where, dtype, device_map, quantization_config, kwargs)
    hf.requires_grad_(False)
    found = tokenizer
    if tokenizer is None or isinstance(tokenizer, (str, Path)):
        found = _tokenizer(tokenizer or where, kwargs.get("revision"), required=tokenizer is not None)
    return Model(hf, found, name=name, sites=sites, example=example, chat=chat)


def _causal(name: str, dtype: Any, device_map: Any, quantization: Any, kwargs: dict[str, Any]) -> Any:
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().is_dir():
        raise ModelError(f"there is no folder {name!r}")
    more = {k: v for k, v in {"device_map": device_map, "quantization_config": quantization}.items() if v is not None}
    try:
        loaded: Any = _class(name, kwargs).from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, **more, **kwargs
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{name!r} could not be loaded as a language model: {error}") from error
    hf, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"the weights of {name!r} lack {len(missing)} tensors, such as {missing[0]}")
    return hf


def _class(name: str, kwargs: Mapping[str, Any]) -> Any:
    """The auto class of a checkpoint: a model that is not causal is taken as what its architecture says it is."""
    import transformers

    known = {
        k: v for k, v in kwargs.items() if k in ("revision", "trust_remote_code", "token", "cache_dir", "subfolder")
    }
    config = transformers.AutoConfig.from_pretrained(name, **known)
    made = config.architectures or ()
    for head in ("ForSequenceClassification", "ForTokenClassification"):
        if any(one.endswith(head) for one in made):
            return getattr(transformers, f"AutoModel{head}")
    if getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    masked = any(one.endswith("ForMaskedLM") for one in made) and not any(one.endswith("ForCausalLM") for one in made)
    return transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM


def _tokenizer(name: str | Path, revision: str | None = None, required: bool = True) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(name), **({"revision": revision} if revision else {}))
    except Exception as error:
        if required or any(Path(name).glob("*token*")):
            raise ModelError(f"no tokenizer could be loaded from {str(name)!r}: {error}") from error
        return None
    if not found.vocab_size:  # transformers makes an empty one for a folder that has none
        if required:
            raise ModelError(f"no tokenizer could be loaded from {str(name)!r}: it has no words")
        return None
    return found
