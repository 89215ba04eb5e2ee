"""Which self-supervised pre-training fits a medical imaging problem, why, and a script for it.

    >>> from advisor import Profile, generate, recommend
    >>> answer = recommend(Profile(modality="ct", task="segmentation", labeled=40))
    >>> script = generate(answer)

Nothing heavy is loaded here: templates are opened, and their library imported, on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .knowledge import Knowledge, KnowledgeError
from .profile import Profile, ProfileError
from .ranking import Recommendation, recommend

if TYPE_CHECKING:
    from .plan import Plan

__all__ = [
    "Knowledge",
    "KnowledgeError",
    "Profile",
    "ProfileError",
    "Recommendation",
    "as_markdown",
    "as_text",
    "generate",
    "make_plan",
    "recommend",
]


def as_text(answer: Recommendation, *, everything: bool = False, width: int = 100) -> str:
    """The answer as `medssl recommend` shows it.

    Args:
        answer: From `recommend`.
        everything: Every strategy and reason, not the first few.
        width: Columns.
    """
    from . import explain, page

    return page.text(explain.answer(answer, everything=everything), width)


def as_markdown(answer: Recommendation, *, everything: bool = False) -> str:
    """The answer as `medssl recommend --format markdown` writes it.

    Args:
        answer: From `recommend`.
        everything: Every strategy and reason, not the first few.
    """
    from . import explain, page

    return page.markdown(explain.answer(answer, everything=everything))


def make_plan(
    recommendation: Recommendation,
    method: str | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Every number of a run, each with its reason.

    Args:
        recommendation: The answer.
        method: Id of another strategy of it than the first that has a script.
        overrides: Settings by name, as text, as `--set` takes them: {"mask_ratio": "0.6"}.
    """
    from . import plan

    return plan.make_plan(recommendation, method, overrides)


def generate(
    problem: Profile | Recommendation | Mapping[str, Any],
    method: str | None = None,
    overrides: Mapping[str, str] | None = None,
) -> str:
    """The text of one Python file that pre-trains, fine-tunes and compares.

    Args:
        problem: The answers, or a recommendation made of them.
        method: Id of another strategy than the first that has a script.
        overrides: Settings by name, as text, as `--set` takes them: {"mask_ratio": "0.6"}.
    """
    from .render import render

    answer = problem if isinstance(problem, Recommendation) else recommend(problem)
    return render(make_plan(answer, method, overrides))
