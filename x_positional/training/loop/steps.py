"""The steps of one session: train, log, validate, save, and stop at once when the loss is no number any more."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from x_positional.errors import NonFiniteLoss
from x_positional.training.checkpoints.record import Record
from x_positional.training.checkpoints.session import Interrupt, Session
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.evaluate import Score, bits, evaluate, plan_windows
from x_positional.training.progress import Meter


class Loop:
    """Runs optimizer steps `start` to `stop - 1` (0-based); "step n" in logs and file names means n steps are done."""

    def __init__(
        self, config: TrainConfig, corpus: Corpus, engine: Engine, session: Session, record: Record | None, meter: Meter
    ) -> None:
        self._config, self._corpus, self._engine = config, corpus, engine
        self._session, self._record, self._meter = session, record, meter
        self._plan = plan_windows(len(corpus.validation.tokens), config.seq_len, limit=config.run.eval_tokens)
        self._unread: list[tuple[Tensor, Tensor]] = []  # (loss, gradient norm) still on the device
        self._losses: list[float] = []
        self._norm = 0.0
        self._clock = time.monotonic()
        self._clock_step = 0
        self.score: Score | None = None
        self.checkpoint: Path | None = session.last_saved()

    def run(self, start: int, stop: int, interrupt: Interrupt) -> int:
        """Returns the number of steps done: `stop`, or less after an interrupt. The last one is always saved."""
        run = self._config.run
        self._restart_clock(start)
        done = start
        for step in range(start, stop):
            loss, norm, rate = self._engine.step(step)
            self._unread.append((loss, norm))
            done = step + 1
            last = done == stop or interrupt.requested
            self._meter.update(done)
            if last or done % run.log_every == 0:
                self._log(done, rate)
            fresh = None
            if (done == stop or done % run.eval_every == 0) and not interrupt.requested:
                fresh = self._validate(done)
            if last or interrupt.requested or done % run.save_every == 0:
                self._save(done, fresh)
            if interrupt.requested:
                break
        return done

    def _log(self, done: int, rate: float) -> None:
        self._read_losses(done)
        loss = sum(self._losses) / len(self._losses)
        tokens = self._engine.windows_per_step * self._config.seq_len
        speed = (done - self._clock_step) * tokens / max(time.monotonic() - self._clock, 1e-9)
        values = bits(loss, self._corpus.train.bytes_per_token)
        if self._record is not None:
            figures = {"lr": rate, "grad_norm": self._norm, "tokens_per_s": round(speed, 1), "tokens": done * tokens}
            self._record.write("train", done, {"loss": loss, **values, **figures})
        self._meter.update(done, f"loss {loss:.3f}  {_headline(values)}  {speed:,.0f} tok/s")
        self._losses.clear()
        self._restart_clock(done)

    def _read_losses(self, done: int) -> None:
        """Wait for the device once for all steps since the last time; raises `NonFiniteLoss` at the first bad one."""
        if not self._unread:
            return
        values = torch.stack([torch.stack([loss, norm.to(loss)]) for loss, norm in self._unread]).tolist()
        first = done - len(values) + 1
        self._unread.clear()
        for step, (loss, norm) in enumerate(values, start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLoss(self._stopped(step, loss, norm))
            self._losses.append(loss)
            self._norm = norm

    def _stopped(self, step: int, loss: float, norm: float) -> str:
        if self.checkpoint is None:
            kept = "No checkpoint was saved before it."
        else:
            kept = f"The last good checkpoint is {self.checkpoint}."
        return (
            f"training stopped at step {step}: the loss is {loss:g} and the gradient norm {norm:g}. {kept} "
            f"Lower optimizer.lr (now {self._config.optimizer.lr:g}), lengthen optimizer.warmup_steps or tighten "
            "optimizer.clip, then train again."
        )

    def _validate(self, done: int) -> Score:
        self._read_losses(done)
        self.score = evaluate(
            self._engine.net,
            self._corpus.validation,
            self._plan,
            batch_size=self._config.run.batch_size,
            device=self._engine.device,
            autocast=self._engine.autocast(),
            track=self._meter.track,
        )
        if self._record is not None:
            self._record.write("validation", done, {"loss": self.score.loss, **self.score.bits})
        self._meter.say(f"step {done}: validation loss {self.score.loss:.4f}, {_headline(self.score.bits, 4)}")
        self._restart_clock(done)
        return self.score

    def _save(self, done: int, score: Score | None) -> None:
        self._read_losses(done)
        accelerator = self._engine.accelerator
        if accelerator.is_main_process:
            self._session.save(done, self._engine.net, self._engine.optimizer, score)
        accelerator.wait_for_everyone()
        self.checkpoint = self._session.last_saved()
        self._restart_clock(done)

    def _restart_clock(self, done: int) -> None:
        self._clock, self._clock_step = time.monotonic(), done


def _headline(values: dict[str, float], digits: int = 3) -> str:
    """The figure to show: bits per byte where known."""
    if "bits_per_byte" in values:
        return f"{values['bits_per_byte']:.{digits}f} bits/byte"
    return f"{values['bits_per_token']:.{digits}f} bits/token"
