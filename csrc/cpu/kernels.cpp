// Built once per instruction set, with its flags and -DPFENGINE_ISA=its name: see simd.h.
#include "kernels.h"

#include "attend.h"
#include "multiply.h"
#include "rows.h"
#include "weigh.h"

namespace pfengine::cpu::PFENGINE_ISA {

#define PFENGINE_STRING(x) #x
#define PFENGINE_NAME(x) PFENGINE_STRING(x)

extern const Kernels kKernels;
const Kernels kKernels = {
    PFENGINE_NAME(PFENGINE_ISA),
    kPanel,
    {multiply<F32>, multiply<Bf16>, multiply<Int8>, multiply<Int4>},
    {attend<F32>, attend<Bf16>},
    attention_scratch,
    weigh,
    {rotate<float>, rotate<uint16_t>},
    dots,
    activate_row,
    layer_norm,
    row_to_bf16,
    quantise_row<float>,
    quantise_row<uint16_t>,
    add_rows,
};

}  // namespace pfengine::cpu::PFENGINE_ISA
