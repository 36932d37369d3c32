"""Hold what the answers of the course say where no cell of a notebook does."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import charrnn
from charrnn import lab
from charrnn.config import load_config
from charrnn.generation import logits as processors
from charrnn.lab.probes import recall

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
READ, COME = [0, 1, 2, 2], [1, 2, 2, 3]  # h, e, l, l and e, l, l, o


def run_cells(notebook: str, *ids: str, **names: Any) -> dict[str, Any]:
    """Run these cells of a notebook, which may use `names`, and return all names afterwards."""
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


def test_the_line_counter_counts_words_too():
    generator = charrnn.load_model(NOTEBOOKS.parent / "checkpoints" / "shakespeare-lstm")
    val = charrnn.load_corpus("shakespeare", generator.tokenizer).split().val
    passages = val[: 24 * 500].reshape(24, 500).astype(np.int64)
    texts = [generator.tokenizer.decode(passage) for passage in passages]
    inside = np.array([[float(character.isalpha()) for character in text] for text in texts])
    words = np.array([[text[: i + 1].rpartition("\n")[2].count(" ") for i in range(500)] for text in texts], float)
    position = lab.line_positions(passages, generator.tokenizer.encode("\n")[0])
    words[np.isnan(position)] = np.nan
    cells = lab.gate_activations(generator.model, torch.from_numpy(passages))["c"]
    found = {}
    for name, feature in {"position": position, "words": words, "inside": inside}.items():
        unit = int(np.abs(lab.correlations(cells[:12], feature[:12])).argmax())
        found[name] = unit, abs(lab.correlations(cells[12:], feature[12:])[unit])
    assert found["words"][0] == found["position"][0]
    assert found["words"][1] > 0.7 > found["inside"][1] > 0.5


def test_the_numbers_of_the_recall_file_are_those_that_notebook_03_tells():
    records = json.loads((NOTEBOOKS / "03_recall.json").read_text(encoding="utf-8"))["records"]
    longer = [r["shares"] for r in records if (r["kind"], r["steps"], r["learning_rate"]) == ("RNN", 500, 0.005)]
    _, _, after_10, after_20 = map(sorted, zip(*longer, strict=True))
    assert after_10[0] < 0.5 < 0.9 < after_10[1]
    assert after_20[-1] < 0.5


def test_where_the_matrices_of_notebook_03_begin():
    tokenizer = recall.copy_lines(2, 10, seed=1).tokenizer
    for kind, radius in {"RNN": 0.6, "RNN, orthogonal start": 1.0}.items():
        settings = {**recall.KINDS[kind], "hidden_size": 64, "num_layers": 1, "dropout": 0.0}
        for seed in recall.SEEDS:
            model = charrnn.create_model(tokenizer, seed=seed, **settings).model
            matrix = model.layers[0].weight_hh_l0.detach()
            assert abs(torch.linalg.eigvals(matrix).abs().max() - radius) < 0.05


def test_with_a_forget_bias_of_five_an_lstm_learns_to_copy_over_twenty_dots():
    libraries = {"np": np, "torch": torch, "nn": torch.nn, "F": F, "charrnn": charrnn}
    names = run_cells("04_lstm_and_gru.ipynb", "code-55", "code-56", **libraries)
    assert names["delay"] == 20
    assert names["learn_to_copy"](5)[-5:].mean() > 0.9


def test_adamw_rates_of_the_shipped_configurations():
    configs = [load_config(path) for path in (NOTEBOOKS.parent / "config").glob("*.yaml")]
    adamw = [config for config in configs if config.training.optimizer in ("adamw", "muon")]
    assert len(adamw) > 5
    assert all(0.002 <= config.training.learning_rate <= 0.03 for config in adamw)
    assert all(128 <= config.model.hidden_size <= 512 for config in adamw)


def test_newton_schulz_does_not_settle_at_one():
    names = run_cells("05_training.ipynb", "code-30")
    matrix = torch.randn(256, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spectra = [torch.linalg.svdvals(names["newton_schulz"](matrix, n)) for n in (10, 11, 12)]
    assert all(values.min() > 0.65 and values.max() < 1.25 for values in spectra)
    assert all((values - 1).abs().mean() > 0.05 for values in spectra)
    assert math.isclose(3.4445 - 4.7750 + 2.0315, 0.701)


def test_the_numbers_in_the_answers_of_notebook_06():
    generator = charrnn.load_model(NOTEBOOKS.parent / "checkpoints" / "shakespeare-lstm")

    def after(text: str) -> np.ndarray:
        return generator.next_logits(text).astype(np.float64)

    (a,) = generator.tokenizer.encode("a")
    assert processors.softmax(after("The q") / 2.6)[a] > 0.05 > processors.softmax(after("The q") / 2.4)[a]
    assert lab.entropy(processors.softmax(after("My lord, I ") / 2.6)) > 4.5

    hot, half = processors.temperature(2), processors.top_p(0.5)
    kept = [
        np.isfinite(logits).sum() for logits in (half(hot(after("the king of "))), hot(half(after("the king of "))))
    ]
    assert kept[0] > kept[1]


def test_greedy_texts_often_end_in_the_same_loop():
    generator = charrnn.load_model(NOTEBOOKS.parent / "checkpoints" / "shakespeare-lstm")
    prompts = [
        "",
        "KING",
        "ROMEO:\n",
        "MACBETH:\n",
        "HAMLET:\n",
        "First Citizen:\n",
        "The ",
        "O, ",
        "What",
        "My lord, I ",
    ]
    greedy = generator.generate_batch(prompts, 1200, temperature=0)
    names = run_cells("06_sampling.ipynb", "code-42", text=greedy[0])  # `period`
    names = run_cells("06_sampling.ipynb", "code-46", generator=generator, **names)  # `same_loop`
    looping = [text for text in greedy if names["period"](text)]
    assert 3 <= len(looping) < len(prompts)  # the others are still on their way
    assert len({names["same_loop"](text) for text in looping}) == 1
