"""What follows from the logits of one example, in Python's floats."""

import math


def scores_of(logits: list[float], target: int) -> dict[str, float]:
    """Scores of an example whose largest logit may be as large as floats are."""
    top = max(logits)
    others = [z for i, z in enumerate(logits) if i != target]
    total = math.fsum(math.exp(z - top) for z in logits)
    p = [math.exp(z - top) / total for z in logits]
    rest = math.fsum(q for i, q in enumerate(p) if i != target)
    return {
        "loss": math.log(total) + (top - logits[target]),
        "confidence": p[target],
        "correctness": float(logits.index(top) == target),
        "el2n": math.hypot(rest, *(q for i, q in enumerate(p) if i != target)),
        "margin": logits[target] - max(others),
        "entropy": math.fsum(
            q * (math.log(total) + (top - z)) for q, z in zip(p, logits, strict=True) if q
        ),
    }
