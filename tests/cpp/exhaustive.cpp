// Checks stream.h's transforms for all 2^32 words, on the fastest lane that this machine has.
//
//   exhaustive NAME MEAN STD A B MUL ADD LO HI X_MUL X_ADD T_MUL T_BELOW T_ABOVE ...
//
// checks the normal law, then each truncated normal that is named: the law's parameters, then the
// kernel's (fastinit.stream.laws.kernel_params). Numbers may be hexadecimal. It prints what it measured with
// the limit of each, and exits with 1 if one is exceeded. tests/stream/test_exhaustive.py builds and runs it.
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "../../csrc/stream.h"
#include "../../csrc/cpu/lanes_scalar.h"
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "../../csrc/cpu/lanes_avx512.h"
typedef Avx512Lane Lane;
static const char* const LANE = "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "../../csrc/cpu/lanes_avx2.h"
typedef Avx2Lane Lane;
static const char* const LANE = "AVX2";
#else
typedef ScalarLane Lane;
static const char* const LANE = "scalar";
#endif
#include "float64.h"

namespace {

// normal_pair takes exactly one square root, the radius. This lane keeps it ...
struct RadiusLane : Lane {
  static thread_local Lane::F radius;
  FASTINIT_FN F sqrt(F a) { return radius = Lane::sqrt(a); }
};
thread_local Lane::F RadiusLane::radius;

// ... and this one replaces it by 1, which leaves SIGMA sqrt(2) times the cosine and the sine.
struct UnitRadiusLane : Lane {
  FASTINIT_FN F sqrt(F) { return Lane::set(1.0f); }
};

const double ALL = 0x1p32;
const double SIGMA = sqrt(M_LN2 / KAPPA);
constexpr int BATCH = 4096;
constexpr int WIDTH = Lane::WIDTH;

Lane::U load(const uint32_t* words) {
  Lane::U u;
  memcpy(&u, words, sizeof u);
  return u;
}
void store(float* to, Lane::F values) { memcpy(to, &values, sizeof values); }

int failures = 0;
void report(const char* what, double measured, double limit) {
  const bool good = measured <= limit;  // false for a NaN
  printf("  %-46s %-12.9g at most %.7g%s\n", what, measured, limit, good ? "" : "  FAILED");
  fflush(stdout);
  failures += !good;
}
void tell(const char* what, double measured) { printf("  %-46s %.9g\n", what, measured); }

double ulp(double x) { return x == 0 ? FLT_TRUE_MIN : ldexp(1.0, std::max(ilogb(x), -126) - 23); }

int64_t not_finite(const float* v, int n) {
  int64_t count = 0;
  for (int i = 0; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, v + i, sizeof bits);
    count += (bits & 0x7f800000u) == 0x7f800000u;
  }
  return count;
}

// Every word once, in ascending runs of BATCH, on all cores. Each thread has a Result of its own.
template <class Result, class Check>
Result all_words(const Check& check) {
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  const uint64_t batches = (uint64_t)ALL / BATCH;
  Result total;
  std::mutex lock;
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      Result mine;
      std::vector<uint32_t> words(BATCH);
      for (uint64_t b = batches * t / threads; b < batches * (t + 1) / threads; ++b) {
        for (int i = 0; i < BATCH; ++i) words[i] = (uint32_t)(b * BATCH + i);
        check(words.data(), mine);
      }
      std::lock_guard<std::mutex> hold(lock);
      total.merge(mine);
    });
  for (std::thread& thread : pool) thread.join();
  return total;
}

// ---------------------------------------------------------------------------------------------

struct Normal {
  double radius_ulps = 0, radius_most = 0, angle = 0, pair = 0, most = 0;
  double float64_radius = 0, float64_angle = 0;
  int64_t bad = 0;
  void merge(const Normal& o) {
    radius_ulps = std::max(radius_ulps, o.radius_ulps);
    radius_most = std::max(radius_most, o.radius_most);
    angle = std::max(angle, o.angle);
    pair = std::max(pair, o.pair);
    most = std::max(most, o.most);
    float64_radius = std::max(float64_radius, o.float64_radius);
    float64_angle = std::max(float64_angle, o.float64_angle);
    bad += o.bad;
  }
};

// Each word as a radius word with an angle word that is another for each, and as an angle word with
// radius 1 and with the largest radius, that of word 0.
void check_normal(const uint32_t* words, Normal& all) {
  static thread_local std::vector<float> floats(7 * BATCH);
  static thread_local std::vector<double> doubles(5 * BATCH);
  static thread_local std::vector<uint32_t> others(BATCH);
  float *r = &floats[0], *cosine = r + BATCH, *sine = cosine + BATCH, *z0 = sine + BATCH,
        *z1 = z0 + BATCH, *top0 = z1 + BATCH, *top1 = top0 + BATCH;
  double *exact_r = &doubles[0], *exact_c = exact_r + BATCH, *exact_s = exact_c + BATCH,
         *other_c = exact_s + BATCH, *other_s = other_c + BATCH;
  const uint32_t zeros[WIDTH] = {};
  for (int i = 0; i < BATCH; ++i) others[i] = words[i] * PHILOX_W0;  // odd: each word occurs once

  for (int i = 0; i < BATCH; i += WIDTH) {
    const Lane::U word = load(words + i);
    Lane::F z[2];
    normal_pair<RadiusLane>(word, load(&others[i]), z);
    store(r + i, RadiusLane::radius);
    store(z0 + i, z[0]), store(z1 + i, z[1]);
    normal_pair<UnitRadiusLane>(word, word, z);
    store(cosine + i, z[0]), store(sine + i, z[1]);
    normal_pair<Lane>(load(zeros), word, z);
    store(top0 + i, z[0]), store(top1 + i, z[1]);
  }
  float64::radius(words, KAPPA, exact_r, BATCH);
  float64::angle(words, exact_c, exact_s, BATCH);
  float64::angle(others.data(), other_c, other_s, BATCH);

  all.radius_ulps = std::max(all.radius_ulps, float64::ulps(r, exact_r, BATCH));
  const double unit = SIGMA * M_SQRT2;
  const double error = std::max(float64::error(cosine, exact_c, nullptr, unit, BATCH),
                                float64::error(sine, exact_s, nullptr, unit, BATCH));
  all.angle = std::max(all.angle, error / unit);
  all.pair = std::max(all.pair, std::max(float64::error(z0, exact_r, other_c, unit, BATCH),
                                         float64::error(z1, exact_r, other_s, unit, BATCH)));
  for (int i = 0; i < BATCH; ++i) {
    all.radius_most = std::max(all.radius_most, (double)r[i]);
    all.most = std::max(all.most, (double)std::max(fabsf(top0[i]), fabsf(top1[i])));
  }
  all.bad += not_finite(floats.data(), 7 * BATCH);

  // The float64 side itself, at a few words: those of the ends, and one in each batch elsewhere.
  const bool end = words[0] == 0 || words[BATCH - 1] == UINT32_MAX;
  for (int i = 0; i < BATCH; i += end ? 1 : BATCH) {
    const long double u = (words[i] + 0.5L) * 0x1p-32L;
    const long double x = sqrtl(-(long double)KAPPA * log2l(u));
    all.float64_radius = std::max(all.float64_radius, (double)fabsl(exact_r[i] / x - 1));
    const long double pi = 3.14159265358979323846264338327950288L;
    const long double theta = (int32_t)(words[i] << 2) * (0x1p-31L * pi / 4);
    const long double c = cosl(theta - pi / 4), s = cosl(theta + pi / 4);
    all.float64_angle = std::max(all.float64_angle, (double)fabsl(fabs(exact_c[i]) - c));
    all.float64_angle = std::max(all.float64_angle, (double)fabsl(fabs(exact_s[i]) - s));
  }
}

void normal() {
  printf("normal, all 2^32 radius words and all 2^32 angle words\n");
  const Normal all = all_words<Normal>(check_normal);
  // Half an ulp from the square root; the rest from five roundings before it, each halved by it: of
  // the word to 24 bits, in q's last two steps, of q's coefficients (2.5e-8), in the last fma.
  report("radius, error in ulps", all.radius_ulps, 1.7);
  report("cosine and sine, error", all.angle, 1.5e-7);
  // A radius of at most 6.7637 with an ulp of 2^-21 at SIGMA = 0.88, the angle's error times the
  // radius, and three roundings of half an ulp of at most 2^-21 each.
  report("z, error (one angle word for each radius word)", all.pair,
         6.7637 * 1.5e-7 + 2.5 * 0x1p-21);
  const double most = sqrt(-2 * log(0x1p-33));
  report("largest |z|, distance from sqrt(66 ln 2)", fabs(all.most - most), 0x1p-21);
  report("largest radius, distance from word 0's", fabs(all.radius_most - sqrt(KAPPA * 33.0)),
         ulp(sqrt(KAPPA * 33.0)));
  tell("largest |z|", all.most);
  report("infinities and NaN", (double)all.bad, 0);
  report("float64 radius, relative error", all.float64_radius, 2e-15);
  report("float64 cosine and sine, error", all.float64_angle, 2e-15);
}

// ---------------------------------------------------------------------------------------------

struct Window {
  const char* name;
  double mean, std, a, b;
  Params params;
};

double tail(double x) { return erfc(x * M_SQRT1_2) / 2; }  // P(Z > x)
double density(double x) { return exp(-x * x / 2) / sqrt(2 * M_PI); }

// The distance of a value from the float64 quantile of its word, in standard deviations: one Newton
// step, whose own error is of the order of the distance's square.
struct Quantile {
  double below_a, above_b, mass, mean, std;
  explicit Quantile(const Window& w) : mean(w.mean), std(w.std) {
    const double a = (w.a - mean) / std, b = (w.b - mean) / std;
    below_a = tail(-a), above_b = tail(b);
    mass = b < -a ? tail(-b) - below_a : tail(a) - above_b;
    if (fabs(a) < 0.5 && fabs(b) < 0.5) mass = (erf(b * M_SQRT1_2) - erf(a * M_SQRT1_2)) / 2;
  }
  double error(uint32_t word, float value) const {
    const double z = (value - mean) / std, u = (word + 0.5) * 0x1p-32;
    const double upper = (UINT32_MAX - word + 0.5) * 0x1p-32;  // 1 - u
    const double off = z < 0 ? tail(-z) - (below_a + u * mass) : tail(z) - (above_b + upper * mass);
    return fabs(off) / density(z);
  }
};

struct Truncated {
  double error = 0, error_low = 0, error_high = 0, largest_drop = 0, low = INFINITY,
         high = -INFINITY;
  int64_t outside = 0, at_a = 0, at_b = 0, drops = 0, compared = 0, other = 0;
  void merge(const Truncated& o) {
    error = std::max(error, o.error);
    error_low = std::max(error_low, o.error_low);
    error_high = std::max(error_high, o.error_high);
    largest_drop = std::max(largest_drop, o.largest_drop);
    low = std::min(low, o.low), high = std::max(high, o.high);
    outside += o.outside, at_a += o.at_a, at_b += o.at_b, drops += o.drops, compared += o.compared;
    other += o.other;
  }
};

constexpr uint32_t END = 1 << 20;  // words at each end that are all compared
constexpr int STEP = 64;           // elsewhere, one in so many

void truncated(const Window& w) {
  printf("truncated normal %s, all 2^32 words\n", w.name);
  const Quantile quantile(w);
  const double switch_at = 2.885;  // standard deviations at l = TAIL
  const bool simple = is_simple<ScalarLane>(TRUNCATED_NORMAL, w.params);
  const Truncated all = all_words<Truncated>([&](const uint32_t* words, Truncated& result) {
    static thread_local std::vector<float> values(BATCH + WIDTH);
    float* v = values.data() + WIDTH;  // v[-1] is the value of the word before
    for (int i = words[0] ? -WIDTH : 0; i < BATCH; i += WIDTH) {
      uint32_t group[WIDTH];
      for (int k = 0; k < WIDTH; ++k) group[k] = words[0] + i + k;
      store(v + i, truncated_normal<Lane>(load(group), w.params));
      float simply[WIDTH];
      store(simply, truncated_normal<Lane>(load(group), w.params, false, simple));
      result.other += memcmp(simply, v + i, sizeof simply) != 0;
    }
    const float a = (float)w.params.lo, b = (float)w.params.hi;
    const float lowest = (float)w.a, highest = (float)w.b;  // as double: a and b are float32 values
    int inside = 0, at_a = 0, at_b = 0, drops = 0;
    for (int i = 0; i < BATCH; ++i) {
      inside += (v[i] >= lowest) & (v[i] <= highest) & (fabsf(v[i]) <= FLT_MAX);
      at_a += v[i] == a;
      at_b += v[i] == b;
    }
    for (int i = words[0] == 0; i < BATCH; ++i) drops += v[i] < v[i - 1];
    for (int i = words[0] == 0; drops && i < BATCH; ++i)
      result.largest_drop = std::max(result.largest_drop, (double)v[i - 1] - v[i]);
    result.outside += BATCH - inside, result.at_a += at_a, result.at_b += at_b;
    result.drops += drops;
    const bool low = words[0] < END, high = words[0] >= UINT32_MAX - END;
    const bool near_switch = fabs(fabs((v[0] - w.mean) / w.std) - switch_at) < 1e-3;
    for (int i = 0; i < BATCH; i += low || high || near_switch ? 1 : STEP) {
      const double z = fabs((v[i] - w.mean) / w.std), off = quantile.error(words[i], v[i]);
      ++result.compared;
      result.error = std::max(result.error, off / std::max(1.0, z));
      if (low) result.error_low = std::max(result.error_low, off);
      if (high) result.error_high = std::max(result.error_high, off);
      result.low = std::min(result.low, (double)v[i]);
      result.high = std::max(result.high, (double)v[i]);
    }
  });
  report("values outside [a, b], infinities, NaN", (double)all.outside, 0);
  if (simple) report("vectors that the simple way changes", (double)all.other, 0);
  report("error / max(1, |z|)", all.error, 1e-6);
  tell("words compared", (double)all.compared);
  tell("smallest value", all.low);
  tell("largest value", all.high);
  // Of a bound's own are the words whose exact value is nearer to it than the kernel's error there
  // and a float32 step.
  const double alpha = (w.a - w.mean) / w.std, beta = (w.b - w.mean) / w.std;
  const double share_a = density(alpha) / quantile.mass * (all.error_low + ulp(alpha)) * ALL;
  const double share_b = density(beta) / quantile.mass * (all.error_high + ulp(beta)) * ALL;
  report("words that give a", (double)all.at_a, isinf(alpha) ? 0 : ceil(share_a) + 1);
  report("words that give b", (double)all.at_b, isinf(beta) ? 0 : ceil(share_b) + 1);
  tell("words that give less than the word before", (double)all.drops);
  report("the largest of these drops, in std", all.largest_drop / w.std, 2e-6);
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int FIELDS = 15;
  if ((argc - 1) % FIELDS) {
    fprintf(stderr, "%s: expected %d arguments for each window\n", argv[0], FIELDS);
    return 2;
  }
  printf("%s lane, %u threads\n", LANE, std::thread::hardware_concurrency());
  normal();
  for (int at = 1; at < argc; at += FIELDS) {
    double x[FIELDS];
    for (int i = 1; i < FIELDS; ++i) x[i] = strtod(argv[at + i], nullptr);
    const Params params = {(float)x[5],  (float)x[6],  (float)x[7],  (float)x[8],  (float)x[9],
                           (float)x[10], (float)x[11], (float)x[12], (float)x[13], (float)x[14]};
    truncated({argv[at], x[1], x[2], x[3], x[4], params});
  }
  return failures ? 1 : 0;
}
