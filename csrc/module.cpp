// fastsr._C: what the binaries were built with. The operators live in their own libraries on torch's stable ABI.
#include <pybind11/pybind11.h>

#if defined(__clang__)
#define FASTSR_COMPILER ""
#else
#define FASTSR_COMPILER "GCC "
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = FASTSR_COMPILER __VERSION__;
    info["torch"] = FASTSR_TORCH;
    info["cuda"] = FASTSR_CUDA;
    info["cuda_code"] = FASTSR_CUDA_CODE;
    return info;
  });
}
