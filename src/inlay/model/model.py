"""Model: a causal language model with its tokenizer, read and edited through Sites."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import SiteError
from inlay.model import generating, reading, resume
from inlay.model import worlds as side_by_side
from inlay.model.activations import Activations
from inlay.model.discover import discover, given_map
from inlay.model.engine import Run
from inlay.model.frame import Text
from inlay.model.inputs import Batch, Encoder, pad
from inlay.model.passes import Want
from inlay.model.probe import takes
from inlay.model.running import make_run, wanted
from inlay.model.sitemap import SiteMap
from inlay.model.sites import Site
from inlay.model.tokens import Tokens
from inlay.model.two_stacks import decoder_arguments, refuse


@dataclass(frozen=True)
class Output:
    """What a forward gave.

    Attributes:
        hf: the model's own output object.
        acts: the Sites that were read, `None` without `read=`.
        touched: how many attended positions each part of the Edit changed.
        mask: int64 [rows, tokens], 1 where the batch holds a token; rows are padded on the right.
    """

    hf: Any
    acts: Activations | None
    touched: list[int] | None
    mask: Tensor

    @property
    def logits(self) -> Tensor:
        """[rows, tokens, vocabulary]."""
        found = self.hf if isinstance(self.hf, Tensor) else self.hf[0] if isinstance(self.hf, tuple) else self.hf.logits
        return found

    @property
    def loss(self) -> Tensor | None:
        """The model's own loss, where labels were given."""
        return getattr(self.hf, "loss", None)


class Model:
    """A causal language model whose weights, modes, hooks and configuration stay the user's.

    Args:
        hf: a Hugging Face causal LM, also inside a `peft` or `torch.compile` wrapper, or any `nn.Module` with a list of
            blocks that maps ids [rows, tokens] to logits.
        tokenizer: its tokenizer; without one the model takes ids only.
        name: where it came from, for messages and saved Edits.
        sites: a map of Sites for a module whose structure inlay does not find: Site name to `"path.{layer}.sub:out"`,
            or `("path.{layer}.sub:in", heads)`.
        example: inputs for the two-token run that confirms the map, for modules that do not take ids.
        chat: whether plain strings are user turns of a chat; by default where the tokenizer has a chat template.

    Raises:
        ModelError: no list of blocks was found, and no map was given.
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        sites: Mapping[str, Any] | None = None,
        example: Any = None,
        chat: bool | None = None,
    ) -> None:
        self.hf, self.tokenizer = hf, tokenizer
        config = getattr(self.base, "config", None)
        self.config: Any = (
            config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        )
        self.name = name or getattr(config, "_name_or_path", "") or type(self.base).__name__
        family = getattr(self.config, "model_type", None) or type(self.base).__name__
        if sites is not None:
            self._map = given_map(self.base, sites, example)
        else:
            self._map = discover(self.base, family, self.config, example)
        embed = self._map.places.get("embed", {}).get(None)
        table = getattr(self.base.get_submodule(embed.path), "weight", None) if embed else None
        self.encoder = Encoder(
            tokenizer,
            getattr(self.config, "max_position_embeddings", None),
            chat,
            None if table is None else table.shape[0],
        )
        self._text: Text | None = None

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def base(self) -> nn.Module:
        """The causal model itself, inside any `torch.compile`, data-parallel or `peft` wrapper."""
        here: Any = self.hf
        while True:
            inner = here.__dict__.get("_orig_mod") or here._modules.get("_orig_mod")
            if inner is None and type(here).__name__ in ("DistributedDataParallel", "DataParallel"):
                inner = here.module
            if inner is None and hasattr(here, "get_base_model"):
                inner = here.get_base_model()
            if inner is None or inner is here:
                return here  # type: ignore[no-any-return]
            here = inner

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return self._map.layers

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        for name in ("resid_post", "resid_pre", "embed"):
            for place in self._map.places.get(name, {}).values():
                return place.width
        raise SiteError("this model's map has no residual stream: give it 'resid_post'")

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        place = self._map.places.get("embed", {}).get(None)
        modules = [self.base.get_submodule(place.path)] if place else []
        for module in (*modules, self.base):
            for parameter in module.parameters():
                if parameter.device.type != "meta":
                    return parameter.device
        return torch.device("cpu")

    def sites(self) -> SiteMap:
        """The Sites that this model has: their layers, widths, heads and modules, and what it lacks and why."""
        return self._map

    def identity(self) -> dict[str, Any]:
        """Name, revision, shape and a hash of the configuration: what a saved Edit records of its base."""
        config = getattr(self.base, "config", None)
        if config is not None and hasattr(config, "to_dict"):
            kept = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in _VOLATILE}
        else:
            kept = {name: list(p.shape) for name, p in self.base.named_parameters()}
        text = json.dumps(kept, sort_keys=True, default=str)
        return {
            "name": self.name if not Path(self.name).is_dir() else Path(self.name).name,
            "revision": getattr(config, "_commit_hash", None),
            "family": self._map.family,
            "layers": self.layers,
            "width": self.width,
            "config_hash": hashlib.sha256(text.encode()).hexdigest(),
        }

    @property
    def text(self) -> Text | None:
        """What finds words in ids, `None` without a tokenizer."""
        if self._text is None and self.tokenizer is not None:
            self._text = Text(self.encoder.decode, self.encoder.turn_end())
        return self._text

    # -- edits -------------------------------------------------------------------------------------------------------

    def edited(
        self,
        edit: Any,
        *,
        rows: Sequence[int] | Tensor | None = None,
        strength: float | Sequence[float] | Tensor | None = None,
        keys: Sequence[int] | Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Run:
        """A context in which any call of the model, in this thread, sees the Edit; afterwards nothing of it is left.

        Contexts nest: the outer Edit acts first at a Site that both name. Two threads may hold different ones.

        Args:
            edit: an Edit.
            rows: for a Bank, which of its rows each prompt of the batch uses; 0 is no edit.
            strength: a factor on every part's change, one for all or one for each prompt.
            keys: for dropout in training, one integer for each prompt: what is dropped in a row depends on its key, the
                Site, the position and the dimension alone, so that the row drops the same in any batch. By default
                torch's generator decides.
            prompt_mask: bool [rows, slots], which of the first slots are prompt; all later attended ones are response.
                By default everything is prompt, and what `generate` adds is response.

        Returns:
            A `Run`; `with model.edited(edit) as run:` gives its `touched` counts.

        Raises:
            SiteError, TokensError, EditError: the Edit does not fit the model; raised here, before any forward.
        """
        return make_run(self, edit, rows=rows, strength=strength, keys=keys, prompt_mask=prompt_mask)

    # -- running -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        prompts: Any,
        *,
        responses: Sequence[str] | None = None,
        edit: Any = None,
        rows: Sequence[int] | Tensor | None = None,
        strength: float | Sequence[float] | Tensor | None = None,
        keys: Sequence[int] | Tensor | None = None,
        read: str | Site | Sequence[str | Site] | None = None,
        tokens: Any = "all",
        before: bool = False,
        loss: bool = False,
        worlds: bool = False,
        chat: bool | None = None,
        **kwargs: Any,
    ) -> Output:
        """One forward over all prompts, right-padded, under the ambient gradient mode.

        Args:
            prompts: see `Encoder.rows`.
            responses: one response text a prompt, marked as response; of an encoder-decoder model, what its decoder is
                fed behind its start token (all of it "prompt" to Tokens), by default that token alone.
            edit, rows, strength, keys: as in `edited`.
            read: Sites to read; they come back as `Output.acts`, in the autograd graph where there is one.
            tokens: which tokens to read.
            before: read before the Edit acts at the same Site; by default after.
            loss: also compute the language-model loss, on the responses where there are any.
            worlds: run the Edit's Sources as more rows of the same forward instead of in forwards of their own, which
                end at the last Site that is taken. Worth it where a forward's cost hardly grows with its rows (few
                short rows, or a GPU that waits for kernels); each source Site must lie no higher than the Site that
                takes it. Rounding differs, as between any two batch sizes.
            chat: whether plain strings are user turns.
            **kwargs: passed on to the model.

        Raises:
            InlayError: prompts, Sites, Tokens or Edit do not fit; see their classes.
        """
        wants = wanted(self, read, tokens, before)
        if self._map.encoder:
            data = self.encoder.rows(prompts, None, chat)
            if "decoder_input_ids" not in kwargs:
                kwargs |= decoder_arguments(self, len(data), responses, loss)
            loss = False  # its labels are among these
        else:
            data = self.encoder.rows(prompts, responses, chat)
        if worlds:
            refuse(self, "worlds=True")
            options = {"rows": rows, "strength": strength, "keys": keys}
            found, base, mask = side_by_side.run(self, data, edit, wants, options, kwargs, loss)
            return Output(found, reading.collect(base), base.touched, mask)
        batch = pad(data, self.pad_id, self.device)
        run = make_run(
            self,
            edit,
            wants,
            rows=rows,
            strength=strength,
            keys=keys,
            prompt_mask=batch.prompt,
            attended=batch.mask,
        )
        if loss:
            real = batch.mask.bool() if batch.prompt is None else batch.mask.bool() & ~batch.prompt
            kwargs["labels"] = batch.ids.masked_fill(~real, -100)
        return self.run_batch(run, batch, **kwargs)

    __call__ = forward

    def run_batch(self, run: Run, batch: Batch, **kwargs: Any) -> Output:
        """One forward of padded rows under a Run."""
        args, kwargs = self.arguments(batch, **kwargs)
        with run:
            found = self.hf(*args, **kwargs)
        return Output(found, reading.collect(run), run.touched, batch.mask)

    def arguments(self, batch: Batch, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with: ids, mask and positions by keyword; the ids alone for a plain module."""
        parameters = inspect.signature(self.base.forward).parameters
        if "input_ids" not in parameters:
            return (batch.ids,), kwargs
        named = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
        named = {name: value for name, value in named.items() if name in parameters}
        if takes(self.base, "use_cache"):
            kwargs.setdefault("use_cache", False)
        if self._map.encoder and "decoder_input_ids" not in kwargs:
            kwargs |= decoder_arguments(self, len(batch.ids), None, False)
        return (), named | kwargs

    def take(
        self, prompts: Any, asks: Sequence[tuple[Site, Tokens]], edit: Any = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Values [rows, k, width] and which are real, for every (Site, Tokens), from one forward."""
        batch = pad(self.encoder.rows(prompts), self.pad_id, self.device)
        wants = [Want(site, tokens) for site, tokens in asks]
        run = make_run(self, edit, wants, prompt_mask=batch.prompt, attended=batch.mask, stop=True)
        args, kwargs = self.arguments(batch)
        with run, reading.until_stopped():
            self.hf(*args, **kwargs)
        for taken in run.taken:
            yield taken[0].values, taken[0].real

    def read(
        self, prompts: Any, sites: str | Site | Sequence[str | Site], tokens: Any = "all", **kwargs: Any
    ) -> Activations:
        """Activations of many prompts, in batches; see `reading.read` for every argument."""
        return reading.read(self, prompts, sites, tokens, **kwargs)

    def generate(
        self,
        prompts: Any,
        *,
        edit: Any = None,
        rows: Sequence[int] | Tensor | None = None,
        strength: float | Sequence[float] | Tensor | None = None,
        stream: bool = False,
        chat: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Text in, text out.

        Args:
            prompts: a prompt or a list of them; see `Encoder.rows`.
            edit, rows, strength: as in `edited`.
            stream: yield the new text piece by piece; one prompt only.
            chat: whether plain strings are user turns.
            **kwargs: any argument of `transformers`' `generate`; `max_new_tokens` is 64 by default.

        Returns:
            The new text: a string for one prompt, a list for a list; with `num_return_sequences` above 1 a list of
            texts in place of each text; with `stream` an iterator of pieces. Without a tokenizer, lists of ids
            instead of text.

        Raises:
            InlayError: prompts or Edit do not fit, or the Edit changed nothing in the whole generation.
        """
        return generating.generate(
            self, prompts, edit=edit, rows=rows, strength=strength, stream=stream, chat=chat, **kwargs
        )

    # -- resuming ----------------------------------------------------------------------------------------------------

    def states(self, prompts: Any, site: str | Site, **kwargs: Any) -> resume.States:
        """Run the layers up to a Site once and keep its states; see `resume.states`."""
        refuse(self, "model.states")
        return resume.states(self, prompts, site, **kwargs)

    def resume(self, states: resume.States, **kwargs: Any) -> Output:
        """Run only the layers above stored states; see `resume.resume`."""
        return resume.resume(self, states, **kwargs)

    @property
    def pad_id(self) -> int:
        """The id that fills padding; it is masked, so any id will do."""
        for owner in (self.tokenizer, self.config):
            found = getattr(owner, "pad_token_id", None)
            if isinstance(found, int):
                return found
        return 0

    def __repr__(self) -> str:
        chat = ", chat" if self.encoder.chat else ""
        return f"Model({self.name!r}, {self._map.family}: {self.layers} layers, width {self.width}{chat})"


_VOLATILE = {
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "problem_type",  # transformers writes it in a classifier's first labelled forward
    "pad_token_id",  # trainers write these three
    "bos_token_id",
    "eos_token_id",
}
