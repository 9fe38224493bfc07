// What is counted of one tensor, by whoever has its values at hand.
#pragma once
#include <vector>

#include "../counts.h"

class Counter {
 public:
  Counter(const Isa& isa, const Counting& how, const Counted& counted)
      : isa_(&isa),
        how_(&how),
        width_(width_of(how)),
        to_(counted.counts),
        dtype_(counted.read.dtype) {
    for (int i = 0; i < how.formats; ++i)
      prepared_.push_back(prepare(how.format[i], *counted.moments));
  }

  // Numbers of a thread's own, which it hands on with add().
  std::vector<int64_t> none() const { return std::vector<int64_t>(width_); }

  // Counts n neighbours, whose blocks begin with the first.
  void tally(const void* x, int64_t n, int64_t* counts) const {
    isa_->tally(x, dtype_, n, *how_, prepared_.data(), counts);
  }

  // Several threads add to the same: in any order it is the same.
  void add(const int64_t* counts, int64_t column = 0) const {
    for (int i = 0; i < width_; ++i)
      if (counts[i]) __atomic_fetch_add(to_ + column * width_ + i, counts[i], __ATOMIC_RELAXED);
  }

 private:
  static Prepared prepare(const Format& f, const Moments& m) {
    Prepared p{tensor_scale(f, m), {}};
    if (!f.block) p.bounds[0] = bounds_of(f, f.scaling == BY_TENSOR ? (double)p.tensor : 1);
    for (int i = 0; f.block && i < SCALES; ++i)
      p.bounds[i] = bounds_of(f, scale_of(f, i, p.tensor));
    return p;
  }

  const Isa* isa_;
  const Counting* how_;
  int width_;
  int64_t* to_;
  int dtype_;
  std::vector<Prepared> prepared_;
};
