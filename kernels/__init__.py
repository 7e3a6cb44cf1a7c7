"""Triton kernels, one op a file. Only ever imported as `pfengine.kernels`.

`kernels` alone is the name of Hugging Face's package: the root of this repository must never be on sys.path.
"""
