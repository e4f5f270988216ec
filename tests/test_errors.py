"""Every error of ours can be caught by one name, and each class that the design names is there."""

from __future__ import annotations

import inspect

import pytest

from inlay import errors
from inlay.errors import InlayError

CLASSES = {name: c for name, c in vars(errors).items() if inspect.isclass(c) and c.__module__ == errors.__name__}


def test_the_classes() -> None:
    assert set(CLASSES) >= {
        "InlayError", "ModelError", "SiteError", "TokensError", "EditError", "InputError", "TemplateError",
        "FolderError", "ResumeError", "JudgeError", "ExtraError",
    }  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_each_is_an_inlay_error_with_its_message(name: str) -> None:
    kind = CLASSES[name]
    assert issubclass(kind, InlayError) and kind.__doc__
    with pytest.raises(InlayError, match="the value and the remedy"):
        raise kind("the value and the remedy")


def test_narrow_errors_are_caught_by_the_wider_ones() -> None:
    assert issubclass(errors.TemplateError, errors.InputError)
    assert issubclass(errors.ResumeError, errors.FolderError)
    assert issubclass(errors.ExtraError, ImportError), "code that tries an import catches it as usual"


def test_none_is_caught_by_accident() -> None:
    """A message of ours never disappears in an `except ValueError` or `except KeyError` of the caller's."""
    for kind in CLASSES.values():
        assert not issubclass(kind, (ValueError, KeyError, RuntimeError, OSError))
