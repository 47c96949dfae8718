"""Rewrites a parsed chat template so that what jinja computes by itself is paid for too.

Loops, comparisons, slices, literals and `~` never pass through a method of the environment: each gets a
filter that pays. Those filters have names no template can spell.
"""
# ruff: noqa: N802  (jinja's visitor looks methods up by node name)

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from tuili.text.prompt_text import PromptText
from tuili.text.template_budget import Counted, size
from tuili.text.template_filters import budget_of, join_text

_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.EvalContextModifier)


class Metering(NodeTransformer):
    """Adds the filters of METERS to a template; refuses to load other templates and to switch escaping."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, _REFUSED):
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not allowed", node.lineno)
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = 1 if node.test is None else _weight([node.test])
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _metered(node.iter, " counted", weight)
        return _with_toll(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _with_toll(self.generic_visit(node))

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _with_toll(self.generic_visit(node))

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return _with_toll(self.generic_visit(node))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _metered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), " concat")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _metered(node.node, " touched")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, len(node.items))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, len(node.items))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node, len(node.items)) if node.ctx == "load" else self.generic_visit(node)

    def _literal(self, node: nodes.Expr, num_items: int) -> nodes.Node:
        self.generic_visit(node)
        return _metered(node, " touched") if num_items > 8 else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        constants = [operand.value for operand in operands if isinstance(operand, nodes.Const)]
        is_search = any(operand.op in ("in", "notin") for operand in node.ops)
        if not is_search and any(not isinstance(value, str) for value in constants):
            return node  # compared with a number, true, false or none: no work
        meter = " touched" if constants else " weighed"
        node.expr = _metered(node.expr, meter)
        for operand in node.ops:
            operand.expr = _metered(operand.expr, meter)
        return node


def _weight(body: Iterable[nodes.Node]) -> int:
    """Steps that running these nodes once costs, loops inside apart."""
    inner = [node for part in body for node in (part, *part.find_all(nodes.Node))]
    num_chars = sum(len(node.data) for node in inner if isinstance(node, nodes.TemplateData))
    return 1 + len(inner) // 4 + num_chars // 64


def _metered(node: nodes.Expr, meter: str, *numbers: int) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    arguments: list[nodes.Expr] = [nodes.Const(number) for number in numbers]
    return nodes.Filter(node, meter, arguments, [], None, None, lineno=node.lineno)


def _with_toll(node: Any) -> nodes.Node:
    """Makes the body of a loop, macro or block begin by paying for itself."""
    toll = nodes.Filter(nodes.Const(_weight(node.body)), " toll", [], [], None, None, lineno=node.lineno)
    node.body.insert(0, nodes.ExprStmt(toll, lineno=node.lineno))
    result: nodes.Node = node
    return result


@pass_context
def _counted(context: Context, value: Any, weight: int) -> Counted:
    return Counted(value, budget_of(context), weight)


@pass_context
def _touched(context: Context, value: Any) -> Any:
    budget_of(context).spend(size(value))
    return value


@pass_context
def _weighed(context: Context, value: Any) -> Any:
    budget_of(context).spend_deep(value)
    return value


@pass_context
def _toll(context: Context, weight: int) -> None:
    budget_of(context).spend(weight)


@pass_context
def _concat(context: Context, parts: tuple[Any, ...]) -> PromptText:
    return join_text(budget_of(context), parts)


def meters() -> dict[str, Callable[..., Any]]:
    """The filters that pay, by name."""
    return {" counted": _counted, " touched": _touched, " weighed": _weighed, " toll": _toll, " concat": _concat}
