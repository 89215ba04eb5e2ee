"""What the ranking must beat: one order of methods for all problems, and the abstract as a rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..cards import MethodCard
from ..facts import DENSE_TASKS
from .published import Pair

Wins = Mapping[tuple[str, str], float]  # (better, worse) to weight

_DENSE = ("generative", "hybrid", "predictive", "contrastive")
_GLOBAL = ("contrastive", "hybrid", "predictive", "generative")
BASELINES = ("public-checkpoint", "imagenet", "scratch")


def wins(pairs: Iterable[Pair]) -> Wins:
    """How often one method did better than another; every paper weighs 1 in all.

    Args:
        pairs: Published pairs.
    """
    total: dict[str, float] = defaultdict(float)
    counts: dict[str, dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))
    for p in pairs:
        total[p.paper] += p.weight
        counts[p.paper][p.better, p.worse] += p.weight
    found: dict[tuple[str, str], float] = defaultdict(float)
    for paper, each in counts.items():
        for names, weight in each.items():
            found[names] += weight / total[paper]
    return dict(found)


def constant_order(table: Wins) -> tuple[str, ...]:
    """The one order of methods that agrees most with the pairs, as far as moving one helps.

    Starts from the share of wins and moves single methods to their best place until none gains:
    a local optimum, which is the same on every run.

    Args:
        table: Weights of wins.
    """
    names = sorted({name for pair in table for name in pair})
    won = {a: sum(table.get((a, b), 0.0) for b in names) for a in names}
    lost = {a: sum(table.get((b, a), 0.0) for b in names) for a in names}
    order = sorted(names, key=lambda a: (-won[a] / (won[a] + lost[a]), a))
    moved = True
    while moved:
        moved = False
        for name in names:
            now = order.index(name)
            rest = order[:now] + order[now + 1 :]
            gains = _places(table, name, rest)
            best = max(range(len(gains)), key=lambda i: (gains[i], -abs(i - now)))
            if gains[best] > gains[now] + 1e-12:
                order, moved = [*rest[:best], name, *rest[best:]], True
    return tuple(order)


def _places(table: Wins, name: str, rest: Sequence[str]) -> list[float]:
    """What the order is worth with a method at each place among the others."""
    gains = [sum(table.get((name, other), 0.0) for other in rest)]  # in front of all
    for other in rest:
        gains.append(gains[-1] - table.get((name, other), 0.0) + table.get((other, name), 0.0))
    return gains


def held(order: Sequence[str], pair: Pair) -> float:
    """1 where an order agrees with a pair, 0 where it does not, half where it knows one not.

    Args:
        order: Methods, best first.
        pair: A published pair.
    """
    if pair.better not in order or pair.worse not in order:
        return 0.5
    return float(order.index(pair.better) < order.index(pair.worse))


def abstract_as_rule(pair: Pair, cards: Mapping[str, MethodCard]) -> float:
    """Agreement of the review's abstract, taken literally: the task alone orders the classes.

    Args:
        pair: A published pair.
        cards: The methods that are ranked.

    Returns:
        1 or 0, and half within one class.
    """
    classes = _DENSE if pair.profile.task in DENSE_TASKS else _GLOBAL
    tiers = (*classes, *BASELINES)

    def tier(method: str) -> int:
        return tiers.index(method if method in BASELINES else cards[method].paradigm)

    better, worse = tier(pair.better), tier(pair.worse)
    return 0.5 if better == worse else float(better < worse)
