"""EditedModel: an edited model as an ordinary module, which the trainers of transformers and TRL train.

Legend: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from torch import Tensor, nn

from inlay.errors import EditError, TrainError
from inlay.interventions.edit import Edit
from inlay.train import attached_folder as disk
from inlay.train.attached_base import Before, Unedited
from inlay.train.attached_prompt import prompt_of

if TYPE_CHECKING:
    from inlay.model.model import Model

_OURS = ("rows", "strength", "prompt_mask", "completion_mask")
_in_force: ContextVar[frozenset[int]] = ContextVar("_in_force", default=frozenset())


class EditedModel(Unedited):
    """A frozen model under an Edit as one module, whose trainable parameters, state and checkpoints are the Edit's.

    For HF `Trainer`, TRL's `SFTTrainer` and `DPOTrainer`, `accelerate` and other code that wants a `PreTrainedModel`.
    For inlay's own objectives and many concepts at once use `inlay.train.fit`.

    The base's blocks may be sharded over processes with `torch.distributed.fsdp.fully_shard`, between `inlay.load` and
    this; the Edit is whole in each of them, and DistributedDataParallel or Trainer averages its gradients.

    While it is attached the base's weights are frozen. `detach`, or the end of `with EditedModel(...) as edited:`,
    gives the base back as it was: modes, `requires_grad`, dropout, configuration, checkpointing, head.

    Args:
        model: the Model.
        edit: the Edit; its parameters are shared, not copied.
        train_head: also train every parameter outside of the base's stack of blocks, such as the `score` of a sequence
            classifier; or the paths of the modules to train, such as `["classifier", "bert.pooler"]`.

    Raises:
        TrainError: no Hugging Face model, no head to train, or parameters to train that are sharded.
        SiteError, TokensError, EditError: the Edit does not fit the model.
    """

    def __init__(self, model: Model, edit: Edit, *, train_head: bool | Sequence[str] = False) -> None:
        super().__init__(model)
        if not isinstance(edit, Edit):
            raise EditError(f"edit={edit!r:.60} is not an Edit: write Edit('resid_post.3', Add(v))")
        banked = any(part.intervention.banked for part in edit.parts)
        if not any(part.intervention.sources() for part in edit.parts):
            model.edited(edit, rows=[0] if banked else None)  # whether it fits shows here, before any training
        self.edit = edit
        base = cast(Any, model.base)
        self._identity = model.identity()  # of the configuration before a trainer writes its token ids there
        self._head = disk.head(base, train_head)
        disk.check_whole(self.edit, base, self._head)
        self._before: Before | None = Before(model.hf, base, self._head)
        decides = [leaf.tokens for part in edit.parts if part.when is not None for leaf in part.when.leaves()]
        tokens = [*(part.tokens for part in edit.parts), *decides]
        self._asks_prompt = any(one is not None and not one.everything for one in tokens)
        self._causal = base.can_generate() and not base.config.is_encoder_decoder
        model.hf.requires_grad_(False)
        for parameter in self._head.values():
            parameter.requires_grad_(True)

    # -- attached or not ----------------------------------------------------------------------------------------------

    def detach(self) -> Edit:
        """Give the base back as it was, a trained head included, and return the Edit; idempotent.

        The head's trained values are gone after this: `save_pretrained` first.
        """
        if self._before is not None:
            self._before.restore()
            self._before = None
        return self.edit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.detach()

    def reference(self) -> Unedited:
        """The base without the Edit, for what wants a reference model: `DPOTrainer(ref_model=edited.reference())`.

        It shares the base's weights, so it costs no memory.
        """
        return Unedited(self.model)

    # -- running ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, whatever a trainer has put around or in the place of it."""
        ours = {name: kwargs.pop(name, None) for name in _OURS}
        with self._edited(args, kwargs, **ours):
            return super().__call__(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        rows: Sequence[int] | Tensor | None = None,
        strength: float | Sequence[float] | Tensor | None = None,
        prompt_mask: Tensor | None = None,
        completion_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's forward under the Edit.

        What is prompt and what response, for Tokens such as `"first7+last7"`: `prompt_mask` or `completion_mask` where
        one is given; else, for a causal model, the tokens of a row before its first label that is not -100. A row
        without labels, or labelled from its first token, is all prompt.

        Args:
            input_ids: int64 [R, T].
            attention_mask: [R, T], padding on either side.
            position_ids: [R, T].
            token_type_ids: [R, T].
            inputs_embeds: [R, T, width], in place of ids.
            labels: as the base takes them.
            rows: for a Bank, the row that each row of the batch uses; a dataset's column `rows` arrives here.
            strength: a factor on every part's change, one for all or one a row.
            prompt_mask: [R, T], 1 where a prompt token is.
            completion_mask: [R, T], 1 where a response token is.
            **kwargs: passed on to the base.

        Returns:
            The base's own output.

        Raises:
            TrainError: detached; or, in training mode, nothing says which tokens are prompt and the Edit must know.
        """
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
        }
        kwargs |= {name: value for name, value in named.items() if value is not None}
        masks = {"prompt_mask": prompt_mask, "completion_mask": completion_mask}
        with self._edited((), kwargs, rows=rows, strength=strength, **masks):
            return self.hf(**kwargs)

    def generate(
        self,
        *args: Any,
        rows: Sequence[int] | Tensor | None = None,
        strength: float | Sequence[float] | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's `generate` under the Edit; what it is given is prompt, what it adds is response."""
        self._check_attached()
        with self.model.edited(self.edit, rows=rows, strength=strength):
            return super().generate(*args, **kwargs)

    @contextmanager
    def _edited(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, rows: Any, strength: Any, **masks: Any
    ) -> Iterator[None]:
        """The Edit in force, once for a call and the `forward` inside it."""
        inside = _in_force.get()
        if id(self) in inside:
            yield
            return
        self._check_attached()
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        prompt = None
        if self._asks_prompt:
            prompt = prompt_of(ids, kwargs, **masks, causal=self._causal, training=self.training)
        token = _in_force.set(inside | {id(self)})
        try:
            with self.model.edited(self.edit, rows=rows, strength=strength, prompt_mask=prompt):
                yield
        finally:
            _in_force.reset(token)

    def _check_attached(self) -> None:
        if self._before is None:
            raise TrainError("this EditedModel was detached: make another one, EditedModel(model, edit)")

    # -- parameters ---------------------------------------------------------------------------------------------------

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, and of how many."""
        trained, every = self.num_parameters(only_trainable=True), self.num_parameters()
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The trained parameters for an optimiser: matrices decay; vectors and scalars, of a Bank's rows too, do not.

        Trainer tells the two apart by names with "bias" or "norm" in them, which an intervention's tensors do not have;
        `Trainer(optimizers=(torch.optim.AdamW(edited.parameter_groups(0.01), lr=1e-3), None))` uses these.
        """
        kept: dict[int, tuple[nn.Parameter, bool]] = {id(p): (p, p.ndim > 1) for p in self._head.values()}
        for module in self.edit.interventions:
            intervention = cast(Any, module)
            for name, tensor in intervention.state().items():
                table = intervention.banked and name not in intervention.common
                if isinstance(tensor, nn.Parameter):
                    kept.setdefault(id(tensor), (tensor, tensor.ndim - table > 1))
        for parameter in self.edit.parameters():
            kept.setdefault(id(parameter), (parameter, parameter.ndim > 1))
        groups = [(True, weight_decay), (False, 0.0)]
        return [
            {
                "params": [p for p, is_matrix in kept.values() if is_matrix is matrix and p.requires_grad],
                "weight_decay": w,
            }
            for matrix, w in groups
        ]

    # -- on disk ------------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The Edit's tensors and the trained head's, without the base's."""
        found: dict[str, Any] = {} if destination is None else destination
        self.edit.state_dict(destination=found, prefix=f"{prefix}edit.", keep_vars=keep_vars)
        for name, parameter in self._head.items():
            found[f"{prefix}head.{name}"] = parameter if keep_vars else parameter.detach()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave; every tensor must be there, whatever `strict` says.

        Raises:
            TrainError: a tensor is missing, unknown or of another shape.
        """
        return disk.load_state(self.state_dict(keep_vars=True), state_dict)

    def save_pretrained(  # type: ignore[override]  # of the options, those that an Edit has
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Any = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the Edit's folder, without the base: `edit.json`, `edit.safetensors`, and `model.safetensors`.

        The last one holds the trained tensors again, with those of a trained head, under the name from which Trainer
        resumes. `Edit.from_pretrained` reads the folder too.

        Args:
            save_directory: made where it does not exist.
            is_main_process: other processes write nothing.
            state_dict: not used; the values are those of this module.
            push_to_hub: also upload the folder.
            **kwargs: of what transformers passes, `repo_id`, `private` and `token` are used for the upload.

        Raises:
            EditError: a part lives only in memory.
            FolderError: the disk refuses.
            TrainError: what is trained was sharded.
        """
        disk.check_whole(self.edit, self.model.base, self._head)
        if not is_main_process:
            return
        folder = Path(save_directory).expanduser()
        disk.write(self.edit, self._identity, self.state_dict(), folder)
        if push_to_hub:
            chosen = {name: kwargs[name] for name in ("private", "token") if name in kwargs}
            cast(Any, self).push_to_hub(kwargs.get("repo_id") or folder.name, **chosen)

    @classmethod
    def from_pretrained(cls, name: str | Path, model: Model, **kwargs: Any) -> EditedModel:  # type: ignore[override]
        """An EditedModel of a folder or hub repository that `save_pretrained` or `push_to_hub` made, in eval mode.

        Args:
            name: a folder, or a hub id.
            model: the base it was trained on.
            **kwargs: passed on to `huggingface_hub.snapshot_download` (`revision=`, `token=`).

        Raises:
            FolderError: no such folder, a damaged one, or made for another base model.
            TrainError: the base has no such head.
        """
        folder = disk.local(name, **kwargs)
        tensors = disk.tensors(folder)
        names = [key.removeprefix("head.") for key in tensors if key.startswith("head.")]
        made = cls(model, Edit.from_pretrained(folder, model), train_head=names)
        made.load_state_dict(tensors)
        made.train(False)
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.edit!r})"
