"""Ready-made callbacks. A callback is any callable that takes an event."""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from charrnn.atomic import write_atomically
from charrnn.checkpoint import is_checkpoint
from charrnn.generation.generator import TextGenerator
from charrnn.training.events import CheckpointDue, Evaluated, Event, Finished, Logged, Stepped, to_record


class _Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
    """A bar that switches itself off when drawing fails, such as on a closed pipe or a full disk."""

    def display(self, *args: Any, **kwargs: Any) -> None:
        """Draw the bar."""
        try:
            super().display(*args, **kwargs)
        except OSError:
            self.disable = True

    def close(self) -> None:
        """End the line."""
        with contextlib.suppress(OSError):
            super().close()


class ProgressBar:
    """Shows the share of the budget used and the latest losses, on one line.

    If the bar cannot be drawn, because standard error is closed or its reader has gone, the run continues without it.

    Args:
        done: share of the budget used at the start, for a resumed run.
        file: where to draw; None is standard error.
        note: shown until the first numbers arrive.
    """

    def __init__(self, done: float = 0.0, file: TextIO | None = None, note: str = ""):
        file, interval = file or sys.stderr, 0.0
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is no stream; it fails; it is closed
            file.flush()
            interval = 0.1 if file.isatty() else 10.0  # seconds between updates; few for a log file
        self._bar = _Bar(
            total=1.0,
            mininterval=interval,
            initial=done,
            file=file,
            disable=not interval,
            bar_format="{percentage:3.0f}% |{bar:24}| {elapsed} < {remaining}{postfix}",
        )
        self._shown: dict[str, str] = {}
        self._bar.set_postfix_str(note)

    def __call__(self, event: Event) -> None:
        """Show the event."""
        match event:
            case Stepped(progress=progress):
                self._bar.update(progress - self._bar.n)
            case Logged(step=step, loss=loss, tokens_per_second=speed):
                self._show(step=f"{step:,}", loss=f"{loss:.4f}", speed=f"{speed:,.0f}/s")
            case Evaluated(loss=loss, bpc=bpc):
                self._show(val=f"{loss:.4f}", **({} if bpc is None else {"bpc": f"{bpc:.3f}"}))
            case Finished():
                self._bar.close()

    def _show(self, **values: str) -> None:
        self._shown |= values
        self._bar.set_postfix_str("  ".join(f"{name} {value}" for name, value in self._shown.items()))

    def close(self) -> None:
        """Release the line if a run ends without a `Finished` event."""
        self._bar.close()


class MetricsFile:
    """Writes `metrics.jsonl`: one line of JSON for each Logged, Evaluated and Finished event.

    Args:
        path: the file. Lines about steps after `step` and Finished lines are removed, because a resumed run writes
            them again.
        step: the step that the run continues from.
    """

    def __init__(self, path: Path, step: int = 0):
        self._path = path
        if path.exists():
            kept = [r for r in read_metrics(path) if r["step"] <= step and r["event"] != "finished"]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def __call__(self, event: Event) -> None:
        """Append a line."""
        if isinstance(event, Logged | Evaluated | Finished):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(to_record(event)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a `metrics.jsonl`, or of the one in a run's directory; skip a line cut short by a crash."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


class CheckpointSaver:
    """Saves `best/` at the lowest validation loss so far and `last/` at each CheckpointDue event.

    Args:
        directory: the run's directory.
        save: writes one checkpoint. It is called with the directory, whether the checkpoint must be resumable, and the
            validation loss of the current weights (None if it was not measured).
        save_top_k: number of checkpoints with the lowest losses to keep as well, in directories named after step, epoch
            and loss, such as `lm_lstm_step4000_epoch10.00_1.2345`.
        kind: type of the model, for these names.
    """

    def __init__(
        self,
        directory: Path,
        save: Callable[[Path, bool, float | None], None],
        save_top_k: int = 0,
        kind: str = "lstm",
    ):
        self._directory = directory
        self._save = save
        self._top_k = save_top_k
        self._kind = kind
        self._measured: dict[int, float] = {}  # the last evaluation's step and loss

    def __call__(self, event: Event) -> None:
        """Write the checkpoints that the event asks for."""
        match event:
            case Evaluated(step=step, loss=loss, best=best):
                self._measured = {step: loss}
                if best:
                    self._save(self._directory / "best", False, loss)
                if self._top_k:
                    self._save_if_among_best(event)
            case CheckpointDue(step=step):
                self._save(self._directory / "last", True, self._measured.get(step))

    def _save_if_among_best(self, event: Evaluated) -> None:
        """Save a checkpoint if its loss is among the `save_top_k` lowest; delete the one that it displaces."""
        own = re.compile(rf"lm_{self._kind}_(?:step\d+_)?epoch\d+\.\d\d_(\d+\.\d{{4}})")
        named = {path: own.fullmatch(path.name) for path in self._directory.iterdir() if is_checkpoint(path)}
        kept = {path: float(match[1]) for path, match in named.items() if match}
        if len(kept) < self._top_k or event.loss < max(kept.values()):
            name = f"lm_{self._kind}_step{event.step}_epoch{event.epoch:.2f}_{event.loss:.4f}"
            self._save(self._directory / name, False, event.loss)
            kept[self._directory / name] = event.loss
            for worst in sorted(kept, key=lambda path: kept[path])[self._top_k :]:
                shutil.rmtree(worst)


SCALARS: dict[type[Event], dict[str, str]] = {  # TensorBoard's tag -> the event's field
    Logged: {
        "loss/train": "loss",
        **{name: name for name in ("learning_rate", "grad_norm", "tokens_per_second", "epoch")},
    },
    Evaluated: {"loss/val": "loss", "bpc": "bpc"},
}


class TensorBoardWriter:
    """Writes losses, learning rate, gradient norm before clipping, speed and epoch for TensorBoard.

    With a generator, each evaluation also writes a sample, always from the same seed, and a histogram of every weight.
    Neither changes the training: sampling uses its own random numbers and leaves the model's mode as it was. Everything
    is flushed to disk after each event.

    Args:
        log_dir: directory for the event files.
        generator: samples from the model in training, with its run's prompt; None writes no samples and histograms.
        step: the step that the run continues from; entries of an earlier writer after this step are hidden.

    Raises:
        ImportError: the `tensorboard` group is not installed.
    """

    def __init__(self, log_dir: Path, generator: TextGenerator | None = None, step: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("logging.tensorboard: expected tensorboard; run: pip install tensorboard") from error
        self._writer = SummaryWriter(log_dir, purge_step=step + 1 if step else None)
        self._generator = generator

    def __call__(self, event: Event) -> None:
        """Write the event's numbers."""
        for tag, name in SCALARS.get(type(event), {}).items():
            if (value := getattr(event, name)) is not None:
                self._writer.add_scalar(tag, value, event.step)
        if isinstance(event, Evaluated) and self._generator:
            self._write_sample(self._generator, event.step)
        if isinstance(event, Logged | Evaluated):
            self._writer.flush()
        elif isinstance(event, Finished):
            self._writer.close()

    def _write_sample(self, generator: TextGenerator, step: int) -> None:
        settings = generator.config.generation.model_dump() if generator.config else {}
        text = generator.generate(**{**settings, "length": 200, "seed": 0})
        code = "\n".join(f"    {line}" for line in text.split("\n"))  # indented text is shown literally in Markdown
        self._writer.add_text("sample", code, step)
        for name, parameter in generator.model.named_parameters():
            self._writer.add_histogram(f"weights/{name}", parameter.detach().cpu(), step)
