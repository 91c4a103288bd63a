"""One forward pass with what went in and came out of some modules, and which parameters this explains.

Where `fisheropt.fisher.capture` watches a model while it trains, a recording lives for one call of the model, asks
autograd for the gradients of outputs alone (`torch.autograd.grad` with respect to them: no gradient of a parameter is
formed, no ``.grad`` touched, no hook on a gradient run), and can check in the graph that a parameter was used in the
recorded calls and nowhere else. What it cannot explain, others have to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

__all__ = ["Call", "Recording", "reached"]


@dataclass(frozen=True)
class Call:
    """One call of a module with one tensor in and one out.

    Attributes:
        module: which.
        x: what went in.
        version: of x at that time; what is changed in place later says so.
        source: where x came from in the graph, or None.
        edge: where the gradient with respect to the output arrives, before anything was done to it in place.
    """

    module: nn.Module
    x: Tensor
    version: int
    source: Node | None
    edge: GradientEdge

    @property
    def input(self) -> Tensor:
        """x as it went in.

        Raises:
            RuntimeError: it has been changed in place since.
        """
        if self.x._version != self.version:
            raise RuntimeError(
                f"the input of a {type(self.module).__name__} was changed in place after the call; autograd could not "
                "differentiate this model either: use the operation that is not in place"
            )
        return self.x


class Recording:
    """Within a ``with`` block, the calls of these modules.

    Args:
        modules: those to record. Calls with other than one tensor in and one out, or outside of a graph, are not.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.calls: list[Call] = []
        self._modules = list(modules)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for module in self._modules:  # before hooks that others registered and that may exchange the output
            self._handles.append(module.register_forward_hook(self._called, prepend=True, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [*args, *kwargs.values()]
        if len(given) != 1 or not isinstance(given[0], Tensor):
            return
        if not (isinstance(output, Tensor) and output.requires_grad):
            return
        x = given[0]
        source = get_gradient_edge(x).node if x.requires_grad else None
        self.calls.append(Call(module, x, x._version, source, get_gradient_edge(output)))


def reached(outputs: Tensor, calls: Collection[Call]) -> set[Tensor]:
    """The leaves that influence ``outputs`` on a way that leads through none of the calls."""
    around = {call.edge.node: call.source for call in calls}
    leaves: set[Tensor] = set()
    ahead: list[Node | None] = [get_gradient_edge(outputs).node]
    seen: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in around:
            ahead.append(around[node])
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.add(leaf)
        ahead.extend(following for following, _ in node.next_functions)
    return leaves
