"""Random labels and inputs: who is chosen, what they get, and that nothing else changes."""

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from memtools.data import Tensors, in_memory, random_inputs, random_labels
from memtools.data.noise import LabelMode
from memtools.data.tensors import targets_of

MODES = get_args(LabelMode)
CLASSES = 5
N = 41


def pixels(n=N):
    return torch.rand(n, 2, 3, 4, generator=torch.Generator().manual_seed(1)) * 2 + 3


def labels(n=N):
    return torch.arange(n) % CLASSES


class Pairs(Dataset[Any]):
    """The plainest map-style data set: items ``(x, y)``, nothing else."""

    def __init__(self, inputs, targets):
        self.items = list(zip(inputs, targets, strict=True))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class LikeTorchvision(Pairs):
    """Keeps ``targets`` as a list, and may change them on their way out, as torchvision does."""

    def __init__(self, inputs, targets, target_transform=None):
        super().__init__(inputs, targets.tolist())
        self.targets = targets.tolist()
        self.target_transform = target_transform

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, self.target_transform(y) if self.target_transform else y


def one_more(dataset):
    """The data set as part of one that is larger by an example in front."""
    x, y = dataset[0][:2]
    return Pairs(
        [torch.zeros_like(x), *(dataset[i][0] for i in range(len(dataset)))],
        [torch.zeros_like(torch.as_tensor(y)), *(dataset[i][1] for i in range(len(dataset)))],
    )


def array_subset(dataset):
    return Subset(one_more(dataset), np.arange(1, len(dataset) + 1))  # type: ignore[arg-type]


def tensor_subset(dataset):
    return Subset(one_more(dataset), torch.arange(1, len(dataset) + 1))  # type: ignore[arg-type]


KINDS: dict[str, Any] = {
    "tensors": Tensors,
    "pairs": Pairs,
    "targets as a list": LikeTorchvision,
    "array subset": lambda x, y: array_subset(Pairs(x, y)),
    "tensor subset": lambda x, y: tensor_subset(Tensors(x, y)),
    "concatenation": lambda x, y: ConcatDataset([Pairs(x[:9], y[:9]), Tensors(x[9:], y[9:])]),
}


@pytest.fixture(params=KINDS, name="dataset")
def any_dataset(request):
    return KINDS[request.param](pixels(), labels())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 0), (0.2, 8), (0.5, 20), (0.6, 25), (1.0, N)]
)
def test_rounded_share_of_the_labels_is_chosen(mode, fraction, expected):
    # 0.2 * 41 = 8.2, 0.5 * 41 = 20.5 (to even), 0.6 * 41 = 24.6
    noisy = random_labels(Tensors(pixels(), labels()), fraction, mode=mode)
    assert int(noisy.is_corrupted.sum()) == expected
    assert torch.equal(noisy.targets[~noisy.is_corrupted], labels()[~noisy.is_corrupted])
    assert torch.equal(noisy.clean_targets, labels())


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_data_set_gets_the_same_labels(dataset, mode):
    expected = random_labels(Tensors(pixels(), labels()), 0.5, mode=mode, seed=3)
    noisy = random_labels(dataset, 0.5, mode=mode, seed=3)
    assert torch.equal(noisy.targets, expected.targets)
    assert torch.equal(noisy.clean_targets, labels())
    assert torch.equal(noisy.is_corrupted, expected.is_corrupted)
    for i in range(N):
        x, y, index = noisy[i]
        assert torch.equal(x, pixels()[i])
        assert (y, index) == (int(expected.targets[i]), i)
        assert type(y) is int


def test_data_underneath_stay_as_they_were(dataset):
    before = [(x.clone(), int(y)) for x, y, *_ in (dataset[i] for i in range(N))]
    for noisy in (random_labels(dataset), random_inputs(dataset)):
        assert [noisy[i][2] for i in range(N)] == list(range(N))
    for i, (x, y) in enumerate(before):
        assert torch.equal(dataset[i][0], x)
        assert int(dataset[i][1]) == y


@pytest.mark.parametrize("mode", MODES)
def test_labels_follow_from_the_seed(mode):
    data = Tensors(pixels(), labels())
    first, again, other = (random_labels(data, 0.8, mode=mode, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.targets, again.targets)
    assert torch.equal(first.is_corrupted, again.is_corrupted)
    assert not torch.equal(first.targets, other.targets)
    assert not torch.equal(first.is_corrupted, other.is_corrupted)


def test_numbers_of_numpy_are_as_good_a_seed():
    data = Tensors(pixels(), labels())
    assert torch.equal(
        random_labels(data, 0.8, seed=np.int64(4)).targets,  # type: ignore[arg-type]
        random_labels(data, 0.8, seed=4).targets,
    )


@pytest.mark.parametrize("corrupt", [random_labels, random_inputs])
def test_chosen_examples_are_nested_over_fractions(corrupt):
    data = Tensors(pixels(), labels())
    masks = [corrupt(data, fraction).is_corrupted for fraction in (0.2, 0.4, 0.7)]
    for fewer, more in itertools.pairwise(masks):
        assert bool(more[fewer].all())
        assert int(more.sum()) > int(fewer.sum())


def test_uniform_labels_may_be_the_own_one():
    n = 20_000
    noisy = random_labels(Tensors(torch.zeros(n, 1), labels(n)), mode="uniform")
    changed = float((noisy.targets != noisy.clean_targets).double().mean())
    p = 1 - 1 / CLASSES
    assert abs(changed - p) < 4 * math.sqrt(p * (1 - p) / n)
    counts = torch.bincount(noisy.targets, minlength=CLASSES).double()
    spread = math.sqrt(n / CLASSES * (1 - 1 / CLASSES))
    assert bool(((counts - n / CLASSES).abs() < 4 * spread).all())


def test_other_labels_are_all_the_others_alike():
    n = 20_000
    noisy = random_labels(Tensors(torch.zeros(n, 1), labels(n)), mode="other")
    assert bool((noisy.targets != noisy.clean_targets).all())
    shift = (noisy.targets - noisy.clean_targets) % CLASSES
    counts = torch.bincount(shift, minlength=CLASSES)[1:].double()
    share = 1 / (CLASSES - 1)
    spread = math.sqrt(n * share * (1 - share))
    assert bool(((counts - n * share).abs() < 4 * spread).all())


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_permuted_labels_keep_the_counts_among_the_chosen(fraction):
    targets = labels(500).square() % CLASSES  # classes of unequal size, two of them empty
    noisy = random_labels(Tensors(torch.zeros(500, 1), targets), fraction, mode="permuted")
    chosen = noisy.is_corrupted
    assert torch.equal(noisy.targets[chosen].bincount(), targets[chosen].bincount())
    assert not torch.equal(noisy.targets[chosen], targets[chosen])


def test_number_of_classes_may_exceed_those_that_occur():
    n = 2000
    noisy = random_labels(
        Tensors(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long)), num_classes=3
    )
    assert noisy.targets.unique().tolist() == [0, 1, 2]


def test_labels_with_a_gap_keep_their_numbers():
    targets = torch.tensor([1, 5, 9] * 300)
    noisy = random_labels(Tensors(torch.zeros(900, 1), targets), 0.5)
    assert int(noisy.targets.max()) == 9
    assert int(noisy.targets.min()) == 0
    assert torch.equal(noisy.targets[~noisy.is_corrupted], targets[~noisy.is_corrupted])


def test_labels_are_those_of_the_items_and_not_of_an_attribute_before_its_transform():
    data = LikeTorchvision(pixels(), labels(), target_transform=lambda y: y % 2)
    assert torch.equal(random_labels(data, 0.0).targets, labels() % 2)
    assert torch.equal(random_labels(Subset(data, [3, 1, 4]), 0.0).targets, torch.tensor([1, 1, 0]))
    assert [random_inputs(data)[i][1] for i in range(N)] == (labels() % 2).tolist()


def test_labels_of_torchvision_data_are_read_without_reading_the_images():
    class Unreadable(LikeTorchvision):
        def __getitem__(self, index):
            raise AssertionError("an image was read")

    data = Unreadable(pixels(), labels())
    assert torch.equal(targets_of(data), labels())
    assert torch.equal(targets_of(Subset(data, [7, 2])), torch.tensor([2, 2]))


@pytest.mark.parametrize(
    "column", [labels().float(), labels().float().tolist(), torch.eye(N), ["a"] * N]
)
def test_targets_that_are_no_class_numbers_are_refused(column):
    for corrupt in (random_labels, random_inputs, in_memory):
        with pytest.raises(ValueError, match="targets must be class numbers"):
            corrupt(Pairs(pixels(), column))


def test_targets_in_one_column_are_taken_as_class_numbers():
    data = Pairs(pixels(), labels()[:, None].numpy())
    assert torch.equal(random_labels(data, 0.0).targets, labels())
    assert torch.equal(in_memory(data).targets, labels())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "shuffled"}, "mode must be .* got 'shuffled'"),
        ({"fraction": -0.1}, "fraction must lie between 0 and 1, got -0.1"),
        ({"fraction": 20}, "fraction must lie between 0 and 1, got 20"),
        ({"fraction": float("nan")}, "fraction must lie between 0 and 1, got nan"),
        ({"num_classes": 3}, r"targets must lie in 0\.\.2"),
    ],
)
def test_wrong_settings_of_labels_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_labels(Tensors(pixels(), labels()), **arguments)


def test_labels_below_zero_are_refused():
    with pytest.raises(ValueError, match="values from -1"):
        random_labels(Tensors(pixels(), labels() - 1))


def test_another_label_needs_another_class():
    with pytest.raises(ValueError, match="num_classes must be at least 2 for mode='other', got 1"):
        random_labels(Tensors(pixels(), torch.zeros(N, dtype=torch.long)), mode="other")


@pytest.mark.parametrize("corrupt", [random_labels, random_inputs, in_memory])
def test_empty_data_are_refused(corrupt):
    with pytest.raises(ValueError, match="dataset is empty"):
        corrupt(Pairs([], []))


def channel_data(n=3000):
    """Channels and single elements with means and spreads of their own."""
    draw = torch.Generator().manual_seed(5)
    mean = torch.arange(12.0).reshape(3, 2, 2)
    std = 0.5 + torch.arange(12.0).reshape(3, 2, 2) / 10
    return Tensors(mean + std * torch.randn(n, 3, 2, 2, generator=draw), labels(n))


@pytest.mark.parametrize(
    ("statistics", "dims"), [("all", (0, 1, 2, 3)), ("channel", (0, 2, 3)), ("element", (0,))]
)
def test_noise_has_mean_and_spread_of_the_data(statistics, dims):
    data = channel_data()
    noise = in_memory(random_inputs(data, statistics=statistics)).inputs
    wanted = data.inputs.double()
    mean, std = wanted.mean(dims, keepdim=True), wanted.std(dims, keepdim=True, correction=0)
    # Standardised by the data, each element is N(0, 1) over the examples: its mean has the
    # standard error 1/sqrt(n), its standard deviation 1/sqrt(2n).
    standard = (noise.double() - mean) / std
    n = len(standard)
    assert bool((standard.mean(0).abs() < 4.5 / math.sqrt(n)).all())
    assert bool(((standard.std(0) - 1).abs() < 4.5 / math.sqrt(2 * n)).all())


def test_noise_is_independent_between_elements_and_examples():
    noise = in_memory(random_inputs(channel_data(), statistics="element")).inputs
    flat = noise.flatten(1)
    between_elements = torch.corrcoef(flat.T) - torch.eye(12)
    assert float(between_elements.abs().max()) < 4.5 / math.sqrt(len(flat))
    neighbours = torch.corrcoef(torch.stack([flat[:-1, 0], flat[1:, 0]]))[0, 1]
    assert abs(float(neighbours)) < 4.5 / math.sqrt(len(flat))


def test_features_of_a_flat_example_are_its_channels():
    data = Tensors(
        torch.tensor([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]]), torch.tensor([0, 1, 0])
    )
    # No spread within a feature: the noise is its mean.
    assert torch.equal(in_memory(random_inputs(data, statistics="channel")).inputs, data.inputs)
    assert not torch.equal(in_memory(random_inputs(data, statistics="all")).inputs, data.inputs)


@pytest.mark.parametrize("statistics", ["all", "channel", "element"])
def test_single_numbers_can_be_inputs(statistics):
    noisy = random_inputs(Tensors(torch.full((4,), 7.0), torch.arange(4)), statistics=statistics)
    assert [float(noisy[i][0]) for i in range(4)] == [7.0] * 4


def test_every_kind_of_data_set_gets_the_same_inputs(dataset):
    expected = in_memory(random_inputs(Tensors(pixels(), labels()), 0.5, seed=2))
    noisy = random_inputs(dataset, 0.5, seed=2)
    chosen = noisy.is_corrupted
    got = in_memory(noisy)
    # The statistics are summed in float64; what is left is the rounding to float32.
    torch.testing.assert_close(got.inputs, expected.inputs, rtol=1e-6, atol=1e-6)
    assert torch.equal(got.inputs[~chosen], pixels()[~chosen])
    assert not bool((got.inputs[chosen] == pixels()[chosen]).any())
    assert torch.equal(got.targets, labels())
    assert torch.equal(got.clean_targets, labels())
    assert torch.equal(got.is_corrupted, expected.is_corrupted)


def test_noise_is_fixed_whatever_the_order_and_kind_of_access():
    noisy = random_inputs(Tensors(pixels(), labels()))
    forwards = [noisy[i][0] for i in range(N)]
    torch.randn(3)
    for i in reversed(range(N)):
        assert torch.equal(noisy[i][0], forwards[i])
    assert torch.equal(noisy[np.int64(3)][0], forwards[3])  # type: ignore[index]
    assert torch.equal(noisy[torch.tensor(3)][0], forwards[3])  # type: ignore[index]
    assert noisy[np.int64(3)][2] == 3  # type: ignore[index]
    assert type(noisy[torch.tensor(3)][2]) is int  # type: ignore[index]
    picked = Subset(noisy, torch.tensor([5, 1]))  # type: ignore[arg-type]
    assert torch.equal(picked[0][0], forwards[5])
    loaded = torch.cat([batch[0] for batch in DataLoader(noisy, batch_size=7, num_workers=2)])
    assert torch.equal(loaded, torch.stack(forwards))


def test_drawing_noise_leaves_the_global_random_state():
    before = torch.get_rng_state()
    noisy = random_inputs(random_labels(Tensors(pixels(), labels())))
    assert noisy[0][0].shape == (2, 3, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_follow_from_the_seed():
    data = Tensors(pixels(), labels())
    first, again, other = (in_memory(random_inputs(data, seed=s)).inputs for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not bool((first == other).any())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_noise_has_the_dtype_of_the_inputs(dtype):
    noisy = random_inputs(Tensors(pixels().to(dtype), labels()))
    assert noisy[0][0].dtype == dtype
    assert bool(noisy[0][0].isfinite().all())


def test_index_out_of_range_ends_an_iteration():
    noisy = random_labels(Tensors(pixels(), labels()))
    assert sum(1 for _ in noisy) == N  # type: ignore[misc, reportGeneralTypeIssues]
    for index in (N, -1):
        with pytest.raises(IndexError, match=f"index {index} is out of range for {N} examples"):
            noisy[index]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.uint8), "floating-point tensors as inputs, got torch.uint8"),
        (np.zeros((3, 4)), "floating-point tensors as inputs, got ndarray"),
        ([torch.zeros(1, 4), torch.zeros(3, 4), torch.zeros(1, 4)], r"\(1, 4\) and \(3, 4\)"),
    ],
)
def test_inputs_without_mean_and_spread_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        random_inputs(Pairs(inputs, [0, 1, 0]))


def test_wrong_settings_of_inputs_are_named():
    data = Tensors(pixels(), labels())
    with pytest.raises(ValueError, match=r"statistics must be .* got 'pixel'"):
        random_inputs(data, statistics="pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fraction must lie between 0 and 1, got 1\.1"):
        random_inputs(data, 1.1)


def test_labels_over_inputs_and_inputs_over_labels():
    data = Tensors(pixels(), labels())
    by_labels = random_labels(data, 0.4, mode="other", seed=1)
    by_inputs = random_inputs(data, 0.3, seed=2)
    inner_labels = in_memory(random_inputs(by_labels, 0.3, seed=2))
    outer_labels = in_memory(random_labels(by_inputs, 0.4, mode="other", seed=1))
    for both in (inner_labels, outer_labels):
        assert torch.equal(both.is_corrupted, by_labels.is_corrupted | by_inputs.is_corrupted)
        assert torch.equal(both.clean_targets, labels())
        assert torch.equal(both.targets, by_labels.targets)
        assert torch.equal(both.inputs, in_memory(by_inputs).inputs)


def test_noise_over_a_subset_of_noise_remembers_the_truth():
    first = random_labels(Tensors(pixels(), labels()), 0.5, mode="other", seed=1)
    keep = [30, 2, 17, 5, 11, 8]
    second = random_labels(Subset(first, keep), 0.5, mode="other", seed=2)
    assert torch.equal(second.clean_targets, labels()[keep])
    chosen_now = random_labels(Tensors(pixels(6), labels(6)), 0.5, seed=2).is_corrupted
    assert torch.equal(second.is_corrupted, first.is_corrupted[keep] | chosen_now)
    assert torch.equal(second.targets[~chosen_now], first.targets[keep][~chosen_now])


def test_in_memory_keeps_the_mask_below_subsets_and_concatenations():
    noisy = random_labels(Tensors(pixels(), labels()), 0.5, mode="other")
    keep = np.array([30, 2, 17, 5])
    part = in_memory(Subset(noisy, keep))  # type: ignore[arg-type]
    assert torch.equal(part.is_corrupted, noisy.is_corrupted[keep])
    assert torch.equal(part.clean_targets, labels()[keep])
    assert torch.equal(part.targets, noisy.targets[keep])
    both = in_memory(ConcatDataset([Pairs(pixels(3), labels(3)), noisy]))
    assert torch.equal(both.is_corrupted, torch.cat([torch.zeros(3).bool(), noisy.is_corrupted]))
    assert torch.equal(both.clean_targets, torch.cat([labels(3), labels()]))
    assert torch.equal(both.targets, torch.cat([labels(3), noisy.targets]))


def test_in_memory_reads_any_data_set(dataset):
    data = in_memory(dataset)
    assert torch.equal(data.inputs, pixels())
    assert torch.equal(data.targets, labels())
    assert data.targets.dtype == torch.int64
    assert not bool(data.is_corrupted.any())
    assert torch.equal(data.clean_targets, labels())
    x, y, index = data[7]
    assert torch.equal(x, pixels()[7])
    assert (int(y), index) == (2, 7)


def test_in_memory_takes_tensors_as_they_are():
    data = Tensors(pixels(), labels())
    assert in_memory(data) is data


def test_in_memory_refuses_images_without_a_transform():
    from PIL import Image

    with pytest.raises(ValueError, match=r"inputs, got Image; add a transform"):
        in_memory(Pairs([Image.new("RGB", (4, 4))], [0]))


def test_subset_and_move_carry_the_mask_along():
    noisy = in_memory(random_labels(Tensors(pixels(), labels()), 0.5, mode="other"))
    part = noisy.subset(torch.tensor([4, 0, 9])).to("cpu", torch.float64)
    assert part.inputs.dtype == torch.float64
    for name in ("targets", "is_corrupted", "clean_targets"):
        assert torch.equal(getattr(part, name), getattr(noisy, name)[[4, 0, 9]])
    assert [part[i][2] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["targets", "is_corrupted", "clean_targets"])
def test_columns_of_another_length_are_refused(name):
    columns = {"targets": labels(), name: torch.zeros(N - 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=f"{name} must have 41 entries, got 40"):
        Tensors(pixels(), **columns)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_on_the_gpu_get_the_same_noise():
    there = Tensors(pixels(), labels()).to("cuda")
    noisy = random_inputs(random_labels(there, 0.4, seed=1), 0.5)
    here = random_inputs(random_labels(Tensors(pixels(), labels()), 0.4, seed=1), 0.5)
    assert noisy[0][0].device.type == "cuda"
    assert torch.equal(noisy.targets, here.targets)
    torch.testing.assert_close(in_memory(noisy).inputs.cpu(), in_memory(here).inputs)
