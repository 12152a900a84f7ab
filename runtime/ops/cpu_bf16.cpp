// Linear layers with weights in bfloat16 and all else in float32, behind a C ABI; called by cpu_panels.py.
//
//     y[t][o] = Σ_k x[t][k] · w[o][k] + bias[o]
//
// Weights that a checkpoint has in bfloat16 are the same numbers in float32: read in 16 bits they cost half the memory traffic
// and lose nothing. Layout: cpu_panels.h with groups of 2 inputs.
//
// AMX multiplies bfloat16 by bfloat16 and adds in float32. x is cut into three parts of 8 bits of mantissa each, high, middle
// and low, whose sum is x: three products are those of all 24 bits, at several times the speed of float32's own units.
//
// A row's sum is taken in the same order whatever rows are beside it.

#include "cpu_panels.h"

namespace {

constexpr int64_t GROUP = 2, STEP = 32;  // inputs: of a group, of a tile

struct Layer {
  const uint16_t* packed;
  const float* bias;           // [panels · 16], or null
  int64_t out, in, depth;      // depth: inputs with their padding
};

#if defined(__AMX_BF16__)

// One row of three planes of bfloat16, high, middle and low, from x [in]. In a plane, the groups of STEP inputs of 16 rows lie
// together, as tiles.
void cut(const float* x, int64_t in, int64_t depth, uint16_t* high, uint16_t* middle, uint16_t* low) {
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t left = in - k;
    const __mmask16 mask = left >= 16 ? 0xffff : __mmask16(left > 0 ? (1u << left) - 1 : 0);
    __m512 rest = _mm512_maskz_loadu_ps(mask, x + k);
    for (uint16_t* plane : {high, middle, low}) {
      const __m256bh part = _mm512_cvtneps_pbh(rest);
      __m256i bits;
      std::memcpy(&bits, &part, sizeof bits);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(plane + k / STEP * STEP * TILE_ROWS + k % STEP), bits);
      rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
    }
  }
}

struct Planes {
  const uint16_t *high, *middle, *low;
};

void finish_tile(const Layer& l, int64_t panel, const float* sums, int64_t rows, float* y) {
  const int64_t first = panel * PANEL;
  if (first >= l.out) return;  // the padding of an odd number of panels
  const __mmask16 mask = __mmask16((1u << std::min(PANEL, l.out - first)) - 1);
  const __m512 start = l.bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(l.bias + first);
  for (int64_t r = 0; r < rows; ++r)
    _mm512_mask_storeu_ps(y + r * l.out + first, mask, _mm512_add_ps(_mm512_loadu_ps(sums + r * PANEL), start));
}

// Up to 32 rows by two panels.
void amx_block(const Layer& l, int64_t panel, int64_t upper, int64_t lower, Planes x, float* y) {
  const uint16_t *w0 = l.packed + panel * PANEL * l.depth, *w1 = w0 + PANEL * l.depth;
  zero_sums();
  for (int64_t k = 0; k < l.depth; k += STEP) {
    prefetch_tiles(w0 + k * PANEL, w1 + k * PANEL, 2 * TILE_ROWS);
    _tile_loadd(6, w0 + k * PANEL, LINE);
    _tile_loadd(7, w1 + k * PANEL, LINE);
    for (const uint16_t* plane : {x.low, x.middle, x.high}) {
      _tile_loadd(4, plane + k * TILE_ROWS, LINE);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (lower > 0) {
        _tile_loadd(5, plane + TILE_ROWS * (l.depth + k), LINE);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  alignas(64) float sums[4][TILE_ROWS * PANEL];
  store_sums(sums, lower > 0);
  finish_tile(l, panel, sums[0], upper, y);
  finish_tile(l, panel + 1, sums[1], upper, y);
  if (lower == 0) return;
  finish_tile(l, panel, sums[2], lower, y + TILE_ROWS * l.out);
  finish_tile(l, panel + 1, sums[3], lower, y + TILE_ROWS * l.out);
}

void amx_linear(const Layer& l, const float* x, float* y, int64_t rows) {
  const int64_t pairs = panel_outputs(l.out) / (2 * PANEL);
  const int64_t block = std::min(padded(rows, TILE_ROWS), row_block(3 * 2 * l.depth));
  Scratch<uint16_t> planes(3 * block * l.depth);
  uint16_t *high = planes.data(), *middle = high + block * l.depth, *low = middle + block * l.depth;
#pragma omp parallel if (rows * l.out * l.depth > PARALLEL_MACS)
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
#pragma omp for schedule(dynamic, share(count))
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = r / TILE_ROWS * TILE_ROWS * l.depth + r % TILE_ROWS * STEP;
      cut(x + (first + r) * l.in, l.in, l.depth, high + at, middle + at, low + at);
    }
#pragma omp for schedule(dynamic, share(pairs))
    for (int64_t p = 0; p < pairs; ++p)
      for_tiles<2 * TILE_ROWS>(count, [&](int64_t row, int64_t upper, int64_t lower) {
        const int64_t at = row * l.depth;
        amx_block(l, 2 * p, upper, lower, {high + at, middle + at, low + at}, y + (first + row) * l.out);
      });
  }
}

#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_ROWS = 12, PANELS = 2;  // 24 accumulators of 32 registers
#else
constexpr int LANES = 8, MAX_ROWS = 6, PANELS = 1;  // 12 of 16
#endif
constexpr int PARTS = PANELS * int(PANEL) / LANES;  // registers of one row of sums
typedef float lanes_t __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t words_t __attribute__((vector_size(LANES * sizeof(uint32_t))));

inline words_t load_words(const void* at) {
  words_t v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

inline lanes_t as_floats(words_t bits) {
  lanes_t v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// ROWS rows of x [.., in] times PANELS neighbouring panels.
template <int ROWS>
void tile(const Layer& l, int64_t panel, const float* x, float* y) {
  const uint16_t* w = l.packed + panel * PANEL * l.depth;
  lanes_t acc[ROWS][PARTS] = {};
  const auto add = [&](int64_t k, bool is_odd) {
    words_t both[PARTS];
    lanes_t weight[PARTS];
    for (int p = 0; p < PARTS; ++p) {
      const int64_t lane = int64_t(p) * LANES;
      const uint16_t* at = w + lane / PANEL * PANEL * l.depth + k * PANEL + lane % PANEL * GROUP;
      if (lane % PANEL == 0) prefetch(at + 32 * PANEL * GROUP);
      both[p] = load_words(at);
      weight[p] = as_floats(both[p] << 16);
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
      for (int p = 0; p < PARTS; ++p) acc[r][p] += weight[p] * x[r * l.in + k];
    if (!is_odd) return;
    for (int p = 0; p < PARTS; ++p) weight[p] = as_floats(both[p] & 0xffff0000u);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
      for (int p = 0; p < PARTS; ++p) acc[r][p] += weight[p] * x[r * l.in + k + 1];
  };
  int64_t k = 0;
  for (; k + GROUP <= l.in; k += GROUP) add(k, true);
  if (k < l.in) add(k, false);
  const int64_t first = panel * PANEL, columns = std::min<int64_t>(PANELS * PANEL, l.out - first);
  for (int r = 0; r < ROWS; ++r) {
    float sums[PANELS * PANEL];
    std::memcpy(sums, acc[r], sizeof sums);
    for (int64_t c = 0; c < columns; ++c) y[r * l.out + first + c] = sums[c] + (l.bias == nullptr ? 0.0f : l.bias[first + c]);
  }
}

template <int ROWS = MAX_ROWS>
void tile_of(int64_t count, const Layer& l, int64_t panel, const float* x, float* y) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return tile_of<ROWS - 1>(count, l, panel, x, y);
  tile<ROWS>(l, panel, x, y);
}

void vector_linear(const Layer& l, const float* x, float* y, int64_t rows) {
  const int64_t steps = (l.out + PANELS * PANEL - 1) / (PANELS * PANEL), block = row_block(int64_t(sizeof(float)) * l.in);
#pragma omp parallel if (rows * l.out * l.depth > PARALLEL_MACS)
  for (int64_t first = 0; first < rows; first += block)
#pragma omp for schedule(dynamic, share(steps)) nowait
    for (int64_t s = 0; s < steps; ++s)
      for_rows<MAX_ROWS>(std::min(block, rows - first), [&](int64_t row, int64_t count) {
        tile_of<>(count, l, s * PANELS, x + (first + row) * l.in, y + (first + row) * l.out);
      });
}

}  // namespace

extern "C" {

// Outputs with their padding: the length of a bias.
int64_t dc_panel_outputs(int64_t out) { return panel_outputs(out); }

int64_t dc_bf16_packed_bytes(int64_t out, int64_t in) {
  return panel_outputs(out) * padded(in, STEP) * int64_t(sizeof(uint16_t));
}

// weight [out][in] in bfloat16
void dc_bf16_pack(const uint16_t* weight, uint16_t* packed, int64_t out, int64_t in) {
  const int64_t depth = padded(in, STEP), outputs = panel_outputs(out);
#pragma omp parallel for
  for (int64_t o = 0; o < outputs; ++o) {
    uint16_t* panel = packed + o / PANEL * PANEL * depth + o % PANEL * GROUP;
    for (int64_t k = 0; k < depth; ++k)
      panel[k / GROUP * PANEL * GROUP + k % GROUP] = o < out && k < in ? weight[o * in + k] : uint16_t(0);
  }
}

void dc_bf16_linear(const PanelLinear* layer, const float* x, float* y, int64_t rows) {
  const auto* packed = static_cast<const uint16_t*>(layer->packed);
  const Layer l{packed, layer->bias, layer->out, layer->in, padded(layer->in, STEP)};
#if defined(__AMX_BF16__)
  if (has_amx) return amx_linear(l, x, y, rows);
#endif
  vector_linear(l, x, y, rows);
}

}  // extern "C"
