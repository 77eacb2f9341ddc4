"""What a convolution sees: a vertical-edge filter on a bright bar, then ReLU and max-pool."""

import numpy as np

from fastconv import functional as F

image = np.float32([[0, 0, 255, 255, 0]] * 4 + [[0] * 5]).reshape(1, 1, 5, 5)
edge = np.float32([[-1, 0, 1]] * 3).reshape(1, 1, 3, 3)
feature_map = F.conv2d(image, edge)
pooled, winners = F.max_pool2d(F.relu(feature_map), 2, return_indices=True)
print(feature_map[0, 0])  # +765 where dark turns bright, -765 where bright turns dark
print(F.relu(feature_map)[0, 0])  # only the edges this filter looks for
print(pooled[0, 0], "from flat index", winners[0, 0])
