// TestU01's SmallCrush on the stream's words in one layout. benchmarks/crush.py builds and runs it.
//
//   crush LAYOUT SEED STREAM...
//
// After TestU01's own report it prints, for each statistic, "p NAME VALUE".
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

extern "C" {
#if __has_include(<testu01/bbattery.h>)  // Debian's place
#include <testu01/bbattery.h>
#else
#include <bbattery.h>
#endif
}

#include <stream.h>
#include <cpu/lanes_scalar.h>

namespace {

uint64_t seed;
std::vector<uint64_t> streams;

// A stream's words in element order.
struct Elements {
  uint64_t block = 0;
  int place = 4;
  uint32_t words[4];

  uint32_t next(uint64_t stream) {
    if (place == 4) {
      const Schedule schedule = philox_schedule(seed, stream, (uint32_t)(block >> 32));
      philox(ScalarLane(), schedule, (uint32_t)block++, words);
      place = 0;
    }
    return words[place++];
  }
};

Elements elements;
std::vector<Elements> parameters;
size_t turn = 0;
float normals[4];
int normals_left = 0;

unsigned first_word(uint64_t key, uint64_t stream) {
  uint32_t words[4];
  philox(ScalarLane(), philox_schedule(key, stream, 0), 0, words);
  return words[0];
}

unsigned consecutive_elements() { return elements.next(streams[0]); }
unsigned consecutive_streams() { return first_word(seed, streams[0]++); }
unsigned consecutive_seeds() { return first_word(seed++, streams[0]); }
unsigned interleaved_parameters() {
  const size_t at = turn++ % streams.size();
  return parameters[at].next(streams[at]);
}
unsigned bit_reversed() {
  uint32_t word = __builtin_bswap32(elements.next(streams[0]));
  word = (word >> 4 & 0x0f0f0f0fu) | (word & 0x0f0f0f0fu) << 4;
  word = (word >> 2 & 0x33333333u) | (word & 0x33333333u) << 2;
  return (word >> 1 & 0x55555555u) | (word & 0x55555555u) << 1;
}
// Of each normal the first 16 bits of its probability: a float32 holds 24 or so, whose grid
// BirthdaySpacings, which looks at 30 bits of a number, sees in the probability of a single normal.
unsigned bits_of_normal() {
  if (normals_left == 0) {
    const Schedule schedule = philox_schedule(seed, streams[0], (uint32_t)(elements.block >> 32));
    Params standard = {};
    standard.mul = 1;
    group<ScalarLane, NORMAL>(schedule, (uint32_t)elements.block++, standard, normals);
    normals_left = 4;
  }
  const double probability = erfc(-M_SQRT1_2 * normals[4 - normals_left--]) / 2;
  return (unsigned)(probability * 0x1p16);
}
unsigned normals_through_phi() {
  const unsigned upper = bits_of_normal();
  return upper << 16 | bits_of_normal();
}

const struct {
  const char* name;
  unsigned (*bits)(void);
} LAYOUTS[] = {
    {"consecutive-elements", consecutive_elements},
    {"consecutive-streams", consecutive_streams},
    {"consecutive-seeds", consecutive_seeds},
    {"interleaved-parameters", interleaved_parameters},
    {"bit-reversed", bit_reversed},
    {"normals-through-phi", normals_through_phi},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s LAYOUT SEED STREAM...\n", argv[0]);
    return 2;
  }
  seed = strtoull(argv[2], nullptr, 0);
  for (int i = 3; i < argc; ++i) streams.push_back(strtoull(argv[i], nullptr, 0));
  parameters.resize(streams.size());
  for (const auto& layout : LAYOUTS) {
    if (strcmp(layout.name, argv[1])) continue;
    std::string name = layout.name;
    bbattery_SmallCrush(unif01_CreateExternGenBits(&name[0], layout.bits));
    for (int i = 0; i < bbattery_NTests; ++i)
      printf("p %s %.17g\n", bbattery_TestNames[i], bbattery_pVal[i]);
    return 0;
  }
  fprintf(stderr, "%s: no layout %s\n", argv[0], argv[1]);
  return 2;
}
