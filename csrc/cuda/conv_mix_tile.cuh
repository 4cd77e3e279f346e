// Tiles of 64 channels in shared memory and the weights of 1x1 convolutions of them: what the kernels of conv_mix and
// bsconv have in common, beside own_pixels.cuh and depthwise.cuh.
#pragma once

#include "depthwise.cuh"
#include "gelu.cuh"
#include "tf32.cuh"

namespace fastsr::cuda {

constexpr int kMixThreads = 256, kMixWarps = kMixThreads / 32, kMixChannels = 64;

// R rows of 16 pixels. A warp owns the 2 R pixels from 2 R * warp on, which lie in one row, and 2 columns.
template <class Number, int R>
struct MixTile {
  using T = Number;
  static constexpr int kRows = R, kPixels = R * kTileColumns, kOwn = kPixels / kMixWarps;
  static constexpr int kHaloColumns = kTileColumns + 2, kHaloPixels = (R + 2) * kHaloColumns;
  static constexpr int kPitch = kMixChannels + 16 / static_cast<int>(sizeof(T));  // of a pixel
  static constexpr int kSize = kPixels * kPitch, kHaloSize = kHaloPixels * kPitch;

  __device__ __forceinline__ static int own() { return threadIdx.x / 32 * kOwn; }
  __device__ __forceinline__ static int own_row() { return own() / kTileColumns; }
  __device__ __forceinline__ static int own_column() { return own() % kTileColumns; }
};

// float32's tiles are as high as the shared memory of every architecture allows.
template <class T>
using ForwardMix = MixTile<T, sizeof(T) == 2 ? 8 : 4>;

// ---- 1x1 convolutions. Weights: fragments [16 inputs, 8 in TF32][16 outputs][lane][4], or [input][output] in float32.

template <class T>
constexpr int mix_pitch = kMixChannels + 2;  // of an input in float32

template <class T>
constexpr int kMatrixWords =
    kTensorCores<T> ? kMixChannels * kMixChannels * static_cast<int>(sizeof(T)) / 4 : kMixChannels * mix_pitch<T>;

// Which outputs a lane ends up with. Weights may be either operand of a product: as B an output is a column, and lane t
// has two adjacent ones of every eight; as A a row, and lane g has rows g and g + 8.
enum class Order {
  kAsItIs,
  kEightOfColumns,  // 8 t to 8 t + 7 of every 32
  kTwoOfRows,       // 2 g and 2 g + 1 of every 16
  kFourOfRows       // 4 g to 4 g + 3 of every 32
};

template <Order O>
constexpr bool are_rows = O == Order::kTwoOfRows || O == Order::kFourOfRows;

// The output that is column (or row) `i` of packed weights.
template <Order O>
__device__ __forceinline__ int output_at(int i) {
  if constexpr (O == Order::kEightOfColumns) return i / 32 * 32 + i % 8 / 2 * 8 + i / 8 % 4 * 2 + i % 2;
  if constexpr (O == Order::kTwoOfRows) return i / 16 * 16 + i % 8 * 2 + i / 8 % 2;
  if constexpr (O == Order::kFourOfRows) return i / 32 * 32 + i % 8 * 4 + i / 8 % 4;
  return i;
}

// [outputs][inputs] or, transposed, [inputs][outputs]; zeros up to 64 x 64. float32 knows no order.
template <class T, Order O = Order::kAsItIs>
__device__ __forceinline__ void pack_matrix(const Parameter& p, int outputs, int inputs, bool transposed,
                                            uint32_t* to) {
  const int output_step = transposed ? 1 : inputs, input_step = transposed ? outputs : 1;
  p.typed([&](const auto* weights) {
    const auto at = [&](int output, int input) {
      return output < outputs && input < inputs ? to_float(weights[output * output_step + input * input_step]) : 0.f;
    };
    if constexpr (kTensorCores<T>) {
      constexpr int kOfWord = 4 / static_cast<int>(sizeof(T)), kOfRow = kMixChannels / kOfWord;
#pragma unroll 2
      for (int i = threadIdx.x; i < kMatrixWords<T>; i += kMixThreads) {
        // Neighbouring lanes read neighbours in memory.
        const int of_row = transposed ? i / kMixChannels : i % kOfRow;
        const int column = transposed ? i % kMixChannels : i / kOfRow;
        const int input = kOfWord * of_row, output = output_at<O>(column);
        const int lane = column % 8 * 4 + of_row % 4, second = column / 8 % 2, behind = of_row / 4 % 2;
        const int word = are_rows<O> ? 2 * behind + second : 2 * second + behind;  // a0 to a3, or two times b0 and b1
        uint32_t& word_of = to[(of_row / 8 * 4 + column / 16) * 128 + 4 * lane + word];
        if constexpr (kOfWord == 2)
          word_of = pack2<T>(at(output, input), at(output, input + 1));
        else
          word_of = to_tf32(at(output, input));
      }
    } else {
#pragma unroll 2
      for (int i = threadIdx.x; i < kMixChannels * kMixChannels; i += kMixThreads) {
        const int input = i % kMixChannels, output = i / kMixChannels;
        to[input * mix_pitch<T> + output] = __float_as_uint(at(output, input));
      }
    }
  });
}

__device__ __forceinline__ void pack_bias(const Parameter& p, int count, float* to) {
  if (threadIdx.x < kMixChannels) to[threadIdx.x] = static_cast<int>(threadIdx.x) < count ? p[threadIdx.x] : 0.f;
}

// A lane's weights as A of a product in TF32, from what `pack_matrix` has packed: 16 outputs, 8 inputs.
struct PackedRows {
  const uint32_t* words;

  __device__ __forceinline__ uint4 operator()(int block, int step) const {
    return reinterpret_cast<const uint4*>(words)[(4 * step + block) * 32 + threadIdx.x % 32];
  }
};

// In TF32: adds products of a warp's eight pixels `from`, the columns, with blocks of 16 outputs, whose weights are
// rows(block, step). sum[block]: rows g and g + 8 of pixels 2 t and 2 t + 1, as g, g, g + 8, g + 8.
template <class M, int Blocks, class Rows, class T = typename M::T>
__device__ __forceinline__ void multiply_columns(const T* from, Rows rows, int inputs, float (&sum)[Blocks][4]) {
  const int lane = threadIdx.x % 32;
  from += lane % 8 * M::kPitch + lane / 8 * 4;
#pragma unroll 1
  for (int c = 0; c < inputs; c += 16) {
    uint32_t b[4];  // 16 channels
    load_matrices(b, from + c);
    for_product<T>(b);
#pragma unroll
    for (int n = 0; n < Blocks; ++n)
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint4 a = rows(n, c / 8 + step);
        mma_tf32(sum[n], a.x, a.y, a.z, a.w, b[2 * step], b[2 * step + 1]);
      }
  }
}

}  // namespace fastsr::cuda
