// torch's threads, found in the process: nothing is linked.
#include "parallel.h"

#ifdef _WIN32  // whose torch has another OpenMP: threads of our own are taken
OpenMp* openmp() { return nullptr; }
#else
#include <dlfcn.h>
#include <unistd.h>

static const pid_t process = getpid();  // that imported this

OpenMp* openmp() {
  static OpenMp* const found = (OpenMp*)dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return getpid() == process ? found : nullptr;
}
#endif
