// Everything that goes into the PTX.
#include "rows.cu"
#include "gemv.cu"
#include "gemm.cu"
#include "router.cu"
#include "attention.cu"
#include "codes.cu"
