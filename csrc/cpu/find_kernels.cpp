#include <cstring>

#include "kernels.h"

namespace pfengine::cpu {

// Those that CMakeLists.txt could build.
namespace plain {
extern const Kernels kKernels;
}
#ifdef PFENGINE_AVX2
namespace avx2 {
extern const Kernels kKernels;
}
#endif
#ifdef PFENGINE_AVX512
namespace avx512 {
extern const Kernels kKernels;
}
#endif
#ifdef PFENGINE_AVX512_BF16
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif

const Kernels* find_kernels(const char* name) {
  struct Candidate {
    const Kernels* kernels;
    bool runs;
  };
#ifdef PFENGINE_AVX2
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef PFENGINE_AVX512
  const bool has_avx512 = __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
  const Candidate candidates[] = {
#ifdef PFENGINE_AVX512_BF16
      {&avx512_bf16::kKernels, has_avx512 && __builtin_cpu_supports("avx512bf16")},
#endif
#ifdef PFENGINE_AVX512
      {&avx512::kKernels, has_avx512},
#endif
#ifdef PFENGINE_AVX2
      {&avx2::kKernels, has_avx2},
#endif
      {&plain::kKernels, true},
  };
  for (const Candidate& candidate : candidates) {
    if (candidate.runs && (!*name || !std::strcmp(name, candidate.kernels->name))) return candidate.kernels;
  }
  return nullptr;
}

}  // namespace pfengine::cpu
