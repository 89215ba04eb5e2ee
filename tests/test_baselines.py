"""Baselines: from scratch, and weights of others, read into our networks without changing them."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from emitted import pictures, run, script, settings, volumes
from monai.networks.nets import SegResNet, SwinUNETR
from monai.networks.nets.segresnet_ds import SegResEncoder
from test_script_learning import TARGETS

from advisor import recommend
from advisor.beside.report import report as written_report
from advisor.parts import part
from advisor.plan import make_plan

State = dict[str, torch.Tensor]
BLOCKS = {"network_blocks": (1, 1, 1)}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def loaded(module: ModuleType, chosen: Any, out: Path) -> torch.nn.Module:
    """What `convert` wrote, in a new encoder."""
    encoder = module.Encoder(chosen)
    given = torch.load(out / "encoder.pt", weights_only=True)
    encoder.load_state_dict({n.removeprefix("encoder."): v for n, v in given.items()})
    return encoder.eval()


def converted(module: ModuleType, state: object, out: Path, **more: Any) -> torch.nn.Module:
    file = out / "weights.pth"
    torch.save(state, file)
    chosen = settings(module, weights=str(file), **more)
    module.convert([], chosen, out)
    return loaded(module, chosen, out)


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "convert.json").read_text())


# %% ResNet as torchvision names it, and its forward from the paper in plain functions


def resnet_state(depth: int, channels: int = 3) -> State:
    generator, state = torch.Generator().manual_seed(depth), {}

    def conv(name: str, out: int, into: int, side: int) -> None:
        spread = (2 / (into * side**2)) ** 0.5
        state[f"{name}.weight"] = spread * torch.randn(out, into, side, side, generator=generator)

    def norm(name: str, width: int) -> None:
        for kind in ("weight", "running_var"):
            state[f"{name}.{kind}"] = 0.5 + torch.rand(width, generator=generator)
        for kind in ("bias", "running_mean"):
            state[f"{name}.{kind}"] = torch.randn(width, generator=generator) / 10
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, channels, 7)
    norm("bn1", 64)
    into = 64
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
        width, out = 64 << stage, (64 << stage) * (4 if depth == 50 else 1)
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            sides = [(width, into, 1), (width, width, 3), (out, width, 1)]
            for n, layer in enumerate(sides if depth == 50 else [(out, into, 3), (out, out, 3)]):
                conv(f"{name}.conv{n + 1}", *layer)
                norm(f"{name}.bn{n + 1}", layer[0])
            if block == 0 and (stage or depth == 50):
                conv(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
            into = out
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, into), torch.zeros(1000)
    return state


def resnet(state: State, x: torch.Tensor) -> torch.Tensor:
    """Average features of images that are normalised already."""

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        parts = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.max_pool2d(norm("bn1", conv("conv1", x, 2)).relu(), 3, 2, 1)
    blocks = sorted({n[:8] for n in state if n.startswith("layer")})
    for name in blocks:
        stride = 2 if name[5] > "1" and name.endswith(".0") else 1
        if f"{name}.conv3.weight" in state:
            y = norm(f"{name}.bn1", conv(f"{name}.conv1", x)).relu()
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, stride)).relu()
            y = norm(f"{name}.bn3", conv(f"{name}.conv3", y))
        else:
            y = norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)).relu()
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
        if f"{name}.downsample.0.weight" in state:
            x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
        x = (x + y).relu()
    return x.mean((2, 3))


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x.expand(-1, 3, -1, -1) - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


@pytest.mark.parametrize(
    ("depth", "modality", "prefix"),
    [(18, "xray", ""), (18, "dermoscopy", "module.encoder_q."), (50, "xray", "backbone.")],
)
def test_a_resnet_gives_what_it_gave_before(
    depth: int, modality: str, prefix: str, tmp_path: Path
) -> None:
    module = script("public-checkpoint", modality, "classification", "2d", "cnn")
    state = resnet_state(depth)
    wrapped = {"epoch": 3, "state_dict": {f"{prefix}{n}": v for n, v in state.items()}}
    encoder = converted(module, wrapped, tmp_path, resnet_depth=depth, size=40)
    images = torch.rand(2, settings(module).channels, 40, 40)
    with torch.no_grad():
        expected = resnet(state, normalised(images))
        assert torch.allclose(encoder.embed(images), expected, rtol=1e-3, atol=1e-4)
    told = report(tmp_path)
    assert told["left"] == ["fc.bias", "fc.weight"] and told["new"] == []
    assert len(told["loaded"]) == len(state) - 2


def test_a_resnet_of_one_channel_takes_its_own_mean(tmp_path: Path) -> None:
    module = script("public-checkpoint", "microscopy", "classification", "2d", "cnn")
    state = resnet_state(18, channels=1)
    grey = {"input_mean": (0.57,), "input_std": (0.13,), "channels": 1}
    encoder = converted(module, state, tmp_path, **grey)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = resnet(state, (images - 0.57) / 0.13)
        assert torch.allclose(encoder.embed(images), expected, rtol=1e-3, atol=1e-4)


# %% Vision Transformer as timm names it, and its forward in plain functions


def vit_state(
    width: int = 64, depth: int = 3, patch: int = 8, tokens: int = 16, scaled: bool = False
) -> State:
    generator = torch.Generator().manual_seed(width + tokens)

    def some(*shape: int, spread: float = 0.1) -> torch.Tensor:
        return spread * torch.randn(*shape, generator=generator)

    state = {
        "patch_embed.proj.weight": some(width, 3, patch, patch),
        "patch_embed.proj.bias": some(width),
        "pos_embed": some(1, tokens, width),
        "norm.weight": 1 + some(width),
        "norm.bias": some(width),
        "head.weight": some(10, width),
    }
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for k in range(depth):
        for name in ("norm1", "norm2"):
            state[f"blocks.{k}.{name}.weight"] = 1 + some(width)
            state[f"blocks.{k}.{name}.bias"] = some(width)
        for name, shape in shapes.items():
            state[f"blocks.{k}.{name}.weight"] = some(*shape)
            state[f"blocks.{k}.{name}.bias"] = some(shape[0])
        if scaled:
            state[f"blocks.{k}.ls1.gamma"] = some(width, spread=1.0)
            state[f"blocks.{k}.ls2.gamma"] = some(width, spread=1.0)
    return state


def vit(state: State, x: torch.Tensor) -> torch.Tensor:
    """The average of the last tokens of normalised images; heads are 64 wide."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    weight = state["patch_embed.proj.weight"]
    width, patch = weight.shape[0], weight.shape[-1]
    rows = F.unfold(x, patch, stride=patch).mT @ weight.flatten(1).T
    x = rows + state["patch_embed.proj.bias"] + state["pos_embed"]
    for k in range(sum(n.endswith("attn.qkv.weight") for n in state)):
        q, key, value = linear(f"blocks.{k}.attn.qkv", norm(f"blocks.{k}.norm1", x)).chunk(3, -1)
        heads = []
        for h in range(width // 64):
            part = slice(64 * h, 64 * h + 64)
            weights = (q[..., part] @ key[..., part].mT / 8).softmax(-1)
            heads.append(weights @ value[..., part])
        y = linear(f"blocks.{k}.attn.proj", torch.cat(heads, -1))
        x = x + y * state.get(f"blocks.{k}.ls1.gamma", 1.0)
        y = linear(f"blocks.{k}.mlp.fc1", norm(f"blocks.{k}.norm2", x))
        y = linear(f"blocks.{k}.mlp.fc2", F.gelu(y))
        x = x + y * state.get(f"blocks.{k}.ls2.gamma", 1.0)
    return norm("norm", x).mean(1)


def as_hugging_face(state: State, dino: bool) -> State:
    """The same weights as the package transformers stores them."""
    found = {}
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
        "norm1": "norm1" if dino else "layernorm_before",
        "norm2": "norm2" if dino else "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1" if dino else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if dino else "output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "norm": "layernorm",
    }
    for name, value in state.items():
        head = [""]
        inner = name
        if name.startswith("blocks."):
            _, k, inner = name.split(".", 2)
            head = ["encoder", "layer", k]
        stem, dot, kind = (inner, "", "") if inner in names else inner.rpartition(".")
        prefix = ".".join(filter(None, ["backbone", *head]))
        if stem == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                found[f"{prefix}.attention.attention.{part}.{kind}"] = piece
        else:
            found[f"{prefix}.{names.get(stem, stem)}{dot}{kind}"] = value
    return found


@pytest.mark.parametrize("layout", ["timm", "transformers ViT", "transformers DINOv2"])
@pytest.mark.parametrize("modality", ["xray", "dermoscopy"])
def test_a_transformer_gives_what_it_gave_before(
    layout: str, modality: str, tmp_path: Path
) -> None:
    module = script("public-checkpoint", modality, "classification", "2d", "vit")
    state = vit_state(width=128, scaled=layout.endswith("DINOv2"))
    given = state if layout == "timm" else as_hugging_face(state, layout.endswith("DINOv2"))
    encoder = converted(module, {"model": given}, tmp_path, network_width=128)
    images = torch.rand(2, settings(module).channels, 32, 32)
    with torch.no_grad():
        expected = vit(state, normalised(images))
        assert torch.allclose(encoder.embed(images), expected, rtol=1e-3, atol=1e-4)
    assert report(tmp_path)["new"] == [] and len(report(tmp_path)["left"]) == 1  # the head


@pytest.mark.parametrize("extra", [1, 5])  # class token, and four registers
def test_positions_move_to_another_grid_and_tokens_without_a_place_are_left(
    extra: int, tmp_path: Path
) -> None:
    module = script("public-checkpoint", "xray", "classification", "2d", "vit")
    state = vit_state(tokens=64)
    down = torch.linspace(0, 1, 8)[:, None].expand(8, 8).flatten()
    places = torch.stack([down, 0 * down + 3.0], 1).repeat(1, 32)
    state["pos_embed"] = torch.cat([torch.full((extra, 64), 99.0), places])[None]
    state["cls_token"] = torch.zeros(1, 1, 64)
    state = {"decoder_blocks.0.attn.qkv.weight": torch.zeros(96, 32), **state}  # as MAE leaves it
    encoder = converted(module, state, tmp_path)  # 64 places become 16
    found = encoder.net.patch_embedding.position_embeddings[0]
    assert torch.allclose(found[:, 1], torch.tensor(3.0), atol=1e-4)
    rows = found[:, 0].view(4, 4)
    assert torch.allclose(rows, rows[:, :1].expand(4, 4), atol=1e-5)  # nothing moves sideways
    assert torch.allclose(rows[:, 0], 1 - rows[:, 0].flip(0), atol=1e-4)
    assert (rows[:, 0].diff() > 0.2).all() and rows.min() > 0 and rows.max() < 1
    assert report(tmp_path)["left"] == [
        "cls_token",
        "decoder_blocks.0.attn.qkv.weight",
        "head.weight",
    ]


# %% MONAI's own networks


@pytest.mark.parametrize("kind", [SegResNet, SegResEncoder])
def test_a_segresnet_gives_what_it_gave_before(kind: type, tmp_path: Path) -> None:
    module = script("public-checkpoint", "ct", "segmentation", "3d", "cnn")
    blocks = (1, 2, 1)
    more = {"blocks_up": (1, 1)} if kind is SegResNet else {}
    torch.manual_seed(0)
    source = kind(spatial_dims=3, init_filters=8, in_channels=1, blocks_down=blocks, **more)
    for layer in source.modules():  # statistics that are not those of a new network
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    source.eval()
    state = {f"module.encoder.{n}": v for n, v in source.state_dict().items()}
    norm = "group" if kind is SegResNet else "batch"
    chosen = {"network_blocks": blocks, "network_norm": norm}
    encoder = converted(module, {"net": state}, tmp_path, **chosen)
    images = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        if kind is SegResNet:
            deepest, skips = source.encode(images)
            expected = [*skips[:-1], deepest]
        else:
            expected = source(images)
        for ours, theirs in zip(encoder(images), expected):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    left = report(tmp_path)["left"]
    assert bool(left) == (kind is SegResNet) and all(n.startswith(("up_", "conv_")) for n in left)


def test_a_swin_transformer_gives_what_it_gave_before(tmp_path: Path) -> None:
    module = script("public-checkpoint", "ct", "segmentation", "3d", "vit")
    torch.manual_seed(0)
    source = SwinUNETR(1, 2, feature_size=12, spatial_dims=3).swinViT.eval()
    state = {
        f"module.{n.replace('.mlp.linear', '.mlp.fc')}": v for n, v in source.state_dict().items()
    }
    state["module.rotation_head.weight"] = torch.zeros(4, 192)
    encoder = converted(module, {"state_dict": state, "epoch": 1}, tmp_path, size=32)
    images = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(encoder(images), source(images)):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    assert report(tmp_path)["left"] == ["rotation_head.weight"]


# %% What does not fit


def without(state: State, name: str) -> State:
    return {n: v for n, v in state.items() if n != name}


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return sys.exit, ("this code was run",)


VIT = ("public-checkpoint", "xray", "classification", "2d", "vit")
CNN = ("public-checkpoint", "xray", "classification", "2d", "cnn")
VOLUMES = ("public-checkpoint", "ct", "segmentation", "3d", "cnn")
REFUSED = {
    "another family": (VIT, resnet_state(18), "none of blocks.0.attn.qkv.weight, "),
    "images for volumes": (
        VOLUMES,
        {"layers.0.blocks.0.conv1.weight": torch.zeros(8, 8, 3, 3)},
        "is a network for images in 2D, this script is for 3D",
    ),
    "wider and deeper": (
        VIT,
        vit_state(128, 2),
        "was made with other settings; add --network-width 128 --network-depth 2",
    ),
    "another patch": (VIT, vit_state(patch=16), "other settings; add --patch-size 16"),
    "deeper": (CNN, resnet_state(50), "other settings; add --resnet-depth 50"),
    "ResNet-34": (
        CNN,
        {**resnet_state(18), **{f"layer3.{k}.conv1.weight": torch.zeros(1, 1) for k in range(6)}},
        "of a ResNet with 6 blocks at layer 3, not of ResNet-18 or -50",
    ),
    "one channel": (CNN, resnet_state(18, 1), "the weights are for 1 channels: give --input-mean"),
    "rotary positions": (VIT, without(vit_state(), "pos_embed"), "but no pos_embed"),
    "norms of queries": (
        VIT,
        {**vit_state(), "blocks.1.attn.q_norm.weight": torch.ones(64)},
        "the weights have blocks.1.attn.q_norm.weight, which the Vision Transformer here lacks",
    ),
    "a gap": (
        CNN,
        without(resnet_state(18), "layer3.1.conv2.weight"),
        "net.layer3.1.conv2.weight is missing there and (256, 256, 3, 3) here",
    ),
    "a variant": (
        CNN,
        {**resnet_state(18), "layer1.0.se.weight": torch.zeros(64, 64)},
        "has net.layer1.0.se.weight, which this network lacks: it is another one",
    ),
    "no tensors": (VIT, {"epoch": 3}, "holds no state dict"),
    "code": (VIT, Trap(), "cannot be read as tensors only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, state, words = REFUSED[case]
    with pytest.raises(SystemExit) as stopped:
        converted(script(*problem), state, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: ") and words in line
    assert not (tmp_path / "encoder.pt").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("", None, "weights: name the downloaded checkpoint, --weights FILE"),
        ("gone.pth", None, "gone.pth: no such file"),
        ("text.pth", b"no weights", "cannot be read as tensors only"),
        ("old.pth", pickle.dumps({"a": Path("b")}, protocol=2), "cannot be read as tensors only"),
        ("some.safetensors", b"", "pip install safetensors"),
    ],
)
def test_files_that_cannot_be_read(
    name: str,
    content: bytes | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if it was not installed
    module = script(*VIT)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        module.convert([], settings(module, weights=name and str(tmp_path / name)), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and words in line


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module = script(*VIT)
    safetensors.save_file(vit_state(), tmp_path / "model.safetensors")
    chosen = settings(module, weights=str(tmp_path / "model.safetensors"))
    module.convert([], chosen, tmp_path)
    images = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found, expected = (
            loaded(module, chosen, tmp_path).embed(images),
            vit(vit_state(), normalised(images)),
        )
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


# %% The whole path


@pytest.mark.parametrize(
    ("method", "task", "dimensionality", "backbone", "network"),
    [
        ("imagenet", "classification", "2d", None, "resnet_normalised"),
        ("imagenet", "segmentation", "2d", "any", "resnet_normalised"),
        ("imagenet", "segmentation", "2d", "vit", "vit"),
        ("public-checkpoint", "classification", "2d", None, "vit"),
        ("public-checkpoint", "classification", "2d", "cnn", "resnet_normalised"),
        ("public-checkpoint", "segmentation", "3d", None, "segresnet_deep"),
        ("public-checkpoint", "segmentation", "3d", "vit", "swin"),
        ("scratch", "classification", "2d", None, "resnet"),
        ("scratch", "segmentation", "3d", None, "segresnet"),
    ],
)
def test_the_network_is_one_that_weights_are_published_for(
    method: str, task: str, dimensionality: str, backbone: str | None, network: str
) -> None:
    problem = {"modality": "ct" if dimensionality == "3d" else "xray", "task": task}
    answer = recommend(problem | {"dimensionality": dimensionality, "backbone": backbone})
    parts = make_plan(answer, method).parts
    assert f"networks/{network}" in parts
    decoder = f"networks/{network.partition('_')[0]}_decoder"
    assert (decoder in parts) == (task == "segmentation")
    assert "starts/pretrain" not in parts and ("starts/compared" in parts) == (method != "scratch")
    asked = {slot for name in parts for slot in part(name).slots}
    given = [name for each in parts for name in part(each).defines if name in asked]
    assert len(given) == len(set(given)), "two parts define one slot"
    assert asked - set(given) <= {"DIMS", "RANGES", "READING", "Settings"}


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("modality", "task", "dimensionality", "backbone"),
    [
        ("xray", "classification", "2d", "cnn"),
        ("xray", "segmentation", "2d", "vit"),
        ("ct", "segmentation", "3d", "cnn"),
    ],
)
def test_from_scratch_there_is_one_start(
    modality: str,
    task: str,
    dimensionality: str,
    backbone: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = script("scratch", modality, task, dimensionality, backbone)
    target = "mask" if task == "segmentation" else "label"
    manifest = (pictures if dimensionality == "2d" else volumes)(tmp_path, target=target)
    run(module, "all", manifest, tmp_path / "out")
    metrics = metrics_of(tmp_path / "out")
    (result,) = metrics["results"]
    assert set(result) == {"label_fraction", "labelled_cases", "scratch"}
    score = result["scratch"]
    assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    (sentence,) = metrics["verdict"]
    assert f"from scratch: {module.PRIMARY} {score['value']:.3f} (95 % interval" in sentence
    assert sentence in capsys.readouterr().out
    assert not (tmp_path / "out" / "encoder.pt").exists()
    report = written_report(module, manifest, tmp_path / "out").read_text()
    assert sentence in report and "encoder.safetensors" not in report
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit):
        run(module, "pretrain", manifest, tmp_path / "out")  # there is no such stage


@pytest.mark.parametrize(
    ("problem", "state", "more"),
    [
        (("imagenet", "xray", "segmentation", "2d", "cnn"), resnet_state(18), {}),
        (("imagenet", "xray", "segmentation", "2d", "vit"), vit_state(), {}),
        (VIT, vit_state(), {}),
        (VOLUMES, None, BLOCKS),
        (("imagenet", "xray", "detection", "2d", "cnn"), resnet_state(18), {}),
        (("imagenet", "xray", "regression", "2d", "vit"), vit_state(), {}),
        (("imagenet", "xray", "registration", "2d", "cnn"), resnet_state(18), {}),
        (("public-checkpoint", "ct", "detection", "3d", "cnn"), None, BLOCKS),
        (("public-checkpoint", "ct", "registration", "3d", "cnn"), None, BLOCKS),
        (("public-checkpoint", "ct", "retrieval", "3d", "cnn"), None, BLOCKS),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_weights_of_others_are_compared_with_scratch(
    problem: tuple[str, ...], state: State | None, more: dict[str, Any], tmp_path: Path
) -> None:
    module, out = script(*problem), tmp_path / "out"
    if state is None:
        state = SegResEncoder(init_filters=8, blocks_down=(1, 1, 1)).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    write = pictures if problem[3] == "2d" else volumes
    manifest = write(tmp_path, target=TARGETS[problem[2]])
    run(module, "all", manifest, out, weights=str(tmp_path / "weights.pth"), **more)
    metrics = metrics_of(out)
    (result,) = metrics["results"]
    assert {"pretrained", "scratch", "difference"} <= set(result)
    assert "pre-training" in metrics["verdict"][0] and "from scratch" in metrics["verdict"][0]
    given = json.loads((out / "hand_over.json").read_text())
    assert {f"encoder.{n}" for n in report(out)["loaded"]} <= set(given["loaded"])
    assert not any(n.startswith("encoder.") for n in (*given["new"], *given["left"]))
    before, after = (
        torch.load(file, weights_only=True)
        for file in (out / "encoder.pt", out / "finetune" / "pretrained-1-0.pt")
    )
    first = next(iter(before))
    assert (before[first] - after["network"][first]).abs().max() < 0.1  # two steps away from it


def test_other_weights_are_not_taken_for_the_converted_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, manifest = script(*VIT), pictures(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(vit_state(), tmp_path / name)
    with pytest.raises(SystemExit):
        run(module, "finetune", manifest, tmp_path / "out", weights=str(tmp_path / "a.pth"))
    assert "encoder.pt is missing: run convert first" in capsys.readouterr().err
    run(module, "convert", manifest, tmp_path / "out", weights=str(tmp_path / "a.pth"))
    with pytest.raises(SystemExit):
        run(module, "finetune", manifest, tmp_path / "out", weights=str(tmp_path / "b.pth"))
    assert "convert again" in capsys.readouterr().err


def test_imagenet_weights_are_fetched_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("imagenet", "xray", "classification", "2d", "cnn")
    asked = []

    def fetch(url: str, **more: Any) -> State:
        asked.append((url, more["check_hash"], more["weights_only"]))
        return resnet_state(18)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    chosen = settings(module)
    module.convert([], chosen, tmp_path)
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", True, True)]
    loaded(module, chosen, tmp_path)

    def refuse(url: str, **_: Any) -> State:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(SystemExit):
        module.convert([], chosen, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be fetched (no route to host)" in line and "--weights FILE" in line


@pytest.mark.parametrize("hashed", [True, False])
def test_what_is_fetched_has_the_hash_of_its_name(
    hashed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, plain = script("imagenet", "xray", "segmentation", "2d", "vit"), tmp_path / "plain.pth"
    torch.save({"model": vit_state()}, plain)
    start = sha256(plain.read_bytes()).hexdigest()[:8] if hashed else "01234567"
    file = plain.rename(tmp_path / f"weights-{start}.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    if hashed:
        assert module.fetched(file.as_uri()).keys() == vit_state().keys()
    else:
        with pytest.raises(SystemExit):
            module.fetched(file.as_uri())
        assert "cannot be fetched (invalid hash value" in capsys.readouterr().err


def test_patches_that_masks_cannot_grow_from_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = script("public-checkpoint", "xray", "segmentation", "2d", "vit")
    with pytest.raises(SystemExit):
        module.Model(settings(module, patch_size=14, size=56))
    assert "patch_size: 14 is no power of 2" in capsys.readouterr().err


def test_segmentation_uses_every_map_of_the_resnet() -> None:
    module = script("imagenet", "xray", "segmentation", "2d", "cnn")
    for side, depth in ((64, 18), (32, 50)):
        chosen = settings(module, size=side, resnet_depth=depth, classes=3)
        model = module.Model(chosen).train()
        images = torch.rand(2, 1, side, side)
        maps = model.encoder(images)
        assert [m.shape[2] for m in maps] == [side // 2 ** (k + 1) for k in range(5)]
        model.decoder(images, maps).square().mean().backward()
        assert model.predict(images).shape == (2, 3, side, side)
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
