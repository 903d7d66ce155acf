"""Who sees whom, over tensors: masks, caches, plans and backends."""
