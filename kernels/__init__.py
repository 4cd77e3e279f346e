"""Triton kernels, one file per operator. Installed as `fastsr.kernels`; nothing here is imported without Triton.

A file reads top to bottom: constants, kernels, launchers. The launchers `<op>` and `<op>_backward` have the arguments
and results of the operators of these names; checks and autograd are in fastsr/ops/<op>.py. Prefixes: `i_` an index,
`o_` offsets, `m_` a mask, `p_` pointers, `b_` a block of values in registers; strides come as (n, c, h, w).
"""
