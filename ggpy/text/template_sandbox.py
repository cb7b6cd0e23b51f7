"""Running a template from a stranger: Jinja's immutable sandbox, what chat templates expect in it, and limits.

Jinja's sandbox keeps a template from Python's internals. It does not keep it from running for ever or from filling the
memory; here every operation whose cost is not constant goes through `template_operations` or
`template_filters`, where it is accounted for (`template_budget`), and the code that Jinja generates is made to do so.
Its optimizer, which computes constants while compiling, is off.

What templates expect is what transformers gives them: `raise_exception`, `strftime_now`, a `tojson` that escapes
nothing, `{% generation %}` blocks, `break` and `continue`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from ggpy.text import template_operations as operations
from ggpy.text.template_budget import OverLimit, made, take, text_of, weigh, work
from ggpy.text.template_filters import FILTERS, GLOBALS, TESTS

#: The longest of 88 real templates have 17 kB and 2,500 tokens.
MAX_SOURCE = 1 << 18  # characters
MAX_TOKENS = 20_000
_MAX_NESTING = 100  # 29 in the 88; a sum of many terms is as deep
_MAX_BITS = 1 << 14  # of a number in the source

_PIECE = 9  # bytes of a text's place in the list that is joined at the end
_SMALL = 64  # of a small object
_OBJECT = 512  # of a namespace, a macro, what a loop is known by


def run(template: Template, values: Mapping[str, Any]) -> str:
    """The text that a template renders. Raises OverLimit, and whatever the template raises."""
    pieces = []
    for piece in template.root_render_func(template.new_context(dict(values))):
        take(_PIECE)
        pieces.append(piece)
    return operations.join_texts(pieces)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Macro) -> str:
        return caller()

    def filter_stream(self, stream: TokenStream) -> Iterator[Any]:
        """The tokens of a source, counted: the cost of parsing and compiling grows with them."""
        for count, token in enumerate(stream):
            if count >= MAX_TOKENS:
                raise OverLimit(f"it has more than {MAX_TOKENS:,} parts")
            value: Any = token.value
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise OverLimit("it holds a number of thousands of digits")
            take(_SMALL)
            yield token


_MAKERS = (nodes.Output, nodes.List, nodes.Tuple, nodes.Dict, nodes.For, nodes.Macro, nodes.CallBlock)


class _AddTicks(NodeTransformer):
    """A transformer that has every loop's turn and every macro begin by accounting for what its body makes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._tick(node)).set_lineno(node.lineno))
        if node.test is not None:
            node.test = nodes.And(self._tick(node.test), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._tick(node)).set_lineno(node.lineno))
        return node

    def _tick(self, node: nodes.Node) -> nodes.Expr:
        amount = 0
        for part in node.find_all(_MAKERS):
            if isinstance(part, nodes.Output):
                amount += _PIECE * len(part.nodes)
            elif isinstance(part, (nodes.List, nodes.Tuple, nodes.Dict)):
                amount += 2 * _SMALL + 100 * len(part.items)
            else:
                amount += _OBJECT
        return nodes.Call(nodes.EnvironmentAttribute("tick"), [nodes.Const(amount)], [], None, None)

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError(f"a chat template cannot have {type(node).__name__.lower()} statements", node.lineno)

    visit_Block = visit_Extends = visit_Include = visit_Import = visit_FromImport = _refuse


class _Generator(CodeGenerator):
    """A generator of code that calls the environment for operations that Jinja would do inline."""

    def _write_call(self, name: str, parts: list[nodes.Expr | str], frame: Frame) -> None:
        self.write(f"environment.{name}(")
        for part in parts:
            if isinstance(part, str):
                self.write(repr(part))
            else:
                self.visit(part, frame)
            self.write(", ")
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if _is_simple(node):
            super().visit_Compare(node, frame)
            return
        parts: list[nodes.Expr | str] = [node.expr]
        for operand in node.ops:
            parts += [operand.op, operand.expr]
        self._write_call("compare", parts, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            # In place, Python would print warnings of slices of constants: 1[2:].
            self.write("environment.sliced(")
            self.visit(node.node, frame)
            for bound in (node.arg.start, node.arg.stop, node.arg.step):
                self.write(", ")
                self.visit(bound or nodes.Const(None), frame)
            self.write(")")
        else:
            super().visit_Getitem(node, frame)

    def visit_Pair(self, node: nodes.Pair, frame: Frame) -> None:
        raise NotImplementedError

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for pair in node.items:
            if isinstance(pair.key, nodes.Const):
                self.visit(pair.key, frame)
            else:
                self._write_call("key", [pair.key], frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("}")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute):
            self._write_call(node.node.name, [*node.args], frame)
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)


def _is_simple(node: nodes.Compare) -> bool:
    """True where a comparison takes no longer than the length of a constant in the source."""
    if len(node.ops) != 1:
        return False
    (operand,) = node.ops
    right = operand.expr
    if operand.op in ("in", "notin"):
        listed = isinstance(right, (nodes.List, nodes.Tuple)) and all(isinstance(n, nodes.Const) for n in right.items)
        return listed or isinstance(right, nodes.Const)
    return isinstance(node.expr, nodes.Const) or isinstance(right, nodes.Const)


def _check_depth(tree: nodes.Node) -> None:
    """Check the depth of the tree before recursion over it: where the stack runs out, Python may print an error."""
    level: list[nodes.Node] = [tree]
    depth = 0
    while level:
        if depth > _MAX_NESTING:
            raise OverLimit(f"it nests its parts more than {_MAX_NESTING} deep")
        level = [child for node in level for child in node.iter_child_nodes()]
        depth += 1


@pass_context
def _written(context: Context, value: Any) -> Any:
    """The text that `{{ value }}` writes."""
    return value if type(value) is str else text_of(value)


_METHODS = (types.BuiltinMethodType, types.MethodType)  # those of markupsafe's texts are Python functions


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox that chat templates run in. To be used within `template_budget.limits` only."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})
    code_generator_class = _Generator
    concat = staticmethod(operations.join_texts)
    concatenate = staticmethod(operations.concatenate)
    compare = staticmethod(operations.compare)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_GenerationBlock, loopcontrols],
            finalize=_written,  # with a context, so that Jinja does not call it while it compiles
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals.pop("lipsum", None)
        self.globals.update(GLOBALS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise OverLimit(f"it has more than {MAX_SOURCE:,} characters")
        tree = super()._parse(source, name, filename)
        _check_depth(tree)
        ticking: nodes.Template = _AddTicks().visit(tree)
        return ticking

    @staticmethod
    def tick(amount: int) -> bool:
        take(amount)
        return True

    @staticmethod
    def key(value: Any) -> Any:
        """A key of a dict, checked."""
        operations.check_key(value)
        return value

    @staticmethod
    def sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
        """value[start:stop:step]"""
        return made(value[start:stop:step])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return operations.binary(operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        operations.check_key(argument)
        try:
            return obj[argument]
        except (TypeError, LookupError):
            if isinstance(argument, str) and len(argument) > operations.MAX_NAME:
                argument = argument[: operations.MAX_NAME]  # errors repeat it
            return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # Most of what templates do, which Jinja finds by raising errors, or after a look at every method there may be.
        if type(obj) is dict and not hasattr(dict, attribute):
            values = obj
        elif isinstance(obj, Namespace):
            values = object.__getattribute__(obj, "_Namespace__attrs")
        else:
            return super().getattr(obj, attribute)
        try:
            return values[attribute]
        except KeyError:
            return self.undefined(obj=obj, name=attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        if attr in ("append", "pop"):  # Kimi's templates change lists, all of which are the template's own
            return isinstance(obj, list)
        return attr in operations.attributes_of(obj) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        take(3 * _OBJECT)
        text: str = value.__self__
        format_map = value.__name__ == "format_map"

        def checked(*args: Any, **kwargs: Any) -> str:
            operations.check_names(kwargs)
            values = list(args[0].values()) if format_map and args and isinstance(args[0], dict) else list(args)
            operations.check_braces(text, [*values, *kwargs.values()])
            return str(made(formatted(*args, **kwargs)))

        return checked

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, _METHODS) and isinstance(__obj.__self__, operations.VALUES):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            operations.check_names(kwargs)
            return operations.call_method(__obj, args, kwargs)
        take(_SMALL if isinstance(__obj, (Macro, LoopContext)) else _OBJECT)
        operations.check_names(kwargs)
        if isinstance(__obj, types.MethodType) and isinstance(__obj.__self__, LoopContext):  # changed, cycle
            work(sum(weigh(arg) for arg in args))
        return super().call(__context, __obj, *args, **kwargs)

    def _filter_test_common(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(name, (str, Undefined)) or (isinstance(name, str) and len(name) > operations.MAX_NAME):
            raise TypeError("filters and tests are named by texts")
        return super()._filter_test_common(name, *args, **kwargs)
