"""One interpreter of the language for two kinds of number: exact ones with unknowns, and enclosed ones at a witness.

The first proves an equation, the second refutes one. A value is a jet (`proofs.jets`), and a world says what an outcome
is (`proofs.worlds`).

Source: definitions; forward-mode differentiation.
"""

import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cached_property
from itertools import product

import sympy as sp

from proofs import language as lang
from proofs import symbols as sym
from proofs.enclosed import Real
from proofs.exact import NoValueError, Poly, intern, is_zero, limit, unknown_of
from proofs.jets import Jet, Number, added, composed, rational, times
from proofs.moments import is_positive, outcomes_of, renamed
from proofs.worlds import OUTCOMES, Listed, Numbers, Space, Tokens, Tree, World

Env = Mapping[object, object]
INDICATED = (1, 0, 1)  # which of three outcomes an indicator holds for
LENGTHS = (1, 3, 4)
ORDERS = 2  # of derivatives
POINTWISE = (lang.Larger, lang.Smaller, lang.Ratio, lang.SG)
SAMPLES = 4  # of a group of any size: as many sums over it may stand in one another
_SIGNS = (1, -1, 1)  # of a falling, convex function's value, slope and curvature


class Machine:
    """Evaluates expressions in one world, in one kind of number. Source: definitions."""

    def __init__(self, world: World, definitions: Mapping[sp.Symbol, sp.Expr], seed: int | None = None) -> None:
        """Take the world, the names that a statement defines, and a seed; without one numbers are exact."""
        self.world, self.definitions = world, dict(definitions)
        self.exact = seed is None
        self.is_small = seed is not None and seed % 2 == 1  # so that sums of several numbers fall below 1 too
        self.random = random.Random(seed)
        # At a witness any number of samples is two, three or four of them.
        self.group = world.group if self.exact or not isinstance(world.group, sp.Symbol) else (3, 2, 4)[seed % 3]
        self.table: dict[object, object] = {}
        self.relations: dict[int, Poly] = {}
        self.memo: dict[object, Jet] = {}
        self.moving: sp.Symbol | None = None  # the one number that moves, within By
        self.direction: sp.Expr | None = None  # in which logits move, where an expression names one
        self.right = tuple(int(x == 0) for x in range(self.size))  # for which outcomes a reward of 0 or 1 is 1
        self.generator = [Fraction(self.random.randint(1, 9), self.random.randint(2, 9)) for _ in range(4)]

    # Numbers

    def number(self, value: sp.Expr | int | Fraction) -> Number:
        """Return a rational number. Source: ours."""
        if isinstance(value, sp.Expr):
            value = Fraction(int(value.p), int(value.q))
        return Poly(Fraction(value)) if self.exact else Real(Fraction(value))

    def constant(self, value: sp.Expr | int | Fraction, order: int) -> Jet:
        """Return a number without derivatives. Source: ours."""
        return [self.number(value)] + [self.number(0)] * order

    def draw(self, key: object, *, positive: bool) -> Fraction:
        """Return this witness's number for a key. Source: ours."""
        if key not in self.table:
            size = Fraction(self.random.randint(1, 23), self.random.randint(3, 13))
            size /= 16 if self.is_small and isinstance(self.world, Numbers) else 1
            self.table[key] = size if positive or self.random.random() < 0.5 else -size
        return self.table[key]

    def unknown(self, key: object, *, positive: bool) -> Number:
        """Return an unknown, or this witness's number. Source: ours."""
        if self.exact:
            return Poly({((intern(("positive" if positive else "real", key)), Fraction(1)),): Fraction(1)})
        return Real(self.draw(key, positive=positive))

    # Expressions

    def evaluate(self, e: sp.Expr, order: int, env: Env) -> Jet:
        """Return the expression's value and its first derivatives. Source: definitions."""
        if order > ORDERS:
            raise ValueError(f"no derivative beyond the order {ORDERS} is taken.")
        if e.is_Rational:
            return self.constant(e, order)
        key = (e, order, frozenset(env.items()))
        if key not in self.memo:
            self.memo[key] = self._evaluate(e, order, env)
        return self.memo[key]

    def _evaluate(self, e: sp.Expr, order: int, env: Env) -> Jet:
        if e.is_Symbol:
            return self.symbol(e, order, env)
        if e.is_Add:
            values = [self.evaluate(x, order, env) for x in e.args]
            return [sum(parts[1:], parts[0]) for parts in zip(*values, strict=True)]
        if e.is_Mul:
            result = self.evaluate(e.args[0], order, env)
            for x in e.args[1:]:
                result = times(result, self.evaluate(x, order, env))
            return result
        if e.is_Pow and e.base == sp.E:
            return self._exp(self.evaluate(e.exp, order, env))
        if e.is_Pow:
            return self._power(e, order, env)
        if e in (sp.oo, -sp.oo, sp.zoo, sp.nan, sp.I, sp.pi):
            raise NoValueError(f"{e} is no number that a claim may hold.")
        if not isinstance(e, lang.Node) and e.func not in (sp.log, sp.exp, sp.asin, *sym.DERIVATIVE):
            raise ValueError(f"{e.func} is no word of the language.")
        return getattr(self, f"_{e.func.__name__}")(e, order, env)

    def _power(self, e: sp.Expr, order: int, env: Env) -> Jet:
        base, exponent = self.evaluate(e.base, order, env), self.evaluate(e.exp, order, env)
        n = rational(exponent)
        if n is None:
            return self._exp(times(exponent, self._log_jet(base)))
        if n > 0 and all(rational([x]) == 0 for x in base):
            return self.constant(0, order)
        outer, factor = [], Fraction(1)
        for k in range(order + 1):
            outer.append(base[0].power(n - k) * self.number(factor) if factor else self.number(0))
            factor *= n - k
        return composed(base, outer)

    def _log_jet(self, x: Jet) -> Jet:
        outer = [x[0].log()]
        if len(x) > 1:
            outer.append(x[0].power(Fraction(-1)))
        if len(x) > 2:
            outer.append(-x[0].power(Fraction(-2)))
        return composed(x, outer)

    def _log(self, e: sp.Expr, order: int, env: Env) -> Jet:
        return self._log_jet(self.evaluate(e.args[0], order, env))

    def _exp(self, x: sp.Expr | Jet, order: int = 0, env: Env | None = None) -> Jet:
        inner = x if isinstance(x, list) else self.evaluate(x.args[0], order, env)
        return composed(inner, [inner[0].exp()] * len(inner))

    def _asin(self, e: sp.Expr, order: int, env: Env) -> Jet:
        inner = self.evaluate(e.args[0], order, env)
        if order > 1:
            raise ValueError("only the derivative of an arcsine is known.")
        value = inner[0].apply("asin") if self.exact else inner[0].asin()
        slope = (self.number(1) - inner[0] * inner[0]).power(Fraction(-1, 2)) if order else None
        return composed(inner, [value, slope][: order + 1])

    def generated(self, e: sp.Expr, order: int, env: Env) -> Jet:
        """Return a derivative of the arbitrary generator, which is 0 at 1. Source: definition."""
        inner, first = self.evaluate(e.args[0], order, env), sym.DERIVATIVE[e.func]
        return composed(inner, [self._generator(first + k, inner[0]) for k in range(order + 1)])

    def _generator(self, k: int, x: Number) -> Number:
        if self.exact:
            at_one = not (x - self.number(1)).terms
            return self.number(0) if k == 0 and at_one else x.apply(f"f{k}")
        # At a witness it is a polynomial in v − 1 without constant term.
        step, total = x - self.number(1), self.number(0)
        for n, coefficient in enumerate(self.generator, start=1):
            factor = coefficient
            for m in range(k):
                factor *= n - m
            if factor:
                total = total + step.power(Fraction(n - k)) * self.number(factor)
        return total

    _f = _f_prime = _f_second = generated

    # Outcomes

    def symbol(self, e: sp.Symbol, order: int, env: Env) -> Jet:
        """Return what a name stands for. Source: `proofs.language`."""
        if e in env:
            raise ValueError(f"the index {e} stands where a value should.")
        if e in self.definitions:
            return self.evaluate(self.definitions[e], order, env)
        if e == sym.J:
            raise ValueError("an objective that the statement does not define has no value.")
        if e in (sym.payoff, sym.transposed):
            if "against" not in env or "x" not in env:
                raise ValueError("a payoff is that of an outcome against an opponent's.")
            pair = (env["x"], env["against"]) if e == sym.payoff else (env["against"], env["x"])
            return [self.unknown((sym.payoff.name, pair), positive=False)] + [self.number(0)] * order
        if e in sym.RATIOS and "y" not in env and "x" not in env:
            return self._free(e, order)
        if e in sym.RATIOS:
            return self.evaluate(sym.RATIOS[e], order, env)
        if sym.q in self.world.at and e in (sym.Z, sym.q_tilde):
            mass = [sum(parts[1:], parts[0]) for parts in zip(*self._old(order), strict=True)]
            return (
                mass
                if e == sym.Z
                else times(self.evaluate(sym.q, order, env), [mass[0].power(Fraction(-1)), *mass[1:]])
            )
        if e == sym.log_v:
            return self.evaluate(sp.log(sym.v), order, env)
        if e == sym.G and isinstance(self.group, int):
            return self.constant(self.group, order)
        if e == sym.Z and self._old_adds_up:
            return self.constant(1, order)
        if e not in sym.KINDS or (e == sym.T and self.world.equal_lengths and "y" not in env):
            return self._free(e, order)
        if "y" in env:
            return self._of_response(e, order, env)
        if "x" not in env:
            return self._free(e, order)
        return self._of_outcome(e, order, env["x"])

    def _old(self, order: int) -> list[Jet]:
        """Return the given probabilities of π_old."""
        return [self._of_outcome(sym.q, order, x) for x in range(self.size)]

    def _free(self, e: sp.Symbol, order: int) -> Jet:
        """Return a number that no outcome changes; in Numbers those of `region` may move."""
        known = {*self.world.at, *(x for x, _, _ in self.world.region)}
        if (e == sym.K or (e == sym.R and self.world.right)) and e not in known:
            return [self.indicated(e, ())] + [self.number(0)] * order
        if e == sym.falling:  # which moves with the reward alone
            values = [self.unknown((e.name, n), positive=True) for n in range(3)]
            slopes = [values[n] * self.number(sign) for n, sign in enumerate(_SIGNS)]
            return (slopes if self.moving == sym.R else [values[0]] + [self.number(0)] * order)[: order + 1]
        if order and self.moving is not None:
            slope = {sym.R: -1, sym.lagrange: 1}.get(self.moving, 0) if e == sym.to_lagrange else e == self.moving
            return [*self._free(e, 0), self.number(int(slope))] + [self.number(0)] * (order - 1)
        if e == sym.MOVING:
            value = self.number(self.world.at[e]) if e in self.world.at else self.unknown("moving", positive=True)
            return ([value, self.number(1)] + [self.number(0)] * order)[: order + 1]
        if e in self.world.at:
            return self.constant(sp.sympify(self.world.at[e]), order)
        for known, _, value in self.world.region:
            if e == known:
                return self.evaluate(value, order, {})
        if e in (sym.p, sym.v, sym.w, sym.g, sym.S, sym.z, sym.loss):
            self._check_direction(e, order)
            return [self.unknown((e.name, k), positive=k == 0 and bool(e.is_positive)) for k in range(order + 1)]
        return [self.unknown(e.name, positive=bool(e.is_positive))] + [self.number(0)] * order

    def _of_outcome(self, e: sp.Symbol, order: int, x: int) -> Jet:
        kind = sym.KINDS[e]
        live = kind in (sym.LIVE_POLICY, sym.LIVE_VALUE) and self.moving is None
        orders = order if live else 0
        tail = [self.number(0)] * (order - orders)
        if e == sym.q and e not in self.world.at:
            return times(self.symbol(sym.Z, order, {}), self._of_outcome(sym.q_tilde, order, x))
        if orders and self.direction is not None:
            if e != sym.z:
                self._check_direction(e, order)
            value = self._atom(e, x, 0, positive=False)
            slope = self._atom(e, x, -1, positive=False)  # along h, which the logits need not be linear in
            if self.direction != lang.Along:
                slope = self.evaluate(self.direction, 0, {"x": x})[0]
            elif self.world.ray:
                slope = value
            return ([value, slope] + [self.number(0)] * order)[: order + 1]
        if self.world.right and e == sym.R and not self._is_generic:
            return self.constant(self.right[x], order)
        if self.world.right and e == sym.R:
            return [self.indicated(e, x), *tail]
        if not self.exact and e not in self.world.at:
            if kind == sym.INDICATOR:
                return self.constant(INDICATED[x % 3], order)
            if kind == sym.LENGTH:
                return self.constant(LENGTHS[x % 3], order)
        if kind == sym.INDICATOR and e not in self.world.at:
            return [self.indicated(e, x)] + tail
        positive = kind in (sym.LIVE_POLICY, sym.POLICY, sym.MEASURE, sym.LENGTH)
        return [self._atom(e, x, k, positive=positive and k == 0) for k in range(orders + 1)] + tail

    @property
    def _old_adds_up(self) -> bool:
        return self.world.old_is_normalised or isinstance(self.world, Tree)

    @property
    def _is_generic(self) -> bool:
        return self.exact and isinstance(self.world, Space)

    @property
    def size(self) -> int:
        """How many outcomes are listed."""
        if isinstance(self.world, Listed):
            return self.world.outcomes
        return 2 if self.group == 4 else OUTCOMES  # 16 groups, not 81

    def _atom(self, e: sp.Symbol, x: int, k: int, *, positive: bool) -> Number:
        if e in self.world.at:
            value = self.world.at[e]
            if k and not isinstance(value[0], tuple):
                raise ValueError(f"the example does not say how {e} moves.")
            return self.number(sp.sympify(value[k][x] if isinstance(value[0], tuple) else value[x]))
        is_policy = sym.KINDS[e] in (sym.LIVE_POLICY, sym.POLICY, sym.MEASURE)
        one = is_policy and e not in self.world.any_mass
        if self.exact:
            found = self.unknown((e.name, x, k), positive=positive)
            if one and not self._is_generic and x == self.size - 1:
                (((unknown, _),),) = found.terms
                rest = sum((self.unknown((e.name, y, k), positive=positive) for y in range(x)), Poly())
                self.relations[unknown] = Poly(int(k == 0)) - rest
            return found
        if one:
            return Real(self._shares((e.name, k), self.size, k)[x])
        return Real(self.draw((e.name, x, k), positive=positive))

    def _shares(self, key: object, size: int, k: int) -> list[Fraction]:
        """Return rational probabilities that add up to one, or derivatives of them, which add up to zero."""
        if key not in self.table:
            parts = [Fraction(self.random.randint(1, 11)) for _ in range(size)]
            if k == 0:
                self.table[key] = [part / sum(parts) for part in parts]
            else:
                parts = [part * self.random.choice((1, -1)) for part in parts]
                parts[0] += 1 if not sum(map(abs, parts)) else 0
                self.table[key] = [part / 7 - sum(parts) / (7 * size) for part in parts]
        return self.table[key]

    def total(self, body: Callable[[Env], Jet], order: int, env: Env) -> Jet:
        """Return the sum over outcomes. Source: definition."""
        if isinstance(self.world, Numbers):
            raise ValueError("algebra has no outcomes to sum over.")
        if isinstance(self.world, Tree):
            return added([body({**env, "y": leaf}) for leaf in self.world.leaves])
        if not self._is_generic:
            return added([body({**env, "x": x}) for x in range(self.size)])
        depth = env.get("depth", 0)
        values = body({**env, "x": depth, "depth": depth + 1})
        return [self.moment(value, depth) for value in values]

    def moment(self, value: Poly, x: int) -> Poly:
        """Return the sum over outcome x: what is without x times the moment of what is with it. Source: linearity."""
        result: dict = {}
        total = Poly()
        for powers, coefficient in value.terms.items():
            inside = tuple((unknown, e) for unknown, e in powers if x in outcomes_of(unknown))
            if any(outcomes_of(unknown) != {x} for unknown, _ in inside):
                raise ValueError("a function of several samples at once is not decided at any group size.")
            outside = tuple((unknown, e) for unknown, e in powers if x not in outcomes_of(unknown))
            result.setdefault(inside, {})[outside] = result.get(inside, {}).get(outside, 0) + coefficient
        for inside, outside in result.items():
            total = total + Poly(outside) * self._moment(tuple(sorted((renamed(y, x), e) for y, e in inside)))
        return total

    def _moment(self, powers: tuple) -> Poly:
        if len(powers) == 1 and powers[0][1] == 1:
            kind, key = unknown_of(powers[0][0])[:2]
            if kind in ("positive", "real"):
                symbol = next((e for e in sym.KINDS if e.name == key[0]), None)
                is_policy = sym.KINDS[symbol] in (sym.LIVE_POLICY, sym.POLICY, sym.MEASURE)
                if is_policy and symbol not in self.world.any_mass:
                    return Poly(int(key[2] == 0))
        return Poly({((intern(("positive" if is_positive(powers) else "real", ("moment", powers))), Fraction(1)),): 1})

    def _E(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        measure, value = e.args

        def weighted(inner: Env) -> Jet:
            # Not measure * value: sympy would cancel K/K, which has no value where K is 0.
            return times(self.evaluate(measure, order, inner), self.evaluate(value, order, inner))

        return self.total(weighted, order, env)

    def _Versus(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        if not isinstance(self.world, Listed):
            raise ValueError("an opponent draws from outcomes that are listed.")
        measure, value = e.args
        drawn = [(self.evaluate(measure, order, {"x": y}), {**env, "against": y}) for y in range(self.size)]
        return added([times(chance, self.evaluate(value, order, inner)) for chance, inner in drawn])

    def _Total(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        return self.total(lambda inner: self.evaluate(e.args[0], order, inner), order, env)

    def _divergence(self, e: sp.Expr, order: int, env: Env) -> Jet:
        tokens = e.atoms(lang.At)
        if "y" in env and tokens:
            if not all(self._is_of_token(x, next(iter(tokens)).args[1]) for x in e.args):
                raise ValueError(f"{e} is taken of one token, given those before it.")
            return self._next(e.func.definition(*e.args), next(iter(tokens)).args[1], order, env)
        return self.total(lambda inner: self.evaluate(e.func.definition(*e.args), order, inner), order, env)

    _KL = _UKL = _Jeffreys = _JS = _ChiSquare = _divergence

    def _Grad(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        return self._moved(e, order, env, e.args[1] if len(e.args) > 1 else None)

    def _Along(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        return self._moved(e, order, env, lang.Along)

    def _moved(self, e: sp.Expr, order: int, env: Env, direction: object) -> Jet:
        """Return the derivative in the policy: along any smooth curve of policies, or where logits move so."""
        if self.moving is not None:
            raise ValueError(f"{e} is a derivative in the policy within one in {self.moving}; take one of them.")
        if order and direction != self.direction:
            raise ValueError(f"{e} stands within a derivative in another direction; take one of them.")
        if direction == self.direction:
            return self.evaluate(e.args[0], order + 1, env)[1:]
        before, memo, self.direction, self.memo = self.direction, self.memo, direction, {}
        value = self.evaluate(e.args[0], order + 1, env)[1:]
        self.direction, self.memo = before, memo
        return value

    def _By(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        return self._by(e, e.args[1], order, env)

    def _InReward(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        return self._by(e, sym.R, order, env)

    def _check_direction(self, e: sp.Symbol, order: int) -> None:
        if order and self.direction is not None:
            raise ValueError(f"how {e} moves with the logits is not known; define it by them.")

    def _by(self, e: sp.Expr, number: sp.Expr, order: int, env: Env) -> Jet:
        self._check_moves(number)
        if self.moving not in (None, number) or (order and self.moving is None):
            raise ValueError(f"{e} stands within another derivative; take one of them.")
        before, memo, self.moving, self.memo = self.moving, self.memo, number, {}
        found = self.evaluate(e.args[0], order + 1, env)[1:]
        self.moving, self.memo = before, memo
        return found

    def _check_moves(self, number: sp.Expr) -> None:
        """Refuse a derivative in what is no number of its own."""
        algebra = isinstance(self.world, Numbers)
        named = number == sym.K or (number == sym.R and self.world.right)  # which are 0 or 1
        named |= number in self.definitions or number in (sym.log_v, sym.G, sym.falling, sym.to_lagrange)
        named |= number == sym.Z and self._old_adds_up
        if not number.is_Symbol or named or (not algebra and (number in sym.KINDS or number in sym.RATIOS)):
            raise ValueError(f"{number} is no number that can move alone.")

    def _SG(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        if order and self.moving is not None:
            found = self.evaluate(e.args[0], order, env)
            if any((x.terms if self.exact else x.sign() != 0) for x in found[1:]):
                raise ValueError(f"{e} is constant in the policy; whether it is in {self.moving} it does not say.")
            return found
        return self.evaluate(e.args[0], 0, env) + [self.number(0)] * order

    def _Partial(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        if isinstance(self.world, Numbers) or sym.p in self.definitions:
            raise ValueError(f"{e} is a derivative in p(x), which must be the policy's own value at an outcome.")
        self._check_function_of(sym.p, e.args[0])
        value, density = (self.evaluate(x, order + 1, env)[1:] for x in (e.args[0], sym.p))
        if order:
            raise ValueError(f"{e} stands within another derivative; take one of them.")
        return times(value, [density[0].power(Fraction(-1))])

    def _check_function_of(self, variable: sp.Symbol, e: sp.Expr) -> None:
        """Refuse what moves otherwise than by the variable: by a sum over outcomes, or by itself."""
        moving = {x for x, kind in sym.KINDS.items() if kind in (sym.LIVE_VALUE, sym.LIVE_POLICY)}
        moving |= {sym.v, sym.w, sym.log_v, sym.MOVING}
        alike = {variable, *((sym.log_v,) if variable == sym.v else ())}
        if not isinstance(self.world, Numbers):
            alike |= {sym.p, sym.v, sym.w, sym.log_v}  # at one outcome, multiples of each other
        for part in sp.preorder_traversal(e):
            if part in self.definitions:
                self._check_function_of(variable, self.definitions[part])
            elif part in moving - alike or (isinstance(part, lang.Node) and part.func not in POINTWISE):
                raise ValueError(f"a derivative in {variable} is taken, by which alone {part} does not move.")

    def _Slope(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        self._check_function_of(e.args[1], e.args[0])
        v, value = self.evaluate(e.args[1], order + 1, env), self.evaluate(e.args[0], order + 1, env)
        return times(v[:-1], times(value[1:], [v[1].power(Fraction(-1))] + [self.number(0)] * order))

    def _Ratio(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        below = self.evaluate(e.args[1], order, env)
        sign = self.sign(below[0])
        if sign is None:
            raise ValueError(f"whether {e.args[1]} is 0 is not decided.")
        if sign == 0 and not any((x.terms if self.exact else x.sign()) for x in below[1:]):
            return self.constant(0, order)
        return self.evaluate(e.args[0] / e.args[1], order, env)

    def _Larger(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        first, second = (self.evaluate(x, order, env) for x in e.args)
        sign = (first[0] - second[0]).sign()
        if sign is None:
            raise ValueError(f"which of {e.args} is larger is not decided by signs; choose a smaller region.")
        if sign == 0 and any((x - y).sign() != 0 for x, y in zip(first[1:], second[1:], strict=True)):
            raise ValueError(f"of {e.args}, which are equal here, the maximum has no derivative.")
        return first if sign >= 0 else second

    def _Smaller(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        larger = self.evaluate(lang.Larger(-e.args[0], -e.args[1]), order, env)
        return [-x for x in larger]

    # Indices

    def _Over(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        value, index, relation, other = e.args
        if "y" not in env and "group" not in env:
            raise ValueError(f"the index {index} runs over no response and no group.")
        if relation != lang.ALL and other not in env:
            raise ValueError(f"no sum runs over the index {other}.")
        length = len(env["y"]) if "y" in env else env["group"]
        if isinstance(length, int):
            last = env.get(other, 0)
            allowed = {
                lang.ALL: lambda n: True,
                lang.FROM: lambda n: n >= last,
                lang.AFTER: lambda n: n > last,
                lang.BEFORE: lambda n: n < last,
                lang.UP_TO: lambda n: n <= last,
                lang.NOT: lambda n: n != last,
            }[relation]
            values = [self.evaluate(value, order, {**env, index: n}) for n in range(1, length + 1) if allowed(n)]
            return added(values) if values else self.constant(0, order)
        # Any number of samples: those that are named already, and as many others as there are, which are alike.
        slots = env["samples"]
        if relation not in (lang.ALL, lang.NOT) or len(slots) == SAMPLES:
            raise ValueError(f"at any group size samples have no order, and {SAMPLES} sums may stand in one another.")
        named = [n for n in slots if relation == lang.ALL or n != env[other]]
        fresh = len(slots) + 1
        rest = self._free(sym.G, order)
        rest = [rest[0] - self.number(len(slots)), *rest[1:]]
        new = self.evaluate(value, order, {**env, index: fresh, "samples": (*slots, fresh)})
        parts = [self.evaluate(value, order, {**env, index: n}) for n in named]
        return added([*parts, times(rest, new)])

    def _OfGroup(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        measure, value = e.args
        size = self.group
        if "group" in env or isinstance(self.world, Tree | Numbers):
            raise ValueError("a group is drawn in a world of one decision, and not within another group.")
        if isinstance(size, int):
            total = []
            for drawn in product(range(self.size), repeat=size):
                chance = self.constant(1, order)
                for x in drawn:
                    chance = times(chance, self.evaluate(measure, order, {"x": x}))
                inner = {**env, "group": size, **{("sample", n): x for n, x in enumerate(drawn, start=1)}}
                total.append(times(chance, self.evaluate(value, order, inner)))
            return added(total)
        if self._sums(value) > 1:
            raise ValueError("at any group size a sum over the group may stand in another, but not beside it.")
        if size is None or not self._is_generic:
            raise ValueError("a group of any size is drawn from any space of outcomes.")
        mass = [self.moment(x, 0).terms for x in self.evaluate(measure, order, {"x": 0})]
        if mass != [x.terms for x in self.constant(1, order)]:
            raise ValueError("a group of any size is drawn from a policy that adds up to one.")
        values = self.evaluate(value, order, {**env, "group": size, "samples": ()})
        for n in range(1, SAMPLES + 1):
            values = times(values, self.evaluate(measure, order, {"x": ("sample", n)}))
            values = [self.moment(x, ("sample", n)) for x in values]
        return values

    def _sums(self, e: sp.Expr) -> int:
        """Return how many sums over the group are multiplied; of one in a function, two: the function is not linear.

        Every sum stands for as many copies of its first new sample. The copies of two sums beside each other would be
        one and the same sample.
        """
        if e in self.definitions:
            return self._sums(self.definitions[e])
        inner = [self._sums(x) for x in e.args]
        if e.func is lang.Over:
            return max(1, inner[0])
        return sum(inner) if e.is_Mul else max(inner, default=0) * (1 if e.is_Add else 2)

    def _OfOthers(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        measure, value = e.args
        if "group" in env or not isinstance(self.group, int) or isinstance(self.world, Tree | Numbers):
            raise ValueError("other samples are drawn in a world of one decision and of a group of a given size.")
        total, others = [], self.group - 1
        for drawn in product(range(self.size), repeat=others):
            chance = self.constant(1, order)
            for x in drawn:
                chance = times(chance, self.evaluate(measure, order, {"x": x}))
            inner = {**env, "group": others, **{("sample", n): x for n, x in enumerate(drawn, start=1)}}
            total.append(times(chance, self.evaluate(value, order, inner)))
        return added(total)

    def _At(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        value, index, scope = e.args
        n = self._position(index, env)
        if "y" not in env:
            if scope != lang.WITHIN:
                raise ValueError(f"the samples of a group have no order, which {scope} asks for.")
            x = env.get(("sample", n), ("sample", n))
            return self.evaluate(value, order, {**env, "x": x})
        self._check_token(value, scope)
        if n > len(env["y"]) + (scope in (lang.PAST, lang.LAST)):
            raise ValueError(f"the response has no token {n}.")
        if value in sym.RATIOS:
            above, below = (lang.At(x, index, scope) for x in sym.RATIOS[value].as_numer_denom())
            return self.evaluate(above / below, order, env)
        y = env["y"]
        if value == sym.R:
            return self._of_response(value, order, {**env, "y": y[:n]})
        if scope == lang.LAST:
            return self._step(value, y[: n - 2], y[n - 2], order) if n > 1 else self.constant(1, order)
        if scope == lang.WITHIN:
            return self._step(value, y[: n - 1], y[n - 1], order)
        return self._chance(value, y[: n - 1] if scope == lang.PAST else y[:n], order)

    def _position(self, index: sp.Symbol, env: Env) -> int:
        if index not in env:
            raise ValueError(f"no sum runs over the index {index}.")
        return env[index]

    def _check_token(self, value: sp.Expr, scope: sp.Symbol) -> None:
        """Refuse what one token does not have: only policies and their ratios do, and R, of what was written so far."""
        plain = value.args[0] if value.func is lang.SG else value
        policies = [e for e in sym.KINDS if self._is_policy(e)]
        known = plain in policies or value in sym.RATIOS or (value == sym.R and scope == lang.WITHIN)
        if not known or {plain, *sym.RATIOS.get(plain, sp.S.Zero).free_symbols} & set(self.definitions):
            raise ValueError(f"what {value} is of one token ({scope}) is not known.")

    def _is_of_token(self, e: sp.Expr, index: sp.Symbol) -> bool:
        """Return whether an expression holds policies at that token alone, and none at whole responses."""
        if e.func is lang.At:
            return e.args[1:] == (index, lang.WITHIN)
        if e in self.definitions:
            return self._is_of_token(self.definitions[e], index)
        if e.is_Symbol:
            return e not in sym.RATIOS and not (e in sym.KINDS and self._is_policy(e))
        return all(self._is_of_token(x, index) for x in e.args)

    @staticmethod
    def _is_policy(e: sp.Symbol) -> bool:
        return sym.KINDS[e] in (sym.LIVE_POLICY, sym.POLICY, sym.MEASURE)

    # Responses

    def _of_response(self, e: sp.Symbol, order: int, env: Env) -> Jet:
        y = env["y"]
        if self._is_policy(e):
            return self._chance(e, y, order)
        if e == sym.T:
            return self.constant(len(self.world.text(y)), order)
        if e in self.world.at:
            return self.constant(sp.sympify(self.world.at[e][y]), order)
        seen = y if e == sym.K else self.world.text(y)  # a rule that drops responses may look at their versions
        if e == sym.K or (e == sym.R and self.world.right):
            return [self.indicated(e, seen)] + [self.number(0)] * order
        orders = order if sym.KINDS[e] == sym.LIVE_VALUE and self.moving is None else 0
        if orders:
            self._check_direction(e, order)
        tail = [self.number(0)] * (order - orders)
        return [self.unknown((e.name, seen, k), positive=False) for k in range(orders + 1)] + tail

    def indicated(self, e: sp.Symbol, of: object) -> Number:
        """Return an unknown that is 0 or 1, or this witness's choice. Source: ours."""
        if self.exact:
            return Poly({((intern(("indicator", (e.name, of))), Fraction(1)),): Fraction(1)})
        return self.number(self.table.setdefault((e.name, of), self.random.randint(0, 1)))

    def _chance(self, policy: sp.Symbol, y: Tokens, order: int) -> Jet:
        policy = sym.q if policy == sym.q_tilde else policy  # which adds up to one in a tree
        if policy.func is lang.SG:
            return self._chance(policy.args[0], y, 0) + [self.number(0)] * order
        key = ("chance", policy, y, order)
        if key not in self.memo:
            result = self.constant(1, order)
            for n in range(len(y)):
                result = times(result, self._step(policy, y[:n], y[n], order))
            self.memo[key] = result
        return self.memo[key]

    def _children(self, history: Tokens) -> list[int]:
        n = len(history)
        return sorted({leaf[n] for leaf in self.world.leaves if leaf[:n] == history and len(leaf) > n})

    def _step(self, policy: sp.Symbol, history: Tokens, token: int, order: int) -> Jet:
        policy = sym.q if policy == sym.q_tilde else policy
        if policy.func is lang.SG:
            return self._step(policy.args[0], history, token, 0) + [self.number(0)] * order
        live = policy == sym.p and self.moving is None
        if live:
            self._check_direction(policy, order)
        values = [self._share(policy, history, token, k) for k in range((order if live else 0) + 1)]
        return values + [self.number(0)] * (order + 1 - len(values))

    def _share(self, policy: sp.Symbol, history: Tokens, token: int, k: int) -> Number:
        children = self._children(history)
        if policy in self.world.at:
            return self.number(sp.sympify(self.world.at[policy][history][k][token]))
        name, seen = policy.name, history
        if history in self.world.switches:
            if k:
                return self.number(0)
            name = "switch"
        elif policy != sym.s:
            seen = self.world.text(history)
        if not self.exact:
            return Real(self._shares((name, seen, k), len(children), k)[children.index(token)])
        found = self.unknown((name, (*seen, token), k), positive=k == 0)
        if token == children[-1]:
            (((unknown, _),),) = found.terms
            others = [self.unknown((name, (*seen, c), k), positive=k == 0) for c in children[:-1]]
            self.relations[unknown] = Poly(int(k == 0)) - sum(others, Poly())
        return found

    def _next(self, value: sp.Expr, index: sp.Symbol, order: int, env: Env) -> Jet:
        history = env["y"][: self._position(index, env) - 1]
        return added(
            [self.evaluate(value, order, {**env, "y": (*history, token)}) for token in self._children(history)]
        )

    def _Next(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        index, measure, value = e.args
        if not self._is_of_token(measure, index):
            raise ValueError(f"{measure} draws no token {index}.")
        return self._next(measure * value, index, order, env)

    def _Given(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        index, measure, value = e.args
        if measure not in sym.KINDS or not self._is_policy(measure) or measure in self.definitions:
            raise ValueError(f"how {measure} continues a response is not known.")
        start = env["y"][: self._position(index, env)]
        total = []
        for leaf in self.world.leaves:
            if leaf[: len(start)] == start:
                chance = self.constant(1, order)
                for n in range(len(start), len(leaf)):
                    chance = times(chance, self._step(measure, leaf[:n], leaf[n], order))
                total.append(times(chance, self.evaluate(value, order, {**env, "y": leaf})))
        return added(total)

    def _Limit(self, e: sp.Expr, order: int, env: Env) -> Jet:  # noqa: N802
        value, small = e.args
        exact = self if self.exact else Machine(self.world, self.definitions)
        if order or not isinstance(self.world, Numbers) or self.definitions.keys() & {small}:
            raise ValueError(f"a limit in {small} is taken in algebra, and has no derivative.")
        unknown = intern(("positive", small.name))
        if exact.evaluate(small, 0, env)[0].key() != Poly({((unknown, Fraction(1)),): Fraction(1)}).key():
            raise ValueError(f"{small} is no positive number that can fall to 0.")
        found = limit(exact.evaluate(value, 0, env)[0], unknown)
        return [found if self.exact else self._at_witness(found)]

    def _at_witness(self, poly: Poly) -> Real:
        """Return an exact number's value where this witness's numbers stand for its unknowns."""
        total = Real(0)
        for powers, coefficient in poly.terms.items():
            term = Real(Fraction(coefficient))
            for unknown, exponent in powers:
                term = term * self._unknown_at_witness(unknown).power(Fraction(exponent))
            total = total + term
        return total

    def _unknown_at_witness(self, unknown: int) -> Real:
        kind, key = unknown_of(unknown)
        if kind == "prime":
            return Real(key)
        if kind == "log":
            return self._unknown_at_witness(key).log()
        if kind == "sum":
            return self._at_witness(Poly(dict(key)))
        if kind == "exp":
            return self._at_witness(Poly({key: Fraction(1)})).exp()
        if self.exact or kind not in ("positive", "real"):
            raise ValueError("a witness has no number for it.")
        return self.unknown(key, positive=kind == "positive")

    # Whole statements

    def sign(self, x: Number) -> int | None:
        """Return the sign, from those of the terms, or from digits where nothing is unknown. Source: ours."""
        found = x.sign()
        if found is not None or not self.exact:
            return found
        try:
            return self._at_witness(x).sign()
        except (ArithmeticError, ValueError):
            return None

    def value(self, e: sp.Expr) -> Number:
        """Return the value of a closed expression. Source: ours."""
        return self.evaluate(e, 0, self.start)[0]

    @cached_property
    def start(self) -> Env:
        """Where an expression is read: at one outcome, unless there is none."""
        if isinstance(self.world, Tree):
            return {"y": self.world.leaves[min(2, len(self.world.leaves) - 1)]}
        return {} if isinstance(self.world, Numbers) else {"x": -1 if self._is_generic else 0}

    def is_zero(self, x: Poly) -> bool:
        """Return whether it vanishes, given that probabilities add up to one. Source: `proofs.exact.is_zero`."""
        return is_zero(x, self.relations)
