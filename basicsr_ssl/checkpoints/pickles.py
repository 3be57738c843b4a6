"""Pickles as data: reading them without importing or calling anything that they name.

A pickle is a program for a stack machine, and Python's unpickler runs it: whoever wrote the file chooses what is
called. This machine has the stack and no calls: where the program would call something, a record of the call stands in
the result. It also bounds what Python's unpickler does not: memory follows the bytes that are there, not what they
claim.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

NEWEST_PROTOCOL = 5
# A bound on operations, on items that they move, and on objects, which count as several since they take memory. The
# pickle of a network of some hundred layers with all its Python objects comes to about 100,000.
MOST_WORK = 3_000_000
_OBJECT = 8

_LITERALS = {'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'STRING', 'BINSTRING', 'SHORT_BINSTRING',
             'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE',
             'BINUNICODE8', 'FLOAT', 'BINFLOAT'}
_MAKERS = {'REDUCE', 'NEWOBJ', 'NEWOBJ_EX', 'INST', 'OBJ', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'FROZENSET', 'LIST',
           'DICT', 'EMPTY_LIST', 'EMPTY_SET', 'EMPTY_DICT', 'MARK', 'BINPERSID', 'PERSID', 'GLOBAL', 'STACK_GLOBAL'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}


@dataclass(frozen=True, slots=True)
class Name:
    """Something that the pickle names, ``module.name``; it was not looked up.

    Names are compared part by part and never joined: a file may have one of many megabytes, and use it often.
    """

    module: str
    name: str


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Reference:
    """Something that lies outside the pickle (a persistent id)."""

    id: Any


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """An object that the pickle would have made by calling something; it was not called.

    It is never printed, and neither is what a ``Reference`` holds: a few bytes nest them so deep, or repeat them so
    often, that no text could hold them.

    Attributes:
        maker: what would have been called, as a rule a ``Name``.
        args: with these arguments.
        state: the object's state: for most Python objects, a dict of its attributes. What would have been appended to
            it, or set in it by key, is dropped.
    """

    maker: Any
    args: Any
    state: Any = None

    def made_by(self, *names: Name) -> bool:
        """Whether the maker is one of these."""
        return isinstance(self.maker, Name) and any(self.maker == name for name in names)


def read_pickle(stream: Any, references: list[Reference] | None = None) -> Any:
    """The next pickle of a stream, as plain containers, ``Name``, ``Reference`` and ``Inert``.

    An OrderedDict becomes a dict, a set a list. Dict keys that are neither text nor a number are dropped with what they
    stand for: hashing what a file made up can be made slow. Afterwards the stream stands behind the pickle.

    Args:
        stream: BytesIO or mmap: reading from these reserves no more memory than there are bytes.
        references: gets every ``Reference`` that is met.

    Raises:
        ValueError: this is no pickle, or a cut one, or one of a newer protocol or larger than any network's.
    """
    machine = _Machine([] if references is None else references)
    try:
        for code, argument, _ in pickletools.genops(stream):
            if code.name == 'STOP':
                return machine.pop()
            machine.work(_OBJECT if code.name in _MAKERS else 1)
            machine.step(code.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        # the error's own text may hold as much of the file as it likes
        raise ValueError(f'the pickle makes no sense ({type(error).__name__})') from error
    raise ValueError('the pickle has no end')


_ORDERED_DICT = Name('collections', 'OrderedDict')


class _Machine:
    """The stack, its marked places and the memo."""

    def __init__(self, references: list[Reference]) -> None:
        self.references = references
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks put aside by MARK
        self.memo: dict[int, Any] = {}
        self.left = MOST_WORK

    def work(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError(f'the pickle takes more than {MOST_WORK:,} operations')

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def take(self, count: int) -> list[Any]:
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]

    def step(self, code: str, argument: Any) -> None:
        """Carry out one operation other than STOP."""
        push = self.stack.append
        if code in _LITERALS:
            push(argument)
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in ('BINPUT', 'LONG_BINPUT', 'PUT'):
            self.memo[argument] = self.stack[-1]
        elif code == 'MEMOIZE':
            self.memo[len(self.memo)] = self.stack[-1]
        elif code in ('BINGET', 'LONG_BINGET', 'GET'):
            push(self.memo[argument])
        elif code == 'MARK':
            self.below.append(self.stack)
            self.stack = []
        elif code in ('TUPLE', 'FROZENSET', 'LIST', 'DICT'):
            items = self.pop_to_mark()
            self.stack.append(_filled({}, items) if code == 'DICT' else items if code == 'LIST' else tuple(items))
        elif code in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            items = self.take(int(code[-1]))
            push(tuple(items))
        elif code in ('EMPTY_LIST', 'EMPTY_SET'):
            push([])
        elif code in ('EMPTY_TUPLE', 'EMPTY_DICT'):
            push(() if code == 'EMPTY_TUPLE' else {})
        elif code == 'APPEND':
            self.extend(self.take(1))
        elif code in ('APPENDS', 'ADDITEMS'):
            self.extend(self.pop_to_mark())
        elif code == 'SETITEM':
            self.set_items(self.take(2))
        elif code == 'SETITEMS':
            self.set_items(self.pop_to_mark())
        elif code == 'GLOBAL':
            push(Name(*argument.split(' ', 1)))
        elif code == 'STACK_GLOBAL':
            module, name = self.take(2)
            if not (isinstance(module, str) and isinstance(name, str)):
                raise TypeError('a name must be text')
            push(Name(module, name))
        elif code in ('REDUCE', 'NEWOBJ'):
            maker, args = self.take(2)
            push(self.made(maker, args))
        elif code == 'NEWOBJ_EX':
            maker, args, keywords = self.take(3)
            push(Inert(maker, (args, keywords)))
        elif code == 'INST':
            args = tuple(self.pop_to_mark())
            self.stack.append(Inert(Name(*argument.split(' ', 1)), args))
        elif code == 'OBJ':
            maker, *args = self.pop_to_mark()
            self.stack.append(self.made(maker, tuple(args)))
        elif code == 'BUILD':
            state = self.pop()
            if isinstance(self.stack[-1], Inert):  # attributes of an OrderedDict are no data
                self.stack[-1].state = state
        elif code == 'BINPERSID' or code == 'PERSID':
            self.references.append(Reference(self.pop() if code == 'BINPERSID' else argument))
            push(self.references[-1])
        elif code == 'POP':
            self.stack.pop() if self.stack else self.pop_to_mark()
        elif code == 'POP_MARK':
            self.pop_to_mark()
        elif code == 'DUP':
            push(self.stack[-1])
        elif code == 'PROTO':
            if argument > NEWEST_PROTOCOL:
                raise ValueError(f'the pickle has protocol {argument}, newer than {NEWEST_PROTOCOL}')
        elif code != 'FRAME':
            raise ValueError(f'the pickle uses {code}, which no network file needs')

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Inert):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Inert):
            _filled(self.stack[-1], items)

    def made(self, maker: Any, args: Any) -> Any:
        """What a call would have made: an OrderedDict, also one of pairs, as Python 2 pickles it, is a dict."""
        if maker != _ORDERED_DICT or not isinstance(args, tuple) or len(args) > 1:
            return Inert(maker, args)
        pairs = args[0] if args else []
        if not isinstance(pairs, list):
            return Inert(maker, args)
        self.work(len(pairs))  # one list may be the argument of many calls
        return _filled({}, [part for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2
                            for part in pair])


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # integers beyond 60 bits may all have one hash
        if isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 60):
            target[key] = value
    return target
