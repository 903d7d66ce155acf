"""Products of a few rows with a parameter, in the compiled decoding step on a CPU: a kernel that reads the parameter once.

A product of one row takes as long as reading its matrix, and one of 8 rows need not take much longer. torch's products do the
first in float32, but take twice as long for 8 rows, and four times as long with int8 weights; see benchmarks/notes.md.
`products.cpp` is compiled by torch's own builder, which keeps the result on disk. `FewRows` puts it into a graph in place of
linear layers, int8 ones included.

B rows of the input, K inputs, N outputs.
"""

import functools
import logging
import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.codecache import CppCodeCache
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

SOURCE = Path(__file__).with_suffix(".cpp")
MAX_ROWS = 32
"""Most rows for which the kernel was measured to be faster: by a tenth in float32 there, by two thirds at 16."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_log = logging.getLogger(__name__)
_aten, _convert = torch.ops.aten, torch.ops.prims.convert_element_type.default
_library = torch.library.Library("x_positional", "FRAGMENT")
_library.define("few_rows(Tensor x, Tensor w, int threads) -> Tensor")


@torch.library.register_fake("x_positional::few_rows", lib=_library)
def _few_rows_shape(x: Tensor, w: Tensor, threads: int) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


@functools.cache
def build() -> bool:
    """Compile the kernel, or load it where it was compiled before. False, with a warning, where torch cannot.

    Call it before a graph with the kernel runs: torch loads such graphs from disk too, without calling `FewRows`.
    """
    try:
        CppCodeCache.load(SOURCE.read_text(encoding="utf-8"))
    except Exception as error:  # any failure of compiler or loader: torch's own products are as exact
        reason = next((line for line in str(error).splitlines() if "error" in line), type(error).__name__)
        _log.warning("%s does not compile, so decoding uses torch's slower products: %s", SOURCE.name, reason)
        return False
    return True


def few_rows(x: Tensor, w: Tensor) -> Tensor:
    """[B K] in float32 times the rows of w [N K], which are contiguous: [B N]. Call `build` first."""
    return torch.ops.x_positional.few_rows.default(x, w, torch.get_num_threads())


class FewRows(CustomGraphPass):
    """Replaces the products of at most MAX_ROWS rows with a parameter. `build` comes first."""

    def __call__(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            product = _product(node)
            if product is not None:
                _replace(graph, node, *product)
        graph.eliminate_dead_code()

    def uuid(self) -> Any:
        return get_hash_for_files((__file__, str(SOURCE))), torch.get_num_threads()


def _product(node: Node) -> tuple[Node, Node, Node | None] | None:
    """x [... K], w [N K] and the bias of a product; None for any other node."""
    args: tuple[Any, ...] = node.args
    bias = None
    if node.target is _aten.mm.default:
        x, matrix = args
    elif node.target is _aten.addmm.default and not node.kwargs:
        bias, x, matrix = args
    elif node.target is _aten.sum.dim_IntList and len(args) == 2 and list(args[1]) == [-1]:
        return _sum_over_products(args[0])
    else:
        return None
    if matrix.target is not _aten.permute.default or list(matrix.args[1]) != [1, 0]:
        return None
    w = _parameter(matrix.args[0])
    return (x, w, bias) if w is not None and _suits(x, w) else None


def _sum_over_products(product: Node) -> tuple[Node, Node, None] | None:
    """x [... K] and w [N K] of `(w.float() * x[..., None, :]).sum(-1)`, which is how int8 products of one row compile."""
    if product.target is not _aten.mul.Tensor:
        return None
    matrix, row = product.args
    if not isinstance(matrix, Node) or not isinstance(row, Node) or row.target is not _aten.unsqueeze.default:
        return None
    x, dim = row.args
    w = _parameter(matrix)
    if w is None or not isinstance(x, Node) or dim not in (-2, x.meta["val"].ndim - 1):
        return None
    return (x, w, None) if _suits(x, w) else None


def _parameter(node: Any) -> Node | None:
    """The input of the graph that holds a matrix, which may be integers that the node converts; None where it is computed."""
    if node.target is _convert and node.args[0].meta["val"].dtype == torch.int8:
        node = node.args[0]
    return node if node.op in ("placeholder", "get_attr") else None


def _suits(x: Node, w: Node) -> bool:
    """Whether the kernel can do this product, and is the fastest one."""
    inputs, matrix = x.meta["val"], w.meta["val"]
    if inputs.device.type != "cpu" or inputs.dtype not in FLOATS or matrix.dtype not in (torch.int8, *FLOATS):
        return False
    rows = functools.reduce(operator.mul, inputs.shape[:-1], 1)
    sizes_known = isinstance(rows, int) and all(isinstance(size, int) for size in matrix.shape)
    fewest = 2 if matrix.dtype == torch.float32 else 1  # torch's product of one row in float32 is faster
    return sizes_known and fewest <= rows <= MAX_ROWS and matrix.ndim == 2 and matrix.stride(1) == 1


def _replace(graph: Graph, node: Node, x: Node, w: Node, bias: Node | None) -> None:
    """Put the kernel in place of a product."""
    fake, made = node.meta["val"].fake_mode, node.meta["val"]

    def call(target: Any, *args: Any) -> Node:
        new = graph.call_function(target, args)
        values = torch.fx.map_arg(args, lambda n: n.meta["val"])
        with fake:
            new.meta["val"] = target(*values)
        return new

    with graph.inserting_before(node):
        flat = x if x.meta["val"].ndim == 2 else call(_aten.reshape.default, x, [-1, x.meta["val"].shape[-1]])
        flat = flat if flat.meta["val"].dtype == torch.float32 else call(_convert, flat, torch.float32)
        out = call(torch.ops.x_positional.few_rows.default, flat, w, torch.get_num_threads())
        out = out if made.ndim == 2 else call(_aten.reshape.default, out, list(made.shape))
        out = out if bias is None else call(_aten.add.Tensor, out, bias)
        out = out if made.dtype == torch.float32 else call(_convert, out, made.dtype)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
