// x_positional::few_rows: y = x w^T for a few rows x, as fast as w is read. x is float32, w float32, bfloat16, float16 or int8.
//
// R rows of w times B rows of x are summed in registers, so that each entry of w is loaded and converted once for B products.
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

using Vec = at::vec::Vectorized<float>;
constexpr int LANES = Vec::size();
constexpr int SUMS = LANES >= 16 ? 16 : 8;  // of the 32 or 16 registers, the others hold what is being multiplied
constexpr int BLOCK = 8;                    // rows of w that are read once for all rows of x
constexpr int AHEAD = 4096;                 // bytes; processors prefetch by themselves, but not far enough

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address)
#endif

static inline Vec as_floats(const float* p) { return Vec::loadu(p); }

template <typename W>
static inline Vec as_floats(const W* p) {
  return at::vec::convert<float>(at::vec::Vectorized<W>::loadu(p, LANES));
}

#ifdef CPU_CAPABILITY_AVX2  // where torch's loads of less than a register go through memory
static inline Vec as_floats(const int8_t* p) {
  __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
static inline Vec as_floats(const c10::BFloat16* p) {
  __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
#endif

// Rows of w are `wide` entries apart, those of x `columns` and those of y `height`.
template <int R, int B, typename W>
static inline void tile(const W* w, int64_t wide, const float* x, int64_t columns, float* y, int64_t height) {
  constexpr int LINE = 64 / sizeof(W);
  Vec sums[R][B];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) sums[r][b] = Vec(0.f);
  int64_t k = 0;
  for (; k + LANES <= columns; k += LANES) {
    Vec entries[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) entries[r] = as_floats(w + r * wide + k);
    if (k % LINE == 0)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) PREFETCH(reinterpret_cast<const char*>(w + R * k) + AHEAD + 64 * r);
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
      Vec input = Vec::loadu(x + b * columns + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r][b] = at::vec::fmadd(entries[r], input, sums[r][b]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
      float sum = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, sums[r][b]);
      for (int64_t rest = k; rest < columns; rest++) sum += float(w[r * wide + rest]) * x[b * columns + rest];
      y[b * height + r] = sum;
    }
}

// `count` rows of w, at most BLOCK, times B rows of x.
template <int B, typename W>
static void block(const W* w, int64_t wide, int count, const float* x, int64_t columns, float* y, int64_t height) {
  constexpr int R = std::min(BLOCK, SUMS / B);
  int r = 0;
  for (; r + R <= count; r += R) tile<R, B>(w + r * wide, wide, x, columns, y + r, height);
  for (; r < count; r++) tile<1, B>(w + r * wide, wide, x, columns, y + r, height);
}

template <typename W>
static void product(
    const W* w, int64_t wide, int64_t height, const float* x, int64_t rows, int64_t columns, float* y, int threads) {
  int64_t blocks = (height + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < blocks; i++) {
    int64_t n = i * BLOCK, b = 0;
    int count = std::min<int64_t>(BLOCK, height - n);
    auto part = [&](auto size) {
      for (; b + size() <= rows; b += size())
        block<size()>(w + n * wide, wide, count, x + b * columns, columns, y + b * height + n, height);
    };
    part(std::integral_constant<int, 8>());
    part(std::integral_constant<int, 4>());
    part(std::integral_constant<int, 2>());
    part(std::integral_constant<int, 1>());
  }
}

// Rows of x one after the other, in `room` unless they are already.
static const float* packed(const torch::stable::Tensor& x, std::vector<float>& room) {
  const float* data = static_cast<const float*>(x.data_ptr());
  int64_t rows = x.size(0), columns = x.size(1);
  if (x.stride(1) == 1 && (x.stride(0) == columns || rows == 1)) return data;
  room.resize(rows * columns);
  for (int64_t b = 0; b < rows; b++)
    for (int64_t k = 0; k < columns; k++) room[b * columns + k] = data[b * x.stride(0) + k * x.stride(1)];
  return room.data();
}

// few_rows(Tensor x, Tensor w, int threads) -> Tensor, [B K] and [N K] -> [B N].
static void few_rows(StableIValue* stack, uint64_t, uint64_t) {
  torch::stable::Tensor x(reinterpret_cast<AtenTensorHandle>(stack[0]));
  torch::stable::Tensor w(reinterpret_cast<AtenTensorHandle>(stack[1]));
  int threads = static_cast<int>(stack[2]);
  int32_t type = -1, x_type = -1;
  if (aoti_torch_get_dtype(w.get(), &type) || aoti_torch_get_dtype(x.get(), &x_type))
    throw std::runtime_error("few_rows: the inputs have no dtype.");
  if (x.dim() != 2 || w.dim() != 2 || w.size(1) != x.size(1) || w.stride(1) != 1 || x_type != aoti_torch_dtype_float32())
    throw std::invalid_argument("few_rows needs x [B K] in float32 and w [N K] with contiguous rows.");
  int64_t rows = x.size(0), columns = x.size(1), height = w.size(0), wide = w.stride(0);
  int64_t sizes[] = {rows, height}, strides[] = {height, 1};
  AtenTensorHandle out = nullptr;
  void* y = nullptr;
  if (aoti_torch_empty_strided(2, sizes, strides, x_type, aoti_torch_device_type_cpu(), 0, &out) ||
      aoti_torch_get_data_ptr(out, &y))
    throw std::runtime_error("few_rows: no memory for the result.");
  std::vector<float> room;
  const float* inputs = packed(x, room);
  auto run = [&](auto entry) {
    const auto* matrix = static_cast<const decltype(entry)*>(w.data_ptr());
    product(matrix, wide, height, inputs, rows, columns, static_cast<float*>(y), threads);
  };
  if (type == aoti_torch_dtype_float32()) run(float());
  else if (type == aoti_torch_dtype_bfloat16()) run(c10::BFloat16());
  else if (type == aoti_torch_dtype_float16()) run(c10::Half());
  else if (type == aoti_torch_dtype_int8()) run(int8_t());
  else throw std::invalid_argument("few_rows: unsupported dtype of w.");
  stack[0] = reinterpret_cast<StableIValue>(out);
}

STABLE_TORCH_LIBRARY_IMPL(x_positional, CPU, m) { m.impl("few_rows", &few_rows); }
