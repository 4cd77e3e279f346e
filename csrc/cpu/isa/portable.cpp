#include "table.h"
#define FASTSR_VECTOR_BYTES 16
#define FASTSR_TABLE table_portable
#include "kernels.inl"
