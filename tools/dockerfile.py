"""A Dockerfile -> stages of instructions, for the part of its language that ours uses."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
FLAG = re.compile(r"--(\w+)=(\S+)\s+")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: keyword, flags such as --mount as (name, value), the rest, line number."""

    keyword: str
    flags: tuple[tuple[str, str], ...]
    rest: str
    line: int

    @property
    def words(self) -> list[str]:
        """The rest as words: a JSON list in exec form, else split as a shell would."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return shlex.split(self.rest)

    @property
    def pairs(self) -> dict[str, str]:
        """The rest as NAME=value pairs; a bare NAME is the empty string."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}


@dataclass(slots=True)
class Stage:
    """One FROM with what follows; `name` is AS's or its number, `base` an image or a stage."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The global ARGs with their defaults, and the stages in order."""

    arguments: Mapping[str, str]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Return a stage by name; raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    def chain(self, name: str) -> tuple[str, list[Instruction]]:
        """Return the image that a stage starts from, and all instructions until that stage ends."""
        stage, names = self.stage(name), {stage.name for stage in self.stages}
        if stage.base not in names:
            return expand(stage.base, self.arguments), list(stage.instructions)
        image, before = self.chain(stage.base)
        return image, before + stage.instructions


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $NAME and ${NAME}; an unknown one is the empty string, as in Docker."""
    return VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)


def _join_lines(text: str) -> list[tuple[int, str]]:
    """Join continued lines and drop comments, also those between continued lines."""
    joined: list[tuple[int, str]] = []
    start, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start or number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            joined.append((start, " ".join(parts)))
            start, parts = 0, []
    return joined


def parse(text: str) -> Dockerfile:
    """Parse a Dockerfile; raises ValueError on anything but ARG before the first FROM."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for number, line in _join_lines(text):
        keyword, _, rest = line.partition(" ")
        flags: list[tuple[str, str]] = []
        rest = rest.strip()
        while match := FLAG.match(rest):
            flags.append((match[1], match[2]))
            rest = rest[match.end() :]
        instruction = Instruction(keyword.upper(), tuple(flags), rest, number)
        if instruction.keyword == "FROM":
            base, *named = instruction.words
            stages.append(Stage(base, named[1] if named else str(len(stages))))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.keyword == "ARG":
            arguments |= instruction.pairs
        else:
            raise ValueError(f"line {number}: {keyword} before FROM")
    return Dockerfile(arguments, tuple(stages))
