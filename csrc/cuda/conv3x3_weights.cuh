// The weights of a 3x3 convolution in shared memory, in the order in which its kernel reads them.
//
// Each CTA writes them itself, once for all of its tiles: a kernel that packs would be one launch more per call, and a
// copy that outlives the call could be out of date.
#pragma once

#include "parameter.cuh"
#include "tf32.cuh"

namespace fastsr::cuda {

// [outputs][inputs][3][3]; transposed, the adjoint of the convolution with [inputs][outputs][3][3].
struct Conv3x3Weights {
  Parameter data;
  int outputs, inputs, transposed;
};

// Channels in at a time: 73 KB of weights for 64 channels out, or 38 KB.
template <class T>
constexpr int conv_inputs = kTensorCores<T> ? 128 / static_cast<int>(sizeof(T)) : 16;

// float32: [input][tap][output], inputs apart by so much that they begin on different banks.
__host__ __device__ constexpr int conv_float_pitch(int n) { return 9 * 16 * n + 4; }

// 32-bit words for 16 * `n` channels out.
template <class T>
__host__ __device__ constexpr int conv_weight_words(int n) {
  return kTensorCores<T> ? conv_inputs<T> / product_depth<T> * 9 * n * 128 : conv_inputs<T> * conv_float_pitch(n);
}

// Filters on their way to their order: in shared memory, behind the weights, as they lie in global memory. Neighbouring
// filters are 18 or 36 bytes apart there, and those of neighbouring rows much more: lanes that each read a filter would
// touch every line 9 times and more.
//
// A block is what one product takes of the inputs. Its rows are the outputs or, transposed, the inputs.
template <class T, int N>
struct FiltersAsTheyLie {
  static constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));
  static constexpr int kDepth = kTensorCores<T> ? product_depth<T> : 4;  // inputs of a block
  static constexpr int kBlocks = conv_inputs<T> / kDepth;
  int transposed;

  // Numbers from row to row: what a warp reads at a time is on different banks.
  __host__ __device__ constexpr int pitch() const {
    return transposed ? 9 * 16 * N + 8 : 9 * kDepth + (kTensorCores<T> ? 4 * kOfWord : 1);
  }
  __host__ __device__ constexpr int block() const { return (transposed ? kDepth : 16 * N) * pitch(); }
  // Where the first begins if all end behind `numbers`.
  __host__ __device__ constexpr int begin(int numbers) const { return numbers - kBlocks * block(); }
  // Whether `together` blocks at a time find their place as weights without reaching any that are still to be packed.
  __host__ __device__ static constexpr bool fits(int numbers, int together) {
    constexpr int kPacked = conv_weight_words<T>(N) / kBlocks * kOfWord;
    for (const int transposed : {0, 1}) {
      const FiltersAsTheyLie f{transposed};
      for (int b = 0; b < kBlocks; b += together)
        if (f.begin(numbers) + b * f.block() < (b + together) * kPacked) return false;
    }
    return true;
  }
};

// Two numbers, as 16 bits of T each, in one register.
template <class T, class P>
__device__ __forceinline__ uint32_t packed_pair(const P& low, const P& high) {
  if constexpr (__is_same(T, P))
    return reinterpret_cast<const uint16_t&>(low) | static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(high))
                                                        << 16;
  else
    return pack2<T>(to_float(low), to_float(high));
}

// Outputs from k0 on, inputs [c0, c0 + channels); zeros for the rest of `blocks` blocks. `wait_for_copies` and a
// barrier must follow. The lanes of a warp have neighbouring words, and go down its rows.
template <class T, int N, int Threads>
__device__ __forceinline__ void copy_filters(const Conv3x3Weights& w, int k0, int c0, int channels, int blocks, T* to) {
  using F = FiltersAsTheyLie<T, N>;
  constexpr int kWarps = Threads / 32, kFew = 16 * N < conv_inputs<T> ? 16 * N : conv_inputs<T>;
  // Rows of a warp whose loads overlap. The room is for a multiple of them: those beyond the last become zeros.
  constexpr int kTogether = kFew / kWarps < 8 ? kFew / kWarps : 8;
  const F f{w.transposed};
  const bool t = w.transposed;
  const int length = 9 * (t ? w.outputs : w.inputs), pitch = f.pitch();
  const int rows = t ? blocks * F::kDepth : 16 * N, given_rows = t ? channels : w.outputs - k0;
  const int numbers = 9 * (t ? 16 * N : blocks * F::kDepth), given = 9 * (t ? w.outputs - k0 : channels);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  w.data.typed([&](const auto* filters) {
    using P = std::remove_cv_t<std::remove_pointer_t<decltype(filters)>>;
    const P* first = filters + static_cast<int64_t>(t ? c0 : k0) * length + 9 * (t ? k0 : c0);
    const auto each_word = [&](auto copy) {  // copy(to, from, is the word inside, and its second number)
#pragma unroll 1
      for (int i = lane * F::kOfWord; i < numbers; i += 32 * F::kOfWord) {
        const int block = t ? 0 : i / (9 * F::kDepth);
        const P* from = first + static_cast<int64_t>(warp) * length + i;
        T* at = to + block * (f.block() - 9 * F::kDepth) + warp * pitch + i;
#pragma unroll 1
        for (int row = warp; row < rows; row += kTogether * kWarps)
#pragma unroll
          for (int j = 0; j < kTogether; ++j, from += kWarps * length, at += kWarps * pitch)
            copy(at, from, row + j * kWarps < given_rows && i < given, i + 1 < given);
      }
    };
    if constexpr (__is_same(P, Stored<T>)) {
      // An even row begins on four bytes, if the first does.
      if (F::kOfWord == 1 || (length % 2 == 0 && reinterpret_cast<uintptr_t>(filters) % 4 == 0)) {
        each_word([](T* at, const P* from, bool inside, bool) { copy_async<4>(at, from, inside); });
        return;
      }
    }
    // What is invalid is read from the beginning and then masked: a selection around every load is a branch each.
    if constexpr (F::kOfWord == 2 || !__is_same(P, Stored<T>))
      each_word([&](T* at, const P* from, bool inside, bool both) {
        const uint32_t mask = !inside ? 0u : both || F::kOfWord == 1 ? 0xffffffffu : 0xffffu;
        uint32_t& word = *reinterpret_cast<uint32_t*>(at);
        if (!inside) from = filters;
        if constexpr (F::kOfWord == 2)
          word = mask & packed_pair<T>(from[0], from[both ? 1 : 0]);
        else
          word = mask & __float_as_uint(to_float(*from));
      });
  });
}

// Outputs from k0 on, inputs [c0, c0 + channels) and zeros up to the next multiple of 16 (of 8 in TF32, 4 in float32).
// All threads call this. They may use `Bytes` from `to` on; what is behind the weights is free when it returns.
template <class T, int N, int Threads, int Bytes>
__device__ __forceinline__ void pack_conv_weights(const Conv3x3Weights& w, int k0, int c0, int channels, uint32_t* to) {
  using F = FiltersAsTheyLie<T, N>;
  constexpr int kWarps = Threads / 32, kNumbers = Bytes / static_cast<int>(sizeof(T));
  constexpr int kTogether = kTensorCores<T> ? kWarps / N : 1;
  static_assert(kWarps % N == 0 && F::fits(kNumbers, kTogether));
  const F f{w.transposed};
  const int blocks = (channels + F::kDepth - 1) / F::kDepth, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int output_step = w.transposed ? 9 : f.pitch(), input_step = w.transposed ? f.pitch() : 9;
  const int turn = w.transposed ? 8 : 0, step = w.transposed ? -1 : 1;
  T* raw = reinterpret_cast<T*>(to) + f.begin(kNumbers);
  copy_filters<T, N, Threads>(w, k0, c0, channels, blocks, raw);
  wait_for_copies();
  __syncthreads();
#pragma unroll 1
  for (int b = 0; b < blocks; b += kTogether, raw += kTogether * f.block()) {
    if constexpr (kTensorCores<T>) {
      // Fragments: [block][tap][16 outputs][lane][4]. A lane packs its own, of 16 outputs and all taps.
      const int block = b + warp / N;
      const T* from =
          raw + warp / N * f.block() + (warp % N * 16 + lane / 4) * output_step + lane % 4 * F::kOfWord * input_step;
      uint4* at = reinterpret_cast<uint4*>(to) + ((block * 9 + turn) * N + warp % N) * 32 + lane;
      if (block < blocks) {
#pragma unroll
        for (int tap = 0; tap < 9; ++tap, at += step * N * 32) {
          uint32_t word[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const T* number = from + i / 2 * 8 * output_step + i % 2 * 4 * F::kOfWord * input_step + tap;
            if constexpr (F::kOfWord == 2)
              word[i] = packed_pair<T>(number[0], number[input_step]);
            else
              word[i] = to_tf32(to_float(*number));
          }
          *at = make_uint4(word[0], word[1], word[2], word[3]);
        }
      }
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < 16 * N * F::kDepth; i += Threads) {
        const int output = i % (16 * N), input = i / (16 * N);
        const T* from = raw + output * output_step + input * input_step;
        uint32_t* at = to + (b * F::kDepth + input) * conv_float_pitch(N) + turn * 16 * N + output;
#pragma unroll
        for (int tap = 0; tap < 9; ++tap, at += step * 16 * N) *at = __float_as_uint(from[tap]);
      }
    }
    __syncthreads();
  }
}

}  // namespace fastsr::cuda
