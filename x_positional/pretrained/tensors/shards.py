"""Tensors that are divided among safetensors files, as torch's distributed checkpoints write them: a part of each tensor in a file
of each process. Nothing is pickled."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import UserError


class Shards:
    """The tensors of a folder of safetensors files, whole or in parts, read into tensors that are whole or sharded themselves.

    Args:
        folder: All of its safetensors files belong to it.
        source: Where they come from, for messages.
    """

    def __init__(self, folder: Path, source: str = "") -> None:
        if not torch.distributed.is_available():
            raise UserError(f"{folder} holds sharded tensors, but this torch was built without distributed.")
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        self.source, self._folder = source or str(folder), folder
        self._metadata: Any = HuggingFaceStorageReader(str(folder)).read_metadata()

    def names(self) -> set[str]:
        return set(self._metadata.state_dict_metadata)

    def shape(self, name: str) -> list[int]:
        return list(self._metadata.state_dict_metadata[name].size)

    def dtype(self, name: str) -> torch.dtype:
        return self._metadata.state_dict_metadata[name].properties.dtype

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """One tensor, or some of its rows; it is read as a whole."""
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into({name: tensor})
        return tensor if rows is None else tensor[rows].clone()

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors of the shapes and dtypes that are stored. Each process reads the parts that its DTensors hold."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        metadata = self._metadata

        class Reader(HuggingFaceStorageReader):
            """Reads the headers of the files once, not for each tensor."""

            def read_metadata(self) -> Any:
                self.storage_data = metadata.storage_data
                return metadata

        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "torch.distributed is disabled", UserWarning
            )  # each process reads for itself
            load(dict(targets), storage_reader=Reader(str(self._folder)), no_dist=True)
