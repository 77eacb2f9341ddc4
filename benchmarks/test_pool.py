"""Max-pool with the winners' places, and its gradient, on the pools of the digits and CIFAR-10 networks."""

from benchmarks.conftest import contest
from fastconv.bench.case import MAX_POOLS


@contest("networks", MAX_POOLS)
def test_pool(report, case, path):
    report(case, path)
