"""Layers in a training loop of your own: plain NumPy arrays, no Trainer."""

import numpy as np

from fastconv import nn, optim

rng = np.random.default_rng(0)
bars = np.zeros((64, 1, 8, 8), np.float32)  # a bright column on the left or on the right
labels = rng.integers(0, 2, 64)
bars[np.arange(64), 0, :, 2 + 4 * labels] = 1
bars += 0.3 * rng.standard_normal(bars.shape, np.float32)

model = nn.Sequential(nn.Conv2d(1, 8, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 2, rng=rng))
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(20):
    optimizer.zero_grad()
    loss = criterion(model(bars), labels)
    model.backward(criterion.backward(), need_input_grad=False)
    optimizer.step()

accuracy = (model.eval()(bars).argmax(axis=1) == labels).mean()
print(f"loss {loss:.4f}, accuracy {accuracy:.0%}")
