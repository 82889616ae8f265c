"""Building blocks of binary networks: binarizers, the binary convolution, IRes, IRec and CIRec."""
