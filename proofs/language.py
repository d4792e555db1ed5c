"""The language of the statements: sympy expressions about one outcome, with nodes that sum over outcomes.

A statement is one object. `latex` prints it, `proofs.machine` evaluates it, exactly or at numbers, and `proofs.tamper`
changes it. So the statement that a page shows is the one that is proved.

Source: the notation of arXiv 2505.17508, §2; the levels and groups are ours.
"""

from collections.abc import Callable

import sympy as sp

from proofs.definitions import jeffreys, jensen_shannon, kl, pearson_chi2, ukl
from proofs.symbols import (
    KINDS,
    MOVING,
    RATIOS,
    K,
    along,
    along_best,
    best,
    beta,
    bounded,
    f,
    f_prime,
    f_second,
    high,
    lagrange,
    log_v,
    loss,
    low,
    p,
    q,
    q_tilde,
    r,
    s,
    to_lagrange,
    w_other,
)


class Node(sp.Function):
    """A node of the language; sympy leaves it as it is written. Source: ours."""


class E(Node):
    """E(m, X): the sum over outcomes of the measure m times X. Source: definition."""


class Total(Node):
    """Total(X): the sum of X over outcomes. Source: definition."""


class Grad(Node):
    """Grad(X): ∇θ of X; a second argument is a direction in the space of logits. Source: definition."""


class InReward(Node):
    """InReward(X): ∂X/∂R. Source: definition."""


class By(Node):
    """By(X, n): ∂X/∂n of one number n; a policy stands still unless n is in its definition. Source: definition."""


class SG(Node):
    """SG(X): X, constant in θ. Source: arXiv 2505.17508, §4."""


class Partial(Node):
    """Partial(X): ∂X/∂p(x), X an integrand. Source: definition."""


class Along(Node):
    """Along(X): ⟨h, ∂X/∂h⟩, where logits are linear in h. Source: definition."""


class Over(Node):
    """Over(X, i, relation, other): the sum of X over the values of i that stand in the relation to another index.

    Indices run over the tokens of a response, or over the samples of a group.
    Source: definition.
    """


class At(Node):
    """At(X, i, scope): X of token or sample i; the product over the tokens before i, or up to i; X of the one before i.

    Source: definition.
    """


class Next(Node):
    """Next(t, m, X): the expectation of X over the next token, at the history before t. Source: definition."""


class Given(Node):
    """Given(t, m, X): the expectation of X where m continues after token t. Source: definition."""


class Versus(Node):
    """Versus(m, X): the expectation of X over the outcome y that an opponent draws from m. Source: definition."""


class OfGroup(Node):
    """OfGroup(m, X): the expectation of X over G independent samples of m. Source: definition."""


class OfOthers(Node):
    """OfOthers(m, X): the expectation of X over G − 1 further samples of m, over which the indices run.

    Source: definition.
    """


class Ratio(Node):
    """Ratio(a, b): a/b, and 0 where b is 0. Source: Shao et al. 2024."""


class Larger(Node):
    """Larger(a, b): the maximum. Source: definition."""


class Smaller(Node):
    """Smaller(a, b): the minimum. Source: definition."""


class Slope(Node):
    """Slope(X, v): v·∂X/∂v, X a function of v. Source: definition."""


class Limit(Node):
    """Limit(X, e): the limit of X as e falls to 0. Source: definition."""


class KL(Node):
    """KL(first‖second). Source: Kullback and Leibler 1951."""

    definition = staticmethod(kl)


class UKL(Node):
    """UKL(first‖second). Source: arXiv 2505.17508, Definitions 3.1, 3.4."""

    definition = staticmethod(ukl)


class Jeffreys(Node):
    """KL in both directions. Source: Jeffreys 1946."""

    definition = staticmethod(jeffreys)


class JS(Node):
    """Jensen and Shannon's divergence. Source: Lin 1991."""

    definition = staticmethod(jensen_shannon)


class ChiSquare(Node):
    """Pearson's χ². Source: Pearson 1900."""

    definition = staticmethod(pearson_chi2)


ALL, FROM, AFTER, BEFORE, UP_TO, NOT = (sp.Symbol(name) for name in ("all", "from", "after", "before", "up_to", "not"))
WITHIN, PAST, THROUGH, LAST = (sp.Symbol(name) for name in ("within", "past", "through", "last"))  # scopes of At


def over(index: sp.Symbol, value: sp.Expr, relation: sp.Symbol = ALL, other: sp.Symbol | None = None) -> sp.Expr:
    """Return Σ over the index of a value. Source: definition."""
    return Over(value, index, relation, index if other is None else other)


def at(value: sp.Expr, index: sp.Symbol, scope: sp.Symbol = WITHIN) -> sp.Expr:
    """Return a value at token or sample i, or the product before i (PAST), or up to i (THROUGH). Source: definition."""
    return At(value, index, scope)


def score(policy: sp.Expr = p) -> sp.Expr:
    """Return ∇log of a policy. Source: arXiv 2505.17508, §2."""
    return Grad(sp.log(policy))


def variance(measure: sp.Expr, value: sp.Expr) -> sp.Expr:
    """Return E[X²] − E[X]². Source: definition."""
    return E(measure, value**2) - E(measure, value) ** 2


def covariance(measure: sp.Expr, first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return E[XY] − E[X]·E[Y]. Source: definition."""
    return E(measure, first * second) - E(measure, first) * E(measure, second)


_NAMES = {
    q_tilde: r"\tilde q",
    beta: r"\beta",
    best: "p^*",
    loss: r"\ell",
    bounded: r"\bar w",
    lagrange: r"\lambda",
    K: r"\mathbf 1_K",
    along: r"\sigma",
    along_best: r"\sigma^*",
    low: r"(1-\varepsilon_1)",
    w_other: "w'",
    MOVING: r"\theta",
    to_lagrange: r"(\lambda-R)",
    high: r"(1+\varepsilon_2)",
    log_v: r"\log v",
}
_SPELT = {
    "h_min": r"h_{\min}",
    "h_max": r"h_{\max}",
    "rho": r"\rho",
    "rho_K": r"\rho_K",
    "rho_old": r"\rho_q",
    "varsigma": r"\varsigma_q",
    "std": r"\mathrm{std}",
    "mu": r"\mu",
    "cstar": "c^*",
    "length": "t",
    "sigma_T": r"\sigma",
    "H_p": "H_p(T)",
    "H_q": "H_q(T)",
    "alpha": r"\alpha",
    "mass_K_p": "p(K)",
    "mass_K_q": "q(K)",
    "mass_p": "p(S)",
    "mass_q": "q(S)",
    "bstar": "b^*",
    "kappa": r"\kappa",
    "kappa_other": r"\kappa'",
    "beta_1": r"\beta_1",
    "beta_2": r"\beta_2",
    "grad": r"\hat g",
    "c_": "c",
    "A_": "A'",
    "epsilon": r"\varepsilon",
    "eta": r"\eta",
    "lambda_star": r"\lambda^*",
    "p_min": r"p_{\min}",
    "target": r"\tau",
    "lambda_": r"\lambda",
    "P_keep": r"P_{\mathrm{keep}}",
    "mixed": r"\mathbf 1_{\mathrm{mixed}}",
    "p_hat": r"\hat p",
    "p_once": r"p_{\mathrm{once}}",
    "p_twice": r"p_{\mathrm{twice}}",
    "vbar": r"\bar v",
    "v_kept": r"v_{\mathrm{kept}}",
    "bound": r"\bar c",
    "nu": r"\nu",
    "s_best": "s^*",
    "payoff": "M(x,y)",
    "payoff_T": "M(y,x)",
}
_RELATIONS = {FROM: r"\ge", AFTER: ">", BEFORE: "<", UP_TO: r"\le", NOT: r"\ne"}
_SCOPES = {WITHIN: "{}", PAST: "<{}", THROUGH: r"\le {}", LAST: "{}-1"}
_DIVERGENCES = {KL: "KL", UKL: "UKL", Jeffreys: "Jeffreys", JS: "JS", ChiSquare: r"\chi^2"}
_GENERATORS = {f: "f", f_prime: r"f^\prime", f_second: r"f^{\prime\prime}"}


def name(symbol: sp.Symbol) -> str:
    """Return the LaTeX of a symbol; others than the usual ones spell theirs. Source: ours."""
    return _NAMES.get(symbol, _SPELT.get(symbol.name, symbol.name))


def _bracketed(expression: sp.Expr) -> str:
    text = latex(expression)
    return rf"\big({text}\big)" if "(" in text else f"({text})"


def _is_sum(expression: sp.Expr) -> bool:
    return expression.is_Add or (expression.is_Mul and expression.could_extract_minus_sign())


def _argument(expression: sp.Expr) -> str:
    return _bracketed(expression) if _is_sum(expression) or expression.func is Over else latex(expression)


def _long_argument(expression: sp.Expr) -> str:
    plain = expression.is_Symbol or expression.func in (sp.log, E, At) or expression.func in _DIVERGENCES
    return latex(expression) if plain else rf"\left[{latex(expression)}\right]"


def _atom(expression: sp.Expr) -> str:
    plain = (expression.is_Symbol and "^" not in latex(expression)) or expression.is_Integer
    return latex(expression) if plain else _bracketed(expression)


# Beside a fraction, not above its line.
_BESIDE = (E, Versus, Over, Grad, OfGroup, OfOthers, Next, Given, sp.log, *_DIVERGENCES)


def _rank(factor: sp.Expr) -> tuple[int, str]:
    base = factor.base if factor.is_Pow else factor
    kinds = [
        base.is_Symbol and base not in KINDS and base not in RATIOS,
        base.func in (E, Versus, OfGroup, OfOthers, Next, Given, Total, Over) or base.func in _DIVERGENCES,
        base.func in (Grad, By, Along, Partial),
        base.func is sp.log,
    ]
    order = 0 if kinds[0] else 7 if kinds[1] else 8 if kinds[2] else 5 if kinds[3] else 3
    if base.func is At:
        order = 2 if base.args[0] in RATIOS or base.args[0] in (p, q, r, s) else 3
    if base in RATIOS or base in (p, q, r, s, q_tilde, best):
        order = 1
    if base.func is SG:
        order = 2
    if base.is_Add:
        order = 4
    return order, latex(base)


def _product(expression: sp.Expr) -> str:
    coefficient, rest = expression.as_coeff_Mul()
    factors = sorted(sp.Mul.make_args(rest), key=_rank)
    below = [1 / factor for factor in factors if _is_below(factor)]
    above = [factor for factor in factors if not _is_below(factor)]
    if abs(coefficient).q != 1:
        below = [sp.Integer(abs(coefficient).q), *below]
    beside = [factor for factor in above if factor.func in _BESIDE] if below else []
    above = [factor for factor in above if factor not in beside]
    top = _joined(above, alone=bool(below))
    if abs(coefficient).p != 1 or not above:
        top = str(abs(coefficient).p) + (rf"\,{top}" if above else "")
    bottom = _joined(below, alone=True)
    fraction = rf"\frac{{{top}}}{{{bottom}}}" if below else top
    return rf"{fraction}\,{_joined(beside)}" if beside else fraction


def _joined(factors: list[sp.Expr], *, alone: bool = False) -> str:
    """Return the product; a sum that stands alone in a numerator needs no brackets."""
    if alone and len(factors) == 1:
        return latex(factors[0])
    texts = [_argument(factor) for factor in factors[:-1]]
    last = [_last(factor) for factor in factors[-1:]]
    return r"\,".join(texts + last)


def _last(factor: sp.Expr) -> str:
    return latex(factor) if factor.func is Over else _argument(factor)


def _is_below(factor: sp.Expr) -> bool:
    return factor.is_Pow and not factor.exp.is_Add and factor.exp.could_extract_minus_sign()


def _sum(expression: sp.Expr) -> str:
    def order(term: sp.Expr) -> tuple[bool, str]:
        return term.could_extract_minus_sign(), latex(-term if term.could_extract_minus_sign() else term)

    text = ""
    for term in sorted(expression.args, key=order):
        negative = term.could_extract_minus_sign()
        text += ("-" if negative else "+" if text else "") + latex(-term if negative else term)
    return text


def _power(expression: sp.Expr) -> str:
    base, exponent = expression.args
    if _is_below(expression):
        return rf"\frac{{1}}{{{latex(1 / expression)}}}"
    if exponent == sp.Rational(1, 2):
        return rf"\sqrt{{{latex(base)}}}"
    if base.func is sp.log:
        return rf"\log^{{{latex(exponent)}}} {_argument(base.args[0])}"
    return rf"{_atom(base)}^{{{latex(exponent)}}}"


def _expectation(expression: sp.Expr) -> str:
    measure, value = expression.args
    return rf"E_{{{latex(measure)}}}\left[{latex(value)}\right]"


def _over(expression: sp.Expr) -> str:
    value, index, relation, other = expression.args
    below = latex(index) if relation == ALL else rf"{latex(index)}{_RELATIONS[relation]} {latex(other)}"
    return rf"\sum_{{{below}}} {_argument(value)}"


def _at(expression: sp.Expr) -> str:
    value, index, scope = expression.args
    base = name(value) if value.is_Symbol else _bracketed(value)
    base = f"({base})" if "_" in base and value.is_Symbol else base  # one subscript a symbol
    return rf"{base}_{{{_SCOPES[scope].format(latex(index))}}}"


def _gradient(expression: sp.Expr) -> str:
    nabla = r"\nabla" if len(expression.args) == 1 else rf"\nabla_{{{latex(expression.args[1])}}}"
    return rf"{nabla} {_long_argument(expression.args[0])}"


def _next(expression: sp.Expr) -> str:
    index, measure, value = expression.args
    return rf"E_{{y_{index}\sim {latex(measure)}}}\left[{latex(value)}\right]"


def _given(expression: sp.Expr) -> str:
    index, measure, value = expression.args
    return rf"E_{{{latex(measure)}}}\left[{latex(value)}\mid y_{{\le {index}}}\right]"


_PRINTERS: dict[type, Callable[[sp.Expr], str]] = {
    E: _expectation,
    Total: lambda e: rf"\int {_argument(e.args[0])}",
    Grad: _gradient,
    InReward: lambda e: rf"\frac{{\partial}}{{\partial R}}{_long_argument(e.args[0])}",
    By: lambda e: rf"\frac{{\partial}}{{\partial {latex(e.args[1])}}}{_long_argument(e.args[0])}",
    SG: lambda e: rf"SG({latex(e.args[0])})",
    Partial: lambda e: rf"\frac{{\partial}}{{\partial p}}{_long_argument(e.args[0])}",
    Along: lambda e: rf"\Big\langle h,\frac{{\partial}}{{\partial h}}{_long_argument(e.args[0])}\Big\rangle",
    Slope: lambda e: rf"\frac{{\partial}}{{\partial\log {latex(e.args[1])}}}{_long_argument(e.args[0])}",
    Limit: lambda e: rf"\lim_{{{latex(e.args[1])}\to 0}}\left[{latex(e.args[0])}\right]",
    Over: _over,
    At: _at,
    Next: _next,
    Given: _given,
    Versus: lambda e: rf"E_{{y\sim {latex(e.args[0])}}}\left[{latex(e.args[1])}\right]",
    OfGroup: lambda e: rf"E_{{{latex(e.args[0])}^G}}\left[{latex(e.args[1])}\right]",
    OfOthers: lambda e: rf"E_{{{latex(e.args[0])}^{{G-1}}}}\left[{latex(e.args[1])}\right]",
    Ratio: lambda e: rf"\frac{{{latex(e.args[0])}}}{{{latex(e.args[1])}}}",
    Larger: lambda e: rf"\max({latex(e.args[0])},\,{latex(e.args[1])})",
    Smaller: lambda e: rf"\min({latex(e.args[0])},\,{latex(e.args[1])})",
    sp.log: lambda e: rf"\log {_argument(e.args[0])}",
    sp.exp: lambda e: rf"e^{{{latex(e.args[0])}}}",
    sp.asin: lambda e: rf"\arcsin {_argument(e.args[0])}",
}


def latex(expression: sp.Expr) -> str:
    """Return the LaTeX of an expression of the language. Source: ours."""
    if expression.is_Symbol:
        return name(expression)
    if expression.is_Rational:
        sign = "-" if expression < 0 else ""
        size = abs(expression)
        return sign + (str(size.p) if size.q == 1 else rf"\frac{{{size.p}}}{{{size.q}}}")
    if expression.could_extract_minus_sign() and expression.is_Mul:
        return f"-{latex(-expression)}"
    if expression.is_Add:
        return _sum(expression)
    if expression.is_Mul:
        return _product(expression)
    if expression.func in _PRINTERS:
        return _PRINTERS[expression.func](expression)
    if expression.is_Pow:
        return _power(expression)
    if expression.func in _GENERATORS:
        return rf"{_GENERATORS[expression.func]}({latex(expression.args[0])})"
    if expression.func not in _DIVERGENCES:
        return sp.latex(expression)  # i, π and the like, which no claim holds
    first, second = expression.args
    return rf"{_DIVERGENCES[expression.func]}({latex(first)}\|{latex(second)})"
