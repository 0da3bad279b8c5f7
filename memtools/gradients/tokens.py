"""Integer inputs have no gradient; what an embedding makes of them has."""

import warnings
from collections.abc import Mapping

from torch import nn
from torch.autograd.graph import GradientEdge

__all__ = ["embedded", "embedding_name"]


def embedding_name(model: nn.Module, embedding: str | nn.Module | None) -> str | None:
    """Name of an embedding that was given by its name or as the module.

    Raises:
        ValueError: If the model has no such module.
    """
    for name, module in model.named_modules():
        if embedding is module or embedding == name:
            return name
    if embedding is None:
        return None
    raise ValueError(
        f"embedding must be a module of the model or its name, got {embedding!r}; look it up in "
        "model.named_modules()"
    )


def embedded(lookups: Mapping[str, list[GradientEdge]], name: str | None) -> GradientEdge:
    """Where the gradient of the embedded inputs arrives.

    Args:
        lookups: Where the inputs were looked up: edges by the name of the embedding.
        name: The embedding to take; ``None`` takes the only one.

    Raises:
        ValueError: If there is none, or more than one.
    """
    if name is None and len(lookups) == 1:
        (name,) = lookups
        warnings.warn(
            f"inputs are integers, which have no gradient: taken is that of the output of the "
            f"embedding {name!r}; pass embedding={name!r} to say so yourself",
            stacklevel=2,
        )
    if name is not None and name not in lookups and len(lookups) == 1 and "" in lookups:
        name = ""  # its table is worked out from other weights
    if name is None or len(lookups.get(name, [])) != 1:
        found = ", ".join(f"{key!r}, {len(edges)} times" for key, edges in lookups.items())
        raise ValueError(
            "inputs are integers, which have no gradient, and embedding must name the one module "
            f"that looks them up once, got {name!r}; the inputs are looked up in: "
            f"{found or 'none'}; for another model, pass the embedded inputs in place of the tokens"
        )
    return lookups[name][0]
