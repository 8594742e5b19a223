"""Storage of feature arrays: .npy folders, packed shards and tar shards behind one reader interface, and their writers."""
