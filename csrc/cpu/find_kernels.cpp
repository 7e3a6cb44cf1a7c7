#include <cstring>

#include "kernels.h"

namespace pfengine::cpu {

#define PFENGINE_DECLARE(isa)    \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
PFENGINE_DECLARE(plain)
#ifdef PFENGINE_X86_KERNELS
PFENGINE_DECLARE(avx2)
PFENGINE_DECLARE(avx512)
PFENGINE_DECLARE(avx512_bf16)
#endif

const Kernels* find_kernels(const char* name) {
  struct Candidate {
    const Kernels* kernels;
    bool runs;
  };
#ifdef PFENGINE_X86_KERNELS
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  const Candidate candidates[] = {{&avx512_bf16::kKernels, has_avx512 && __builtin_cpu_supports("avx512bf16")},
                                  {&avx512::kKernels, has_avx512},
                                  {&avx2::kKernels, has_avx2},
                                  {&plain::kKernels, true}};
#else
  const Candidate candidates[] = {{&plain::kKernels, true}};
#endif
  for (const Candidate& candidate : candidates) {
    if (candidate.runs && (!*name || !std::strcmp(name, candidate.kernels->name))) return candidate.kernels;
  }
  return nullptr;
}

}  // namespace pfengine::cpu
