// A whole layer of a dense decoder in one call: the other files' functions in the order of runtime/model/decoder.py. Called one
// by one from Python, they take a third longer at one token a step.

#include "cpu_kernels.h"

#include <algorithm>
#include <memory>

namespace {

// Rows of which the MLP's activations are made before the next ones: they stay in the cache, and take little memory.
constexpr int64_t MLP_ROWS = 512;

// Uninitialized, and kept for the layers and steps that follow: new pages would cost a fifth of a long prompt's time.
float* room(int64_t count) {
  thread_local std::unique_ptr<Scratch<float>> held;
  thread_local int64_t size = 0;
  if (count > size) {
    held.reset();
    held = std::make_unique<Scratch<float>>(count);
    size = count;
  }
  return held->data();
}

constexpr int64_t LINE = 16;  // numbers

}  // namespace

extern "C" {

// As runtime/ops/cpu_panels.py makes them.
struct DenseLayer {
  PanelLinear qkv, o, gate_up, down;
  const float *q_norm, *k_norm;  // null where the family has none
  const float *mlp_norm, *next_norm, *rope_table;
  int64_t heads, kv_heads, dim;
  float eps, scale;
};

struct Step {
  const int64_t *positions, *slots;
  const int32_t *starts, *contexts, *tables;
  int64_t tokens, requests, max_blocks, block_size, kv_bytes;
};

void dc_panel_linear(const PanelLinear* layer, const float* x, float* y, int64_t rows) {
  (layer->is_int8 ? dc_int8_linear : dc_bf16_linear)(layer, x, y, rows);
}

// x [tokens, H]: this layer's normed input, and at the end the next one's. residual [tokens, H] becomes the next layer's too.
void dc_layer(const DenseLayer* layer, const Step* step, void* keys, void* values, float* x, float* residual) {
  const DenseLayer& l = *layer;
  const Step& s = *step;
  const int64_t tokens = s.tokens, hidden = l.o.out, inner = l.down.in, attended = l.heads * l.dim;
  const int64_t rows = std::min(tokens, MLP_ROWS);
  const int64_t wide = padded(std::max(tokens * l.qkv.out, rows * l.gate_up.out), LINE);
  const int64_t second = padded(tokens * attended, LINE), first = std::max(second, padded(rows * inner, LINE));
  float* w = room(wide + first + second + rows * hidden);
  float *a = w + wide, *b = a + first, *c = b + second;
  dc_panel_linear(&l.qkv, x, w, tokens);
  dc_rope_write(w, l.q_norm, l.k_norm, l.eps, l.rope_table, s.positions, s.slots, keys, values, a, s.kv_bytes, tokens, l.heads,
                l.kv_heads, l.dim, s.block_size);
  dc_attention(a, keys, values, s.starts, s.contexts, s.tables, b, s.kv_bytes, s.requests, s.max_blocks, s.block_size, l.heads,
               l.kv_heads, l.dim, l.scale);
  for (int64_t row = 0; row < tokens; row += rows) {
    const int64_t count = std::min(rows, tokens - row);
    float *normed = x + row * hidden, *sum = residual + row * hidden;
    dc_panel_linear(&l.o, b + row * attended, c, count);
    dc_add_rms_norm(c, sum, l.mlp_norm, l.eps, normed, sum, count, hidden);
    dc_panel_linear(&l.gate_up, normed, w, count);
    dc_silu_mul(w, a, count, inner);
    dc_panel_linear(&l.down, a, c, count);
    dc_add_rms_norm(c, sum, l.next_norm, l.eps, normed, sum, count, hidden);
  }
}

}  // extern "C"
