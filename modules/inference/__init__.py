"""Binary networks at inference: bits, programs of steps, and the compiled kernels that execute them."""
