"""One file per method: prepare inputs, call `sample`, decode."""
