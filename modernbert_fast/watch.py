"""Whether a model is still what it was: looked at once a call, it saves asking every module of every layer."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from modernbert_fast import modules


class Watch:
    """What a model makes of its input depends on: modules, their classes, hooks and settings, and where parameters lie.

    A look takes few steps of Python. Holds the model's parts, not the model, which may hold it.
    """

    def __init__(self, model: Any) -> None:
        self._parts = list(model.modules())[1:]
        own = [part.__dict__ for part in self._parts]
        self._own = own
        self._settings = [d for d in own if "eps" in d or "p" in d]  # of norms and dropouts
        self._configs = list({id(block.config): block.config for block in model.layers}.values())
        self._children = [model._modules, *(d["_modules"] for d in own)]
        self._hooks = [d[name] for d in own for name in modules.HOOKS]
        self._parameters = [parameters for d in own if (parameters := d["_parameters"])]
        self._state = self._look()

    def sees_the_same(self, model: Any) -> bool:
        """Whether nothing has changed."""
        return self._children[0] is model._modules and self._state == self._look()

    def _look(self) -> list[Any]:
        state: list[Any] = [torch.nn.modules.module._has_any_global_hook()]
        state += [config.hidden_activation for config in self._configs]
        state += [(own.get("eps"), own.get("p")) for own in self._settings]
        state += map(type, self._parts)
        state += ["forward" in own for own in self._own]
        state += [own["training"] for own in self._own]
        state += itertools.chain.from_iterable(map(dict.values, self._children))
        state += itertools.chain.from_iterable(self._hooks)
        for parameter in itertools.chain.from_iterable(map(dict.values, self._parameters)):
            if type(parameter) is nn.Parameter:
                state += (parameter.data_ptr(), parameter.dtype, parameter.shape, parameter.stride())
            else:
                state += (type(parameter), id(parameter))
        return state
