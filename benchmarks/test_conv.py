"""Convolution and its gradients on the layers of the digits and CIFAR-10 networks."""

from benchmarks.conftest import contest
from fastconv.bench.case import CONVOLUTIONS


@contest("networks", CONVOLUTIONS)
def test_conv(report, case, path):
    report(case, path)
