"""Triton kernels, one op per file. Always import them as `pfengine.kernels`.

`kernels` is also the name of a package of Hugging Face, so the root of this repository must not be on sys.path.
"""
