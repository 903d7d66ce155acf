"""One schema for a training run: the file, the overrides and `--print-config` are all a TrainConfig."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from x_positional.config.models import ModelConfig
from x_positional.modules.stack import Recomputed
from x_positional.schemes.registry import Config
from x_positional.training.finetune.config import ChatConfig, InitConfig, LoraConfig

TokenDtype = Literal["uint8", "uint16", "uint32", "int16", "int32", "int64"]


_CHAT_DATA = {"path", "seq_len", "val_fraction"}
"""What of the data section applies to conversations."""


class DataConfig(Config):
    """Where the tokens come from and how they are cut into windows."""

    path: str | None = None
    """A text file, a directory of text files, token ids (`.npy`, or `.bin` with `dtype`), or a directory with
    `train.bin`/`val.bin` or `train.npy`/`val.npy`. A table (`.jsonl`, `.parquet`, `.arrow`, or a directory of one of them),
    a directory of `datasets.save_to_disk`, or the name of a dataset on the Hub. None is the embedded text: Python's
    documentation topics and standard library sources."""
    field: str = "text"
    """The field (column) of a table or dataset that holds the text."""
    split: str | None = None
    """The split of a dataset to train on. None is `train`, or the only one."""
    subset: str | None = None
    """The subset (configuration) of a dataset on the Hub."""
    revision: str | None = None
    """Branch, tag or commit of a dataset on the Hub. None is its main branch."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Read a table or dataset until it has yielded this many training tokens. None reads all."""
    cache_dir: str | None = None
    """Directory for the token ids of tables and datasets. None is `x_positional/tokens` in the user's cache directory."""
    tokenizer: str = "bytes"
    """`bytes` (one token per byte, 256 ids), the path of a `tokenizer.json` or of a directory with one, or the name of a
    model on the Hub."""
    dtype: TokenDtype | None = None
    """Integer type of a `.bin` file."""
    pattern: str = "**/*"
    """Which files of a directory are read."""
    seq_len: int | None = Field(default=None, ge=2)
    """Tokens the model sees in one training window. None is the model's `max_seq_len`."""
    val_fraction: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Fraction of the files or rows (of the tokens, if there is one file) kept for validation. No effect on data with a
    validation split."""
    positions: Literal["random", "pose"] | None = None
    """Positions drawn anew for each training window, all below the model's `max_seq_len`: `random` ones in order, or `pose`,
    consecutive ones with a few gaps. None counts from 0."""
    pose_chunks: int = Field(default=2, ge=2)
    """Chunks of consecutive positions in a window under `positions: pose`."""
    document_end: int | None = Field(default=None, ge=0)
    """Token id appended to every row, and to every file when there are several. None is 0 for bytes, the EOS token for a
    tokenizer from a directory or the Hub, and nothing for a `tokenizer.json`."""


class OptimizerConfig(Config):
    """AdamW with linear warm-up and cosine decay.

    Weight decay applies to the weights of linear layers only: not to norms, biases, embeddings, slopes or bias tables.
    """

    lr: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0.0)
    """AdamW's eps."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """AdamW's weight decay."""
    clip: float | None = Field(default=1.0, gt=0.0)
    """Largest global gradient norm. None switches clipping off."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up. The default is at most a tenth of `run.steps`."""
    final_lr_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Cosine decay to this fraction of `lr` at the last step."""

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must both be at least 0 and below 1.")
        return self


class RunConfig(Config):
    """How long, how often and where."""

    dir: str = "runs/default"
    """Directory for checkpoints, log and plot."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps of the whole run."""
    stop_after: int | None = Field(default=None, ge=1)
    """Ends this session at that step, with the schedule of the whole run; `--resume` continues from there."""
    batch_size: int = Field(default=16, ge=1)
    """Windows in one forward pass on each process."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes in one optimizer step."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation, dropout and the order of the data."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto is accelerate's choice: a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """auto is bfloat16 autocast on CUDA (weights stay float32) and float32 elsewhere. fp64 is for comparisons: weights and
    activations are float64."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes divide the work. `ddp`: each holds the whole model. `fsdp`: parameters, gradients and optimizer
    state are divided among them. No effect on a single process."""
    label_smoothing: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of each target that is spread evenly over the vocabulary, in training only."""
    z_loss: float = Field(default=0.0, ge=0.0)
    """Weight of logsumexp(logits)^2 in the training loss, 1e-4 in PaLM."""
    compile: bool = False
    """Compile the training step with torch.compile."""
    activation_checkpointing: Recomputed = "none"
    """`blocks` keeps only the input of each block and computes the block again in backward: less memory, more time."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines."""
    eval_every: int = Field(default=200, ge=1)
    """Steps between evaluations."""
    eval_first: bool = False
    """Evaluate before the first step too."""
    eval_tokens: int | None = Field(default=65536, ge=1)
    """Validation tokens per evaluation, spread over the whole text. None is all."""
    save_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept, besides the one with the best validation loss."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that get the log too, by their names in accelerate: tensorboard, wandb, mlflow, comet_ml, trackio, ..."""
    project: str = "x-positional"
    """Name of the project (the experiment in mlflow) that trackers write to."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @model_validator(mode="before")
    @classmethod
    def _older_runs(cls, raw: Any) -> Any:
        """Runs that began before there were trackers have `tensorboard: true` or `false`."""
        if not isinstance(raw, dict) or not isinstance(raw.get("tensorboard"), bool):
            return raw
        rest = {name: value for name, value in raw.items() if name != "tensorboard"}
        return {"trackers": ["tensorboard"], **rest} if raw["tensorboard"] else rest


class TrainConfig(Config):
    """A whole run. Only `model` is required."""

    model: ModelConfig
    """The model, a decoder."""
    data: DataConfig = DataConfig()
    """The tokens."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    run: RunConfig = RunConfig()
    """Length, batches, evaluation, files."""
    init: InitConfig | None = None
    """The weights to start from. None is random ones."""
    chat: ChatConfig | None = None
    """Conversations in place of text."""
    lora: LoraConfig | None = None
    """Adapters to train in place of the model's parameters."""

    @property
    def seq_len(self) -> int:
        """Tokens in one training window: the trained length."""
        return self.model.max_seq_len if self.data.seq_len is None else self.data.seq_len

    @model_validator(mode="after")
    def _short_warmup(self) -> Self:
        """Only a warm-up that was set may take more than a tenth of the steps."""
        most = self.run.steps // 10
        if "warmup_steps" not in self.optimizer.model_fields_set and self.optimizer.warmup_steps > most:
            optimizer = self.optimizer.model_copy(update={"warmup_steps": most})
            optimizer.model_fields_set.discard("warmup_steps")  # so that it follows run.steps where those change
            object.__setattr__(self, "optimizer", optimizer)  # configs are frozen once they are validated
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = [
            f"{name}='' is empty; {remedy}"
            for name, value, remedy in (
                ("data.path", self.data.path, "give a path, or leave it out to train on the embedded text"),
                ("data.pattern", self.data.pattern, "give a pattern, as '**/*.txt'"),
                ("data.tokenizer", self.data.tokenizer, "give 'bytes' or the path of a tokenizer.json"),
                ("run.dir", self.run.dir, "give a folder"),
            )
            if value == ""
        ]
        if self.seq_len > self.model.max_seq_len:
            problems.append(
                f"data.seq_len={self.seq_len} is longer than model.max_seq_len={self.model.max_seq_len}; "
                "raise model.max_seq_len or lower data.seq_len"
            )
        if self.optimizer.warmup_steps >= self.run.steps:
            problems.append(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves none of run.steps={self.run.steps}; "
                "lower the warm-up or train longer"
            )
        if self.run.compile and self.run.parallel == "fsdp":
            problems.append(
                "run.compile=true cannot be combined with run.parallel=fsdp: gathering the parameters of a block breaks the "
                "graph; leave run.compile out, or use run.parallel=ddp"
            )
        if self.model.layers.kind != "decoder":
            problems.append(
                f"model.layers.kind={self.model.layers.kind!r} cannot be trained to predict the next token; "
                "use kind: decoder, or train it from Python with your own loss"
            )
        if self.init is None:
            needing = [name for name in ("chat", "lora") if getattr(self, name) is not None]
            problems += [f"{name} needs a model to start from: set init.source" for name in needing]
        problems += self._unused_with_chat() + self._drawn_positions_fit()
        if (
            self.chat is None
            and self.data.tokenizer == "bytes"
            and not self.reads_token_ids
            and self.model.num_tokens < 256
        ):
            problems.append(
                f"model.num_tokens={self.model.num_tokens} cannot hold bytes; set it to 256 or name a data.tokenizer"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unused_with_chat(self) -> list[str]:
        """What a run on conversations lacks, or would ignore."""
        if self.chat is None:
            return []
        problems = [] if self.data.path else ["chat needs conversations: set data.path to a JSON Lines file"]
        fields = type(self.data).model_fields
        given = [f"data.{n}" for n in fields.keys() - _CHAT_DATA if getattr(self.data, n) != fields[n].default]
        if given:
            problems += [f"{name} does not apply to conversations; leave it out" for name in sorted(given)]
        return problems

    def _drawn_positions_fit(self) -> list[str]:
        """Why `data.positions` cannot be drawn for these windows, or what of it would be ignored."""
        draw, chunks, problems = self.data.positions, self.data.pose_chunks, list[str]()
        if chunks != DataConfig.model_fields["pose_chunks"].default and draw != "pose":
            problems.append(
                f"data.pose_chunks={chunks} has no effect without data.positions=pose; set that, or leave it out"
            )
        if draw is None:
            return problems
        if self.seq_len >= self.model.max_seq_len:
            problems.append(
                f"data.positions={draw} draws positions below model.max_seq_len={self.model.max_seq_len}, and windows of "
                f"{self.seq_len} tokens fill all of them; lower data.seq_len or raise model.max_seq_len"
            )
        if draw == "pose" and chunks > self.seq_len:
            problems.append(f"data.pose_chunks={chunks} cannot divide windows of {self.seq_len} tokens; lower it")
        return problems

    @property
    def reads_token_ids(self) -> bool:
        """Whether `data.path` names one file of token ids instead of text."""
        return self.data.path is not None and Path(self.data.path).suffix in (".npy", ".bin")

    def flat(self) -> dict[str, Any]:
        """Every key with its sections, as `run.steps`, and its value."""
        return flat(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The resolved config as YAML; reading it back gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=110)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, in the same order: `run.steps` and its value. Lists and empty mappings are values."""
    pending, found = list(values.items())[::-1], dict[str, Any]()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping) and value:
            pending += [(f"{name}.{key}", inner) for key, inner in list(value.items())[::-1]]
        else:
            found[name] = value
    return found
