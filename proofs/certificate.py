"""What a claim is: statements of the language, each with its world, and what it takes to prove or refute one.

A statement is proved by exact arithmetic with unknowns and refuted by an enclosure at a witness (`proofs.machine`). It
carries its quantifiers: `quantifiers` reads them off the world in which it is proved.

Source: ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

import sympy as sp

from proofs import language as lang
from proofs import symbols as sym
from proofs.enclosed import Real
from proofs.exact import NoValueError
from proofs.jets import Number
from proofs.machine import Machine
from proofs.worlds import Listed, Numbers, Space, Tree, World

EQUAL, DIFFERENT, LESS, DIVERGENCE, NO_COMBINATION, POSITIVE = "=", r"\ne", "<", r"\ge", r"\notin", ">"
POINTS = 3  # witnesses at which a survivor must agree
WITNESSES = 4  # witnesses at which a refutation is looked for
MIN_NEAR_MISSES = 2  # fewer would not show that the check can tell right from wrong
ANY = Space()  # π_old of any mass Z, π_ref of any mass
ANY_MASS = Space(any_mass=(sym.p, sym.r))
NORMALISED = Space(any_mass=(), old_is_normalised=True)
GROUPS = Space(old_is_normalised=True, group=sym.G)
TREES = Tree(old_is_normalised=True)


@dataclass(frozen=True)
class Statement:
    """One relation between two expressions, with the names it defines and the world it is about.

    Attributes:
        left: an expression of the language.
        relation: = (everywhere), ≠ (somewhere), < or > (in the example; or for all positive unknowns), ≥ (0, and 0 only
            at v = 1, the left side a function of v), ∉ (no combination of the right side, with any coefficients).
        right: an expression; for ∉ a tuple.
        world: what an outcome is.
        definitions: the names that stand for expressions.

    Source: ours.
    """

    left: sp.Expr
    relation: str
    right: sp.Expr | tuple[sp.Expr, ...]
    world: World = ANY
    definitions: Mapping[sp.Symbol, sp.Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse two symbols that are printed alike, and a region that makes a symbol a function of others unsaid."""
        printed: dict[str, sp.Symbol] = {}
        for symbol in self.names | self.definitions.keys():
            if printed.setdefault(lang.name(symbol), symbol) != symbol:
                raise ValueError(f"two symbols are printed {lang.name(symbol)}.")
        # π_θ may be w, where π_old stands still, and an equation is printed. Every other symbol of the region has an
        # unknown of its own.
        region = [(x, e, text) for x, text, e in self.world.region if x in self.names and (x, e) != (sym.p, sym.w)]
        rest = [(x, e) for x, e, text in region if text != f"{lang.name(x)}={lang.latex(e)}"]
        while rest:
            used = [symbol for _, e in rest for symbol in e.free_symbols - self.names]
            held = [(x, e) for x, e in rest if all(used.count(symbol) > 1 for symbol in e.free_symbols - self.names)]
            if len(held) == len(rest):
                raise ValueError(f"{lang.name(held[0][0])} is fixed by other symbols of the region or the statement.")
            rest = held

    def __str__(self) -> str:
        """Return the LaTeX."""
        right = self.right if isinstance(self.right, tuple) else (self.right,)
        texts = ",\\ ".join(map(lang.latex, right))
        if self.relation == NO_COMBINATION:
            return rf"{lang.latex(self.left)}\notin\operatorname{{span}}\{{{texts}\}}"
        tail = r"\ (=0\iff v=1)" if self.relation == DIVERGENCE else ""
        known = [text for x, text, _ in self.world.region if text and x in self.names]
        known += [f"G={self.world.group}"] if isinstance(self.world.group, int) else []
        known += [r"R\in\{0,1\}"] if self.world.right else []
        known += [r"T=\mathrm{const}"] if self.world.equal_lengths else []
        conditions = r",\ ".join(known)
        where = rf"\ \text{{if}}\ {conditions}" if conditions else ""
        return f"{lang.latex(self.left)} {self.relation} {texts}{tail}{where}"

    @property
    def known(self) -> tuple[str, ...]:
        """What it defines or knows of its symbols, in LaTeX."""
        names = self.names
        return tuple(f"{lang.name(x)} := {lang.latex(e)}" for x, e in self.definitions.items() if x in names)

    @property
    def names(self) -> set[sp.Symbol]:
        """Every symbol in it, those of its definitions too."""
        right = self.right if isinstance(self.right, tuple) else (self.right,)
        found = set().union(*(x.free_symbols for x in (self.left, *right)))
        for _ in self.definitions:
            ratios = set().union(*(e.free_symbols for x, e in sym.RATIOS.items() if x in found))
            found |= ratios & self.definitions.keys()
            found |= set().union(*(e.free_symbols for x, e in self.definitions.items() if x in found), set())
        return found


def equal(left: sp.Expr, right: sp.Expr | int, world: World = ANY, **definitions: sp.Expr) -> Statement:
    """Return the statement left = right; keywords define names. Source: ours."""
    sides = sp.sympify(left), sp.sympify(right)
    found = set().union(*(sp.sympify(e).free_symbols for e in (*sides, *definitions.values())))
    found |= set().union(*(e.free_symbols for x, e in sym.RATIOS.items() if x in found))
    known = {x.name: x for x in found}
    named = {known[x]: e for x, e in definitions.items() if x in known}
    return Statement(sides[0], EQUAL, sides[1], world, named)


def related(
    left: sp.Expr, relation: str, right: sp.Expr | int | tuple, world: World = ANY, **names: sp.Expr
) -> Statement:
    """Return a statement with another relation. Source: ours."""
    made = equal(left, sp.Tuple(*right) if isinstance(right, tuple) else right, world, **names)
    side = right if isinstance(right, tuple) else sp.sympify(right)
    return Statement(made.left, relation, side, world, made.definitions)


@dataclass(frozen=True)
class Claim:
    """Statements that are proved, and the mistakes next to them, which are refuted.

    Attributes:
        id: the name on the command line, and in the ledger.
        source: where it is stated.
        statements: at least one; the first `printed` are the claim's headline.
        near_misses: statements someone could believe and that are false, by name.
        printed: how many statements the ledger prints; none means all.

    Source: ours.
    """

    id: str
    source: str
    statements: tuple[Statement, ...]
    near_misses: Mapping[str, Statement]
    printed: int | None = None

    @property
    def headline(self) -> tuple[Statement, ...]:
        """The statements that the ledger prints."""
        return self.statements[: self.printed]

    @property
    def statement(self) -> str:
        """The headline in LaTeX: the equations that are proved, then what they define."""
        known = dict.fromkeys(text for statement in self.headline for text in statement.known)
        where = r";\quad " + r",\ ".join(known) if known else ""
        return r",\qquad ".join(map(str, self.headline)) + where

    @property
    def quantifiers(self) -> dict[str, str]:
        """For what the headline holds, by kind; where its statements differ each text names the ones it is about."""
        found: dict[str, dict[str, list[int]]] = {}
        for number, statement in enumerate(self.headline, start=1):
            for kind, text in quantifiers(statement).items():
                found.setdefault(kind, {}).setdefault(text, []).append(number)
        return {kind: "; ".join(self._about(text, numbers) for text, numbers in x.items()) for kind, x in found.items()}

    def _about(self, text: str, numbers: list[int]) -> str:
        everywhere = len(numbers) == len(self.headline)
        return text if everywhere else f"{text} ({', '.join(map(str, numbers))})"


def _shape(leaves: tuple[tuple[int, ...], ...]) -> str:
    lengths = sorted({len(leaf) for leaf in leaves})
    tokens = max(max(leaf) for leaf in leaves) + 1
    even = (
        f"every response of {lengths[0]} tokens"
        if len(lengths) == 1
        else f"responses of {lengths[0]} to {lengths[-1]} tokens"
    )
    return f"a tree of {len(leaves)} responses: {even}, at most {tokens} tokens to choose from"


def quantifiers(statement: Statement) -> dict[str, str]:
    """Return for what a statement holds: read off the world in which it is proved, and the names in it.

    Source: ours.
    """
    world, names = statement.world, statement.names
    nodes = set().union(*(x.atoms(lang.Node) for x in _expressions(statement)))
    functions = {node.func for node in nodes}
    found: dict[str, str] = {}
    at_one = statement.relation in (DIFFERENT, NO_COMBINATION)  # a witness
    if at_one:
        found["holds"] = "there are policies, rewards and references for which it is so: an exact witness is enumerated"
    if isinstance(world, Tree):
        found["outcomes"] = _shape(tuple(dict.fromkeys(map(world.text, world.leaves))))
        if world.switches:
            found["versions"] = (
                "a switch to any version after some histories, by a chance that only what came before it decides"
            )
    elif isinstance(world, Listed):
        found["outcomes"] = f"one decision among {world.outcomes} outcomes"
    elif isinstance(world, Numbers):
        found["outcomes"] = "none: algebra, for all values of its symbols"
    elif at_one:
        found["outcomes"] = "one decision among three outcomes"
    else:
        found["outcomes"] = "one decision among any outcomes, any number of them, where ∇ and the sums exchange"
    if functions & {lang.OfGroup, lang.OfOthers}:
        size = world.group
        found["group size"] = f"G = {size}" if isinstance(size, int) else "some G" if at_one else "any G"
    if world.at:
        found["values"] = ", ".join(f"{x.name} = {_plain(value)}" for x, value in world.at.items())
        return found
    ratios = {x for e in names & (sym.RATIOS.keys() - statement.definitions.keys()) for x in sym.RATIOS[e].free_symbols}
    used = names | ratios
    if not isinstance(world, Numbers):
        policies = (used & {sym.p, sym.q, sym.q_tilde, sym.r, sym.s}) - (statement.definitions.keys() - {sym.p})
        if sym.p in policies and sym.p not in statement.definitions:
            found["π_θ"] = (
                "of any mass"
                if sym.p in world.any_mass and not isinstance(world, Tree)
                else "normalised, any smooth curve of policies"
            )
        if policies & {sym.q, sym.q_tilde} and lang.Versus not in functions:
            free = isinstance(world, Space | Listed) and not world.old_is_normalised and sym.q in policies
            found["π_old"] = "any, off-policy and on-policy" + (", of any mass Z" if free else "")
        elif sym.p in policies and functions & {lang.E, lang.OfGroup} and not {sym.r, sym.s} & policies:
            found["regime"] = "on-policy"
        if sym.r in policies:
            found["π_ref"] = "any" + (
                ", of any mass" if sym.r in world.any_mass and isinstance(world, Space | Listed) else ""
            )
        elif policies & {sym.q, sym.q_tilde} and functions & {
            lang.KL,
            lang.UKL,
            lang.Jeffreys,
            lang.JS,
            lang.ChiSquare,
        }:
            found["π_ref"] = "none: the divergences are from π_old, that is π_ref = π_old"
        if sym.s in policies and lang.Versus not in functions:
            free = sym.s in world.any_mass and not isinstance(world, Tree)
            found["π_sampler"] = "any" + (", of any mass" if free else "")
        if lang.Versus in functions:
            found["opponent"] = "s, any, with any anchor q"
        if policies:
            found["support"] = "every policy gives every outcome a positive probability"
    generators = {e.func for x in _expressions(statement) for e in x.atoms(sp.Function)} & set(sym.DERIVATIVE)
    if generators:
        found["f"] = "some polynomial with f(1) = 0" if at_one else "any, twice differentiable, with f(1) = 0"
    rewards = (names & {sym.R, sym.A, sym.h}) - set(statement.definitions)
    if rewards:
        found["reward"] = "0 or 1" if world.right else "any"
    if sym.g in names:
        found["g"] = ("some" if at_one else "any") + " function of the outcome and of θ, smooth in θ"
    if sym.K in names:
        found["K"] = ("some" if at_one else "any") + " set of outcomes"
    if sym.T in names and not isinstance(world, Tree):
        found["T"] = (
            "the same for every outcome" if world.equal_lengths else "some lengths" if at_one else "any lengths"
        )
    if world.ray:
        found["logits"] = "linear in h, for any number of tokens and any width"
    return found


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{_plain(x)} after {key or 'nothing'}" for key, x in value.items())
    if isinstance(value, tuple):
        return f"({', '.join(map(_plain, value))})"
    return str(value)


def _expressions(statement: Statement) -> tuple[sp.Expr, ...]:
    right = statement.right if isinstance(statement.right, tuple) else (statement.right,)
    return (statement.left, *right, *statement.definitions.values())


def _machine(statement: Statement, seed: int | None = None) -> Machine:
    return Machine(statement.world, statement.definitions, seed)


def _difference(machine: Machine, statement: Statement) -> Number:
    return machine.value(statement.left) - machine.value(statement.right)


def _differences(statement: Statement) -> Iterator[tuple[Machine, Number]]:
    """Return what is to be proved; of rewards 0 or 1 of listed outcomes once for each number of right ones.

    Where all or none are right a side may have no value, such as a mean over groups of mixed rewards.
    """
    listed = isinstance(statement.world, Listed) and statement.world.right and sym.R not in statement.world.at
    if not listed:
        machine = _machine(statement)
        yield machine, _difference(machine, statement)
        return
    size = statement.world.outcomes
    for count in range(size + 1):
        machine = _machine(statement)
        machine.right = (1,) * count + (0,) * (size - count)
        try:
            yield machine, _difference(machine, statement)
        except (NoValueError, ArithmeticError):
            if 0 < count < size:
                raise


def _gap(statement: Statement, seed: int) -> Real:
    return _difference(_machine(statement, seed), statement)


def witnesses_against(statement: Statement, seeds: range) -> bool:
    """Return whether left and right differ at one of the witnesses. Source: an interval that excludes zero."""
    for seed in seeds:
        try:
            if _gap(statement, seed).sign():
                return True
        except (ArithmeticError, ValueError):
            continue
    return False


def has_values(statement: Statement) -> bool:
    """Return whether both sides have real values at every witness. Source: ours."""
    if any(x.has(sp.I, sp.zoo, sp.nan, sp.pi) for x in _expressions(statement)):
        return False
    try:
        return all(_gap(statement, seed) is not None for seed in range(WITNESSES))
    except (NoValueError, ArithmeticError):
        return False


def agrees(statement: Statement) -> bool:
    """Return whether left and right are equal, to 25 digits, at three random points. Source: ours.

    Of a function that is to be ≥ 0: whether it is 0 at 1, and above 0 at other points.
    """
    if statement.relation == DIVERGENCE:
        return not _is_no_divergence(statement)
    found: list[bool] = []
    for seed in range(1000, 1000 + 4 * POINTS):
        try:
            found.append(_gap(statement, seed).is_near_zero())
        except (NoValueError, ArithmeticError):  # such as the root of what is negative there
            continue
        if len(found) == POINTS:
            break
    return len(found) == POINTS and all(found)


def is_proved(statement: Statement) -> bool:
    """Return whether the statement is proved. Source: `Statement`, one rule a relation."""
    if statement.relation == EQUAL:
        return all(machine.is_zero(difference) for machine, difference in _differences(statement))
    if statement.relation == DIFFERENT:
        return witnesses_against(statement, range(WITNESSES))
    if statement.relation in (LESS, POSITIVE):
        signs = {machine.sign(difference) for machine, difference in _differences(statement)}
        return signs == {1 if statement.relation == POSITIVE else -1}
    if statement.relation == DIVERGENCE:
        return _is_convex_and_at_rest(statement)
    return _is_no_combination(statement)


def is_refuted(statement: Statement) -> bool:
    """Return whether the statement is certainly false. Source: `Statement`, one rule a relation."""
    if statement.relation == EQUAL:
        return witnesses_against(statement, range(WITNESSES))
    if statement.relation == DIFFERENT:
        return is_proved(Statement(statement.left, EQUAL, statement.right, statement.world, statement.definitions))
    if statement.relation in (LESS, POSITIVE):
        return any(
            _sign_at_witness(statement, seed) in ((1, 0) if statement.relation == LESS else (-1, 0))
            for seed in range(WITNESSES)
        )
    if statement.relation == DIVERGENCE:
        return _is_no_divergence(statement)
    return _is_a_combination(statement)


def _sign_at_witness(statement: Statement, seed: int) -> int | None:
    try:
        return _gap(statement, seed).sign()
    except (ArithmeticError, ValueError):
        return None


def _of_v(statement: Statement, value: sp.Expr) -> sp.Expr:
    """Return the difference of both sides at a value of v, without names that the statement defines."""
    e = statement.left - statement.right
    while e.free_symbols & statement.definitions.keys():
        e = e.xreplace({x: sp.sympify(value) for x, value in statement.definitions.items()})
    return e.subs(sym.log_v, sp.log(sym.v)).subs(sym.v, value)


def _is_convex_and_at_rest(statement: Statement) -> bool:
    """f(1) = f′(1) = 0 and f″ > 0: by Taylor's remainder f ≥ 0, and 0 at 1 alone."""
    if _of_v(statement, sym.v).has(lang.SG, sym.MOVING):
        raise ValueError("a stop-gradient, or θ itself, hides how a function of v curves.")
    for argument in (sym.MOVING, 1 / sym.MOVING):  # it has one minimum if it has in 1/v
        function = _of_v(statement, argument)
        region = statement.world.region
        at_one = Machine(Numbers(region=region, at={sym.MOVING: sp.Integer(1)}), {}).evaluate(function, 1, {})
        curvature = Machine(Numbers(region=region), {}).evaluate(function, 2, {})[2]
        if curvature.sign() == 1 and not any(x.terms for x in at_one):
            return True
    return False


def _is_no_divergence(statement: Statement) -> bool:
    """Below 0 somewhere, or not 0 at 1, or 0 elsewhere, or without a real value there."""
    for value in (sp.Integer(1), *(sp.Rational(n, 4) for n in (1, 2, 3, 5, 6, 8, 12, 40))):
        try:
            sign = Machine(Numbers(region=statement.world.region), {}, 0).value(_of_v(statement, value)).sign()
        except (NoValueError, ArithmeticError):
            return True
        if sign is not None and (sign != 0 if value == 1 else sign <= 0):
            return True
    return False


def _is_no_combination(statement: Statement) -> bool:
    """Return whether the gradients are independent at one witness: a determinant over as many directions excludes zero.

    The policies stay, the directions in which they move change: no coefficients will do, even such as depend on them.
    """
    columns = (statement.left, *statement.right)
    rows: list[list[Real]] = []
    policies: dict[object, object] = {}
    for seed in range(len(columns)):
        machine = _machine(statement, 50 + 6 * seed)  # the group has one size in all of them
        machine.table.update(policies)
        machine.generator = [Fraction(n, 3) for n in (2, 5, 1, 4)]
        rows.append([machine.value(column) for column in columns])
        policies = {key: value for key, value in machine.table.items() if not _is_slope(key)}
    return bool(_determinant(rows).sign())


def _is_slope(key: object) -> bool:
    return isinstance(key, tuple) and key[-1] == 1 and key[0] != sym.falling.name


def _is_a_combination(statement: Statement) -> bool:
    """Return whether coefficients of −1, 0 and 1 make the left side of the right one, exactly."""
    world = statement.world
    if isinstance(world, Listed) and not world.at and not world.right and world.group is None:
        # What holds for any outcomes holds for those that are listed.
        world = Space(any_mass=world.any_mass, old_is_normalised=world.old_is_normalised)
    for signs in product((1, 0, -1), repeat=len(statement.right)):
        total = sum((c * x for c, x in zip(signs, statement.right, strict=True)), sp.Integer(0))
        if is_proved(Statement(statement.left, EQUAL, total, world, statement.definitions)):
            return True
    return False


def _determinant(rows: list[list[Real]]) -> Real:
    if len(rows) == 1:
        return rows[0][0]
    total = Real(0)
    for n, entry in enumerate(rows[0]):
        minor = _determinant([row[:n] + row[n + 1 :] for row in rows[1:]])
        total = total + entry * minor if n % 2 == 0 else total - entry * minor
    return total


@dataclass(frozen=True)
class Verdict:
    """What `check` found: how much was proved and refuted, and one phrase for each failure. Source: ours."""

    proved: int
    refuted: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """Return the phrase that the certificate prints."""
        if self.failures:
            return "FAILED: " + "; ".join(self.failures)
        return f"proved; {self.refuted} near misses refuted"


def _is_decided(statement: Statement) -> bool:
    """Return whether it is proved; what the checker refuses is not."""
    try:
        return is_proved(statement)
    except (ArithmeticError, ValueError):
        return False


def check(claim: Claim) -> Verdict:
    """Prove every statement of the claim and refute every near miss.

    A near miss that is true fails, and so does one that cannot be decided. The verdict depends on the claim alone.
    Source: `is_proved` and `is_refuted`.
    """
    unproved = [f"“{statement}” is not proved" for statement in claim.statements if not _is_decided(statement)]
    unrefuted = [
        f"near miss “{name}” is {'true' if _is_decided(statement) else 'undecided'}"
        for name, statement in claim.near_misses.items()
        if not is_refuted(statement)
    ]
    failures = [*unproved, *unrefuted]
    if not claim.statements:
        failures.append("nothing is stated")
    if len(claim.near_misses) < MIN_NEAR_MISSES:
        failures.append(f"{len(claim.near_misses)} near misses are stated and {MIN_NEAR_MISSES} needed")
    return Verdict(len(claim.statements) - len(unproved), len(claim.near_misses) - len(unrefuted), tuple(failures))
