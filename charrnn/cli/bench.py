"""`charrnn bench`: thin commands over `charrnn.bench`, which is imported only by the command that needs it."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import charrnn
from charrnn.cli import console
from charrnn.config import BUDGETS, RunConfig, config_fields, load_config
from charrnn.errors import ConfigError

Row = dict[str, Any]


def add_commands(commands: Any) -> None:
    """The `bench` command and its measurements."""
    what = "Measure side by side."
    benches = commands.add_parser("bench", help=what, description=what)
    measurements = benches.add_subparsers(
        title="measurements", required=True, metavar="WHAT", parser_class=console.Parser
    )
    for add in (
        _add_train,
        _add_sample,
        _add_batch_size,
        _add_learning_rate,
        _add_ladder,
        _add_devices,
        _add_data,
        _add_kernels,
    ):
        console.add_json(add(measurements))


def _add_text(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", default="shakespeare", metavar="NAME", help="the text (default: shakespeare)")


def _add_rounds(command: argparse.ArgumentParser, rounds: int) -> None:
    command.add_argument(
        "--rounds",
        type=console.whole(1),
        default=rounds,
        metavar="N",
        help=f"how often each setting is timed (default: {rounds})",
    )


def _add_seconds(command: argparse.ArgumentParser, seconds: float, what: str) -> None:
    command.add_argument(
        "--seconds", type=console.positive, default=seconds, metavar="S", help=f"{what} (default: {seconds})"
    )


# -------------------------------------------------------------------------------------------------------------- train


def _add_train(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "train", train)
    _add_text(command)
    _add_rounds(command, 3)
    _add_seconds(command, 20, "of training in each turn")
    return command


def train(arguments: argparse.Namespace) -> int:
    """Time whole training and what it learns, beside PyTorch's LSTM in plain loops and in shuffled windows."""
    from charrnn.bench.train import compare

    rows = compare(arguments.data, rounds=arguments.rounds, seconds=arguments.seconds, progress=console.bar("training"))
    if arguments.json:
        console.print_json(rows)
        return 0
    names = [name for name in rows[0] if name not in ("shape", "times_faster")]
    console.show_rows(
        f"{arguments.seconds:g} s of training each; how many times faster ours is, and the validation loss then",
        [_trained(row, name) for row in rows for name in names],
    )
    return 0


def _trained(row: Row, name: str) -> dict[str, str]:
    result, times = row[name], row["times_faster"].get(name)
    chosen = f", {result['precision']}, {result['backend']}" if "backend" in result else ""
    return {
        "size, B x T": _shape(row["shape"]),
        "program": name + chosen,
        "characters/s": f"{result['speed']:,.0f}",
        "x faster": f"{times:.2f}" if times else "-",
        "validation loss": f"{result['val_loss']:.3f}",
    }


# ------------------------------------------------------------------------------------------------------------- sample


def _add_sample(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "sample", sample)
    for name, default, what in (
        ("layers", 2, "of the LSTM"),
        ("hidden-size", 128, "units of each layer"),
        ("batch-size", 256, "texts in the batch"),
    ):
        command.add_argument(
            f"--{name}", type=console.whole(1), default=default, metavar="N", help=f"{what} (default: {default})"
        )
    command.add_argument(
        "--checkpoint",
        type=console.path,
        default=SHIPPED,
        metavar="DIR",
        help=f"whose first character is waited for (default: {SHIPPED})",
    )
    _add_rounds(command, 3)
    _add_seconds(command, 3, "measured in each turn")
    return command


SHIPPED = Path("checkpoints/shakespeare-lstm")


def sample(arguments: argparse.Namespace) -> int:
    """Time how fast text is written, beside plain loops of one and of many, and how soon the first character comes."""
    from charrnn.bench.sample import compare, start
    from charrnn.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(arguments.checkpoint)
    shape = (arguments.layers, arguments.hidden_size, arguments.batch_size)
    speeds = compare(*shape, arguments.rounds, arguments.seconds, progress=console.bar("writing"))
    starts = start(checkpoint, arguments.rounds, progress=console.bar("starting"))
    if arguments.json:
        console.print_json({"speeds": speeds, "starts": starts})
        return 0
    console.show_rows(
        f"characters per second, LSTM {arguments.layers}x{arguments.hidden_size}, a batch of {arguments.batch_size}",
        [
            {
                "": row["what"],
                "characters/s": f"{row['speed']:,.0f}",
                "x loop of one": f"{row['times_loop_of_one']:.1f}",
                "x equal loop": f"{row['times_equal_loop']:.1f}",
            }
            for row in speeds
        ],
    )
    console.say(
        "equal loop: PyTorch's LSTM in a plain loop that writes as many texts side by side, in the same precision"
    )
    console.show_rows(
        "from the start of Python to the first character",
        [{"": row["what"], "seconds": f"{row['seconds']:.2f}"} for row in starts],
    )
    return 0


# --------------------------------------------------------------------------------------------------------- batch size


def _add_batch_size(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "batch-size", batch_size)
    _add_config(command, without=("batch_size", *BUDGETS))
    sizes = [16, 32, 64, 128, 256, 512, 1024]
    command.add_argument(
        "--sizes", nargs="+", type=console.whole(1), default=sizes, metavar="B", help="(default: 16 32 64 ... 1024)"
    )
    _add_seconds(command, 10, "of training for each size")
    command.add_argument(
        "--scale",
        choices=("none", "sqrt", "linear"),
        default="none",
        help="how the learning rate follows the batch size, from the configured one on (default: none, as configured)",
    )
    return command


def batch_size(arguments: argparse.Namespace) -> int:
    """Train each batch size for the same time, and name the fastest and the best."""
    from charrnn.bench.batch_size import best_of, conclusion, sweep

    config = _config(arguments)
    rows = sweep(config, arguments.sizes, arguments.seconds, arguments.scale, progress=console.bar("training"))
    if arguments.json:
        fastest, best = best_of(rows)
        console.print_json({"sizes": rows, "fastest": fastest, "best": best, "scale": arguments.scale})
        return 0
    console.show_rows(f"{arguments.seconds:g} s of training each", [_sized(row) for row in rows])
    for row in rows:
        if "skipped" in row:
            console.say(f"batch size {row['batch_size']} skipped: {row['skipped']}")
    scaled = {"none": "the same for all", "sqrt": "scaled with the root of the batch size", "linear": "scaled with it"}
    print(conclusion(rows, arguments.seconds), f"The learning rate was {scaled[arguments.scale]}.")
    return 0


def _sized(row: Row) -> dict[str, str]:
    names = ("characters/s", "steps", "peak memory", "validation loss")
    shown = dict.fromkeys(names, "-")
    if "skipped" not in row:
        loss = "not measured" if row["val_loss"] is None else f"{row['val_loss']:.4f}"
        values = (f"{row['speed']:,.0f}", f"{row['steps']:,}", _megabytes(row["peak_bytes"]), loss)
        shown = dict(zip(names, values, strict=True))
    return {"batch size": f"{row['batch_size']:,}", "learning rate": f"{row['learning_rate']:.2g}", **shown}


def _add_config(command: argparse.ArgumentParser, without: tuple[str, ...]) -> None:
    """A YAML file and a flag for every setting, as `charrnn train` has them."""
    command.add_argument("config", nargs="?", type=console.path, help="YAML file of settings; flags win over it")
    console.add_settings(command, config_fields(), without=without)


def _config(arguments: argparse.Namespace) -> RunConfig:
    config = load_config(arguments.config) if arguments.config else RunConfig()
    return config.override(console.given_settings(arguments, config_fields()))


# ------------------------------------------------------------------------------------------------------ learning rate


def _add_learning_rate(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "learning-rate", learning_rate)
    _add_config(command, without=BUDGETS)
    for name, rate in (("low", 1e-5), ("high", 1.0)):
        command.add_argument(
            f"--{name}", type=console.positive, default=rate, metavar="RATE", help=f"(default: {rate:g})"
        )
    command.add_argument("--steps", type=console.whole(2), default=200, metavar="N", help="updates (default: 200)")
    command.add_argument("--out", type=console.picture_file, metavar="FILE", help="draw it in a .png or .svg file")
    return command


def learning_rate(arguments: argparse.Namespace) -> int:
    """Let the learning rate grow on a throwaway model, and suggest where its loss falls most steeply."""
    from charrnn.bench.learning_rate import range_test

    if arguments.low >= arguments.high:
        raise ConfigError(f"--low: expected a rate below --high, {arguments.high:g}, got {arguments.low:g}")
    if arguments.out:
        with console.libraries_of_the_notebooks("--out"):
            from charrnn.lab.figures.base import save_figure
            from charrnn.lab.figures.runs import plot_learning_rate
    run = charrnn.Run.start(_config(arguments))
    result = range_test(run, arguments.low, arguments.high, arguments.steps, console.bar("training"))
    rates, losses, smoothed, suggested = result.values()
    if arguments.out:
        save_figure(plot_learning_rate(rates, losses, suggested, smoothed), arguments.out)
    if arguments.json:
        console.print_json(result)
        return 0
    shown = sorted({round(place) for place in np.linspace(0, len(rates) - 1, 12)})
    rows = zip(*([values[place] for place in shown] for values in (rates, losses, smoothed)), strict=True)
    names = ("learning rate", "loss", "smoothed")
    console.show_rows(
        "loss while the learning rate grows, nats per token",
        [dict(zip(names, (f"{rate:.2g}", *(f"{x:.3f}" for x in each)), strict=True)) for rate, *each in rows],
    )
    if len(rates) < arguments.steps:
        console.say(f"ended after {len(rates)} of {arguments.steps} steps, when the loss had climbed away")
    if suggested is None:
        print("The loss never falls: nothing to suggest.")
    else:
        print(f"Suggested learning rate: {suggested:.2g}, where the smoothed loss falls most steeply.")
    return 0


# ------------------------------------------------------------------------------------------------------------- ladder


def _add_ladder(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "ladder", ladder)
    _add_text(command)
    _add_seconds(command, 25, "of training in each run, evaluations not counted")
    command.add_argument(
        "--seeds", type=console.whole(1), default=5, metavar="N", help="runs of each kind (default: 5)"
    )
    command.add_argument(
        "--parameters", type=console.whole(1), default=150_000, metavar="N", help="of each network (default: 150000)"
    )
    command.add_argument(
        "--threads", type=console.whole(1), metavar="N", help="CPU threads (default: PyTorch's choice)"
    )
    command.add_argument(
        "--out", type=console.new_file, metavar="FILE", help="write all there is to know to FILE as JSON"
    )
    return command


def ladder(arguments: argparse.Namespace) -> int:
    """Train RNN, GRU, LSTM and LayerNorm-LSTM at equal parameters and time, each at its best rate, and test who won."""
    with console.libraries_of_the_notebooks("bench ladder"):
        from charrnn.bench import ladder as bench

    result = bench.ladder(
        arguments.seconds,
        range(1, arguments.seeds + 1),
        arguments.parameters,
        progress=console.bar("training"),
        data=arguments.data,
        threads=arguments.threads,
    )
    pairs = {at_equal: bench.paired(result["records"], over) for at_equal, over in EQUAL.items()}
    result |= {"pairs": pairs}
    if arguments.out:
        bench.write_result(arguments.out, result)
    if arguments.json:
        console.print_json(result)
        return 0
    console.show_rows(
        "validation loss, nats per character, with the 95% interval of its mean over the seeds", _ladder(result)
    )
    for at_equal, rows in pairs.items():
        for sentence in bench.conclusions(rows, at_equal):
            print(sentence)
    trials = sum(len(tuned["trials"]) for tuned in result["tuning"].values())
    console.say(f"learning rates: tuned by {trials} shorter runs, whose time and validation text are their own")
    console.say("p: paired t-test over the seeds, after Holm's correction for the number of pairs")
    return 0


EQUAL = {"time": "seconds", "data": "characters"}  # what is made equal, and over what the curves are then read


def _ladder(result: Row) -> list[dict[str, str]]:
    """A row for each kind: its size, and its loss where the shortest run ends."""
    from charrnn.bench.ladder import at_the_end, summarise

    records = {record["kind"]: record for record in result["records"]}
    ends = {at_equal: at_the_end(summarise(result["records"], over)) for at_equal, over in EQUAL.items()}
    titles = {"time": f"after {ends['time'][0]:,.3g} s", "data": f"after {ends['data'][0]:,.0f} characters"}
    return [
        {
            "kind": kind,
            "units": f"{record['hidden_size']:,}",
            "parameters": f"{record['parameters']:,}",
            "learning rate": f"{record['learning_rate']:g}",
            **{titles[at_equal]: _loss(**losses[kind]) for at_equal, (_, losses) in ends.items()},
        }
        for kind, record in records.items()
    ]


def _loss(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} ({low:.3f} to {high:.3f})" if math.isfinite(low) else f"{mean:.3f} (one seed)"


# ------------------------------------------------------------------------------------------------------------ devices


def _add_devices(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "devices", devices)
    wanted = [field for field in config_fields("model", "training") if field[2] in SHAPE]
    console.add_settings(command, wanted)
    _add_rounds(command, 5)
    return command


SHAPE = ("model_type", "hidden_size", "num_layers", "layer_norm", "batch_size", "seq_length")


def devices(arguments: argparse.Namespace) -> int:
    """Time training on every device, precision and backend, and on the CPU with 1, 2, 4 threads and so on."""
    from torch import distributed

    from charrnn.bench.devices import compare, conclusion, together

    config = RunConfig().override(console.given_settings(arguments, config_fields()))
    size, seq_length = config.training.batch_size, config.training.seq_length
    rows = compare(config.model, size, seq_length, arguments.rounds, progress=console.bar("training"))
    if size % 2 == 0 and distributed.is_available():
        rows.append(together(config.model, size, seq_length))
    if arguments.json:
        console.print_json(rows)
        return 0
    shape = _shape([config.model.num_layers, config.model.hidden_size, size, seq_length])
    console.show_rows(f"training {shape}", [_device(row) for row in rows])
    print(conclusion(rows))
    return 0


def _device(row: Row) -> dict[str, str]:
    shown = {name: str(row[name]) for name in ("device", "precision", "backend")}
    threads = "-" if row["threads"] is None else str(row["threads"])
    shown |= {"processes": str(row.get("processes", 1)), "threads": threads}
    return {**shown, "characters/s": f"{row['speed']:,.0f}"}


# --------------------------------------------------------------------------------------------------------------- data


def _add_data(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "data", data)
    command.add_argument("--data", default="shakespeare", metavar="NAME", help="the text (default: shakespeare)")
    command.add_argument(
        "--sizes",
        nargs="*",
        type=console.whole(1),
        default=[10, 100, 1000],
        metavar="MB",
        help="(default: 10 100 1000)",
    )
    return command


def data(arguments: argparse.Namespace) -> int:
    """Time how a text becomes batches, beside the usual way and at growing sizes."""
    from charrnn.bench.data import compare, scale

    comparison = compare(arguments.data, progress=console.bar("comparing"))
    sizes = [megabytes * 10**6 for megabytes in arguments.sizes]
    growth = list(tqdm(scale(sizes), desc="growing", total=len(sizes), disable=None, leave=False))
    if arguments.json:
        console.print_json({"comparison": comparison, "growth": growth})
        return 0
    console.show_rows(
        f"{arguments.data}: the usual way and charrnn",
        [
            {
                "": row["what"],
                "usual": console.seconds(row["usual_seconds"]),
                "charrnn": console.seconds(row["seconds"]),
                "times faster": f"{row['times_faster']:,.0f}",
            }
            for row in comparison
        ],
    )
    if growth:
        console.show_rows("texts of growing size", [_growth(row) for row in growth])
    return 0


def _growth(row: Row) -> dict[str, str]:
    return {
        "size": f"{row['bytes'] / 1e6:,.0f} MB",
        "prepare": console.seconds(row["prepare_seconds"]),
        "speed": f"{row['bytes_per_second'] / 1e6:,.0f} MB/s",
        "again": console.seconds(row["again_seconds"]),
        f"{row['batches']:,} batches": console.seconds(row["batches_seconds"]),
        "peak memory": _megabytes(row["peak_bytes"]),
        "of it at the start": _megabytes(row["peak_bytes_at_start"]),
    }


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.0f} MB"


# ------------------------------------------------------------------------------------------------------------ kernels


def _add_kernels(measurements: Any) -> argparse.ArgumentParser:
    command = console.add_command(measurements, "kernels", kernels)
    kinds = ["rnn", "gru", "lstm", "ln-lstm"]
    command.add_argument("--cells", nargs="+", choices=kinds, default=kinds, metavar="CELL", help="(default: all four)")
    _add_rounds(command, 9)
    return command


def kernels(arguments: argparse.Namespace) -> int:
    """Time a training step on each backend, for each cell and size."""
    from charrnn.bench.kernels import compare

    rows = compare(arguments.cells, rounds=arguments.rounds, progress=console.bar("training"))
    if arguments.json:
        console.print_json(rows)
        return 0
    console.show_rows(
        "characters per second of training, and how many times faster our kernels are",
        [_kernels(row) for row in rows],
    )
    return 0


def _kernels(row: Row) -> dict[str, str]:
    speeds = {name: row[name]["speed"] if name in row else None for name in ("reference", "fused", "numba", "torch")}
    ours = max(speeds["fused"], speeds["numba"] or 0)
    return {
        "cell": row["cell"],
        "size, B x T": _shape(row["shape"]),
        **{name: f"{speed:,.0f}" if speed else "-" for name, speed in speeds.items()},
        "x torch": f"{ours / speeds['torch']:.2f}" if speeds["torch"] else "-",
        "x reference": f"{ours / speeds['reference']:.2f}",
    }


def _shape(shape: list[int]) -> str:
    num_layers, hidden_size, batch_size, seq_length = shape
    return f"{num_layers}x{hidden_size}, {batch_size}x{seq_length}"
