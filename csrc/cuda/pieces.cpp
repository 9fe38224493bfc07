#include "pieces.h"

#include <string.h>

#include <algorithm>

#include "../cpu/lanes_scalar.h"

namespace {

constexpr int64_t MOST_SLOTS = (int64_t)1 << 29;
constexpr uint64_t CARRY = (uint64_t)1 << 32;  // blocks from one carry of the low word to the next

int64_t item_size(int dtype) {
  switch (dtype) {
    case FLOAT32: return 4;
    case FLOAT64: return 8;
    case FLOAT16:
    case BFLOAT16: return 2;
    default: return 1;
  }
}

template <class T>
uint64_t bits_of(float value) {
  const T t = ScalarLane::convert<T>(value);
  uint64_t bits = 0;
  memcpy(&bits, &t, sizeof t);
  return bits;
}

uint64_t constant_bits(const Window& w) {
  switch (w.dtype) {
    case FLOAT32: return bits_of<float>(w.params.add);
    case FLOAT16: return bits_of<Float16>(w.params.add);
    case BFLOAT16: return bits_of<Bfloat16>(w.params.add);
    case FLOAT8_E4M3FN: return bits_of<Float8E4m3fn>(w.params.add);
    case FLOAT8_E5M2: return bits_of<Float8E5m2>(w.params.add);
    case FLOAT8_E4M3FNUZ: return bits_of<Float8E4m3fnuz>(w.params.add);
    case FLOAT8_E5M2FNUZ: return bits_of<Float8E5m2fnuz>(w.params.add);
    default: return bits_of<double>(w.params.add);
  }
}

struct Cutter {
  std::vector<Piece> pieces;
  uint32_t tiles = 0;

  Piece start(const Window& w, int64_t local, uint64_t global) const {
    Piece p{};
    p.data = (char*)w.data + local * item_size(w.dtype);
    p.seed = w.seed;
    p.stream = w.stream;
    p.offset = w.offset + global;
    p.constant = constant_bits(w);
    p.law = w.law;
    p.dtype = w.dtype;
    p.params = w.params;
    p.run_dim = -1;
    return p;
  }

  void add(Piece& p, int64_t slots) {
    p.first_tile = tiles;
    tiles += (uint32_t)((slots + TILE_SLOTS - 1) / TILE_SLOTS);
    p.end_tile = tiles;
    pieces.push_back(p);
  }

  // Elements [from, from + n) of the run that a one-dimensional window is.
  void ragged_run(const Window& w, int64_t from, int64_t n) {
    if (n == 0) return;
    Piece p = start(w, from * w.local[0], from);
    p.length = (uint32_t)n;
    p.step = w.local[0];
    p.dims = 1;
    p.run_dim = 0;
    const int64_t slots = ((int64_t)(p.offset % 4) + n + 3) / 4;
    p.size[0] = (uint32_t)slots;
    p.local[0] = 4 * p.step;
    p.global[0] = 4;
    add(p, slots);
  }

  void run(const Window& w) {
    const int64_t n = w.size[0], item = item_size(w.dtype);
    const int64_t before = std::min(n, (int64_t)(-w.offset % 4));  // the end of another's block
    int64_t at = 0;
    while (at < n) {
      const uint64_t block = (w.offset + at) / 4;
      int64_t most = std::min(MOST_SLOTS, (int64_t)(CARRY - block % CARRY));
      int64_t some = std::min(n - at, most * 4 - (int64_t)((w.offset + at) % 4));
      const int64_t head = at ? 0 : before;
      const int64_t whole = some > head ? (some - head) / 4 / TILE_SLOTS : 0;
      // 16 bytes are several blocks of small types, so that a carry need not begin where they do.
      const bool aligned = w.local[0] == 1 && ((uintptr_t)w.data + (at + head) * item) % 16 == 0;
      if (aligned && whole) {
        const int64_t body = whole * TILE_SLOTS * 4;
        ragged_run(w, at, head);
        Piece p = start(w, at + head, at + head);
        p.whole = true;
        p.schedule = philox_schedule(p.seed, p.stream, (uint32_t)(p.offset / 4 / CARRY));
        add(p, whole * TILE_SLOTS);
        ragged_run(w, at + head + body, some - head - body);
      } else {
        ragged_run(w, at, some);
      }
      at += some;
    }
  }

  void runs(const Window& w) {
    // A run is the last dimension, if its elements are neighbours in the stream; else one element.
    const int last = w.dims - 1;
    const bool neighbours = w.global[last] == 1;
    const int64_t length = neighbours ? w.size[last] : 1;
    int64_t slots = neighbours ? (length + 6) / 4 : 1;  // wherever it starts
    const int64_t slots_of_a_run = slots;
    for (int d = 0; d < w.dims - neighbours; ++d) slots *= w.size[d];
    if (slots > MOST_SLOTS) {  // in halves
      int longest = 0;
      for (int d = 1; d < w.dims; ++d)
        if (w.size[d] > w.size[longest]) longest = d;
      Window half = w;
      half.size[longest] = w.size[longest] / 2;
      any(half);
      const int64_t done = half.size[longest];
      half.size[longest] = w.size[longest] - done;
      half.data = (char*)w.data + done * w.local[longest] * item_size(w.dtype);
      half.offset += done * w.global[longest];
      any(half);
      return;
    }
    Piece p = start(w, 0, 0);
    p.length = (uint32_t)length;
    p.step = w.local[last];
    std::vector<int> order;
    for (int d = last; d >= 0; --d) order.push_back(d);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return w.local[a] < w.local[b]; });
    for (const int d : order) {
      const bool is_run = neighbours && d == last;
      if (is_run) p.run_dim = p.dims;
      p.size[p.dims] = (uint32_t)(is_run ? slots_of_a_run : w.size[d]);
      p.local[p.dims] = is_run ? 4 * w.local[d] : w.local[d];
      p.global[p.dims] = is_run ? 4 : (uint64_t)w.global[d];
      ++p.dims;
    }
    add(p, slots);
  }

  void any(const Window& w) {
    if (w.dims == 1 && w.global[0] == 1)
      run(w);
    else
      runs(w);
  }
};

}  // namespace

std::vector<Piece> cut(const Window* windows, int64_t count) {
  Cutter cutter;
  for (int64_t i = 0; i < count; ++i)
    if (elements(windows[i])) cutter.any(windows[i]);
  return std::move(cutter.pieces);
}
