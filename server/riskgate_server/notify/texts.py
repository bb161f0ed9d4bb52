"""The texts of messages to customers, which are data: `messages.yaml` beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Formatter
from typing import Final

import msgspec
import yaml

LANGUAGES: Final = ("en", "zh-Hans")
TEXT_CHARACTERS_MAX: Final = 160


class TextsInvalid(Exception):
    """The texts cannot be used. The message names the one that is wrong."""


class Texts:
    """
    Keeps `ports.MessageTexts`.

    Raises, when made:
        TextsInvalid: a text is missing in a language, names other parameters than in another, or is too long.
    """

    def __init__(self, source: str) -> None:
        try:
            self._texts = msgspec.convert(yaml.safe_load(source), dict[str, dict[str, str]])
        except (msgspec.ValidationError, yaml.YAMLError) as error:
            raise TextsInvalid(f"the texts cannot be read: {error}") from error
        for template, texts in self._texts.items():
            if tuple(sorted(texts)) != LANGUAGES:
                raise TextsInvalid(f"{template}: texts in {', '.join(LANGUAGES)} are needed, and in no other language")
            if len({_parameters(template, text) for text in texts.values()}) != 1:
                raise TextsInvalid(f"{template}: its texts name different parameters")

    @property
    def templates(self) -> frozenset[str]:
        """The names of all texts."""
        return frozenset(self._texts)

    def __call__(self, template: str, language: str, parameters: Mapping[str, str]) -> str:
        """Return a text filled in. A parameter's own braces mean nothing."""
        return self._texts[template][language].format_map(parameters)


def own_texts() -> Texts:
    """Return the texts that come with the program."""
    return Texts((files("riskgate_server") / "notify" / "messages.yaml").read_text(encoding="utf-8"))


def _parameters(template: str, text: str) -> frozenset[str]:
    if not 1 <= len(text) <= TEXT_CHARACTERS_MAX:
        raise TextsInvalid(f"{template}: a text has 1 to {TEXT_CHARACTERS_MAX} characters")
    try:
        pieces = list(Formatter().parse(text))
    except ValueError as error:
        raise TextsInvalid(f"{template}: {error}") from error
    names = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    for name, spec, conversion in names:
        # An attribute or an index would reach into objects.
        if not name.isidentifier() or spec or conversion:
            raise TextsInvalid(f"{template}: {{{name}}} is not the name of a parameter")
    return frozenset(name for name, _, _ in names)
