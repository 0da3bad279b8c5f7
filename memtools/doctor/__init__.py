"""What works on this machine: versions, devices, operators, extras, and a check of the numbers.

``memtools doctor`` prints it.
"""

from collections.abc import Iterator

import torch

from memtools.doctor.checks import CHECKS
from memtools.doctor.finding import Finding
from memtools.doctor.installed import devices, extras, operators, versions
from memtools.training.devices import resolve_device

__all__ = ["Finding", "diagnose"]


def diagnose(device: str = "auto") -> Iterator[Finding]:
    """Look at the installation, then compare the numbers of small problems with plain PyTorch.

    Takes seconds, needs no file and no network, and writes nothing.

    Args:
        device: Where the numbers are checked; ``"auto"`` takes the accelerator if there is one.

    Yields:
        What was found, a line each, as soon as it is known.

    Raises:
        ValueError: If there is no such device.

    Example:
        >>> all(finding.state != "failed" for finding in diagnose("cpu"))
        True
    """
    place = resolve_device(device)
    yield from versions()
    yield from devices()
    yield from extras()
    yield from operators(place)
    for name, check in CHECKS.items():
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(0)
            try:
                yield Finding(f"checks on {place}", name, check(place))
            except Exception as error:  # whatever it is, it is what the user has to know
                words = f"{type(error).__name__}: {error}".splitlines()[0]
                yield Finding(f"checks on {place}", name, words, "failed")
