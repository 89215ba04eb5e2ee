"""Time the two evaluators side by side: loading a rule base, answering one set of facts.

    python benchmarks/engine.py
    python benchmarks/engine.py --rules 100 5000 --answers 200

The rules are random: one to four conditions on twelve facts. Loading durable takes its self-check,
and the reference that this needs, along.
"""

import argparse
import random
import statistics
import time

from advisor.engine import EngineRule, RuleError, Test, evaluator

NUMBERS = {f"number{i}": [0.01, 1, 50, 1000, 10**6] for i in range(5)}
CATEGORIES = {f"category{i}": ["a", "b", "c", "d"] for i in range(7)}


def random_test(rng):
    if rng.random() < 0.5:
        field, values = rng.choice(list(NUMBERS.items()))
        return Test(field, rng.choice(["gte", "lt"]), rng.choice(values))
    field, values = rng.choice(list(CATEGORIES.items()))
    op = rng.choice(["eq", "in", "not_in", "unknown"])
    value = {"eq": rng.choice(values), "unknown": None}.get(op, tuple(rng.sample(values, 2)))
    return Test(field, op, value)


def random_rules(rng, count):
    return tuple(
        EngineRule(f"r{i}", (tuple(random_test(rng) for _ in range(rng.randint(1, 4))),))
        for i in range(count)
    )


def random_facts(rng):
    fields = {**NUMBERS, **CATEGORIES}
    return {field: rng.choice([*values, None]) for field, values in fields.items()}


def milliseconds(action, *args):
    start = time.perf_counter()
    action(*args)
    return 1000 * (time.perf_counter() - start)


def measure(name, rules, facts):
    """Return the median times in ms of five loads and of an answer to each of `facts`."""
    load = statistics.median(milliseconds(evaluator, rules, name) for _ in range(5))
    chosen = evaluator(rules, name)
    return load, statistics.median(milliseconds(chosen.fired, each) for each in facts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", type=int, nargs="+", default=[50, 200, 1000], metavar="N")
    parser.add_argument("--answers", type=int, default=500, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    try:
        evaluator((), "durable")  # imports both, so that no table row pays for it
    except RuleError as error:
        parser.exit(1, f"{error}\n")
    print("median ms   load: reference   durable   ratio   answer: reference   durable   ratio")
    for count in args.rules:
        rules = random_rules(rng, count)
        facts = [random_facts(rng) for _ in range(args.answers)]
        (load, answer), (load_durable, answer_durable) = (
            measure(name, rules, facts) for name in ("reference", "durable")
        )
        print(
            f"{count:5} rules {load:16.2f} {load_durable:9.2f} {load_durable / load:7.1f}"
            f" {answer:19.3f} {answer_durable:9.3f} {answer_durable / answer:7.1f}"
        )


if __name__ == "__main__":
    main()
