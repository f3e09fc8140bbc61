"""Annealing schedules: the weight of the tuned model as a function of sampling progress.

Annealed importance guidance (arXiv 2409.06493) mixes the predictions of the base and the tuned model at each step,

    eps = (1 - w) eps_base(x_t, c) + w eps_tuned(x_t, c),    w = schedule(u),

with progress u = i/T at step i of T (i = 0 is pure noise): sampling explores like the base model first and converges
like the tuned model last. In the `time` domain u = 1 - t/t_max instead, which differs on every non-uniform grid.
If p_tuned is p_base exp(r/lambda), weight w samples like p_base exp(w r/lambda): a schedule is a KL weight per step,
and one above 1 goes beyond the tuned model (RLG, arXiv 2508.21016).
"""

from aig.schedules.curves import (
    DOMAINS,
    MOST,
    REACH,
    Curve,
    Schedule,
    auto_ramp,
    auto_weight,
    base,
    coin,
    constant,
    from_callable,
    in_domain,
    join,
    level,
    linear,
    mix,
    piecewise,
    power,
    ramp,
    step,
    times,
    tuned,
    weights,
)  # fmt: skip
from aig.schedules.text import (
    PLAIN,
    WITH_NUMBER,
    WITH_TEXT,
    as_schedule,
    fitted,
    format_name,
    parse,
    read,
    write,
)  # fmt: skip

__all__ = [
    "DOMAINS", "MOST", "PLAIN", "REACH", "WITH_NUMBER", "WITH_TEXT", "Curve", "Schedule", "as_schedule", "auto_ramp",
    "auto_weight", "base", "coin", "constant", "fitted", "format_name", "from_callable", "in_domain", "join", "level",
    "linear", "mix", "parse", "piecewise", "power", "ramp", "read", "step", "times", "tuned", "weights", "write",
]  # fmt: skip
