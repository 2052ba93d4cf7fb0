"""Networks with weights, one per file. Their module paths are part of the format of saved pipelines."""
