// Linear layers in int8 behind a C ABI; called by cpu_panels.py, defined by runtime/ops/int8.py.
//
//     y[t][o] = (Σ_k q[t][k] · w[o][k] + Σ_k f[t][k] · w[o][k] / FINE) · scale[t] · w_scale[o] + bias[o]
//
// The sums are in integers, so exact in any order. q are the coarse, f the fine parts of a token.
//
// Layout: cpu_panels.h with groups of 4 inputs. One group is one step of AVX-512's dot product (VNNI), whose factors have 8
// bits: it takes the two parts one after the other. AVX2 widens a quarter of a group to 16 bits and takes FINE · q + f at once.
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
};

#if defined(__AVX512VNNI__)

using Quant = uint8_t;
constexpr int PARTS = 2, OFFSET = 128;
constexpr int MAX_ROWS = 6;  // rows · 2 parts · 2 panels of accumulators in 32 registers

// y[0 .. columns) of one row and panel from the sums of its two parts.
void finish(const Layer& l, int64_t panel, __m512i coarse, __m512i fine, float scale, float* y) {
  const int64_t first = panel * PANEL;
  const __m512i offset = _mm512_slli_epi32(_mm512_loadu_si512(l.w_sum + first), 7);
  const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(coarse, offset));
  const __m512 rest = _mm512_cvtepi32_ps(_mm512_sub_epi32(fine, offset));
  const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(l.w_scale + first));
  const __m512 start = l.bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(l.bias + first);
  const __m512 value = _mm512_fmadd_ps(_mm512_fmadd_ps(rest, _mm512_set1_ps(1 / FINE), whole), factor, start);
  _mm512_mask_storeu_ps(y + first, __mmask16((1u << std::min(PANEL, l.out - first)) - 1), value);
}

inline int32_t four(const Quant* x) {
  int32_t v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// ROWS rows of x [.., depth], whose fine parts lie `next` numbers behind the coarse, times PANELS neighbouring panels.
template <int ROWS, int PANELS>
__attribute__((noinline)) void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, int64_t next, const float* scale,
                                              float* y) {
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  __m512i acc[ROWS][PARTS][PANELS] = {};
  for (int64_t k = 0; k < l.depth; k += GROUP) {
    __m512i weight[PANELS];
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) {
      const int8_t* at = w + p * PANEL * l.depth + k * PANEL;
      prefetch(at + 32 * LINE);
      weight[p] = _mm512_loadu_si512(at);
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
      for (int part = 0; part < PARTS; ++part) {
        const __m512i token = _mm512_set1_epi32(four(x + part * next + r * l.depth + k));
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; ++p) {
          acc[r][part][p] = _mm512_dpbusd_epi32(acc[r][part][p], token, weight[p]);
          asm("" : "+v"(acc[r][part][p]));  // it stays in its register: GCC 12 moved most of them to memory
        }
      }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) finish(l, panel + p, acc[r][0][p], acc[r][1][p], scale[r], y + r * l.out);
}

#else

using Quant = int16_t;
constexpr int PARTS = 1, OFFSET = 0;
constexpr int64_t EXACT = 512;  // neighbouring inputs whose products add up in int32: 512 · 127 · (127 · FINE + 127) < 2³¹

// y[0 .. columns) of one row and panel from its 16 sums.
void finish(const Layer& l, int64_t panel, const float* sums, float scale, float* y) {
  const int64_t first = panel * PANEL, columns = std::min(PANEL, l.out - first);
  const float* s = l.w_scale + first;
  for (int64_t c = 0; c < columns; ++c)
    y[first + c] = sums[c] * (scale / FINE * s[c]) + (l.bias == nullptr ? 0.0f : l.bias[first + c]);
}

#if defined(__AVX2__)

constexpr int MAX_ROWS = 6;

inline __m256i add_products(__m256i sums, __m256i token, __m256i weight) {
#if defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sums, token, weight);
#else
  return _mm256_add_epi32(sums, _mm256_madd_epi16(token, weight));
#endif
}

// Adds the products of ROWS rows with inputs [0, end) and QUARTERS quarters of a panel to sums [ROWS][PANEL]. A quarter is four
// outputs; the sums of its even and of its odd pairs of inputs lie beside each other.
template <int ROWS, int QUARTERS>
__attribute__((noinline)) void add_quarters(const int8_t* w, const Quant* x, int64_t depth, int64_t end, float* sums) {
  __m256i acc[ROWS][QUARTERS] = {};
  int64_t k = 0;
  do {  // at least once: else the compiler keeps them in memory
    prefetch(w + 32 * LINE);
    __m256i weight[QUARTERS];
#pragma GCC unroll 4
    for (int q = 0; q < QUARTERS; ++q)
      weight[q] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + q * 16)));
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      long long four;
      std::memcpy(&four, x + r * depth + k, sizeof four);
      const __m256i token = _mm256_set1_epi64x(four);
#pragma GCC unroll 4
      for (int q = 0; q < QUARTERS; ++q) {
        acc[r][q] = add_products(acc[r][q], token, weight[q]);
        asm("" : "+x"(acc[r][q]));  // as above
      }
    }
    w += LINE;
    k += GROUP;
  } while (k < end);
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int q = 0; q < QUARTERS; q += 2) {
      const __m256 both = _mm256_hadd_ps(_mm256_cvtepi32_ps(acc[r][q]), _mm256_cvtepi32_ps(acc[r][q + 1]));
      const __m256 eight = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(both), 0b11'01'10'00));
      float* to = sums + r * PANEL + 4 * q;
      _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), eight));
    }
}

template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, int64_t, const float* scale, float* y) {
  static_assert(PANELS == 1);
  constexpr int QUARTERS = ROWS <= 3 ? 4 : 2;  // at once: 12 accumulators of 16 registers
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  float sums[ROWS][PANEL] = {};
  for (int64_t begin = 0; begin < l.depth; begin += 2 * EXACT)  // a sum has every other pair of inputs
    for (int q = 0; q < 4; q += QUARTERS) {
      const int8_t* at = w + begin * PANEL + q * 16;
      add_quarters<ROWS, QUARTERS>(at, x + begin, l.depth, std::min(2 * EXACT, l.depth - begin), sums[0] + 4 * q);
    }
  for (int r = 0; r < ROWS; ++r) finish(l, panel, sums[r], scale[r], y + r * l.out);
}

#else

constexpr int MAX_ROWS = 4;

template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, int64_t, const float* scale, float* y) {
  static_assert(PANELS == 1);
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  float sums[ROWS][PANEL] = {};
  for (int64_t begin = 0; begin < l.depth; begin += EXACT) {
    int32_t acc[ROWS][PANEL] = {};
    for (int64_t k = begin, end = std::min(begin + EXACT, l.depth); k < end; k += GROUP)
      for (int r = 0; r < ROWS; ++r)
        for (int64_t c = 0; c < PANEL; ++c)
          for (int64_t i = 0; i < GROUP; ++i)
            acc[r][c] += int32_t(x[r * l.depth + k + i]) * w[k * PANEL + c * GROUP + i];
    for (int r = 0; r < ROWS; ++r)
      for (int64_t c = 0; c < PANEL; ++c) sums[r][c] += float(acc[r][c]);
  }
  for (int r = 0; r < ROWS; ++r) finish(l, panel, sums[r], scale[r], y + r * l.out);
}

#endif  // AVX2

#endif  // AVX-512 VNNI

template <int PANELS, int ROWS = MAX_ROWS>
void tile_of(int64_t count, const Layer& l, int64_t panel, const Quant* x, int64_t next, const float* scale, float* y) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return tile_of<PANELS, ROWS - 1>(count, l, panel, x, next, scale, y);
  rows_by_panels<ROWS, PANELS>(l, panel, x, next, scale, y);
}

template <int PANELS>
void all_rows(const Layer& l, int64_t panel, int64_t rows, const Quant* x, int64_t next, const float* scale, float* y) {
  for_rows<MAX_ROWS>(rows, [&](int64_t row, int64_t count) {
    tile_of<PANELS>(count, l, panel, x + row * l.depth, next, scale + row, y + row * l.out);
  });
}

#if defined(__AMX_INT8__)

constexpr int64_t AMX_ROWS = 5;  // from here on tiles beat vectors; below, most of a tile's rows would be empty

inline bool in_tiles(int64_t rows) { return has_amx && rows >= AMX_ROWS; }

void finish_tile(const Layer& l, int64_t panel, const int32_t* coarse, const int32_t* fine, int64_t rows, const float* scale,
                 float* y) {
  if (panel * PANEL >= l.out) return;  // the padding of an odd number of panels
  for (int64_t r = 0; r < rows; ++r)
    finish(l, panel, _mm512_loadu_si512(coarse + r * PANEL), _mm512_loadu_si512(fine + r * PANEL), scale[r], y + r * l.out);
}

// Up to 16 rows, in two parts, by two panels.
void amx_block(const Layer& l, int64_t panel, int64_t rows, const Quant* x, int64_t next, const float* scale, float* y) {
  const int8_t *w0 = l.packed + panel * PANEL * l.depth, *w1 = w0 + PANEL * l.depth;
  zero_sums();
  for (int64_t k = 0; k < l.depth; k += STEP) {
    prefetch_tiles(w0 + k * PANEL, w1 + k * PANEL, 2 * TILE_ROWS);
    _tile_loadd(6, w0 + k * PANEL, LINE);
    _tile_loadd(7, w1 + k * PANEL, LINE);
    _tile_loadd(4, x + k * TILE_ROWS, LINE);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, x + next + k * TILE_ROWS, LINE);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  alignas(64) int32_t sums[4][TILE_ROWS * PANEL];
  store_sums(sums, true);
  finish_tile(l, panel, sums[0], sums[2], rows, scale, y);
  finish_tile(l, panel + 1, sums[1], sums[3], rows, scale, y);
}

#else

inline bool in_tiles(int64_t) { return false; }

#endif

// One pair of panels for all rows.
void pair_of_panels(const Layer& l, int64_t pair, int64_t rows, const Quant* x, int64_t next, const float* scale, float* y) {
#if defined(__AMX_INT8__)
  if (in_tiles(rows))
    return for_tiles<TILE_ROWS>(rows, [&](int64_t row, int64_t count, int64_t) {
      amx_block(l, 2 * pair, count, x + row * l.depth, next, scale + row, y + row * l.out);
    });
#endif
#if defined(__AVX512VNNI__)
  if ((2 * pair + 1) * PANEL < l.out) return all_rows<2>(l, 2 * pair, rows, x, next, scale, y);
#endif
  for (int64_t panel = 2 * pair; panel < 2 * pair + 2 && panel * PANEL < l.out; ++panel)
    all_rows<1>(l, panel, rows, x, next, scale, y);
}

struct Range {
  float scale = 0.0f, inverse = 0.0f;  // inverse: 0 where there is nothing to scale
};

// The scale of a row is its absolute maximum over 127; of a row that is not finite, NaN, so that this is seen in the result.
Range range_of(const float* x, int64_t size) {
  float largest = 0.0f, poison = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : poison)
  for (int64_t k = 0; k < size; ++k) {
    largest = std::max(largest, std::fabs(x[k]));
    poison += x[k] * 0.0f;
  }
  return {largest / 127.0f + poison, largest > 0.0f && poison == 0.0f ? 127.0f / largest : 0.0f};
}

// The numbers of a row, in groups of STEP that lie `hop` apart; a second part is `next` behind the first. Returns its scale.
float quantize_row(const float* x, int64_t size, int64_t depth, Quant* part, int64_t hop, int64_t next) {
  const auto [scale, inverse] = range_of(x, size);
  for (int64_t begin = 0; begin < depth; begin += STEP, part += hop) {
    float edge[STEP] = {};
    const float* from = x + begin;
    if (begin + STEP > size) {
      std::copy(from, x + size, edge);
      from = edge;
    }
#pragma omp simd
    for (int64_t k = 0; k < STEP; ++k) {
      const float value = from[k] * inverse, whole = std::nearbyint(value);
      const int32_t coarse = int32_t(whole), fine = int32_t(std::nearbyint((value - whole) * FINE));
      if constexpr (PARTS == 2) {
        part[k] = Quant(coarse + OFFSET);
        part[next + k] = Quant(fine + OFFSET);
      } else {
        part[k] = Quant(coarse * int32_t(FINE) + fine);
      }
    }
  }
  return scale;
}

}  // namespace

extern "C" {

int64_t dc_int8_packed_bytes(int64_t out, int64_t in) { return panel_outputs(out) * padded(in, STEP); }

// Each output's weights over its scale, which is their absolute maximum over 127, rounded; NaN where they are not finite.
void dc_int8_pack(const float* weight, int8_t* packed, float* scale, int32_t* w_sum, int64_t out, int64_t in) {
  const int64_t depth = padded(in, STEP), outputs = panel_outputs(out);
#pragma omp parallel for
  for (int64_t o = 0; o < outputs; ++o) {
    int8_t* panel = packed + o / PANEL * PANEL * depth + o % PANEL * GROUP;
    const float* from = weight + o * in;
    const Range range = o < out ? range_of(from, in) : Range{};
    scale[o] = range.scale;
    w_sum[o] = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const int8_t value = range.inverse > 0.0f && k < in ? int8_t(std::nearbyint(from[k] * range.inverse)) : int8_t(0);
      panel[k / GROUP * LINE + k % GROUP] = value;
      w_sum[o] += value;
    }
  }
}

void dc_int8_linear(const PanelLinear* layer, const float* x, float* y, int64_t rows) {
  const int64_t out = layer->out, in = layer->in;
  const Layer l{static_cast<const int8_t*>(layer->packed), layer->scale, layer->bias, layer->sums, out, padded(in, STEP)};
  const int64_t pairs = panel_outputs(out) / (2 * PANEL), whole = padded(rows, 16);
  const int64_t block = std::min(whole, row_block(PARTS * l.depth * int64_t(sizeof(Quant)))), next = block * l.depth;
  Scratch<Quant> parts(PARTS * next);
  Scratch<float> scales(block);
  float* scale = scales.data();
#pragma omp parallel if (rows * out * l.depth > PARALLEL_MACS)
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    const bool tiles = in_tiles(count);  // 16 rows' groups of a step lie together
#pragma omp for schedule(dynamic, share(count))
    for (int64_t r = 0; r < count; ++r) {
      Quant* to = parts.data() + (tiles ? r / 16 * 16 * l.depth + r % 16 * STEP : r * l.depth);
      scale[r] = quantize_row(x + (first + r) * in, in, l.depth, to, tiles ? 16 * STEP : STEP, next);
    }
#pragma omp for schedule(dynamic, share(pairs))
    for (int64_t p = 0; p < pairs; ++p) pair_of_panels(l, p, count, parts.data(), next, scale, y + first * out);
  }
}

}  // extern "C"
