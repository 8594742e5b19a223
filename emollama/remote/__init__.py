"""Files at remote locations: how they are downloaded, and the copies that are kept of them."""
