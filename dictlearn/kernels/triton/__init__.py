"""Triton kernels on k-sparse codes, one idea a file; `dictlearn.kernels.triton_path` uses them.

Only that module imports these, and only when it is called: triton is an optional package.
"""
