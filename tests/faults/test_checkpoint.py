"""A checkpoint that is damaged or forged, and a training whose disk is full."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memtools.data import Tensors
from memtools.training import Member, Trainer, train_ensemble
from memtools.training.checkpoint import load_checkpoint, save_checkpoint

DATA = Tensors(torch.rand(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def alone(model: nn.Module, checkpoint: Path | None, epochs: int = 2) -> None:
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    Trainer(model, momentum, epochs=epochs, checkpoint=checkpoint, device="cpu").fit(DATA)


def together(model: nn.Module, checkpoint: Path | None, epochs: int = 2) -> None:
    members = [Member(model, DATA, 0, 0.1)]
    train_ensemble(
        members, epochs=epochs, momentum=0.9, engine="fused", device="cpu", checkpoint=checkpoint
    )


WAYS = {"Trainer": alone, "ensemble": together}


@pytest.fixture(params=WAYS)
def train(request):
    return WAYS[request.param]


def weights(model: nn.Module) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()]


def assert_refused(train: Any, path: Path) -> None:
    """In a line that names the file; the model stays as it was."""
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match=path.name) as caught:
        train(model, path, 3)
    assert "remove it" in str(caught.value) or "another file" in str(caught.value)
    assert weights(model) == before


@pytest.mark.parametrize("how", ["cut", "a byte less", "empty", "noise", "zeros"])
def test_a_damaged_checkpoint_is_named(how, train, tmp_path):
    path = tmp_path / "checkpoint.pt"
    train(network(), path)
    content = path.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "a byte less": content[:-1],
        "empty": b"",
        "noise": bytes(255 - byte for byte in content),
        "zeros": bytes(len(content)),
    }
    path.write_bytes(damaged[how])
    assert_refused(train, path)


@pytest.mark.parametrize("new", [None, 7.5, "x", [[3]], [{"epoch": "x"}]], ids=str)
def test_a_checkpoint_with_something_else_in_it_is_named(new, train, tmp_path):
    path = tmp_path / "checkpoint.pt"
    train(network(), path)
    state = load_checkpoint(path)
    assert state is not None
    harmless = {"scaler"}  # of nothing but float16
    if new == 7.5:
        harmless |= {"updates"}
    for name in state.keys() - harmless:
        save_checkpoint(path, state | {name: new})
        assert_refused(train, path)


def test_a_full_disk_ends_the_training_in_words_and_keeps_the_last_checkpoint(train, small_disk):
    folder, fill = small_disk
    path = folder / "checkpoint.pt"
    train(network(), path, 1)
    before = path.read_bytes()
    fill(but=0)
    model = network()
    with pytest.raises(OSError, match=r"No space left.*checkpoint\.pt"):
        train(model, path, 3)
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.pt", "filler"]
    (folder / "filler").unlink()
    again, whole = network(), network()
    train(again, path, 3)
    train(whole, None, 3)
    assert weights(again) == weights(whole)


def test_a_read_only_folder_is_named(train, tmp_path, frozen):
    folder = tmp_path / "folder"
    folder.mkdir()
    frozen(folder)
    with pytest.raises(OSError, match=r"(Read-only|denied).*checkpoint\.pt"):
        train(network(), folder / "checkpoint.pt")
