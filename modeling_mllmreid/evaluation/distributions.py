"""Student's t and the beta distribution, by the incomplete beta function: evaluation and training need no scipy."""

import math

ROUNDING = 1e-15


def beta_cdf(x: float, a: float, b: float) -> float:
    """The probability of at most x under the beta distribution of a and b, both above 0.

    Source: DLMF 8.17.22, its continued fraction by Lentz's method, where it converges fast: below the mean.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    value = fraction = 1 / _away_from_0(1 - (a + b) * x / (a + 1))
    above, step = 1.0, 0
    change = 0.0
    while abs(change - 1) > ROUNDING and step < 100_000:
        step += 1
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        change = 1.0
        for term in (even, odd):
            fraction = 1 / _away_from_0(1 + term * fraction)
            above = _away_from_0(1 + term / above)
            change *= fraction * above
        value *= change
    return math.exp(_log_front(x, a, b)) * value / a


def beta_quantile(share: float, a: float, b: float) -> float:
    """The x at which `beta_cdf` is this share: Newton's steps, halving the bracket where a step would leave it."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(200):
        difference = beta_cdf(x, a, b) - share
        low, high = (low, x) if difference > 0 else (x, high)
        density = math.exp(_log_front(x, a, b)) / (x * (1 - x))
        new = x - difference / density if density else low
        new = new if low < new < high else (low + high) / 2
        if abs(new - x) <= ROUNDING * x:
            break
        x = new
    return x


def t_p_value(t: float, freedom: float) -> float:
    """The two-sided p-value of a t-statistic."""
    return beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(share: float, freedom: float) -> float:
    """The t below which lies this share of the distribution, at least 0.5 and below 1; freedom at least 1."""
    y = beta_quantile(2 * share - 1, 0.5, freedom / 2)
    return math.sqrt(freedom * y / (1 - y))


def _log_front(x: float, a: float, b: float) -> float:
    """The logarithm of x^a (1 - x)^b / B(a, b)."""
    return math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)


def _away_from_0(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
