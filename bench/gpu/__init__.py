"""The GPU path measured beside its peers and below its roof: `bench/gpu.sh` runs it."""
