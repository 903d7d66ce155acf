"""A model loaded into shards and one drawn into shards by two processes, with what each of them has allocated.

`python -m tests.support.sharded_loading FOLDER` writes RANK.json. The processes are forks of one that has imported all they need.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from tests.support.allocated import Allocated
from tests.support.sharded import forked, wait
from x_positional import Decoder, TransformerWrapper, from_pretrained, materialize, shard
from x_positional.pretrained.tensors.files import SafeTensors

VOCABULARY, PROCESSES = 64, 2
TOKENS = torch.arange(30).reshape(2, 15) % 13


def model() -> nn.Module:
    """Blocks and what is outside of them, of sizes that the processes do not divide evenly."""
    layers = Decoder(dim=45, depth=6, heads=3, attn_dim_head=16, position="t5")
    return TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=32, attn_layers=layers)


def whole(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.full_tensor() for name, parameter in net.named_parameters()}  # type: ignore[attr-defined]


def loaded(folder: Path, mesh: Any) -> dict[str, Any]:
    """Bytes at most and at the end, the logits, and one gradient."""
    read = SafeTensors.read
    with Allocated() as bytes_:
        SafeTensors.read = bytes_.counting(read)  # type: ignore[method-assign]
        net = from_pretrained(folder, device_mesh=mesh)
    SafeTensors.read = read  # type: ignore[method-assign]
    logits = net(TOKENS)
    logits.logsumexp(-1).sum().backward()
    gradient = net.token_emb.weight.grad.full_tensor()
    return {"peak": bytes_.peak, "live": bytes_.live, "logits": logits.tolist(), "gradient": gradient.tolist()}


def drawn(mesh: Any) -> dict[str, Any]:
    with torch.device("meta"):
        net = model()
    shard(net, mesh)
    torch.manual_seed(5)
    with Allocated() as bytes_:
        materialize(net, model)
    torch.manual_seed(5)
    equal = [torch.equal(a, b) for a, b in zip(whole(net).values(), model().parameters(), strict=True)]
    return {"peak": bytes_.peak, "live": bytes_.live, "equal": all(equal)}


def record(folder: Path) -> None:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    found = {name: loaded(folder / name, mesh) for name in ("native", "hf")} | {"drawn": drawn(mesh)}
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    import torch._dynamo
    from torch.distributed import fsdp  # noqa: F401

    codes = wait(forked(PROCESSES, lambda: record(Path(sys.argv[1]))))
    sys.exit(max(map(abs, codes)))
