// What the files of the library call of each other. `kv_bytes`: of a number in the KV cache, 4 (float32) or 2 (bfloat16).

#pragma once

#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <new>

// A linear layer with weights in panels (cpu_panels.h), as runtime/ops/cpu_panels.py makes it.
struct PanelLinear {
  int64_t is_int8;
  const void* packed;
  const float* scale;   // int8: of each output, and
  const int32_t* sums;  // the sum of its weights
  const float* bias;    // or null
  int64_t out, in;
};

// `size` in whole units.
constexpr int64_t padded(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Neighbouring items of a loop that a thread takes at a time: an eighth of what would be its part. Cores are not equally fast
// where other programs run on them, and with whole parts the faster ones wait: a prompt of 128 tokens took a fifth longer.
inline int64_t share(int64_t items) {
  const int64_t most = 8 * int64_t(omp_get_max_threads());
  return items < most ? 1 : items / most;
}

// Room for `count` numbers, uninitialized.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(::operator new(size_t(count) * sizeof(T), ALIGNED))) {}
  ~Scratch() { ::operator delete(data_, ALIGNED); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }

 private:
  static constexpr std::align_val_t ALIGNED{64};
  T* data_;
};

extern "C" {

void dc_add_rms_norm(const float* x, const float* residual, const float* weight, float eps, float* out, float* total,
                     int64_t tokens, int64_t hidden);
void dc_silu_mul(const float* gate_up, float* out, int64_t tokens, int64_t inner);
void dc_rope_write(const float* qkv, const float* q_norm, const float* k_norm, float eps, const float* table,
                   const int64_t* positions, const int64_t* slots, void* keys, void* values, float* query, int64_t kv_bytes,
                   int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size);
void dc_attention(const float* query, const void* keys, const void* values, const int32_t* starts, const int32_t* contexts,
                  const int32_t* tables, float* out, int64_t kv_bytes, int64_t requests, int64_t max_blocks,
                  int64_t block_size, int64_t heads, int64_t kv_heads, int64_t dim, float scale);
void dc_bf16_linear(const PanelLinear* layer, const float* x, float* y, int64_t rows);
void dc_int8_linear(const PanelLinear* layer, const float* x, float* y, int64_t rows);

}  // extern "C"
