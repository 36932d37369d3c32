"""Holds what the course's answers say where no cell of a notebook does."""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
READ, COME = [0, 1, 2, 2], [1, 2, 2, 3]  # h, e, l, l and e, l, l, o


def run_cells(notebook: str, *ids: str) -> dict:
    """The names that these cells of a notebook define."""
    names = {}
    for cell in json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["id"] in ids:
            exec("".join(cell["source"]), names)
    return names


def test_one_unit_can_say_hello():
    h, states = 0.0, []
    for u in (-3.0, 2.685, 1.074, 1.074):
        h = math.tanh(u + 3 * h)
        states.append(h)
    assert [round(h, 1) for h in states] == [-1.0, -0.3, 0.2, 0.9]
    # lines whose highest changes from e to l at -0.6 and from l to o at 0.6
    logits = torch.tensor(states)[:, None] * torch.tensor([0.0, -9.0, 0.0, 9.0]) + torch.tensor(
        [-99.0, -5.4, 0.0, -5.4]
    )
    assert logits.argmax(-1).tolist() == COME


def test_adam_finds_such_a_unit_from_most_starts():
    generator = torch.Generator().manual_seed(0)
    shapes = (12, 4), (12,), (12, 1, 4), (12, 1, 4)  # 12 starts side by side
    u, w, head, bias = weights = [
        (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_() for shape in shapes
    ]
    optimizer = torch.optim.Adam(weights, lr=0.1)
    for _ in range(500):
        states = [torch.zeros(12, dtype=torch.float64)]
        for x in READ:
            states.append(torch.tanh(u[:, x] + w * states[-1]))
        logits = torch.stack(states[1:], dim=1)[..., None] * head + bias  # (12, 4, 4)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), torch.tensor(COME * 12), reduction="sum").backward()
        optimizer.step()
    assert (logits.argmax(-1) == torch.tensor(COME)).all(1).sum() > 6


def test_the_plain_steps_of_notebook_02_do_not():
    ids = ("code-02", "code-06", "code-21", "code-26", "code-28", "code-30")
    names = run_cells("02_rnn_from_scratch.ipynb", *ids)
    shapes = {"embedding": (4, 4), "weight_ih": (1, 4), "weight_hh": (1, 1), "bias_ih": (1,), "bias_hh": (1,)}
    shapes |= {"head": (4, 1), "head_bias": (4,)}
    read, come = torch.tensor([READ]), torch.tensor([COME])
    start = torch.zeros(1, 1, dtype=torch.float64)
    for first in range(0, 1200, 100):
        w = {name: 0.5 * names["normal"](*shape, seed=first + i) for i, (name, shape) in enumerate(shapes.items())}
        for _ in range(150):
            x, _, states, logits, _ = names["forward"](w, read, come, start)
            grad_logits, _, grad_a = names["backward"](w, come, states, logits)
            for name, gradient in names["weight_gradients"](w, read, x, states, grad_logits, grad_a)[1].items():
                w[name] -= 0.5 * gradient
        assert (logits.argmax(-1) != come).any()
