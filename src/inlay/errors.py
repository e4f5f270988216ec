"""Every error that inlay raises on purpose. Each message names the offending value and the remedy."""

from __future__ import annotations


class InlayError(Exception):
    """Base class: `except inlay.errors.InlayError` catches whatever inlay raises on purpose."""


class ModelError(InlayError):
    """The model cannot be used: unknown structure, no tokenizer, or a call that it does not support."""


class SiteError(InlayError):
    """A Site is misspelled, does not exist in this model, or has another width than an edit expects."""


class TokensError(InlayError):
    """A Tokens spec is misspelled, lies outside a row, or does not match its source."""


class EditError(InlayError):
    """An Edit is not well formed, or was set and never reached by any forward."""


class InputError(InlayError):
    """The prompts are unusable: none, an empty one, or one longer than the model's context."""


class TargetError(InputError):
    """An answer or a target is no token of the model, or there is another number of them than of prompts."""


class BaselineError(InputError):
    """What a token is held against is no token, or no embedding that fits."""


class TemplateError(InputError):
    """A chat was given, and the tokenizer has no usable chat template for it."""


class FolderError(InlayError):
    """A folder on disk is not what it should be: missing, truncated, of another model or another format."""


class ResumeError(FolderError):
    """A job was resumed in a folder that another configuration wrote."""


class WorldError(InlayError):
    """A world's files, or what is asked of a world, are not what they should be."""


class DirectionError(InlayError):
    """No direction can be found in what was given, or one is used where it does not fit."""


class CausalError(InlayError):
    """A causal model, its data, or what is asked of a causal analysis is not what it should be."""


class RuleError(InlayError):
    """A backward rule is unknown, cannot act on a part of this model, or stands where it does not fit."""


class RuleNotApplied(RuleError):  # noqa: N818
    """A backward rule was in force and hit nothing.

    Attributes:
        rule: its name.
        family: the model's family.
        seen: the classes of the modules that it looked at.
    """

    def __init__(self, message: str, rule: str = "", family: str = "", seen: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.rule, self.family, self.seen = rule, family, seen


class TrainError(InlayError):
    """What is trained, its data, its objective or a setting of the training is not what it should be."""


class BenchError(InlayError):
    """A concept set, a method or a setting of a benchmark run is not what it should be."""


class JudgeError(InlayError):
    """A judge cannot be used, or did not answer."""


class ExtraError(InlayError, ImportError):
    """A feature needs an optional dependency. The message says which extra installs it."""
