"""How sure a result is: the spread of several, and whether two that belong in pairs differ by chance."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Of n values: the mean; and from two on, the standard deviation (over n - 1) and the 95 % interval of the mean."""

    n: int
    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None


def spread(values: Sequence[float]) -> Spread:
    """The interval is Student's: mean ± t(0.975, n - 1) std / sqrt(n)."""
    from scipy import stats

    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Spread(n, mean)
    std = statistics.stdev(values)
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Spread(n, mean, std, (mean - half, mean + half))


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of `n` were seen; within [0, 1], and of use at either end of it.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical
    Association 22 (1927).
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    centre = (right + z * z / 2) / (n + z * z)
    half = z * math.sqrt(right * (n - right) / n + z * z / 4) / (n + z * z)
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class Difference:
    """Of the accuracy, the second less the first, with its 95 % interval; and how likely one as large is by chance."""

    mean: float
    interval: tuple[float, float]
    p: float

    def __str__(self) -> str:
        low, high = self.interval
        return f"accuracy {self.mean:+.4f} (95 % {low:+.4f} to {high:+.4f}), p = {self.p:.3g}"


def mcnemar(only_first: int, only_second: int, images: int) -> Difference:
    """Whether two classifiers differ on the same images, of which each alone was right on so many.

    If they do not, the images on which one alone is right are fair coins: Q. McNemar, "Note on the
    sampling error of the difference between correlated proportions", Psychometrika 12 (1947), here
    with the binomial distribution itself. The interval is that of A. Agresti and Y. Min, "Simple
    improved confidence intervals for comparing matched proportions", Statistics in Medicine 24
    (2005): Wald's, with half an image more in each of the four cells.
    """
    from scipy import stats

    apart = only_first + only_second
    p = float(stats.binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0
    centre = (only_second - only_first) / (images + 2)
    half = statistics.NormalDist().inv_cdf(0.975) * math.sqrt((apart + 1) / (images + 2) - centre**2) / math.sqrt(images + 2)
    return Difference((only_second - only_first) / images, (max(centre - half, -1.0), min(centre + half, 1.0)), p)


def paired_t(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Student's t-test of the differences, seed by seed."""
    from scipy import stats

    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = spread(differences)
    assert found.std is not None
    assert found.interval is not None
    if found.std == 0:  # no chance in it
        return Difference(found.mean, found.interval, float(found.mean == 0))
    t = found.mean / (found.std / math.sqrt(found.n))
    return Difference(found.mean, found.interval, 2 * float(stats.t.sf(abs(t), found.n - 1)))
