"""Tensors as strangers bring them: every dtype, layout and kind of number."""

import math

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def specials(dtype: torch.dtype) -> list[float]:
    """Numbers at the edges of a dtype: zeros, subnormal, tiny, next to one, huge."""
    about = torch.finfo(dtype)
    return [
        0.0, -0.0, 1.0, -1.0, about.smallest_normal / 4, about.tiny, -about.tiny, about.eps,
        1 + about.eps, about.max, -about.max, about.max / 2, math.sqrt(about.max), 100.0,
    ]  # fmt: skip


def finite(dtype: torch.dtype, low: float | None = None) -> st.SearchStrategy[float]:
    """Finite numbers of a dtype, not below ``low``."""
    about = torch.finfo(dtype)
    edges = [v for v in specials(dtype) if low is None or v >= low]
    bottom = -about.max if low is None else low
    # Drawn as float64, rounded by the tensor: never beyond the largest number of the dtype.
    return st.sampled_from(edges) | st.floats(bottom, about.max) | st.floats(max(bottom, -9), 9)


def any_number(dtype: torch.dtype) -> st.SearchStrategy[float]:
    return finite(dtype) | st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def laid_out(draw, values: list, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The values as a tensor in one of the layouts that slicing and transposing leave behind."""
    flat = torch.tensor(values, dtype=torch.float64).to(dtype)
    tensor = flat.reshape(shape)
    layout = draw(st.sampled_from(["plain", "transposed", "strided", "offset", "gradient"]))
    if layout == "transposed":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "strided":
        wide = torch.full((*shape[:-1], 2 * shape[-1]), math.nan, dtype=dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "offset":
        return torch.cat([flat.new_full((3,), math.nan), flat])[3:].view(shape)
    return tensor.clone().requires_grad_() if layout == "gradient" else tensor


@st.composite
def vectors(draw, elements=finite, dtypes=FLOATS, most: int = 20, least: int = 1, **limits):
    """A vector of a drawn dtype, and its numbers as Python's floats after rounding to it."""
    dtype = draw(st.sampled_from(dtypes))
    count = draw(st.integers(least, most))
    values = draw(st.lists(elements(dtype, **limits), min_size=count, max_size=count))
    tensor = draw(laid_out(values, (count,), dtype))
    return tensor, tensor.detach().double().tolist()


@st.composite
def batches(draw, elements=finite, dtypes=FLOATS, rows: int = 6, columns: tuple = (2, 6)):
    """A matrix of a drawn dtype."""
    dtype = draw(st.sampled_from(dtypes))
    n, d = draw(st.integers(1, rows)), draw(st.integers(*columns))
    values = draw(st.lists(elements(dtype), min_size=n * d, max_size=n * d))
    return draw(laid_out(values, (n, d), dtype))


def ugly() -> dict[str, object]:
    """What is no batch of real numbers, though someone will pass it."""
    return {
        "nothing": torch.empty(0),
        "no rows": torch.empty(0, 4),
        "no columns": torch.empty(4, 0),
        "a number": torch.tensor(1.0),
        "a Python number": 1.0,
        "None": None,
        "a word": "inputs",
        "a list": [[1.0, 2.0], [3.0, 4.0]],
        "NumPy backwards": np.arange(8.0).reshape(4, 2)[::-1],
        "complex": torch.ones(4, 2, dtype=torch.complex64),
        "boolean": torch.ones(4, 2, dtype=torch.bool),
        "integers": torch.ones(4, 2, dtype=torch.int32),
        "bytes": torch.ones(4, 2, dtype=torch.uint8),
        "sparse": torch.ones(4, 2).to_sparse(),
        "compressed sparse": torch.ones(4, 2).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.ones(4, 2), 0.1, 0, torch.quint8),
        "without data": torch.ones(4, 2, device="meta"),
        "NaN": torch.full((4, 2), math.nan),
        "infinite": torch.full((4, 2), math.inf),
        "eight-bit floats": torch.ones(4, 2).to(torch.float8_e4m3fn),
    }


UGLY = tuple(ugly())
