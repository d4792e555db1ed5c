"""Numbers that are exact where they are rational, and enclosed between two bounds where they are not.

Source: interval arithmetic (mpmath's `iv`): an interval that holds the value and excludes zero is a proof.
"""

from fractions import Fraction

from mpmath import iv
from mpmath.libmp.libmpi import mpi_atan

from proofs.exact import NoValueError

iv.prec = 160
_NARROW = Fraction(1, 10**25)


class Real:
    """A rational number, or an interval that holds the number. Source: ours."""

    __slots__ = ("value",)

    def __init__(self, value: Fraction | int | iv.mpf) -> None:
        """Take a number or an interval. Source: ours."""
        self.value = Fraction(value) if isinstance(value, int) else value

    @property
    def interval(self) -> iv.mpf:
        """The number as an interval."""
        value = self.value
        return iv.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value

    def _both(self, other: "Real") -> bool:
        return isinstance(self.value, Fraction) and isinstance(other.value, Fraction)

    def __add__(self, other: "Real") -> "Real":
        """Return the sum. Source: definition."""
        return Real(self.value + other.value if self._both(other) else self.interval + other.interval)

    def __neg__(self) -> "Real":
        """Return the negative. Source: definition."""
        return Real(-self.value)

    def __sub__(self, other: "Real") -> "Real":
        """Return the difference. Source: definition."""
        return self + -other

    def __mul__(self, other: "Real") -> "Real":
        """Return the product. Source: definition."""
        if any(isinstance(x, Fraction) and x == 0 for x in (self.value, other.value)):
            return Real(0)
        return Real(self.value * other.value if self._both(other) else self.interval * other.interval)

    def power(self, exponent: Fraction) -> "Real":
        """Return a power. Source: definition."""
        if exponent.denominator == 1:
            if isinstance(self.value, Fraction):
                return Real(self.value ** int(exponent))
            return Real(self.value ** int(exponent))
        if self.sign() == -1:
            raise NoValueError("a root of a negative number was asked for.")
        if exponent.denominator == 2:
            return Real(iv.sqrt(self.interval) ** exponent.numerator)
        return (self.log() * Real(exponent)).exp()

    def log(self) -> "Real":
        """Return the logarithm. Source: definition."""
        if self.sign() in (0, -1):
            raise NoValueError("the logarithm of no positive number was asked for.")
        return Real(0) if self.value == 1 else Real(iv.log(self.interval))

    def exp(self) -> "Real":
        """Return the exponential. Source: definition."""
        return Real(1) if isinstance(self.value, Fraction) and self.value == 0 else Real(iv.exp(self.interval))

    def asin(self) -> "Real":
        """Return the arcsine, of a number between −1 and 1. Source: asin x = atan(x/√(1 − x²))."""
        tangent = self * (Real(1) - self * self).power(Fraction(-1, 2))
        return Real(iv.make_mpf(mpi_atan(tangent.interval._mpi_, iv.prec)))

    def sign(self) -> int | None:
        """Return the sign, or None where the interval leaves it open. Source: ours."""
        if isinstance(self.value, Fraction):
            return (self.value > 0) - (self.value < 0)
        return 1 if self.value.a > 0 else -1 if self.value.b < 0 else None

    def is_near_zero(self) -> bool:
        """Return whether zero is within the bounds, and those are close. Source: ours."""
        if isinstance(self.value, Fraction):
            return self.value == 0
        return bool(self.value.a <= 0 <= self.value.b and self.value.b - self.value.a < float(_NARROW))
