// torch's threads, found in the process: nothing is linked.
#include <dlfcn.h>
#include <unistd.h>

#include "parallel.h"

static const pid_t process = getpid();  // that imported this

OpenMp* openmp() {
  static OpenMp* const found = (OpenMp*)dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return getpid() == process ? found : nullptr;
}
