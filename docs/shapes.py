"""Shapes in signatures, as they are written in the sources."""

import ast

import griffe


class Shapes(griffe.Extension):
    """Keeps strings in annotations, of which Griffe would make expressions.

    The shape "B *N" would be read as a product. Griffe leaves strings alone in modules that import
    `annotations` from `__future__`; here every module is read as if it did.
    """

    def on_module_node(self, *, node, agent, **_):
        after_docstring = int(ast.get_docstring(node) is not None)
        line = ast.parse("from __future__ import annotations").body[0]
        node.body.insert(after_docstring, line)
