"""The profile, asked question by question; every question is a field of `Profile`.

A dialogue is two functions, one that prints a line and one that reads one, so that a terminal, a
pipe and a test are the same to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import fill, wrap
from typing import Any, Protocol

from .files import FileError, refuse
from .knowledge import Knowledge
from .profile import TASKS, UNKNOWN, Profile, ProfileError, Question, questions
from .words import reads, value


class Say(Protocol):
    """Prints one line, in bold where that is possible and asked for."""

    def __call__(self, line: str, strong: bool = False) -> None:
        """Print it."""


Read = Callable[[str], str]

_WIDTH = 78  # columns
BACK, REST = "b", "done"
_COMMANDS = "enter or u: I don't know   b: back   ?: help   done: the rest is unknown"
# a question is asked only where its answer could matter: field -> (other field, its values)
_ASKED_WHEN: dict[str, tuple[str, tuple[object, ...]]] = {
    "classes": ("task", ("classification", "segmentation", "detection")),
    "multilabel": ("task", ("classification",)),
}
_IDLE_WHEN = {"gpu_memory_gb": ("gpus", (0,))}


class Unclear(ValueError):
    """A reply that answers nothing; the text says what would."""


def converse(knowledge: Knowledge, say: Say, read: Read) -> Profile:
    """Ask until the user agrees with the summary.

    Args:
        knowledge: Says which modalities there are, and which dimensions each has.
        say: Prints one line.
        read: Shows a prompt and returns the line that was typed.

    Raises:
        EOFError: If the input ends first.
    """
    say(_COMMANDS)
    return _Dialogue(knowledge, say, read).run()


class _Dialogue:
    """Answers so far, in the order in which they were given; `b` takes the last one back."""

    def __init__(self, knowledge: Knowledge, say: Say, read: Read) -> None:
        self.knowledge, self.say, self.read = knowledge, say, read
        self.answers: dict[str, Any] = {}
        self.earlier: dict[str, Any] = {}  # taken back or to be changed: offered as the default

    def run(self) -> Profile:
        while True:
            asked = self.relevant()
            self.answers = {n: v for n, v in self.answers.items() if n in asked}
            name = next((n for n in asked if n not in self.answers), None)
            if name is None:
                name = self.summary(asked)
                if name is None:
                    return Profile.parse(self.answers)
                self.take_back(name)
            self.step(asked[name], f"{list(asked).index(name) + 1} of {len(asked)}")

    def relevant(self) -> dict[str, Question]:
        """The questions that are worth asking after the answers so far."""
        return {q.name: self.with_choices(q) for q in questions() if not self.idle(q.name)}

    def idle(self, name: str) -> bool:
        """Whether the answers so far settle a question or make it pointless."""
        if name == "dimensionality":
            return len(self.dimensions()) == 1
        if name in _ASKED_WHEN:
            other, values = _ASKED_WHEN[name]
            return other in self.answers and self.answers[other] not in values
        other, values = _IDLE_WHEN.get(name, ("", ()))
        return self.answers.get(other) in values

    def dimensions(self) -> tuple[str, ...]:
        """What images of the chosen modality can be."""
        modality = self.answers.get("modality")
        return self.knowledge.modalities[modality].dimensionality if modality else ()

    def with_choices(self, question: Question) -> Question:
        """Modalities come from the folder, dimensions from the modality's card."""
        if question.name == "modality":
            return question._replace(kind="choice", choices=tuple(self.knowledge.modalities))
        if question.name == "dimensionality" and self.dimensions():
            return question._replace(choices=self.dimensions())
        return question

    def take_back(self, name: str) -> None:
        self.earlier[name] = self.answers.pop(name)

    def step(self, question: Question, place: str) -> None:
        """Put one question until there is an answer, or a way back."""
        self.say("")
        for line in wrap(f"{place}  {question.question}", _WIDTH):
            self.say(line, strong=True)
        for line in _asked(question, self.usual(question)):
            self.say(line)
        while True:
            reply = self.read("> ").strip()
            try:
                return self.take(question, reply)
            except Unclear as problem:
                for line in str(problem).splitlines():
                    self.say(_indented(line))

    def usual(self, question: Question) -> Any:
        """What enter means: the earlier answer, or unknown."""
        return self.earlier.get(question.name)

    def take(self, question: Question, reply: str) -> None:
        if reply == "?":
            raise Unclear("\n".join(_help(self.knowledge, question)))
        if reply.lower() == BACK:
            if not self.answers:
                raise Unclear("this is the first question")
            return self.take_back(list(self.answers)[-1])
        if reply.lower() == REST:
            return self.finish()
        default = self.usual(question)
        if reply or default is None:
            default = understand(question, reply)
        self.answers[question.name] = default

    def finish(self) -> None:
        """Leave every open question unknown."""
        if missing := [q.name for q in questions() if q.required and q.name not in self.answers]:
            raise Unclear(f"{missing[0]} has to be answered first")
        for name in self.relevant():
            self.answers.setdefault(name, self.earlier.get(name))

    def summary(self, asked: Mapping[str, Question]) -> str | None:
        """Show all answers; the name of the one to change, or None when all is well."""
        self.say("")
        self.say("Your problem", strong=True)
        width = max(map(len, asked))
        for i, name in enumerate(asked, 1):
            self.say(f"  {i:2}  {name:{width}}  {value(self.answers[name])}")
        while True:
            reply = self.read("Enter to see the answer, or a number to change one > ").strip()
            if not reply:
                return None
            if reply.lower() == BACK:
                return list(self.answers)[-1]
            try:
                return choose(reply.replace("-", "_"), tuple(asked))
            except Unclear as problem:
                self.say(_indented(str(problem)))


def _asked(question: Question, default: Any) -> list[str]:
    """What stands below a question on the screen."""
    lines = [_indented(question.help)]
    if question.choices:
        lines += _columns(question.choices)
    usual = value(default) if default is not None else "" if question.required else UNKNOWN
    wanted = question.unit if not question.choices else ""
    hints = [
        wanted or question.allowed * (not question.choices),
        f"enter: {usual}" if usual else "",
    ]
    return [*lines, *([f"  {'; '.join(filter(None, hints))}"] if any(hints) else [])]


def _indented(text: str) -> str:
    return fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def _columns(choices: tuple[str, ...], width: int = _WIDTH) -> list[str]:
    """Numbered choices in as many columns as fit; `2d` and `3d` keep their own numbers."""
    cells = [c if _speaking(choices) else f"{i:2} {c}" for i, c in enumerate(choices, 1)]
    wide = max(map(len, cells)) + 3
    per_line = max(1, width // wide)
    rows = (cells[i : i + per_line] for i in range(0, len(cells), per_line))
    return ["  " + "".join(f"{cell:{wide}}" for cell in row).rstrip() for row in rows]


def _speaking(choices: tuple[str, ...]) -> bool:
    """Whether names begin with digits: then a number would be misread, 3 as the third for `3d`."""
    return any(c[0].isdigit() for c in choices)


def _help(knowledge: Knowledge, question: Question) -> list[str]:
    """More about a question: what may be typed, and which rules look at the answer."""
    allowed = f"Allowed: {question.allowed}."
    if question.choices:
        allowed = "Type the name, its beginning" + (
            "." if _speaking(question.choices) else ", or its number."
        )
    unknown = "" if question.required else " u or enter means I don't know, which is a full answer."
    lines = [question.help, allowed + unknown]
    facts = [question.name, *(b.fact for b in knowledge.bands if b.source_fact == question.name)]
    rules = [r for r in knowledge.rules if reads(r.when, facts)]
    if rules:
        lines += [f"{len(rules)} rules look at it, for example: {rules[0].because}"]
    return lines


def understand(question: Question, reply: str) -> Any:
    """A typed reply as the value of a field; None is unknown.

    Args:
        question: What was asked, with its choices.
        reply: The line, without blanks at its ends.

    Raises:
        Unclear: If it is no answer to this question.
    """
    if reply.lower() in ("", "u", UNKNOWN) and not question.required:
        return None
    if not reply:
        raise Unclear(
            "this one is needed: " + (question.allowed if not question.choices else "choose one")
        )
    if question.choices:
        return choose(reply, question.choices)
    given: object = reply
    if question.kind == "yes-no":
        given = choose(reply, ("yes", "no"), numbered=False) == "yes"
    try:
        some = {"modality": "any", "task": TASKS[0]}  # a field is checked by itself
        return getattr(Profile.parse({**some, question.name: given}), question.name)
    except ProfileError as error:
        raise Unclear(str(error)) from None


def choose(reply: str, choices: tuple[str, ...], numbered: bool = True) -> str:
    """The choice that a number, a name or the beginning of one name means.

    Args:
        reply: What was typed.
        choices: The names.
        numbered: They stand on the screen with numbers from 1, if they do not begin with digits.

    Raises:
        Unclear: If it means none or several.
    """
    wanted = reply.lower()
    if wanted in choices:
        return wanted
    if wanted.isdecimal() and numbered and not _speaking(choices):
        if 1 <= int(wanted) <= len(choices):
            return choices[int(wanted) - 1]
        raise Unclear(f"{reply}: a number from 1 to {len(choices)} is expected")
    near = [c for c in choices if c.startswith(wanted)]
    if len(near) == 1:
        return near[0]
    if near:
        raise Unclear(f"{reply!r} can mean {' or '.join(near)}")
    raise Unclear(f"{reply!r} is none of {', '.join(choices)}")


def file_name(say: Say, read: Read) -> tuple[Path, bool] | None:
    """Offer to write the script; the file, and whether the user agreed to replace it.

    Args:
        say: Prints one line.
        read: Shows a prompt and returns the line that was typed.

    Raises:
        EOFError: If the input ends first.
    """
    say("Write the training script? Enter for train.py, another name, or n for no.")
    while True:
        reply = read("> ").strip()
        if reply.lower() in ("n", "no"):
            return None
        path = Path("train.py" if reply.lower() in ("", "y", "yes") else reply)
        try:
            refuse(path, force=True)
        except FileError as problem:
            say(f"  {problem}")
            continue
        if not path.exists():
            return path, False
        if read(f"{path} exists; replace it? yes, or enter for no > ").strip().lower() in (
            "y",
            "yes",
        ):
            return path, True
        say("Another name, or n for no.")
