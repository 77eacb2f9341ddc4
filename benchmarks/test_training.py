"""Training steps of the digits and CIFAR-10 networks."""

from benchmarks.conftest import contest


@contest("training")
def test_training(report, case, path):
    report(case, path)
