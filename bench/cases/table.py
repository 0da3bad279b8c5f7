"""All operations of the matrix by name."""

from bench.cases import gradients, histories, inequality, logits, searches, trainings
from bench.cases.operation import Operation

OURS = "memtools"
"""What every operation has, and the others are compared with."""

OPERATIONS: dict[str, Operation] = {
    name: operation
    for module in (gradients, searches, trainings, logits, histories, inequality)
    for name, operation in module.OPERATIONS.items()
}
