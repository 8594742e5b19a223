"""Extract features of many videos: remaining clips, distribution over processes, failures, arrays and manifests."""
