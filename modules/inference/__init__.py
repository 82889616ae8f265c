"""Binary networks at inference: XOR and popcount, fused full precision, and the kernels of both."""
