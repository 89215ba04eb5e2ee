"""All knowledge in `rules/`: read when asked for, kept, and tied together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from pydantic import BaseModel

from . import reading
from .cards import (
    Bands,
    Finding,
    MethodCard,
    ModalityCard,
    Rule,
    Scale,
    Selector,
    Setting,
    Study,
    Target,
)
from .checkpoints import Checkpoint, weights_of
from .conditions import compile_when
from .engine import EngineRule, Evaluator, RuleError, evaluator
from .facts import Kind, kinds
from .folder import Folder, uncollected
from .layers import Layers, advice_files
from .packs import Pack
from .profile import Profile, ProfileError, nearest
from .reading import KnowledgeError
from .references import advice, of_packs

__all__ = ["Knowledge", "KnowledgeError", "home"]

Item = TypeVar("Item", bound=BaseModel)
T = TypeVar("T")


def home(name: str) -> Path:
    """The folder `rules` or `templates`: inside the installed package, or beside it in a checkout.

    Args:
        name: The folder's name.

    Raises:
        KnowledgeError: If it is in neither place.
    """
    here = Path(__file__).parent
    for place in (here / name, here.parent / name):
        if place.is_dir():
            return place
    raise KnowledgeError(f"{name}: the folder is missing beside {here}; install the package again")


class Knowledge(Layers):
    """The rule base. One object may serve many threads; what was read is kept.

    Attributes:
        methods: Method cards by id, in alphabetical order.
        modalities: Modality cards by id.
        studies: Published comparisons by id; only those asked for are read.
    """

    def __init__(self, root: Path, packs: Iterable[Path | str | Pack] = ()) -> None:
        super().__init__(root, packs)
        self._lock, self._kept = RLock(), dict[Any, Any]()
        self.methods = self._folder("methods", MethodCard)
        self.modalities = self._folder("modalities", ModalityCard)
        self.studies = self._folder("studies", Study)

    @classmethod
    def load(
        cls, root: Path | str | None = None, packs: Iterable[Path | str | Pack] = ()
    ) -> Knowledge:
        """The rule base of a folder; the shipped one is made once and shared.

        Args:
            root: Another folder of the same make, or None for the shipped one.
            packs: Folders of rule packs that add to it, later ones over earlier ones.

        Raises:
            KnowledgeError: If a folder is missing. Files are read, and refused, when needed.
        """
        packs = tuple(packs)
        if packs or root is not None:
            return cls(home("rules") if root is None else Path(root), packs)
        with _LOCK:
            return _shipped()

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """The value kept under a key, made on first use by one thread alone.

        Args:
            key: Any hashable name.
            make: Makes the value; its errors are raised again on the next use.
        """
        if key not in self._kept:
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = uncollected(make)
        found: T = self._kept[key]
        return found

    @property
    def version(self) -> str:
        """Version of the rule base, such as `2026.11`."""
        path = self.root / "VERSION"
        if not path.is_file():
            raise KnowledgeError(f"{self.shown(path)}: the file is missing")
        return self.once("version", lambda: path.read_text(encoding="utf-8").strip())

    @property
    def sha256(self) -> str:
        """Hash of every file under the root, packs apart: names and bytes."""
        return self.once("sha256", self.hashed)

    @property
    def findings(self) -> Mapping[str, Finding]:
        """What the review found, by id."""
        return self.once("findings", lambda: {f.id: f for f in self.list_findings()})

    @property
    def bands(self) -> tuple[Bands, ...]:
        """Numbers cut into named ranges."""
        return self.once("bands", lambda: reading.parse_list(*self._file("facts"), Bands))

    @property
    def scale(self) -> Scale:
        """What a reason weighs."""
        return self.once("scale", lambda: reading.parse(*self._file("scale"), Scale))

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Public weights of all modalities."""
        return self.once("checkpoints", lambda: weights_of(self.roots, self.shown, self.modalities))

    @property
    def protocol(self) -> Mapping[str, Setting]:
        """The numbers of a run that all methods share."""
        return self.once(
            "protocol", lambda: reading.parse_mapping(*self._file("protocol"), Setting)
        )

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Every fact that a rule may test, with what it may hold."""
        return self.once("kinds", lambda: kinds(self.modalities, self.bands))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules in file order, each checked against what it refers to.

        Raises:
            KnowledgeError: With every problem of all advice files; the text is the first.
        """
        return self.once("rules", self._rules)

    @property
    def rule(self) -> Mapping[str, Rule]:
        """All rules by id."""
        return self.once("rule", lambda: {r.id: r for r in self.rules})

    @property
    def study_ids(self) -> tuple[str, ...]:
        """Ids of all studies, from the listing; none is read."""
        return tuple(self.studies)

    def study(self, id: str) -> Study:
        """One published comparison.

        Args:
            id: Stem of its file.

        Raises:
            KnowledgeError: If there is none.
        """
        if id not in self.studies:
            raise KnowledgeError(f"there is no study {id!r}{nearest(id, self.studies)}")
        return self.studies[id]

    def check(self, profile: Profile) -> None:
        """Refuse a modality without a card.

        Args:
            profile: The answers.

        Raises:
            ProfileError: With the nearest modality there is.
        """
        name, known = profile.modality, self.modalities
        if name not in known:
            choices = ", ".join(known)
            raise ProfileError(f"modality: {name!r} is not one of {choices}{nearest(name, known)}")

    def expand(self, targets: Iterable[Target]) -> tuple[str, ...]:
        """The methods that ids and selectors name, image-text methods included, each once.

        Args:
            targets: Ids, or selectors of a paradigm, a family or both.
        """
        found: dict[str, None] = {}
        for target in targets:
            if isinstance(target, Selector):
                found.update(dict.fromkeys(self._selected(target)))
            else:
                found[target] = None
        return tuple(found)

    def engine_rules(self) -> tuple[EngineRule, ...]:
        """All rules in the engine's neutral form, in file order."""
        return self.once("engine_rules", self._compiled)

    def evaluator(self, engine: str = "auto") -> Evaluator:
        """The rules ready to fire; compiled once for each engine.

        Args:
            engine: `auto`, `durable` or `reference`.

        Raises:
            RuleError: If there is no such engine or it cannot be used here.
        """
        if self.packs and engine == "durable":  # an odd rule could hang the process
            raise RuleError("engine 'durable' takes no rule packs; use engine 'reference'")
        foreign = self.packs or self.root != home("rules")
        engine = "reference" if foreign and engine == "auto" else engine
        return self.once(("evaluator", engine), lambda: evaluator(self.engine_rules(), engine))

    def problems(self) -> list[str]:
        """Everything that is wrong in any file, one line each; empty when all is well."""
        from .lint import problems  # only here: an answer does not need it

        return problems(self)

    def list_findings(self) -> tuple[Finding, ...]:
        """What the review found, as the file lists it."""
        return reading.parse_list(*self._file("findings"), Finding)

    def parsed(self, path: Path) -> tuple[Rule, ...]:
        """The rules of one advice file, each by itself; references are not followed.

        Args:
            path: One of `listed()`.
        """
        return self.once(path, lambda: reading.parse_list(path, self.shown(path), Rule))

    def overrides(self, pack: Pack) -> tuple[str, ...]:
        """What a pack put in the place of items below it: `rule few-labels`, `method mae`.

        Args:
            pack: One of `packs`.
        """
        earlier = self.below(pack)
        taken = {r.id for root in earlier for p in advice_files(root) for r in self.parsed(p)}
        own = (r.id for p in advice_files(pack.root) for r in self.parsed(p))
        return (*(f"rule {id}" for id in own if id in taken), *self.replaced(pack))

    def _rules(self) -> tuple[Rule, ...]:
        """Rules of all layers; one of a pack takes the place of an earlier one of the same id."""
        wrong = [line for path in self.listed() for line in advice(self, path)] + of_packs(self)
        if wrong:
            raise KnowledgeError(*wrong)
        found: dict[str, Rule] = {}
        for rule in (rule for path in self.listed() for rule in self.parsed(path)):
            found.pop(rule.id, None)
            found[rule.id] = rule
        return tuple(found.values())

    def _compiled(self) -> tuple[EngineRule, ...]:
        kinds = self.kinds
        return tuple(EngineRule(r.id, compile_when(r.when, kinds).branches) for r in self.rules)

    def _selected(self, selector: Selector) -> tuple[str, ...]:
        family, paradigm = selector.family, selector.paradigm
        return self.once(
            ("selected", family, paradigm),
            lambda: tuple(
                id
                for id, card in self.methods.items()
                if family in (None, card.family) and paradigm in (None, card.paradigm)
            ),
        )

    def _file(self, name: str) -> tuple[Path, str]:
        path = self.root / f"{name}.yaml"
        return path, self.shown(path)

    def _folder(self, name: str, model: type[Item]) -> Folder[Item]:
        return Folder((root / name for root in self.roots), model, self.shown)


_LOCK = RLock()


@cache
def _shipped() -> Knowledge:
    return Knowledge(home("rules"))
