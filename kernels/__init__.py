"""Triton kernels, one file per operator. Installed as `fastsr.kernels`; nothing here is imported without Triton."""
