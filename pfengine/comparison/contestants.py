"""What is compared: systems with their options, static models, students, and finished checkpoints.

As text: `linear`, `linear:reads=mean,epochs=2`, `linear on student`, `half:epochs=2`, or a checkpoint's directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..errors import ConfigError
from ..heads import HEADS
from ..training.config import TYPES, TrainingConfig
from ..training.systems import SYSTEMS

FULL = "full-model"  # whose full depth all times are compared with
ON = " on "


@dataclass(frozen=True)
class Contestant:
    """name: as text, and as it is shown. options: of `TrainingConfig`; those that its system declares under "options".

    share: it keeps the first of every `share` layers of the encoder; 1: all. start, teacher: contestants of the same
    seed that it starts from, and learns from. path: a finished checkpoint, which is not trained.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    share: int = 1
    start: str | None = None
    teacher: str | None = None
    path: Path | None = None

    @property
    def stem(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^\w.=-]+", "-", self.path.name if self.path is not None else self.name).strip("-")

    @property
    def needs(self) -> list[str]:
        """Contestants whose checkpoints it is made from."""
        return [name for name in (self.start, self.teacher) if name is not None]


def _static(system: str) -> dict[str, Contestant]:
    return {
        FULL: Contestant(FULL, {"system": system}),
        "half": Contestant("half", {"system": system}, share=2),
        "third": Contestant("third", {"system": system}, share=3),
    }


STUDENT = Contestant("student", {"system": "student", "options": {"patient": 0.0}}, share=2, teacher=FULL)
BASELINES = _static("full-model") | {"student": STUDENT}
OF_TAGGERS = _static("full-tagger")


def read(text: str, baselines: Mapping[str, Contestant] = BASELINES) -> Contestant:
    """The contestant that a text names. Raises ConfigError where there is none."""
    if (Path(text) / checkpoint.MANIFEST).is_file():
        return Contestant(Path(text).resolve().name, path=Path(text))
    name, _, start = text.partition(ON)
    name, _, given = name.partition(":")
    tags = baselines is OF_TAGGERS
    systems = [system for system in SYSTEMS if _tags(system) == tags]
    if start and start not in baselines:
        raise ConfigError(f"{text!r} starts from {start!r}; there are {', '.join(baselines)}")
    if name not in baselines and name not in systems:
        known = ", ".join(dict.fromkeys((*systems, *baselines)))
        of = f" that {'tags words' if tags else 'scores rows'}" if name in SYSTEMS else ""
        raise ConfigError(f"there is no contestant {text!r}{of}; give a checkpoint's directory, or one of {known}")
    like = baselines.get(name, Contestant(name, {"system": name}))
    system = like.options["system"]
    own, options, of_system = SYSTEMS[system].own, dict(like.options), dict(like.options.get("options", {}))
    for part in given.split(",") if given else ():
        key, equals, value = part.partition("=")
        if not equals or not (key in own or key in TYPES):
            raise ConfigError(f"{text!r} has {part!r}, which is no option of {system}; give option=value")
        if key in own:
            of_system[key] = own[key].parse(value)
        else:
            options[key] = _value(value)
    if of_system:
        options["options"] = of_system
    return replace(
        like, name=text, options=options, share=1 if "layers" in options else like.share, start=start or None
    )


def read_all(texts: Sequence[str]) -> dict[str, Contestant]:
    """Contestants by name, those that others need and the full model first. Raises ConfigError.

    Where one is a system that tags words, all must be.
    """
    found: dict[str, Contestant] = {}
    named = [text.partition(ON)[0].partition(":")[0] for text in texts]
    baselines = OF_TAGGERS if any(name in SYSTEMS and _tags(name) for name in named) else BASELINES

    def add(contestant: Contestant) -> None:
        for name in contestant.needs:
            add(baselines[name])
        if found.setdefault(contestant.name, contestant) != contestant:
            raise ConfigError(f"two contestants are called {contestant.name!r}; rename the directory of one")

    for contestant in (baselines[FULL], *(read(text, baselines) for text in texts)):
        add(contestant)
    stems = [contestant.stem for contestant in found.values()]
    if twice := sorted(stem for stem in set(stems) if stems.count(stem) > 1):
        raise ConfigError(f"two contestants would both be kept as {twice[0]}; rename a directory")
    return found


def _tags(system: str) -> bool:
    """Does it tag words?"""
    return HEADS[TrainingConfig("", "", "", system=system).head(False, 12)["type"]].tags


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
