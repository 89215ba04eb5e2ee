"""Test images of a finished run beside what it says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .outcome import COLOURS, Outcome, boxes
from .pictures import draw, plane, save, shortened

TRUE, FOUND = "tab:green", "tab:orange"


def examples(outcome: Outcome) -> None:
    """examples.png: of the task's own kind, from the first run with the most labelled cases.

    Args:
        outcome: Of the run.
    """
    shown = {
        "label": _retrieved,
        "target": _regressed,
        "mask": _segmented,
        "pair": _registered,
        "boxes": _detected,
    }
    of_classes = hasattr(outcome.module, "probabilities")
    (_classified if of_classes else shown[outcome.module.TARGET])(outcome)


def _some(outcome: Outcome, count: int) -> list[int]:
    """Places of test cases, evenly spread."""
    last = len(outcome.test) - 1
    return sorted(set(np.linspace(0, last, count).round().astype(int).tolist()))


def _image(outcome: Outcome, case: Any) -> torch.Tensor:
    image: torch.Tensor = outcome.module.unpacked(np.load(case.array))
    return image


def _show(axis: Any, picture: np.ndarray, title: str, **look: str) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, **look)


def _classified(outcome: Outcome) -> None:
    """Images with their truth and the most probable classes."""
    run = outcome.shown()
    rows = outcome.rows(run)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    figure.suptitle(str(run))
    for axis, place in zip(figure.subplots(2, 4).flat, _some(outcome, 8), strict=False):
        case = outcome.test[place]
        found = {n: float(v) for n, v in rows[place].items() if n.startswith("class ")}
        likely = sorted(found, key=lambda name: -found[name])[:2]
        guesses = ", ".join(f"{n.removeprefix('class ')}: {found[n]:.2f}" for n in likely)
        _show(axis, plane(_image(outcome, case)), f"true {case.target}, predicted {guesses}")
    for axis in figure.axes:  # few test images leave some of them empty
        axis.axis("off")
    save(figure, outcome.out / "examples.png")


def _regressed(outcome: Outcome) -> None:
    """Predicted against true targets, of every start."""
    module, run = outcome.module, outcome.shown()
    runs = [run._replace(start=start) for start in module.STARTS]
    pairs = [
        [np.array([row[n] for row in outcome.rows(each)], float) for n in ("target", "predicted")]
        for each in runs
    ]
    low, high = np.min(pairs), np.max(pairs)
    ends = (low - 0.05 * (high - low), high + 0.05 * (high - low))
    figure = Figure(figsize=(4.4 * len(runs), 4.6), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for axis, each, pair in zip(axes, runs, pairs, strict=True):
        axis.plot(ends, ends, color="grey", linestyle=":")
        axis.scatter(*pair, s=14, color=COLOURS[each.start], alpha=0.7)
        axis.set(xlim=ends, ylim=ends, aspect="equal", xlabel="target", ylabel="predicted")
        axis.set_title(str(each), fontsize=10)
    save(figure, outcome.out / "examples.png")


def _segmented(outcome: Outcome) -> None:
    """Where truth and prediction differ: the plane of each image with most of its truth."""
    module, settings, run = outcome.module, outcome.settings, outcome.shown()
    model = module.trained(run.checkpoint, settings)
    columns: dict[str, list[torch.Tensor]] = {"image": [], "truth": [], "prediction": []}
    chosen = [outcome.test[place] for place in _some(outcome, 4)]
    for case in chosen:
        truth = torch.from_numpy(np.load(case.target)).float()
        found = torch.from_numpy(module.found_mask(model, case, settings))[None].float()
        place = int((truth > 0).sum((0, 1, 2)).argmax()) if truth.ndim == 4 else 0
        images = (_image(outcome, case), truth, found)
        scales = (1, *[settings.classes - 1] * 2)
        for name, image, scale in zip(columns, images, scales, strict=True):
            plane_of = image[..., place : place + 1] if truth.ndim == 4 else image
            columns[name].append(plane_of / scale)
    draw(str(run), columns, [c.path.name for c in chosen], outcome.out / "examples.png")


@torch.inference_mode()
def _registered(outcome: Outcome) -> None:
    """Both images of a pair, the one moved onto the other, and how they differ before and after."""
    module, run = outcome.module, outcome.shown()
    model = module.trained(run.checkpoint, outcome.settings)
    names = ("moving", "fixed", "moved", "difference before", "difference after")
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    chosen = [outcome.test[place] for place in _some(outcome, 4)]
    for case in chosen:
        other = module.unpacked(np.load(json.loads(case.target)[0]))
        pair = [image[None].to(module.this_device()) for image in (_image(outcome, case), other)]
        moved = module.warp(pair[0], model.displacement(*pair)[0])[0].cpu()
        moving, fixed = (image[0].cpu() for image in pair)
        differences = [(image - fixed).abs() for image in (moving, moved)]
        for name, image in zip(names, (moving, fixed, moved, *differences), strict=True):
            columns[name].append(image)
    draw(str(run), columns, [c.path.name for c in chosen], outcome.out / "examples.png")


def _retrieved(outcome: Outcome) -> None:
    """Queries, and what lies nearest to them of other patients, as it is searched in the test."""
    module, test, run = outcome.module, outcome.test, outcome.shown()
    model = module.trained(run.checkpoint, outcome.settings)
    embedded = module.on_all(model.embed, test, outcome.settings).double()
    queries = _some(outcome, 4)
    figure = Figure(figsize=(10, 2 * len(queries) + 0.6), layout="constrained")
    figure.suptitle(f"{run}: queries and their nearest, of the same label in green")
    for row, query in zip(figure.subplots(len(queries), 6, squeeze=False), queries, strict=True):
        case = test[query]
        near = (embedded @ embedded[query]).argsort(descending=True, stable=True).tolist()
        near = [place for place in near if test[place].patient != case.patient][:5]
        _show(row[0], plane(_image(outcome, case)), f"query: {shortened(case.target)}")
        for axis, other in zip(row[1:], (test[place] for place in near), strict=False):
            colour = TRUE if other.target == case.target else "tab:red"
            _show(axis, plane(_image(outcome, other)), shortened(other.target), color=colour)
    for axis in figure.axes:
        axis.axis("off")
    save(figure, outcome.out / "examples.png")


def _detected(outcome: Outcome) -> None:
    """True boxes, and as many of the found ones; of volumes the slice through the best of these."""
    module, run = outcome.module, outcome.shown()
    rows, dims = outcome.rows(run), module.DIMS
    figure = Figure(figsize=(12, 8), layout="constrained")
    said = "truth in green (class), in orange as many of the best found (class: score)"
    figure.suptitle(f"{run}: {said}")
    for axis, place in zip(figure.subplots(2, 3).flat, _some(outcome, 6), strict=False):
        case = outcome.test[place]
        stored, matrix, _ = module.stored_boxes(case)
        given = boxes(module, rows[place]["boxes with scores"])
        given = given[np.argsort(-given[:, -1], kind="stable")][: max(1, len(stored))]
        found = np.column_stack([module.moved(given[:, :-1], matrix), given[:, -1]])
        truth, image = module.moved(stored, matrix), _image(outcome, case)
        if dims == 3:
            middle = next(
                (int(box[[2, 5]].mean()) for box in (*found, *truth)), image.shape[3] // 2
            )
            image = image[..., min(middle, image.shape[3] - 1)][..., None]
            truth, found = (b[(b[:, 2] <= middle) & (middle < b[:, 5])] for b in (truth, found))
        _show(axis, plane(image), shortened(case.path.name))
        for box in truth:
            _frame(axis, box[: 2 * dims], image.shape[2], TRUE, f"{box[-1]:g}")
        for box in found:
            _frame(axis, box[: 2 * dims], image.shape[2], FOUND, f"{box[-2]:g}: {box[-1]:.2f}")
    for axis in figure.axes:
        axis.axis("off")
    save(figure, outcome.out / "examples.png")


def _frame(axis: Any, box: Sequence[float], length: int, colour: str, said: str) -> None:
    """A box of the decoded image, drawn where `plane` has it; its edges lie between pixels."""
    low, high = np.array(box).reshape(2, -1)
    if len(low) == 3:  # first axis to the right, second upwards
        (left, right), (top, bottom) = (low[0], high[0]), (length - high[1], length - low[1])
    else:
        (top, left), (bottom, right) = low, high
    found = colour == FOUND
    style = "--" if found else "-"
    corner, sides = (left - 0.5, top - 0.5), (right - left, bottom - top)
    axis.add_patch(Rectangle(corner, *sides, fill=False, color=colour, linestyle=style))
    place = {"x": right - 0.5, "y": bottom - 0.5} if found else {"x": left - 0.5, "y": top - 0.5}
    sides_of = {"ha": "right", "va": "top"} if found else {"ha": "left", "va": "bottom"}
    axis.text(**place, s=said, **sides_of, color=colour, fontsize=7)
