#include "cca_norm.h"
#include "esa_cca.cuh"
#include "esa_cca.h"
#include "esa_launch.cuh"

namespace fastsr::cuda {
namespace {

// Two CTAs of the gate on each of 132 multiprocessors. The number does not depend on the device, nor do the results.
constexpr int64_t kMostMomentParts = 264;

unsigned part_of(const EsaCcaCall& call) {
  const int64_t pixels = call.esa.x.size[2] * call.esa.x.size[3], images = call.esa.x.size[0];
  const int64_t parts = images < kMostMomentParts ? kMostMomentParts / images : 1, tiles = product_tiles(pixels);
  return static_cast<unsigned>((tiles + parts - 1) / parts * kProductPixels);
}

// Where things lie in the workspace, in bytes.
struct EsaCcaScratch {
  EsaMaps maps;
  int64_t gated, moments, end;
};
EsaCcaScratch scratch_of(const EsaCcaCall& call) {
  const EsaCall& esa = call.esa;
  const int64_t element = esa.dtype == kFloat32 ? 4 : 2, c = esa.x.size[1];
  const int64_t pixels = esa.x.size[2] * esa.x.size[3], part = part_of(call), parts = (pixels + part - 1) / part;
  Sections sections;
  EsaCcaScratch at{};
  at.maps = esa_maps(esa, 0, sections);
  at.gated = sections.take(scratch_bytes(esa.x, c, element));
  at.moments = sections.take(esa.x.size[0] * parts * 2 * c * static_cast<int64_t>(sizeof(float)));
  at.end = sections.end;
  return at;
}

template <class S, class T>
CcaFinish<S> finish_of(const EsaCcaCall& call, const EsaMoments<T>& m, const TensorView& gated) {
  const auto parameter = [&](int i) { return Parameter{call.cca[i], static_cast<int>(call.esa.parameter_dtype)}; };
  const int64_t images = m.esa.s.n;
  CcaFinish<S> f{};
  Attention& a = f.attention;
  a.w0 = parameter(0), a.b0 = parameter(1), a.w2 = parameter(2), a.b2 = parameter(3);
  a.moments = m.moments;
  a.c = m.esa.s.c, a.hidden = static_cast<int>(call.hidden);
  a.pixels = static_cast<unsigned>(m.esa.s.h) * m.esa.s.w, a.part = m.part, a.parts = m.parts;
  Cca<S>& cca = f.cca;
  cca.x = map_of<S>(gated), cca.y = map_of<S>(call.esa.y), cca.shortcut = map_of<S>(call.shortcut);
  cca.gamma = parameter(4), cca.beta = parameter(5);
  cca.eps = static_cast<float>(call.eps);
  cca.pixels = a.pixels, cca.w = m.esa.s.w;
  const int64_t slots = kFinishThreads / lanes_of(a.c), steps = (a.pixels + slots - 1) / slots;
  const int64_t blocks = (multiprocessors() + images - 1) / images;
  f.blocks = static_cast<unsigned>(blocks < steps ? blocks : steps);
  return f;
}

template <class T>
cudaError_t forward_as(const EsaCcaCall& call, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const EsaCcaScratch at = scratch_of(call);
  char* workspace = static_cast<char*>(call.workspace);
  EsaMoments<T> m{};
  Esa<T>& a = m.esa;
  a = esa_of<T>(call.esa);
  a.out = esa_small_maps(workspace + at.maps.out, a.s);
  if (failed(start_esa_path(call.esa, a, workspace + at.maps.c1, stream))) return error;
  const TensorView gated = scratch_like(call.esa.x, workspace + at.gated, a.s.c, sizeof(T));
  a.y = map_of<T>(gated);
  m.moments = reinterpret_cast<float*>(workspace + at.moments);
  m.part = part_of(call);
  m.parts = (static_cast<unsigned>(a.s.h) * a.s.w + m.part - 1) / m.part;
  const int64_t groups = (blocks_of(a.s.c) + kMomentBlocks - 1) / kMomentBlocks;
  static_assert((kMaxCcaChannels / kBlock + 1) * (kBlock * kBlock * sizeof(T) + 4 * kBlock) + 8 * 1024 <= 99 * 1024);
  if (failed(launch(esa_moments_kernel<T>, a.s.n * m.parts * groups, kProductThreads, esa_moments_shared<T>(a.s),
                    stream, m)))
    return error;
  using S = Stored<T>;
  const CcaFinish<S> f = finish_of<S>(call, m, gated);
  return with_lanes(a.s.c, [&]<int Lanes>() {
    return launch(cca_finish_kernel<S, Lanes>, a.s.n * f.blocks, kFinishThreads,
                  cca_finish_shared(a.s.c, f.attention.hidden), stream, f);
  });
}

}  // namespace

int64_t esa_cca_forward_workspace(const EsaCcaCall& call) { return scratch_of(call).end; }

cudaError_t esa_cca_forward(const EsaCcaCall& call, cudaStream_t stream) {
  return with_numbers(call.esa.dtype, call.esa.tf32,
                      [&](auto type) { return forward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
