// Linear layers in int8 behind a C ABI; called by cpu_panels.py, defined by runtime/ops/int8.py.
//
//     y[t][o] = (Σ_k q[t][k] · w[o][k] + Σ_k f[t][k] · w[o][k] / FINE) · scale[t] · w_scale[o] + bias[o]
//
// The sums are in int32, so exact in any order. q are the coarse, f the fine parts of a token.
//
// Layout: cpu_panels.h with groups of 4 inputs. One group is one step of AVX-512's dot product (VNNI); AVX2 widens a quarter
// of it to int16.
//
// VNNI and AMX multiply unsigned by signed: a token is stored as q + 128, and 128 · Σ_k w[o][k] is taken off at the end.

#include "cpu_panels.h"

namespace {

constexpr int64_t GROUP = 4, STEP = 64;  // inputs: of a group, of a tile
constexpr float FINE = 254.0f;           // fine steps in a coarse one

struct Layer {
  const int8_t* packed;
  const float *w_scale, *bias;  // [panels · 16]; bias may be null
  const int32_t* w_sum;         // [panels · 16]: Σ_k w[o][k]
  int64_t out, depth;           // depth: inputs with their padding
  bool adds;                    // to what y holds
};

#if defined(__AVX512VNNI__)

using Quant = uint8_t;
constexpr int OFFSET = 128;
constexpr int MAX_ROWS = 12;  // rows · 2 panels of accumulators in 32 registers

void finish_unsigned(const Layer& l, int64_t panel, __m512i sums, float scale, float* y) {
  const int64_t first = panel * PANEL;
  const __m512i exact = _mm512_sub_epi32(sums, _mm512_slli_epi32(_mm512_loadu_si512(l.w_sum + first), 7));
  const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(l.w_scale + first));
  __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), factor);
  const __mmask16 mask = __mmask16((1u << std::min(PANEL, l.out - first)) - 1);
  if (l.bias != nullptr) value = _mm512_add_ps(value, _mm512_loadu_ps(l.bias + first));
  if (l.adds) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, y + first));
  _mm512_mask_storeu_ps(y + first, mask, value);
}

inline int32_t four(const Quant* x) {
  int32_t v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// ROWS rows of x [.., depth] times PANELS neighbouring panels.
template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  const int64_t next = PANEL * l.depth;
  __m512i acc[ROWS][PANELS];
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PANELS; ++p) acc[r][p] = _mm512_setzero_si512();
  for (int64_t k = 0; k < l.depth; k += GROUP) {
    __m512i weight[PANELS];
    for (int p = 0; p < PANELS; ++p) {
      const int8_t* at = w + p * next + k * PANEL;
      prefetch(at + 32 * LINE);
      weight[p] = _mm512_loadu_si512(at);
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const __m512i token = _mm512_set1_epi32(four(x + r * l.depth + k));
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], token, weight[p]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PANELS; ++p) finish_unsigned(l, panel + p, acc[r][p], scale[r], y + r * l.out);
}

#else

// y[0 .. columns) of one row and panel from its 16 sums.
void finish(const Layer& l, int64_t panel, const int32_t* sums, float scale, float* y) {
  const int64_t first = panel * PANEL, columns = std::min(PANEL, l.out - first);
  const float* s = l.w_scale + first;
  for (int64_t c = 0; c < columns; ++c) {
    const float value = float(sums[c]) * (scale * s[c]), start = l.bias == nullptr ? 0.0f : l.bias[first + c];
    y[first + c] = value + (l.adds ? y[first + c] : start);
  }
}

#if defined(__AVX2__)

using Quant = int16_t;
constexpr int OFFSET = 0;
constexpr int MAX_ROWS = 3;  // rows · 4 quarters of a panel in 16 registers

template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  static_assert(PANELS == 1);
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  __m256i acc[ROWS][4];
  for (int r = 0; r < ROWS; ++r)
    for (int q = 0; q < 4; ++q) acc[r][q] = _mm256_setzero_si256();
  for (int64_t k = 0; k < l.depth; k += GROUP) {
    prefetch(w + (k + 32 * GROUP) * PANEL);
    __m256i token[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      long long v;
      std::memcpy(&v, x + r * l.depth + k, sizeof v);
      token[r] = _mm256_set1_epi64x(v);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {  // four outputs: sums of the even and of the odd pair of inputs beside each other
      const void* at = w + k * PANEL + q * 16;
      const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(at)));
#pragma GCC unroll 3
      for (int r = 0; r < ROWS; ++r)
        acc[r][q] = _mm256_add_epi32(acc[r][q], _mm256_madd_epi16(token[r], weight));
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    int32_t pairs[2 * PANEL], sums[PANEL];
    std::memcpy(pairs, acc[r], sizeof pairs);
    for (int64_t c = 0; c < PANEL; ++c) sums[c] = pairs[2 * c] + pairs[2 * c + 1];
    finish(l, panel, sums, scale[r], y + r * l.out);
  }
}

#else

using Quant = int8_t;
constexpr int OFFSET = 0;
constexpr int MAX_ROWS = 4;

template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  static_assert(PANELS == 1);
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  int32_t sums[ROWS][PANEL] = {};
  for (int64_t k = 0; k < l.depth; k += GROUP)
    for (int r = 0; r < ROWS; ++r)
      for (int64_t c = 0; c < PANEL; ++c)
        for (int64_t i = 0; i < GROUP; ++i)
          sums[r][c] += int32_t(x[r * l.depth + k + i]) * w[k * PANEL + c * GROUP + i];
  for (int r = 0; r < ROWS; ++r) finish(l, panel, sums[r], scale[r], y + r * l.out);
}

#endif  // AVX2

#endif  // AVX-512 VNNI

template <int PANELS, int ROWS = MAX_ROWS>
void tile_of(int64_t count, const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return tile_of<PANELS, ROWS - 1>(count, l, panel, x, scale, y);
  rows_by_panels<ROWS, PANELS>(l, panel, x, scale, y);
}

template <int PANELS>
void all_rows(const Layer& l, int64_t panel, int64_t rows, const Quant* x, const float* scale, float* y) {
  for_rows<MAX_ROWS>(rows, [&](int64_t row, int64_t count) {
    tile_of<PANELS>(count, l, panel, x + row * l.depth, scale + row, y + row * l.out);
  });
}

#if defined(__AMX_INT8__)

constexpr int64_t AMX_ROWS = 5;  // from here on tiles beat vectors; below, most of a tile's rows would be empty

void finish_tile(const Layer& l, int64_t panel, const int32_t* sums, int64_t rows, const float* scale, float* y) {
  if (panel * PANEL >= l.out) return;  // the padding of an odd number of panels
  for (int64_t r = 0; r < rows; ++r)
    finish_unsigned(l, panel, _mm512_loadu_si512(sums + r * PANEL), scale[r], y + r * l.out);
}

// Up to 32 rows by two panels.
void amx_block(const Layer& l, int64_t panel, int64_t upper, int64_t lower, const Quant* x, const float* scale, float* y) {
  const int8_t *w0 = l.packed + panel * PANEL * l.depth, *w1 = w0 + PANEL * l.depth;
  zero_sums();
  for (int64_t k = 0; k < l.depth; k += STEP) {
    prefetch_tiles(w0 + k * PANEL, w1 + k * PANEL, 2 * TILE_ROWS);
    _tile_loadd(6, w0 + k * PANEL, LINE);
    _tile_loadd(7, w1 + k * PANEL, LINE);
    _tile_loadd(4, x + k, l.depth);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (lower > 0) {
      _tile_loadd(5, x + TILE_ROWS * l.depth + k, l.depth);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  alignas(64) int32_t sums[4][TILE_ROWS * PANEL];
  store_sums(sums, lower > 0);
  finish_tile(l, panel, sums[0], upper, scale, y);
  finish_tile(l, panel + 1, sums[1], upper, scale, y);
  if (lower == 0) return;
  finish_tile(l, panel, sums[2], lower, scale + TILE_ROWS, y + TILE_ROWS * l.out);
  finish_tile(l, panel + 1, sums[3], lower, scale + TILE_ROWS, y + TILE_ROWS * l.out);
}

#endif

// One pair of panels for all rows.
void pair_of_panels(const Layer& l, int64_t pair, int64_t rows, const Quant* x, const float* scale, float* y) {
#if defined(__AMX_INT8__)
  if (has_amx && rows >= AMX_ROWS)
    return for_tiles(rows, [&](int64_t row, int64_t upper, int64_t lower) {
      amx_block(l, 2 * pair, upper, lower, x + row * l.depth, scale + row, y + row * l.out);
    });
#endif
#if defined(__AVX512VNNI__)
  if ((2 * pair + 1) * PANEL < l.out) return all_rows<2>(l, 2 * pair, rows, x, scale, y);
#endif
  for (int64_t panel = 2 * pair; panel < 2 * pair + 2 && panel * PANEL < l.out; ++panel)
    all_rows<1>(l, panel, rows, x, scale, y);
}

// The scale of a row is its absolute maximum over 127; of a row that is not finite, NaN, so that this is seen in the result.
float quantize_row(const float* x, int64_t size, int64_t depth, Quant* coarse, Quant* fine) {
  float largest = 0.0f, poison = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : poison)
  for (int64_t k = 0; k < size; ++k) {
    largest = std::max(largest, std::fabs(x[k]));
    poison += x[k] * 0.0f;
  }
  const float scale = largest / 127.0f, inverse = largest > 0.0f && poison == 0.0f ? 127.0f / largest : 0.0f;
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) {
    const float value = x[k] * inverse, whole = std::nearbyint(value);
    coarse[k] = Quant(int32_t(whole) + OFFSET);
    fine[k] = Quant(int32_t(std::nearbyint((value - whole) * FINE)) + OFFSET);
  }
  std::fill(coarse + size, coarse + depth, Quant(OFFSET));
  std::fill(fine + size, fine + depth, Quant(OFFSET));
  return scale + poison;
}

}  // namespace

extern "C" {

int64_t dc_int8_packed_bytes(int64_t out, int64_t in) { return panel_outputs(out) * padded(in, STEP); }

void dc_int8_pack(const int8_t* weight, int8_t* packed, int32_t* w_sum, int64_t out, int64_t in) {
  const int64_t depth = padded(in, STEP), outputs = panel_outputs(out);
#pragma omp parallel for
  for (int64_t o = 0; o < outputs; ++o) {
    int8_t* panel = packed + o / PANEL * PANEL * depth + o % PANEL * GROUP;
    w_sum[o] = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const int8_t value = o < out && k < in ? weight[o * in + k] : int8_t(0);
      panel[k / GROUP * LINE + k % GROUP] = value;
      w_sum[o] += value;
    }
  }
}

void dc_int8_linear(const float* x, const int8_t* packed, const float* w_scale, const int32_t* w_sum, const float* bias,
                    float* y, int64_t rows, int64_t out, int64_t in) {
  const int64_t depth = padded(in, STEP), pairs = panel_outputs(out) / (2 * PANEL);
  const int64_t block = std::min(rows, row_block(2 * depth * int64_t(sizeof(Quant))));
  const Layer whole{packed, w_scale, bias, w_sum, out, depth, false}, rest{packed, w_scale, nullptr, w_sum, out, depth, true};
  std::vector<Quant> quantized(size_t(2 * block * depth));
  std::vector<float> scales(static_cast<size_t>(2 * block));
  Quant *coarse = quantized.data(), *fine = coarse + block * depth;
  float *scale = scales.data(), *fine_scale = scale + block;
#pragma omp parallel if (rows * out * depth > PARALLEL_MACS)
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; ++r) {
      scale[r] = quantize_row(x + (first + r) * in, in, depth, coarse + r * depth, fine + r * depth);
      fine_scale[r] = scale[r] / FINE;
    }
#pragma omp for schedule(static)
    for (int64_t p = 0; p < pairs; ++p) {
      pair_of_panels(whole, p, count, coarse, scale, y + first * out);
      pair_of_panels(rest, p, count, fine, fine_scale, y + first * out);  // the panels are in the cache now
    }
  }
}

}  // extern "C"
