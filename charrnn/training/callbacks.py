"""Who listens to a trainer's events. A callback is any callable that takes an event; these are the ready-made ones."""

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


class _Bar(tqdm):
    """A bar that disappears when it can no longer be drawn: the reader of a pipe has left, a disk is full."""

    def display(self, *arguments: Any, **settings: Any) -> Any:
        """Draw, or stop drawing for good."""
        try:
            return super().display(*arguments, **settings)
        except OSError:
            self.disable = True

    def close(self) -> None:
        """End the line."""
        with contextlib.suppress(OSError):
            super().close()


def _works(stream: TextIO | None) -> bool:
    if stream is None or stream.closed:
        return False
    try:
        stream.flush()
    except OSError:
        return False
    return True


class ProgressBar:
    """How much of the budget is used up, and the latest losses, on one line.

    A bar that cannot be drawn, because standard error is closed or nobody reads it, never stops a run.

    Args:
        done: share of the budget used up at the start, for a run that is resumed.
        file: where to draw; None is standard error.
        note: shown until there is something to tell.
    """

    def __init__(self, done: float = 0.0, file: TextIO | None = None, note: str = ""):
        file = file or sys.stderr
        drawable = _works(file)
        watched = drawable and file.isatty()
        self._bar = _Bar(
            total=1.0,
            mininterval=0.1 if watched else 10,  # a log file wants few lines
            initial=done,
            file=file,
            disable=not drawable,
            bar_format="{percentage:3.0f}% |{bar:24}| {elapsed} < {remaining}{postfix}",
        )
        self._shown: dict[str, str] = {}
        self._bar.set_postfix_str(note)

    def __call__(self, event: Event) -> None:
        """Move on."""
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
        """Leave the line as it is, when a run ends without a `Finished`."""
        self._bar.close()


class MetricsFile:
    """`metrics.jsonl`: a line of JSON for each Logged, Evaluated and Finished event.

    Args:
        path: the file. Lines after `step`, and those that say it finished, are dropped: a resumed run tells all once.
        step: where the run stands.
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
    """The records of a `metrics.jsonl`, or of the one in a run's directory; a line cut short by a crash is left out."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


class CheckpointSaver:
    """`best/` when the validation loss is the lowest ever, `last/` whenever it is time to save.

    Args:
        directory: of the run.
        save: writes one checkpoint; gets the directory, whether it must be resumable, and the validation loss of the
            present weights, None where it was not measured.
        save_top_k: so many of the lowest losses keep a folder of their own beside those two, named after step,
            epoch and loss, such as `lm_lstm_step4000_epoch10.00_1.2345`.
        kind: of the model, for that name.
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
        self._keep_best = save_top_k
        self._kind = kind
        self._measured: tuple[int, float] | None = None

    def __call__(self, event: Event) -> None:
        """Write what is due."""
        match event:
            case Evaluated(step=step, loss=loss, best=best):
                self._measured = step, loss
                if best:
                    self._save(self._directory / "best", False, loss)
                self._keep(event)
            case CheckpointDue(step=step):
                known = self._measured is not None and self._measured[0] == step
                self._save(self._directory / "last", True, self._measured[1] if known else None)

    def _keep(self, event: Evaluated) -> None:
        """A folder for this loss, if it is among the lowest; the one that is no longer among them goes."""
        if not self._keep_best:
            return
        own = re.compile(rf"lm_{self._kind}_(?:step\d+_)?epoch\d+\.\d\d_(\d+\.\d{{4}})")
        named = {path: own.fullmatch(path.name) for path in self._directory.iterdir() if is_checkpoint(path)}
        kept = {path: float(match.group(1)) for path, match in named.items() if match}
        if len(kept) < self._keep_best or event.loss < max(kept.values()):
            name = f"lm_{self._kind}_step{event.step}_epoch{event.epoch:.2f}_{event.loss:.4f}"
            self._save(self._directory / name, False, event.loss)
            kept[self._directory / name] = event.loss
            for worst in sorted(kept, key=lambda path: kept[path])[self._keep_best :]:
                shutil.rmtree(worst)


class TensorBoardWriter:
    """Losses, learning rate, gradient norm before clipping, speed and epoch for TensorBoard.

    With a generator each evaluation also brings a text that it writes, always from the same seed, and a histogram of
    every weight. Neither changes the training: to write draws no number that training draws, and leaves the model's
    mode as it was. All is on disk when the event is over.

    Args:
        log_dir: folder for its files.
        generator: writes with the model that is trained, from the prompt of its run; None leaves texts and histograms
            out.
        step: where the run stands: of a resumed run, what an earlier writer wrote of later steps is no longer shown.

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
        match event:
            case Logged():
                self._writer.add_scalar("loss/train", event.loss, event.step)
                for name in ("learning_rate", "grad_norm", "tokens_per_second", "epoch"):
                    self._writer.add_scalar(name, getattr(event, name), event.step)
                self._writer.flush()
            case Evaluated():
                self._writer.add_scalar("loss/val", event.loss, event.step)
                if event.bpc is not None:
                    self._writer.add_scalar("bpc", event.bpc, event.step)
                if self._generator:
                    self._write_sample(self._generator, event.step)
                    self._write_weights(self._generator, event.step)
                self._writer.flush()
            case Finished():
                self._writer.close()

    def _write_sample(self, generator: TextGenerator, step: int) -> None:
        settings = generator.config.generation.model_dump() if generator.config else {}
        text = generator.generate(**{**settings, "length": 200, "seed": 0})
        code = "\n".join(f"    {line}" for line in text.split("\n"))  # shown as it is: nothing in it is markup
        self._writer.add_text("sample", code, step)

    def _write_weights(self, generator: TextGenerator, step: int) -> None:
        for name, parameter in generator.model.named_parameters():
            self._writer.add_histogram(f"weights/{name}", parameter.detach().cpu(), step)
