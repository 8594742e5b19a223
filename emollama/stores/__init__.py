"""Where arrays lie: .npy folders, packed shards, tar shards, read alike by clip name; and how shards are written."""
