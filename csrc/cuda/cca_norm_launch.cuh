// From a CcaCall to kernels.
#pragma once

#include "cca_attention.cuh"
#include "cca_norm.cuh"
#include "cca_norm.h"
#include "map_launch.cuh"
#include "partials.cuh"

namespace fastsr::cuda {

constexpr unsigned kCcaSteps = 8;  // pixels that a thread of a pass that writes a map takes

// Parts that the pixels of an image are divided into: as many CTAs as there are sums, whatever the batch.
inline unsigned cca_parts(const CcaCall& call) {
  const int64_t pixels = call.x.size[2] * call.x.size[3], least = kWalkThreads / lanes_of(call.x.size[1]);
  const int64_t wanted = parts_of_image(call.x.size[0]), most = (pixels + least - 1) / least;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

// Gradients of the parameters, then three terms per channel.
inline int64_t cca_line(const CcaCall& call) {
  const int64_t c = call.x.size[1], r = call.hidden;
  return 2 * c * r + r + 6 * c;
}

// Where things lie in the workspace, in bytes.
struct CcaScratch {
  int64_t scale, parts, rows, end;
};
inline CcaScratch cca_scratch(const CcaCall& call, bool backward) {
  const int64_t n = call.x.size[0], c = call.x.size[1], number = sizeof(float);
  Sections sections;
  CcaScratch at{};
  at.scale = sections.take(n * c * number);
  at.parts = sections.take(n * cca_parts(call) * (backward ? 3 : 2) * c * number);
  at.rows = sections.take(backward ? n * cca_line(call) * number : 0);
  at.end = sections.end;
  return at;
}

inline Parameter cca_parameter(const CcaCall& call, int i) {
  return {call.parameters[i], static_cast<int>(call.parameter_dtype)};
}

template <class T>
Cca<T> cca_of(const CcaCall& call, const CcaScratch& at) {
  Cca<T> a{};
  char* workspace = static_cast<char*>(call.workspace);
  a.x = map_of<T>(call.x);
  a.moments = a.sums = reinterpret_cast<float*>(workspace + at.parts);
  a.scale = reinterpret_cast<float*>(workspace + at.scale);
  a.gamma = cca_parameter(call, 4), a.beta = cca_parameter(call, 5);
  a.line = cca_line(call);
  a.eps = static_cast<float>(call.eps);
  a.pixels = static_cast<unsigned>(call.x.size[2] * call.x.size[3]);
  a.w = static_cast<int>(call.x.size[3]);
  const unsigned parts = cca_parts(call);
  a.part = (a.pixels + parts - 1) / parts;
  a.parts = (a.pixels + a.part - 1) / a.part;
  a.chunk = kCcaSteps * kWalkThreads / lanes_of(call.x.size[1]);
  a.chunks = (a.pixels + a.chunk - 1) / a.chunk;
  return a;
}

template <class T>
Attention attention_of(const CcaCall& call, const CcaScratch& at, const Cca<T>& cca) {
  Attention a{};
  char* workspace = static_cast<char*>(call.workspace);
  a.w0 = cca_parameter(call, 0), a.b0 = cca_parameter(call, 1);
  a.w2 = cca_parameter(call, 2), a.b2 = cca_parameter(call, 3);
  a.statistics = call.statistics;
  a.scale = reinterpret_cast<float*>(workspace + at.scale);
  a.rows = reinterpret_cast<float*>(workspace + at.rows);
  a.line = cca.line;
  a.c = static_cast<int>(call.x.size[1]), a.hidden = static_cast<int>(call.hidden);
  a.pixels = cca.pixels, a.part = cca.part, a.parts = cca.parts;
  return a;
}

inline cudaError_t start_attention(void (*kernel)(Attention), const CcaCall& call, const Attention& a,
                                   cudaStream_t stream) {
  return launch(kernel, call.x.size[0], kAttentionThreads, attention_shared(a.c, a.hidden), stream, a);
}

}  // namespace fastsr::cuda
