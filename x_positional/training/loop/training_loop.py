"""The steps of one session: train, log, validate, save, and stop when the loss is not finite."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from x_positional.errors import NonFiniteLoss
from x_positional.training.checkpoints.run_folder import RunFolder
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus
from x_positional.training.evaluate import EvalRows, EvalWindows, Score, bits
from x_positional.training.finetune.dataset import Conversations
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.interrupt import Interrupt
from x_positional.training.loop.log import RunLog
from x_positional.training.loop.meter import Meter


class TrainingLoop:
    """Runs optimizer steps, and logs, validates and saves at their intervals.

    "Step n" in logs and file names means that n steps are done.

    Args:
        config: The run.
        corpus: Its data.
        scored: What of the validation data is scored.
        engine: Runs one optimizer step.
        folder: Takes the checkpoints.
        log: Takes the metrics; None in processes other than the main one.
        meter: Shows them on the console.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus | Conversations,
        scored: EvalWindows | EvalRows,
        engine: Engine,
        folder: RunFolder,
        log: RunLog | None,
        meter: Meter,
    ) -> None:
        self._config, self._corpus, self._engine = config, corpus, engine
        self._folder, self._log, self._meter = folder, log, meter
        self._scored = scored
        self._unread: list[tuple[Tensor, Tensor]] = []  # (loss, gradient norm) still on the device
        self._losses: list[float] = []
        self._norm = 0.0
        self._clock = time.monotonic()
        self._clock_step = 0
        self.score: Score | None = None
        self.checkpoint: Path | None = folder.last_saved()

    def run(self, start: int, stop: int, interrupt: Interrupt) -> int:
        """Run steps `start` to `stop - 1` (0-based) and save after the last one.

        Returns:
            The number of steps done: `stop`, or fewer after an interrupt.
        """
        run = self._config.run
        if run.eval_first and start == 0:
            self._validate(0)
        self._restart_clock(start)
        done = start
        if run.compile:
            self._meter.print("compiling the training step, which can take minutes ...")
        for step in range(start, stop):
            loss, norm, rate = self._engine.step(step)
            if run.compile and step == start:
                self._meter.print(f"compiled in {time.monotonic() - self._clock:.0f} s")
                self._restart_clock(start)
            self._unread.append((loss, norm))
            done = step + 1
            stopping = self._engine.processes.any(interrupt.requested)  # a launcher does not signal all at one step
            last = done == stop or stopping
            self._meter.update(done)
            if last or done % run.log_every == 0:
                self._write_log(done, rate)
            score = None
            if (done == stop or done % run.eval_every == 0) and not stopping:
                score = self._validate(done)
                stopping = self._engine.processes.any(interrupt.requested)  # validating can take long
            if last or stopping or done % run.save_every == 0:
                self._save(done, score)
            if stopping:
                break
        return done

    def _write_log(self, done: int, rate: float) -> None:
        self._read_losses(done)
        loss = sum(self._losses) / len(self._losses)
        tokens = self._engine.windows_per_step * self._config.seq_len
        speed = (done - self._clock_step) * tokens / max(time.monotonic() - self._clock, 1e-9)
        values = bits(loss, self._corpus.train.bytes_per_token)
        if self._log is not None:
            figures = {"lr": rate, "grad_norm": self._norm, "tokens_per_s": round(speed, 1), "tokens": done * tokens}
            self._log.write("train", done, {"loss": loss, **values, **figures})
        self._meter.update(done, f"loss {loss:.3f}  {_headline(values)}  {speed:,.0f} tok/s")
        self._losses.clear()
        self._restart_clock(done)

    def _read_losses(self, done: int) -> None:
        """Read the losses since the last call in one host sync; raises `NonFiniteLoss` for the first that is not finite."""
        if not self._unread:
            return
        values = torch.stack([torch.stack([loss, norm.to(loss)]) for loss, norm in self._unread]).tolist()
        first = done - len(values) + 1
        self._unread.clear()
        for step, (loss, norm) in enumerate(values, start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLoss(self._non_finite(step, loss, norm))
            self._losses.append(loss)
            self._norm = norm

    def _non_finite(self, step: int, loss: float, norm: float) -> str:
        if self.checkpoint is None:
            saved = "No checkpoint was saved before it."
        else:
            saved = f"The last good checkpoint is {self.checkpoint}."
        return (
            f"training stopped at step {step}: the loss is {loss:g} and the gradient norm {norm:g}. {saved} "
            f"Lower optimizer.lr (now {self._config.optimizer.lr:g}), raise optimizer.warmup_steps or lower "
            "optimizer.clip, then train again."
        )

    def _validate(self, done: int) -> Score:
        self._read_losses(done)
        self.score = self._engine.evaluate(self._corpus.validation, self._scored, self._meter.track)
        if self._log is not None:
            self._log.write("validation", done, {"loss": self.score.loss, **self.score.bits})
        self._meter.print(f"step {done}: validation loss {self.score.loss:.4f}, {_headline(self.score.bits, 4)}")
        self._restart_clock(done)
        return self.score

    def _save(self, done: int, score: Score | None) -> None:
        self._read_losses(done)
        engine = self._engine
        self._folder.save(done, engine.net, engine.optimizer, score)
        self.checkpoint = self._folder.last_saved()
        self._restart_clock(done)

    def _restart_clock(self, done: int) -> None:
        self._clock, self._clock_step = time.monotonic(), done


def _headline(values: dict[str, float], digits: int = 3) -> str:
    """The number to show: bits per byte if known, otherwise bits per token."""
    if "bits_per_byte" in values:
        return f"{values['bits_per_byte']:.{digits}f} bits/byte"
    return f"{values['bits_per_token']:.{digits}f} bits/token"
