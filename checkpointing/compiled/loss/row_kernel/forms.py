"""What a value in a loss is, as a function of the logits x of a row: the algebra of `row_form`.

A value of a row is a polynomial in what `operators` make of it: its logsumexp, the logit of its label, the sum of its
logits. Coefficients are given, i.e. computed without logits. A value as wide as the logits is a sum of basis vectors,
each times a value of its row:

    x - amax(x)                        logits · 1 + one · (-highest)
    exp of it                          softmax · exp(logsumexp - highest)
    log of the sum of that             logsumexp - highest                          highest cancels out in the end
    softmax - (column = label)         softmax · 1 + label · (-1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LSE, AT_LABEL, SUM, WEIGHTED_SUM, HIGHEST = "logsumexp", "at label", "sum", "weighted sum", "highest"
LOGITS, SOFTMAX, LABEL, ONE, CLASSES, WEIGHTED = "logits", "softmax", "label", "one", "classes", "logits by class"

Given = Any  # a number, or a nested tuple: ("node", node), ("mul", given, given), ...
Monomial = tuple[str, ...]  # values of a row that are multiplied, in order


class UnknownFormError(Exception):
    """The value is not of this form; the message says which."""


@dataclass(frozen=True)
class Row:
    """Σ coefficient · product of its values. No coefficient is zero."""

    terms: tuple[tuple[Monomial, Given], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[Monomial, Given]) -> Row:
        return cls(tuple(sorted((item for item in terms.items() if not _is(item[1], 0)), key=lambda item: item[0])))

    @classmethod
    def given(cls, value: Given) -> Row:
        return cls.of({(): value})

    @property
    def constant(self) -> Given:
        """The value, if it is given; UnknownFormError if it depends on logits."""
        if any(monomial for monomial, _ in self.terms):
            raise UnknownFormError("a value of a row that depends on its logits")
        return self.terms[0][1] if self.terms else 0

    def __add__(self, other: Row) -> Row:
        total = dict(self.terms)
        for monomial, value in other.terms:
            total[monomial] = add(total.get(monomial, 0), value)
        return Row.of(total)

    def __mul__(self, other: Row) -> Row:
        total: dict[Monomial, Given] = {}
        for mine, value in self.terms:
            for their, factor in other.terms:
                monomial = tuple(sorted((*mine, *their)))
                total[monomial] = add(total.get(monomial, 0), multiply(value, factor))
        return Row.of(total)

    def scaled(self, factor: Given) -> Row:
        return self * Row.given(factor)

    def chosen(self, condition: Given, other: Row) -> Row:
        """Where the condition holds this, elsewhere `other`."""
        mine, their = dict(self.terms), dict(other.terms)
        return Row.of({m: choose(condition, mine.get(m, 0), their.get(m, 0)) for m in {**mine, **their}})


def value(name: str) -> Row:
    return Row.of({(name,): 1})


@dataclass(frozen=True)
class Exponential:
    """A value of a row that is the exponential of another."""

    exponent: Row


@dataclass(frozen=True)
class Wide:
    """Σ basis vector · value of the row. A softmax is written (SOFTMAX, exponent): it is times exp(exponent)."""

    terms: tuple[tuple[tuple[str, Row], Row], ...]

    @classmethod
    def of(cls, terms: Iterable[tuple[tuple[str, Row], Row]]) -> Wide:
        total: dict[tuple[str, Row], Row] = {}
        for basis, factor in terms:
            total[basis] = total.get(basis, Row()) + factor
        kept = ((basis, factor) for basis, factor in total.items() if factor.terms)
        return cls(tuple(sorted(kept, key=lambda item: (item[0][0], repr(item[0][1])))))

    @classmethod
    def basis(cls, name: str, factor: Row | None = None, exponent: Row | None = None) -> Wide:
        return cls.of([((name, exponent or Row()), factor or Row.given(1))])

    def __add__(self, other: Wide) -> Wide:
        return Wide.of([*self.terms, *other.terms])

    def times(self, factor: Row) -> Wide:
        return Wide.of((basis, mine * factor) for basis, mine in self.terms)

    def chosen(self, condition: Given, other: Wide) -> Wide:
        mine, their = dict(self.terms), dict(other.terms)
        every = dict.fromkeys([*mine, *their])
        return Wide.of((basis, mine.get(basis, Row()).chosen(condition, their.get(basis, Row()))) for basis in every)

    def only(self, name: str) -> Row | None:
        """Its factor, if it is one basis vector and no softmax that is times an exponential."""
        if len(self.terms) == 1 and self.terms[0][0] == (name, Row()):
            return self.terms[0][1]
        return None


Form = Row | Wide | Exponential | None  # None: the numbers of the columns


def add(left: Given, right: Given) -> Given:
    if _is(left, 0) or _is(right, 0):
        return right if _is(left, 0) else left
    if negated(left) == right:
        return 0
    return left + right if _numbers(left, right) else ("add", left, right)


def multiply(left: Given, right: Given) -> Given:
    if _is(left, 0) or _is(right, 0):
        return 0
    if _is(left, 1) or _is(right, 1):
        return right if _is(left, 1) else left
    if _numbers(left, right):
        return left * right
    if _numbers(right, right):
        left, right = right, left
    if _numbers(left, left) and right[0] == "mul" and _numbers(right[1], right[1]):
        return multiply(left * right[1], right[2])
    return "mul", left, right


def negated(value: Given) -> Given:
    return multiply(-1, value)


def divide(left: Given, right: Given) -> Given:
    if _is(left, 0) or _is(right, 1):
        return left
    if _numbers(right, right):
        return left / right if _numbers(left, left) and right else ("div", left, right)
    return "div", left, right


def choose(condition: Given, left: Given, right: Given) -> Given:
    return left if left == right else ("where", condition, left, right)


def _numbers(*values: Given) -> bool:
    return all(isinstance(one, int | float) for one in values)


def _is(value: Given, number: float) -> bool:
    return _numbers(value) and value == number
