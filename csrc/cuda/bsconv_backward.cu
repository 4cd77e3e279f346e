// The backward of bsconv and of its stage: two passes over the tiles and the sums of partial sums; three launches.
#include "bsconv_backward.cuh"
#include "bsconv_launch.cuh"
#include "map_launch.cuh"
#include "partials.cuh"

namespace fastsr::cuda {
namespace {

struct BsconvScratch {
  int64_t g, gd, taps, matrix, matrix_row;
  Sections sections;
  int parts;
};

BsconvScratch bsconv_scratch(const BsconvCall& call) {
  const int64_t k = call.y.size[1], c = call.x.size[1], bytes = call.dtype == kFloat32 ? 4 : 2;
  const int64_t d = call.distil ? call.distilled.size[1] : 0;
  const int rows = call.dtype == kFloat32 ? ForwardMix<float>::kRows : ForwardMix<Half>::kRows;
  const int64_t tiles = tiles_of(call.x, rows).count;
  const bool needs_g = call.activation != kNone && !call.d_shortcut.data;
  BsconvScratch at{};
  at.parts = static_cast<int>(tiles < kMaxParts ? tiles : kMaxParts);
  at.g = at.sections.take(needs_g ? elements_of(scratch_view(nullptr, call.x, k)) * bytes : 0);
  at.gd = at.sections.take(d > 0 ? elements_of(scratch_view(nullptr, call.x, d)) * bytes : 0);
  at.taps = at.sections.take(at.parts * 10 * k * 4);
  at.matrix_row = (k + d) * c + d;
  at.matrix = at.sections.take(at.parts * at.matrix_row * 4);
  return at;
}

template <class T, int N, bool Stage>
cudaError_t bsconv_passes(const BsconvFilters<T>& filters, const BsconvInput<T>& input, int parts,
                          cudaStream_t stream) {
  constexpr int kFilters = bsconv_filters_shared<T, Stage>(), kInput = bsconv_input_shared<T, Stage>();
  static_assert(kFilters <= 99 * 1024 && kInput <= 99 * 1024);
  const cudaError_t error = launch(bsconv_filters_kernel<T, N, Stage>, parts, kMixThreads, kFilters, stream, filters);
  if (error != cudaSuccess) return error;
  return launch(bsconv_input_kernel<T, N, Stage>, parts, kMixThreads, kInput, stream, input);
}

template <class T>
cudaError_t bsconv_backward_as(const BsconvCall& call, cudaStream_t stream) {
  const BsconvScratch at = bsconv_scratch(call);
  char* workspace = static_cast<char*>(call.workspace);
  BsconvFilters<T> filters{};
  fill_bsconv<T>(filters, call);
  filters.dw_bias = Parameter{call.dw_bias, static_cast<int>(call.parameter_dtype)};
  filters.grad = pixel_map<T>(call.y);
  filters.activation = static_cast<int>(call.activation);
  filters.partials = reinterpret_cast<float*>(workspace + at.taps);
  if (call.activation != kNone) {
    if (call.shortcut.data) filters.shortcut = pixel_map<T>(call.shortcut);
    filters.g =
        pixel_map<T>(call.d_shortcut.data ? call.d_shortcut : scratch_view(workspace + at.g, call.x, call.y.size[1]));
  }
  BsconvInput<T> input{};
  fill_bsconv<T>(input, call);
  input.g = filters.g.data ? filters.g : filters.grad;
  input.dx = pixel_map<T>(call.dx);
  input.partials = reinterpret_cast<float*>(workspace + at.matrix);
  cudaError_t error = cudaSuccess;
  if (call.distil) {
    const TensorView gd = scratch_view(workspace + at.gd, call.x, call.distilled.size[1]);
    filters.distil = input.distil = Parameter{call.distil, static_cast<int>(call.parameter_dtype)};
    filters.distil_bias = Parameter{call.distil_bias, static_cast<int>(call.parameter_dtype)};
    filters.grad_distilled = map_of<T>(call.distilled), filters.gd = map_of<T>(gd);
    input.gd = pixel_map<T>(gd);
    input.d = filters.grad_distilled.channels;
    error = bsconv_passes<T, 4, true>(filters, input, at.parts, stream);
  } else {
    error = input.k <= 32 ? bsconv_passes<T, 2, false>(filters, input, at.parts, stream)
                          : bsconv_passes<T, 4, false>(filters, input, at.parts, stream);
  }
  if (error != cudaSuccess) return error;

  const int64_t k = input.k, c = input.c, d = input.d, row = at.matrix_row;
  PartialSums sums{};
  sums.parts = at.parts;
  sums.dtype = static_cast<int>(call.parameter_dtype);
  int count = 0;
  add_sum(sums, &count, {filters.partials, call.d_dw, 9 * k, 9 * k, 0, 0, 10 * k});
  add_sum(sums, &count, {filters.partials, call.d_bias, k, k, 0, 9 * k, 10 * k});
  add_sum(sums, &count, {input.partials, call.d_pw, k * c, k * c, 0, 0, row});
  if (d > 0) {
    add_sum(sums, &count, {input.partials, call.d_distil, d * c, d * c, 0, k * c, row});
    add_sum(sums, &count, {input.partials, call.d_distil_bias, d, d, 0, (k + d) * c, row});
  }
  return sum_partials(sums, count, stream);
}

}  // namespace

int64_t bsconv_workspace(const BsconvCall& call) { return bsconv_scratch(call).sections.end; }

cudaError_t bsconv_backward(const BsconvCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32,
                      [&](auto type) { return bsconv_backward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
