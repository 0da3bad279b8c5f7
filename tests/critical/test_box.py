"""Radii and bounds: in pixels, in other units, and in the wrong ones."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from memtools import find_critical, pixel_bounds, pixel_radius
from memtools.critical.box import Box

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMALISATIONS = {
    "v1": transforms.Normalize(MEAN, STD),
    "v2": v2.Normalize(MEAN, STD),
    "v1 compose": transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
    "v2 compose": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
    "pair": (MEAN, STD),
    "pair of tensors": (torch.tensor(MEAN), torch.tensor(STD)),
    "list": [tuple(MEAN), tuple(STD)],
}


@pytest.fixture(params=list(NORMALISATIONS))
def normalize(request):
    return NORMALISATIONS[request.param]


def test_radius_by_hand(normalize):
    radius = pixel_radius(8, normalize)
    assert radius.shape == (3, 1, 1)
    expected = [8 / 255 / 0.229, 8 / 255 / 0.224, 8 / 255 / 0.225]
    # One rounding to float32, of the deviations that are given as tensors too.
    assert radius.flatten().tolist() == pytest.approx(expected, rel=2e-7)


def test_bounds_by_hand(normalize):
    low, high = pixel_bounds(normalize)
    assert low.shape == high.shape == (3, 1, 1)
    assert low.flatten().tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=3e-7
    )
    assert high.flatten().tolist() == pytest.approx(
        [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], rel=3e-7
    )


def test_without_normalisation():
    assert pixel_radius() == pytest.approx(0.3 / 255)
    assert pixel_radius(8) == pytest.approx(8 / 255)
    assert pixel_radius(8, scale=1) == 8
    assert pixel_bounds() == (0.0, 1.0)


def test_one_channel():
    assert pixel_radius(51, (0.5, 0.5)).flatten().tolist() == pytest.approx([0.4])
    low, high = pixel_bounds((0.1307, 0.3081))
    assert low.item() == pytest.approx(-0.1307 / 0.3081)
    assert high.item() == pytest.approx(0.8693 / 0.3081)


@pytest.mark.parametrize("convert", [pixel_radius, lambda _, normalize: pixel_bounds(normalize)])
@pytest.mark.parametrize(
    ("normalize", "error", "text"),
    [
        (0.5, TypeError, r"normalize must be a torchvision.* or a pair \(mean, std\), got float"),
        ([0.5, 0.5, 0.5], TypeError, r"normalize must be .* got list"),
        (transforms.ToTensor(), TypeError, r"normalize must be .* got ToTensor"),
        (transforms.Compose([]), ValueError, r"normalize holds 0 normalisations, expected one"),
        (
            v2.Compose([v2.Normalize(MEAN, STD), v2.Normalize(MEAN, STD)]),
            ValueError,
            r"normalize holds 2 normalisations, expected one; pass the .*Normalize itself",
        ),
        ((MEAN, [0.2, 0.0, 0.2]), ValueError, r"positive standard deviations, got \[0\.2, 0\.0"),
        ((MEAN, [0.2, -1.0, 0.2]), ValueError, r"positive standard deviations"),
        ((MEAN, [0.2, math.nan, 0.2]), ValueError, r"positive standard deviations"),
        ((MEAN, [0.2, 0.2]), ValueError, r"normalize must"),
    ],
)
def test_normalisations_that_are_none(convert, normalize, error, text):
    with pytest.raises(error, match=text):
        convert(8, normalize)


class Normalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        mean, std = (torch.tensor(v).to(x).reshape(3, 1, 1) for v in (MEAN, STD))
        return self.model((x - mean) / std)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounded", [True, False])
def test_normalised_inputs_give_the_same_as_pixels(method, bounded, dtype, networks):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = networks.mlp(48).to(dtype)
    pixels = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    pixels[:20] = pixels[:20].round()  # black and white
    mean, std = (torch.tensor(v, dtype=dtype).reshape(3, 1, 1) for v in (MEAN, STD))
    # No noise, and as many points as are tried without chance.
    options: dict[str, Any] = {"method": method, "max_steps": 4} | (
        {"noise": 0} if method == "lass" else {}
    )
    raw = find_critical(
        Normalised(model),
        pixels,
        radius=pixel_radius(8),
        bounds=pixel_bounds() if bounded else None,
        **options,
    )
    normalize = v2.Normalize(MEAN, STD)
    search = find_critical(
        model,
        (pixels - mean) / std,
        radius=pixel_radius(8, normalize),
        bounds=pixel_bounds(normalize) if bounded else None,
        **options,
    )
    assert torch.equal(raw.is_critical, search.is_critical)
    assert torch.equal(raw.predicted, search.predicted)
    assert 0 < raw.ratio < 1
    in_pixels = search.points * std + mean
    assert ((in_pixels - pixels).abs() <= 8 / 255 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rounded", ["before", "after"])
def test_what_torchvision_normalises_is_within_the_bounds(dtype, rounded):
    """Where images are of a dtype, and where they are cast to it afterwards."""
    pixels = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    normalize = v2.Normalize(MEAN, STD)
    inputs = normalize(pixels.to(dtype)) if rounded == "before" else normalize(pixels).to(dtype)
    box = Box.around(inputs, pixel_radius(1, normalize), pixel_bounds(normalize))
    low, high = box.walls(inputs)
    assert ((low <= inputs) & (inputs <= high)).all()


def test_a_radius_in_other_units_is_refused(method, networks):
    model, inputs, _ = networks.trained("MLP")
    text = (
        r"radius must be in the units of the inputs, got 30 for inputs from 0 to 1, .* "
        r"if 30 is on a scale of 0 to 255, pass memtools\.pixel_radius\(30\), which is 0\.1176 "
        r"for inputs in \[0, 1\]"
    )
    with pytest.raises(ValueError, match=text):
        find_critical(model, inputs, radius=30, method=method)
    with pytest.raises(ValueError, match=r"radius must be in the units of the inputs, got 30"):
        find_critical(model, inputs, radius=torch.full((1, 6, 6), 30.0), method=method)
    find_critical(model, inputs * 255, radius=30, method=method, max_steps=1)


def test_a_single_dark_image_is_no_matter_of_units(method, networks):
    """Its pixels span less than the radius, which says nothing about units."""
    model, inputs, radius = networks.trained("MLP")
    dark = inputs.double() * 0.02
    model = model.double()
    both = torch.cat([dark[:1], inputs[:5].double()])
    alone = find_critical(model, both[:1], radius=radius, method=method)
    company = find_critical(model, both, radius=radius, method=method)
    assert torch.equal(alone.is_critical, company.is_critical[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.0, 1e-7, 0.1, 1 / 3, 100.0])
def test_walls(dtype, radius):
    """As far as can be, and never farther, for inputs of any size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-6, 1e-3, 0.1, 1.0, 30.0, 1000.0])[:, None]
    inputs = (sizes * torch.randn(6, 500, generator=generator)).to(dtype)
    inputs = torch.cat([inputs, inputs.new_full((1, 500), 200.0), inputs.new_zeros(1, 500)])
    box = Box.around(inputs, radius, None)
    low, high = (box.pulled_in(wall, inputs) for wall in box.walls(inputs))
    width = torch.as_tensor(radius, dtype=dtype)
    assert ((inputs - low) <= width).all()
    assert ((high - inputs) <= width).all()
    assert ((low <= inputs) & (inputs <= high)).all()
    # One number further out is outside, or the nearest number to it is.
    further = torch.nextafter(high, torch.full_like(high, torch.inf)).double()
    assert (further - inputs.double() > width.double() * (1 - torch.finfo(dtype).eps)).all()
